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
from seqtrain.nn.norms.kernels.loops import Job
from seqtrain.nn.norms.kernels.machine import find_numba
from seqtrain.nn.norms.masks import select_real, view_mask
from seqtrain.nn.norms.moments import Moments
from seqtrain.nn.norms.running import RunningStatistics
from seqtrain.nn.norms.standardize import Statistics, differentiable_backward, inverse_root

SMALLEST = 2**11
"""Elements from which on it is worth loading the compiled loops."""

TILE = 2**13
"""Elements of a tile: 32 KiB in float32, to stay in the fastest cache."""

TILES_PER_CHUNK = 8

COUNTED = 16
"""Words that the counters have for themselves: two lines of the cache, which all threads write."""

DTYPES = {torch.float32: np.float32, torch.float64: np.float64}

Cut = tuple[int, int, int, int, int, int, int, int, int, int]
"""The fields of a ``Job`` that every loop needs, ``factors`` and ``out`` apart."""


class Rows(NamedTuple):
    """The real rows of a batch and how they are cut up, the same whatever the threads."""

    places: Tensor
    """int64, rising; behind the first ``size`` there is nothing."""
    size: int
    tile: int
    """Rows summed up in the input's dtype."""

    def cut(self, x: Tensor) -> tuple[Tensor, Cut]:
        """Scratch memory, and with its address the first fields of a ``Job`` over ``x``."""
        C, chunk = x.shape[-1], self.tile * TILES_PER_CHUNK
        K = max(1, -(-self.size // chunk))  # one zeros all of a batch that has no real row
        scratch = torch.zeros(COUNTED + 2 * K * C, dtype=torch.float64, device="cpu")
        counters, N = _address(scratch), x.numel() // max(C, 1)
        rows, table = _address(self.places), counters + 8 * COUNTED
        sizes = (self.size, N, C)
        return scratch, (counters, table, K, chunk, self.tile, rows, *sizes, _address(x))


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
        out, C = torch.empty_like(input), input.shape[-1]
        ctx.save_for_backward(input, mask, weight, bias)
        ctx.rows, ctx.relu = rows, call.relu
        ctx.statistics = torch.empty((3, C), dtype=torch.float64, device="cpu")
        ctx.factors = torch.empty((3, C), dtype=input.dtype, device="cpu")
        scale, shift = _vector(weight, input, 1), _vector(bias, input, 0)
        scratch, cut = rows.cut(input)
        mean, var, count, momentum = _moving(call)
        job = Job(
            *cut,
            factors=_address(ctx.factors),
            out=_address(out),
            statistics=_address(ctx.statistics),
            residual=_address(residual),
            weight=_address(scale),
            bias=_address(shift),
            eps=call.eps,
            running_mean=mean,
            running_var=var,
            num_batches=count,
            momentum=momentum,
        )
        constants = (DTYPES[input.dtype], residual is not None, call.relu)
        kept = (scratch, scale, shift, out, ctx.statistics, ctx.factors)
        compiled.run(loops.normalize, constants, job, rows, call, input, residual, *kept)
        if call.running is not None:
            _has_moved(call.running, mean != 0, ctx.statistics, rows, call.momentum)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input = ctx.saved_tensors[0]  # as a hook may have brought it back
        if torch.is_grad_enabled() or _is_watched(grad) or not _is_here(input):
            return *_differentiable_gradients(ctx, grad), None, None
        input, grad = input.to(ctx.factors.dtype).contiguous(), grad.contiguous()
        if input.shape != grad.shape:
            raise RuntimeError(
                f"expected a saved input of shape {tuple(grad.shape)}, found {tuple(input.shape)}: "
                "look at the hooks on saved tensors"
            )
        wants_input, _, wants_weight, wants_bias, wants_residual, _, _ = ctx.needs_input_grad
        of_input = torch.empty_like(input) if wants_input else None
        of_residual = torch.empty_like(input) if wants_residual else None
        # autograd casts them to the dtypes of the parameters
        C, dtype = input.shape[-1], input.dtype
        of_weight, of_bias = (torch.empty(C, dtype=dtype, device="cpu") for _ in range(2))
        rows: Rows = ctx.rows
        scratch, cut = rows.cut(input)
        job = Job(
            *cut,
            factors=_address(ctx.factors),
            out=_address(of_input),
            statistics=_address(ctx.statistics),
            grad=_address(grad),
            of_weight=_address(of_weight),
            of_bias=_address(of_bias),
            of_residual=_address(of_residual),
        )
        constants = (DTYPES[input.dtype], ctx.relu, wants_input, wants_residual)
        kept = (scratch, rows, ctx.statistics, ctx.factors, input, grad)
        found = (of_input, of_weight, of_bias, of_residual)
        compiled.run(loops.differentiate, constants, job, *kept, *found)
        of_affine = (of_weight if wants_weight else None, of_bias if wants_bias else None)
        return of_input, None, *of_affine, of_residual, None, None


def _rescale(rows: Rows, x: Tensor, residual: Tensor | None, factors: Tensor, relu: bool) -> Tensor:
    """``residual + max((x - centre) * scale + shift, floor)``, and 0 in all other rows."""
    out = torch.empty_like(x)
    scratch, cut = rows.cut(x)
    job = Job(*cut, _address(factors), _address(out), residual=_address(residual))
    constants = (DTYPES[x.dtype], residual is not None, relu)
    compiled.run(loops.rescale, constants, job, scratch, rows, x, residual, factors, out)
    return out


def _address(values: Tensor | None) -> int:
    """Where a tensor's memory begins, or 0 for ``None``."""
    if values is None:
        return 0
    place = values.data_ptr()
    if not place and values.numel():
        raise RuntimeError(f"expected memory behind a tensor of shape {tuple(values.shape)}")
    return place


def _differentiable_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Those of input, mask, weight, bias and residual, by the plain form."""
    input, mask, weight, bias = ctx.saved_tensors
    mask = view_mask(mask, input, -1)
    of_residual = select_real(grad, mask) if ctx.needs_input_grad[4] else None
    if ctx.relu:
        centre, scale, shift = ctx.factors.unbind()
        normal = (input.detach().to(scale.dtype) - centre) * scale + shift
        grad = torch.where(normal <= 0, grad.new_zeros(()), grad)
    mean, _, invstd = ctx.statistics
    share = torch.full_like(mean, 1 / ctx.rows.size)
    statistics = Statistics(mean, invstd, share, share, tuple(range(input.ndim - 1)))
    return *differentiable_backward(grad, input, mask, weight, bias, statistics), of_residual


def _vector(values: Tensor | None, like: Tensor, default: float) -> Tensor:
    """A parameter, or as many defaults as there are channels, in the dtype of the features."""
    if values is None:
        return like.new_full((like.shape[-1],), default)
    return values.to(like.dtype).contiguous()


def _moving(call: Call) -> tuple[int, int, int, float]:
    """Where mean, variance and counter of the running statistics are, and the momentum, for a job.

    Zeros where there are none, or none that the loops know how to update.
    """
    running, momentum = call.running, call.momentum
    if (
        running is None
        or momentum is None
        or running.weight is not None
        or not running.mean.dtype == running.var.dtype == torch.float32
        or not (running.mean.is_contiguous() and running.var.is_contiguous())
    ):
        return 0, 0, 0, 0.0
    count = running.num_batches
    if count is not None and (
        count.dtype != torch.int64 or count.numel() != 1 or not _is_here(count)
    ):
        return 0, 0, 0, 0.0
    return _address(running.mean), _address(running.var), _address(count), momentum


def batch_norm(call: Call) -> Tensor | None:
    """The result of the call.

    ``None`` for half precision, masks per channel, too few real positions, gradients through
    running statistics, little data, and where Numba is missing or a tracer is watching.
    """
    if not _is_covered(call):
        return None
    input, mask, running, channel_dim = call.input, call.mask, call.running, call.channel_dim
    places, size = _find(mask)
    if call.training:
        if size < max(call.min_count, 1):
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
    rows = Rows(places, size, min(max(TILE // input.shape[-1], 8), 256))
    if call.training:
        out: Tensor = _Normalize.apply(  # type: ignore[no-untyped-call]
            input, mask, call.weight, call.bias, residual, rows, call
        )
    else:
        assert running is not None, "evaluation has running statistics"
        factors = _settled(running, call, input)
        out = _rescale(rows, input.detach(), residual, factors, call.relu)
    return out if channels_last else out.movedim(-1, channel_dim)


def _find(mask: Tensor) -> tuple[Tensor, int]:
    """Where a mask is true, int64, and at how many places."""
    mask = mask.contiguous()
    places = torch.empty(mask.numel(), dtype=torch.int64, device="cpu")
    return places, compiled.find(_address(mask), mask.numel(), _address(places))


def _is_covered(call: Call) -> bool:
    input, mask, residual = call.input, call.mask, call.residual
    # First, because an exported program would keep the size that is asked for next.
    if _is_watched(input) or input.dtype not in DTYPES or input.numel() < SMALLEST:
        return False
    channels = input.shape[call.channel_dim]
    if mask.ndim == input.ndim and mask.shape[call.channel_dim] != 1:
        return False
    for vector in (call.weight, call.bias, *(call.running or ())[:2]):
        # The plain form says what is wrong.
        if vector is not None and not (_is_here(vector) and vector.shape == (channels,)):
            return False
    if residual is not None and not (_is_here(residual) and residual.dtype == input.dtype):
        return False
    return _is_here(mask) and find_numba() is not None


def _is_here(values: Tensor) -> bool:
    """Whether there is memory, in reach, that holds the values as they are."""
    return (
        values.is_cpu
        and type(values) in (Tensor, torch.nn.Parameter)
        and values.layout is torch.strided
        and not (values.is_neg() or values._is_zerotensor())
        and not torch._is_functional_tensor(values)
        and torch._C._has_storage(values)
    )


def _differentiable(call: Call) -> list[Tensor]:
    candidates = (call.input, call.weight, call.bias, call.residual, *(call.running or ())[:2])
    return [t for t in candidates if t is not None]


def _has_moved(
    running: RunningStatistics,
    by_loops: bool,
    statistics: Tensor,
    rows: Rows,
    momentum: float | None,
) -> None:
    """What the loops leave to do of ``running.update``, which alone takes twenty operations."""
    if by_loops:
        torch.autograd.graph.increment_version([t for t in running[:3] if t is not None])
        return
    mean, m2, _ = statistics
    n, enough = (torch.tensor(value, device="cpu") for value in (rows.size, True))
    running.update(Moments(n, mean, m2), enough, momentum)


@torch.no_grad()
def _settled(running: RunningStatistics, call: Call, input: Tensor) -> Tensor:
    """The factors of a ``Job`` for statistics that were settled before."""
    weight, bias = _vector(call.weight, input, 1), _vector(call.bias, input, 0)
    mean = running.mean.double()
    centre = mean.to(input.dtype)
    scale = (inverse_root(running.var.double(), call.eps) * weight).to(input.dtype)
    return torch.stack([centre, scale, (bias - (mean - centre) * scale).to(input.dtype)])


def _is_watched(input: Tensor) -> bool:
    """Whether something would have to see operations that are not torch's."""
    return (
        torch.compiler.is_compiling()  # first: the next asks what cannot be traced
        or not _is_here(input)
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd.forward_ad._current_level >= 0
    )
