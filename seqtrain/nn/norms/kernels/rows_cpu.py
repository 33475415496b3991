"""Masked batch norm on the CPU: two passes forward and two backward over the real rows alone."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqtrain.nn.norms.kernels import compiled, loops
from seqtrain.nn.norms.kernels.loops import Array
from seqtrain.nn.norms.moments import Moments
from seqtrain.nn.norms.running import RunningStatistics, running_standard
from seqtrain.nn.norms.standardize import (
    differentiable_backward,
    inverse_root,
    per_channel,
)

SMALLEST = 2**14
"""Elements from which on it is worth loading the compiled loops."""

TILE = 2**13
"""Elements of a tile: 32 KiB in float32, to stay in the fastest cache."""

TILES_PER_CHUNK = 8

CHUNKS_PER_THREAD = 4
"""A thread wakes up in the time in which another has done about two."""


class Rows(NamedTuple):
    """The real rows of a batch and how they are cut up, the same whatever the threads."""

    places: Array
    """int64, rising."""
    tile: int
    """Rows summed up in the input's dtype."""

    @property
    def chunk(self) -> int:
        """Rows done in one go."""
        return self.tile * TILES_PER_CHUNK

    @property
    def num_chunks(self) -> int:
        """All of them, the last one perhaps shorter."""
        return -(-len(self.places) // self.chunk)

    def moments(self, x: Array) -> tuple[Array, Array]:
        """Mean and sum of squared deviations of each channel, float64."""
        means, m2 = np.empty((2, self.num_chunks, x.shape[1]))
        self._run(loops.moments, self.tile, self.places, x, means, m2)
        starts = np.arange(self.num_chunks) * self.chunk
        sizes = np.minimum(len(self.places) - starts, self.chunk)[:, None]
        mean = (means * sizes).sum(0) / len(self.places)
        mean += ((means - mean) * sizes).sum(0) / len(self.places)
        return mean, (m2 + sizes * (means - mean) ** 2).sum(0)

    def transform(self, x: Array, centre: Array, scale: Array, shift: Array) -> Tensor:
        """``(x - centre) * scale + shift``, and 0 in all other rows."""
        out = torch.empty(x.shape, dtype=torch.from_numpy(x).dtype)
        self._run(loops.transform, self.places, x, centre, scale, shift, out.numpy())
        return out

    def gradient_sums(self, x: Array, centre: Array, grad: Array) -> tuple[Array, Array]:
        """Sums of ``grad`` and of ``grad * (x - centre)`` in each channel, float64."""
        plain, product = np.empty((2, self.num_chunks, x.shape[1]))
        self._run(loops.gradient_sums, self.tile, self.places, x, centre, grad, plain, product)
        return plain.sum(0), product.sum(0)

    def gradient(self, x: Array, centre: Array, grad: Array, *factors: Array) -> Tensor:
        """``grad * scale + (x - centre) * slope + shift``, and 0 in all other rows."""
        out = torch.empty(x.shape, dtype=torch.from_numpy(x).dtype)
        self._run(loops.gradient, self.places, x, centre, grad, *factors, out.numpy())
        return out

    def _run(self, loop: compiled.Loop, *arguments: Any) -> None:
        compiled.run(loop, self.num_chunks, CHUNKS_PER_THREAD, self.chunk, *arguments)


class _Normalize(torch.autograd.Function):
    """``(x - mean) * invstd * weight + bias`` where mean and invstd are those of its real rows."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        mask: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        rows: Rows,
    ) -> Tensor:
        share = torch.full_like(invstd, 1 / len(rows.places))
        ctx.save_for_backward(input, mask, weight, bias, mean, invstd, share, share)
        ctx.dims, ctx.group, ctx.rows = (0,), None, rows
        return _transform(input, weight, bias, mean, invstd, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return differentiable_backward(ctx, grad)
        input, _, weight, bias, *statistics, share, _ = ctx.saved_tensors
        mean, invstd, share = (_array(t)[0] for t in (*statistics, share))
        x, dy = _array(input), _array(grad.contiguous())
        centre = mean.astype(x.dtype)
        plain, product = ctx.rows.gradient_sums(x, centre, dy)
        # What the mean lost on its way to the input's dtype.
        product = (product - (mean - centre) * plain) * invstd
        grads: list[Tensor | None] = [
            None if p is None else torch.from_numpy(total).to(p.dtype).view_as(p)
            for p, total in ((weight, product), (bias, plain))
        ]
        if not ctx.needs_input_grad[0]:
            return None, None, *grads, None, None, None
        scale = invstd if weight is None else invstd * _array(weight)[0]
        slope = -scale * invstd * share * product
        shift = -scale * share * plain - slope * (mean - centre)
        factors = (factor.astype(x.dtype) for factor in (scale, slope, shift))
        return ctx.rows.gradient(x, centre, dy, *factors), None, *grads, None, None, None


def _transform(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    rows: Rows,
) -> Tensor:
    x, exact, scale = _array(input), _array(mean)[0], _array(invstd)[0]
    centre = exact.astype(x.dtype)
    scale = scale if weight is None else scale * _array(weight)[0]
    # Subtract first: x * scale - mean * scale would cancel at a large mean.
    shift = (centre - exact) * scale
    shift = shift if bias is None else shift + _array(bias)[0]
    return rows.transform(x, centre, scale.astype(x.dtype), shift.astype(x.dtype))


def _array(values: Tensor) -> Array:
    """The same memory; parameters in a dtype that numpy lacks are widened."""
    values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    array: Array = values.numpy(force=True)
    return array


def batch_norm(
    input: Tensor,
    mask: Tensor,
    running: RunningStatistics | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    channel_dim: int,
    min_count: int,
) -> Tensor | None:
    """What :func:`~seqtrain.nn.norms.kernels.choice.fused_batch_norm` describes.

    ``None`` for half precision, masks per channel, too few real positions, gradients through
    running statistics, little data, and where Numba is missing or a tracer is watching.
    """
    if (
        input.dtype not in (torch.float32, torch.float64)
        or mask.shape[channel_dim] != 1
        or input.numel() < SMALLEST
        or not compiled.is_available()
        or _is_watched(input)
    ):
        return None
    places = mask.numpy().ravel().nonzero()[0]
    parameters = [p for p in (weight, bias) if p is not None]
    if training:
        if len(places) < max(min_count, 1):
            return None
    elif torch.is_grad_enabled() and any(t.requires_grad for t in (input, *parameters)):
        return None
    moved = input.movedim(channel_dim, -1)
    everything = moved.reshape(-1, moved.shape[-1]).contiguous()
    weight, bias = (None if p is None else per_channel(p, everything, 1) for p in (weight, bias))
    rows = Rows(places, min(max(TILE // everything.shape[1], 8), 256))
    if training:
        mean, m2 = map(torch.from_numpy, rows.moments(_array(everything)))
        n = torch.tensor(len(places))
        moments = Moments(n, mean, m2)
        invstd = inverse_root(moments.variance(), eps)
        if running is not None:
            with torch.no_grad():
                running.update(moments, torch.tensor(True), momentum)
        out = _Normalize.apply(
            everything, mask.reshape(-1, 1), weight, bias, mean[None], invstd[None], rows
        )
    else:
        assert running is not None, "evaluation has running statistics"
        settled = running_standard(running, everything, 1, eps)
        out = _transform(everything, weight, bias, settled.mean, settled.invstd, rows)
    return out.view(moved.shape).movedim(-1, channel_dim)


def _is_watched(input: Tensor) -> bool:
    """Whether something would have to see operations that are not torch's."""
    return (
        type(input) not in (Tensor, torch.nn.Parameter)
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )
