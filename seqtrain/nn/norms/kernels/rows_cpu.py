"""Masked batch norm on the CPU: two passes forward and two backward over the real rows alone.

Between the passes hardly anything is left to Python or torch: each of their operations costs ten
microseconds or more when a pass has just swept the caches.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqtrain.nn.norms.kernels import compiled, loops
from seqtrain.nn.norms.kernels.loops import Array
from seqtrain.nn.norms.moments import Moments
from seqtrain.nn.norms.running import RunningStatistics
from seqtrain.nn.norms.standardize import Statistics, differentiable_backward, inverse_root

SMALLEST = 2**14
"""Elements from which on it is worth loading the compiled loops."""

TILE = 2**13
"""Elements of a tile: 32 KiB in float32, to stay in the fastest cache."""

TILES_PER_CHUNK = 8

SPAN = 4
"""Chunks that a thread takes at a time: another wakes up in the time of about two."""


class Rows(NamedTuple):
    """The real rows of a batch and how they are cut up, the same whatever the threads."""

    places: Array
    """int64, rising."""
    tile: int
    """Rows summed up in the input's dtype."""

    def moments(self, x: Array, eps: float, weight: Array, bias: Array) -> tuple[Array, Array]:
        """What ``loops.settle`` gives: statistics, and the factors of ``transform``."""
        num_chunks, chunk = self._chunks()
        means, squares = np.empty((2, num_chunks, x.shape[1]))
        compiled.run(
            loops.moments, num_chunks, SPAN, chunk, self.tile, self.places, x, means, squares
        )
        statistics, factors = np.empty((3, x.shape[1])), np.empty((3, x.shape[1]), x.dtype)
        settle = compiled.compiled(loops.settle)
        settle(len(self.places), chunk, eps, means, squares, weight, bias, statistics, factors)
        return statistics, factors

    def transform(self, x: Array, factors: Array, out: Array) -> None:
        """``(x - centre) * scale + shift`` into ``out``, and 0 into all other rows."""
        num_chunks, chunk = self._chunks()
        compiled.run(loops.transform, num_chunks, SPAN, chunk, self.places, x, factors, out)

    def gradient_sums(
        self, x: Array, grad: Array, weight: Array, statistics: Array
    ) -> tuple[Array, Array]:
        """What ``loops.settle_gradient`` gives: sums, and the factors of ``gradient``."""
        num_chunks, chunk = self._chunks()
        plains, products = np.empty((2, num_chunks, x.shape[1]))
        sums, factors = np.empty((2, x.shape[1]), x.dtype), np.empty((4, x.shape[1]), x.dtype)
        factors[0] = statistics[0]
        arrays = (self.places, x, factors[0], grad, plains, products)
        compiled.run(loops.gradient_sums, num_chunks, SPAN, chunk, self.tile, *arrays)
        settle = compiled.compiled(loops.settle_gradient)
        settle(len(self.places), plains, products, statistics, weight, sums, factors)
        return sums, factors

    def gradient(self, x: Array, grad: Array, factors: Array, out: Array) -> None:
        """``grad * scale + (x - centre) * slope + shift`` into ``out``, and 0 elsewhere."""
        num_chunks, chunk = self._chunks()
        compiled.run(loops.gradient, num_chunks, SPAN, chunk, self.places, x, grad, factors, out)

    def _chunks(self) -> tuple[int, int]:
        """How many there are, and the rows in each but the last.

        At least one, which zeros all of a batch that has no real row.
        """
        chunk = self.tile * TILES_PER_CHUNK
        return max(1, -(-len(self.places) // chunk)), chunk


class _Normalize(torch.autograd.Function):
    """Batch norm of ``(..., C)`` by the statistics that come with it, those of its real rows."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        mask: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        rows: Rows,
        statistics: Array,
        factors: Array,
    ) -> Tensor:
        ctx.save_for_backward(input, mask, weight, bias)
        ctx.rows, ctx.statistics = rows, statistics
        return _transform(input, rows, factors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, mask, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            statistics = _as_tensors(ctx.statistics, len(ctx.rows.places), input.ndim)
            firsts = differentiable_backward(grad, input, mask, weight, bias, statistics)
            return *firsts, None, None, None
        x, dy = _matrix(input), _matrix(grad.contiguous())
        sums, factors = ctx.rows.gradient_sums(x, dy, _factor(weight, x, 1), ctx.statistics)
        of_weight, of_bias = (
            None if p is None else torch.from_numpy(total).to(p.dtype)
            for p, total in zip((weight, bias), sums, strict=True)
        )
        of_input = None
        if ctx.needs_input_grad[0]:
            of_input = torch.empty_like(input)
            ctx.rows.gradient(x, dy, factors, _matrix(of_input))
        return of_input, None, of_weight, of_bias, None, None, None


def _as_tensors(statistics: Array, size: int, ndim: int) -> Statistics:
    """The same for the plain form."""
    mean, _, invstd = torch.from_numpy(statistics)
    share = torch.full_like(mean, 1 / size)
    return Statistics(mean, invstd, share, share, tuple(range(ndim - 1)))


def _transform(input: Tensor, rows: Rows, factors: Array) -> Tensor:
    out = torch.empty_like(input)
    rows.transform(_matrix(input), factors, _matrix(out))
    return out


def _matrix(values: Tensor) -> Array:
    """Contiguous values as ``(N, C)``, without a copy and unseen by autograd."""
    return _array(values).reshape(-1, values.shape[-1])


def _array(values: Tensor) -> Array:
    """The same memory."""
    array: Array = values.detach().numpy()
    return array


def _factor(values: Tensor | None, like: Array, default: float) -> Array:
    """A parameter in the dtype of the rows, ``(C,)``."""
    if values is None:
        return np.full(like.shape[1], default, like.dtype)
    if values.dtype == torch.bfloat16:
        values = values.float()
    return _array(values).astype(like.dtype, copy=False)


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
    channels = input.shape[channel_dim]
    vectors = [t for t in (weight, bias, *(running or ())[:2]) if t is not None]
    if (
        input.dtype not in (torch.float32, torch.float64)
        or input.numel() < SMALLEST
        or mask.shape[channel_dim] != 1
        # The plain form says what is wrong.
        or any(t.shape != (channels,) for t in vectors)
        or _is_watched(input)
        or compiled.find_numba() is None
    ):
        return None
    places = _array(mask).ravel().nonzero()[0]
    if training:
        if len(places) < max(min_count, 1):
            return None
    elif torch.is_grad_enabled() and any(t.requires_grad for t in (input, *vectors)):
        return None
    channels_last = channel_dim % input.ndim == input.ndim - 1
    if not channels_last:
        input, mask = (t.movedim(channel_dim, -1) for t in (input, mask))
    input = input.contiguous()
    rows, x = Rows(places, min(max(TILE // channels, 8), 256)), _matrix(input)
    scale, shift = _factor(weight, x, 1), _factor(bias, x, 0)
    if training:
        statistics, factors = rows.moments(x, eps, scale, shift)
        if running is not None:
            _move(running, statistics, len(places), momentum)
        out: Tensor = _Normalize.apply(  # type: ignore[no-untyped-call]
            input, mask, weight, bias, rows, statistics, factors
        )
    else:
        assert running is not None, "evaluation has running statistics"
        out = _transform(input, rows, _settled(running, eps, scale, shift))
    return out if channels_last else out.movedim(-1, channel_dim)


def _move(running: RunningStatistics, statistics: Array, size: int, momentum: float | None) -> None:
    """``running.update``, which takes twenty operations, in few where nothing is special."""
    plain = running.mean.dtype == running.var.dtype == torch.float32
    if momentum is None or running.weight is not None or not plain:
        mean, m2 = torch.from_numpy(statistics[:2])
        with torch.no_grad():
            running.update(Moments(torch.tensor(size), mean, m2), torch.tensor(True), momentum)
        return
    batch = (statistics[0], statistics[1] / max(size - 1, 1))
    for buffer, value in zip(running[:2], batch, strict=True):
        array = _array(buffer)
        array += momentum * (value - array)
    torch.autograd.graph.increment_version(running[:2])
    if running.num_batches is not None:
        running.num_batches.add_(1)


def _settled(running: RunningStatistics, eps: float, scale: Array, shift: Array) -> Array:
    """The factors of ``transform`` for statistics that were settled before."""
    mean = _array(running.mean.double())
    factors = np.empty((3, len(mean)), scale.dtype)
    factors[0] = mean
    factors[1] = _array(inverse_root(running.var.double(), eps)) * scale
    factors[2] = shift - (mean - factors[0]) * factors[1]
    return factors


def _is_watched(input: Tensor) -> bool:
    """Whether something would have to see operations that are not torch's."""
    return (
        type(input) not in (Tensor, torch.nn.Parameter)
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )
