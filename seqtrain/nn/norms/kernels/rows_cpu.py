"""Masked batch norm on the CPU: two passes forward and two backward over the real rows alone.

Nothing is left to Python or torch between the passes: each of their operations costs ten
microseconds or more when a pass has just swept the caches.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqtrain.nn.norms.kernels import compiled, loops
from seqtrain.nn.norms.kernels.call import Call
from seqtrain.nn.norms.kernels.loops import Array
from seqtrain.nn.norms.masks import select_real, view_mask
from seqtrain.nn.norms.moments import Moments
from seqtrain.nn.norms.running import RunningStatistics
from seqtrain.nn.norms.standardize import Statistics, differentiable_backward, inverse_root

SMALLEST = 2**11
"""Elements from which on it is worth loading the compiled loops."""

TILE = 2**13
"""Elements of a tile: 32 KiB in float32, to stay in the fastest cache."""

TILES_PER_CHUNK = 8

_NO_BUFFER = np.empty(0, np.float32)
_NO_COUNTER = np.empty(0, np.int64)


class Affine(NamedTuple):
    """What normalized features are multiplied with, added to and cut off at."""

    weight: Array
    bias: Array
    floor: Any
    """0 in the same dtype, or ``None``."""

    @classmethod
    def of(cls, call: Call, dtype: Any) -> "Affine":
        """In the dtype of the rows, ``(C,)``."""
        channels = call.input.shape[call.channel_dim]
        weight, bias = (
            _vector(p, channels, dtype, default)
            for p, default in ((call.weight, 1), (call.bias, 0))
        )
        return cls(weight, bias, dtype.type(0) if call.relu else None)


class Moving(NamedTuple):
    """Running statistics that the loops update."""

    mean: Array
    var: Array
    num_batches: Array
    momentum: float

    @classmethod
    def of(cls, call: Call) -> "Moving":
        """Those of the call; empty where there are none, or none so simple."""
        running, momentum = call.running, call.momentum
        if (
            running is None
            or momentum is None
            or running.weight is not None
            or not running.mean.dtype == running.var.dtype == torch.float32
        ):
            return cls(_NO_BUFFER, _NO_BUFFER, _NO_COUNTER, 0.0)
        counted = running.num_batches
        count = _NO_COUNTER if counted is None else _array(counted).reshape(1)
        return cls(_array(running.mean), _array(running.var), count, momentum)


class Rows(NamedTuple):
    """The real rows of a batch and how they are cut up, the same whatever the threads."""

    places: Array
    """int64, rising."""
    tile: int
    """Rows summed up in the input's dtype."""

    def normalize(
        self,
        x: Array,
        residual: Array | None,
        affine: Affine,
        eps: float,
        moving: Moving,
        out: Array,
    ) -> tuple[Array, Array]:
        """The statistics and factors of ``loops.normalize``."""
        num_chunks, chunk = self._chunks()
        means, squares = np.empty((2, num_chunks, x.shape[1]))
        statistics, factors = np.empty((3, x.shape[1])), np.empty((3, x.shape[1]), x.dtype)
        found = (means, squares, statistics, factors, out)
        arguments = (chunk, self.tile, self.places, x, residual, *affine, eps, *moving, *found)
        compiled.run(loops.normalize, num_chunks, *arguments)
        return statistics, factors

    def transform(
        self, x: Array, residual: Array | None, factors: Array, floor: Any, out: Array
    ) -> None:
        """``residual + max((x - centre) * scale + shift, floor)`` and 0 into all other rows."""
        num_chunks, chunk = self._chunks()
        arguments = (num_chunks, chunk, self.places, x, residual, factors, floor, out)
        compiled.run(loops.share_transform, num_chunks, *arguments)

    def differentiate(
        self,
        x: Array,
        grad: Array,
        statistics: Array,
        factors: Array,
        floor: Any,
        of_weight: Array,
        of_bias: Array,
        of_input: Array | None,
        of_residual: Array | None,
    ) -> None:
        """The gradients that ``loops.differentiate`` writes into the last four."""
        num_chunks, chunk = self._chunks()
        plains, products = np.empty((2, num_chunks, x.shape[1]))
        arguments = (chunk, self.tile, self.places, x, grad, statistics, factors, floor)
        found = (plains, products, of_weight, of_bias, of_input, of_residual)
        compiled.run(loops.differentiate, num_chunks, *arguments, *found)

    def _chunks(self) -> tuple[int, int]:
        """How many there are, and the rows in each but the last.

        At least one, which zeros all of a batch that has no real row.
        """
        chunk = self.tile * TILES_PER_CHUNK
        return max(1, -(-len(self.places) // chunk)), chunk


class _Normalize(torch.autograd.Function):
    """Batch norm of ``(..., C)`` by the statistics of its real rows."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        mask: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        rows: Rows,
        call: Call,
    ) -> Tensor:
        x, out = _matrix(input), torch.empty_like(input)
        ctx.save_for_backward(input, mask, weight, bias)
        affine = Affine.of(call, x.dtype)
        ctx.rows, ctx.floor = rows, affine.floor
        moving = Moving.of(call)
        ctx.statistics, ctx.factors = rows.normalize(
            x, _matrix_if_any(residual), affine, call.eps, moving, _matrix(out)
        )
        if call.running is not None:
            _has_moved(call.running, moving, ctx.statistics, len(rows.places), call.momentum)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return *_differentiable_gradients(ctx, grad), None, None
        input = ctx.saved_tensors[0].contiguous()  # a hook may have brought it back strided
        wants_input, _, wants_weight, wants_bias, wants_residual, _, _ = ctx.needs_input_grad
        of_input = torch.empty_like(input) if wants_input else None
        of_residual = torch.empty_like(input) if wants_residual else None
        # autograd casts them to the dtypes of the parameters
        of_weight, of_bias = input.new_empty(input.shape[-1]), input.new_empty(input.shape[-1])
        ctx.rows.differentiate(
            _matrix(input),
            _matrix(grad.contiguous()),
            ctx.statistics,
            ctx.factors,
            ctx.floor,
            _array(of_weight),
            _array(of_bias),
            _matrix_if_any(of_input),
            _matrix_if_any(of_residual),
        )
        of_affine = (of_weight if wants_weight else None, of_bias if wants_bias else None)
        return of_input, None, *of_affine, of_residual, None, None


def _differentiable_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Those of input, mask, weight, bias and residual, by the plain form."""
    input, mask, weight, bias = ctx.saved_tensors
    mask = view_mask(mask, input, -1)
    of_residual = select_real(grad, mask) if ctx.needs_input_grad[4] else None
    if ctx.floor is not None:
        x = input.contiguous()  # as in the first derivatives
        out = torch.empty_like(x)
        ctx.rows.transform(_matrix(x), None, ctx.factors, ctx.floor, _matrix(out))
        grad = torch.where(out > 0, grad, grad.new_zeros(()))
    mean, _, invstd = torch.from_numpy(ctx.statistics)
    share = torch.full_like(mean, 1 / len(ctx.rows.places))
    statistics = Statistics(mean, invstd, share, share, tuple(range(input.ndim - 1)))
    return *differentiable_backward(grad, input, mask, weight, bias, statistics), of_residual


def _matrix(values: Tensor) -> Array:
    """Contiguous values as ``(N, C)``, without a copy and unseen by autograd."""
    return _array(values).reshape(-1, values.shape[-1])


def _matrix_if_any(values: Tensor | None) -> Array | None:
    return None if values is None else _matrix(values)


def _array(values: Tensor) -> Array:
    """The same memory."""
    array: Array = values.detach().numpy()
    return array


def _vector(values: Tensor | None, channels: int, dtype: Any, default: float) -> Array:
    if values is None:
        return np.full(channels, default, dtype)
    if values.dtype == torch.bfloat16:
        values = values.float()
    return _array(values).astype(dtype, copy=False)


def batch_norm(call: Call) -> Tensor | None:
    """The result of the call.

    ``None`` for half precision, masks per channel, too few real positions, gradients through
    running statistics, little data, and where Numba is missing or a tracer is watching.
    """
    if not _is_covered(call):
        return None
    input, mask, running, channel_dim = call.input, call.mask, call.running, call.channel_dim
    places = _array(mask).ravel().nonzero()[0]
    if call.training:
        if len(places) < max(call.min_count, 1):
            return None
    elif torch.is_grad_enabled() and any(t.requires_grad for t in _differentiable(call)):
        return None
    residual = call.residual
    channels_last = channel_dim % input.ndim == input.ndim - 1
    if not channels_last:
        if mask.ndim == input.ndim:
            mask = mask.movedim(channel_dim, -1)
        input = input.movedim(channel_dim, -1)
        residual = None if residual is None else residual.movedim(channel_dim, -1)
    input = input.contiguous()
    residual = None if residual is None else residual.contiguous()
    rows = Rows(places, min(max(TILE // input.shape[-1], 8), 256))
    if call.training:
        out: Tensor = _Normalize.apply(  # type: ignore[no-untyped-call]
            input, mask, call.weight, call.bias, residual, rows, call
        )
    else:
        assert running is not None, "evaluation has running statistics"
        x, out = _matrix(input), torch.empty_like(input)
        affine = Affine.of(call, x.dtype)
        factors = _settled(running, call.eps, affine)
        rows.transform(x, _matrix_if_any(residual), factors, affine.floor, _matrix(out))
    return out if channels_last else out.movedim(-1, channel_dim)


def _is_covered(call: Call) -> bool:
    input = call.input
    channels = input.shape[call.channel_dim]
    vectors = (call.weight, call.bias, *(call.running or ())[:2])
    return not (
        input.dtype not in (torch.float32, torch.float64)
        or input.numel() < SMALLEST
        or (call.mask.ndim == input.ndim and call.mask.shape[call.channel_dim] != 1)
        # The plain form says what is wrong.
        or any(t is not None and t.shape != (channels,) for t in vectors)
        or (call.residual is not None and call.residual.dtype != input.dtype)
        or _is_watched(input)
        or compiled.find_numba() is None
    )


def _differentiable(call: Call) -> list[Tensor]:
    candidates = (call.input, call.weight, call.bias, call.residual, *(call.running or ())[:2])
    return [t for t in candidates if t is not None]


def _has_moved(
    running: RunningStatistics,
    moving: Moving,
    statistics: Array,
    size: int,
    momentum: float | None,
) -> None:
    """What the loops leave to do of ``running.update``, which alone takes twenty operations."""
    if len(moving.mean):
        torch.autograd.graph.increment_version([t for t in running[:3] if t is not None])
        return
    mean, m2 = torch.from_numpy(statistics[:2])
    with torch.no_grad():
        running.update(Moments(torch.tensor(size), mean, m2), torch.tensor(True), momentum)


def _settled(running: RunningStatistics, eps: float, affine: Affine) -> Array:
    """The factors of ``share_transform`` for statistics that were settled before."""
    mean = _array(running.mean.double())
    factors = np.empty((3, len(mean)), affine.weight.dtype)
    factors[0] = mean
    factors[1] = _array(inverse_root(running.var.double(), eps)) * affine.weight
    factors[2] = affine.bias - (mean - factors[0]) * factors[1]
    return factors


def _is_watched(input: Tensor) -> bool:
    """Whether something would have to see operations that are not torch's."""
    return (
        type(input) not in (Tensor, torch.nn.Parameter)
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd.forward_ad._current_level >= 0
    )
