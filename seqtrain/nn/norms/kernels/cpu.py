"""Masked batch norm on a CPU: two passes forward and two backward over the real rows alone."""

import functools
import importlib
import os
from types import ModuleType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from seqtrain.nn.norms.kernels.call import Call
from seqtrain.nn.norms.masks import select_real, view_mask
from seqtrain.nn.norms.moments import Moments
from seqtrain.nn.norms.rows import laid_out
from seqtrain.nn.norms.running import RunningStatistics
from seqtrain.nn.norms.standardize import Statistics, differentiable_backward, inverse_root
from seqtrain.nn.norms.watching import is_watched

Array = NDArray[Any]

SMALLEST = 2**11
"""Elements from which on it is worth loading the compiled loops."""

TILE = 2**14
"""Elements of a tile, which is to stay in the cache while it is read twice."""

WORTH_A_THREAD = 2**16
"""Elements of real rows for each thread: to wake one takes the time of about half as many."""

DTYPES = (torch.float32, torch.float64)

_home = os.getpid()


def batch_norm(call: Call) -> Tensor | None:
    """The result of the call.

    ``None`` for half precision, masks per channel, too few real positions, gradients through
    running statistics, little data, and where Numba is missing or a tracer is watching.
    """
    if not _is_covered(call):
        return None
    places = _places(call.mask)
    if call.training:
        if len(places) < max(call.min_count, 1):
            return None
        out: Tensor = _Normalize.apply(  # type: ignore[no-untyped-call]
            call.input, call.mask, call.weight, call.bias, call.residual, places, call
        )
        return out
    if torch.is_grad_enabled() and any(t.requires_grad for t in _differentiable(call)):
        return None
    return _rescale(call, places)


@functools.cache
def find_loops() -> ModuleType | None:
    """``cpu_loops``, or ``None`` where Numba is missing, does not fit its numpy or is off.

    Nothing loads Numba before a norm asks: that takes most of a second.
    """
    try:
        loops = importlib.import_module("seqtrain.nn.norms.kernels.cpu_loops")
    except ImportError:
        return None
    return None if loops.is_disabled() else loops


class _Normalize(torch.autograd.Function):
    """Batch norm by the statistics of the real rows."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        mask: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        places: Tensor,
        call: Call,
    ) -> Tensor:
        # The input, not a copy in the order of its rows: autograd refuses one that has changed.
        ctx.save_for_backward(input, mask, weight, bias)
        ctx.places, ctx.relu, ctx.channel_dim = places, call.relu, call.channel_dim
        x = _rows(input, call.channel_dim)
        ctx.statistics = torch.empty((3, x.shape[1]), dtype=torch.float64, device="cpu")
        ctx.factors = torch.empty((3, x.shape[1]), dtype=x.dtype, device="cpu")
        out = torch.empty_like(x)
        added = x[:0] if residual is None else _rows(residual, call.channel_dim)
        affine = _vector(weight, x, 1), _vector(bias, x, 0)
        settings = (call.eps, call.relu, _tile(x))
        _run("normalize", places, x, added, *affine, *settings, ctx.statistics, ctx.factors, out)
        if call.running is not None:
            _update(call.running, ctx.statistics, len(places), call.momentum)
        return _shaped(out, input, call.channel_dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input = ctx.saved_tensors[0]  # as a hook may have brought it back
        if torch.is_grad_enabled() or not (_is_here(input) and _is_here(grad)) or is_watched():
            return *_differentiable_gradients(ctx, grad), None, None
        if input.shape != grad.shape:
            raise RuntimeError(
                f"expected a saved input of shape {tuple(grad.shape)}, found {tuple(input.shape)}: "
                "look at the hooks on saved tensors"
            )
        wants_input, _, wants_weight, wants_bias, wants_residual, _, _ = ctx.needs_input_grad
        x = _rows(input.to(ctx.factors.dtype), ctx.channel_dim)
        of_input, of_residual = (
            torch.empty_like(x if wanted else x[:0]) for wanted in (wants_input, wants_residual)
        )
        # autograd casts them to the dtypes of the parameters
        of_weight, of_bias = (x.new_empty(x.shape[1], device="cpu") for _ in range(2))
        grad = _rows(grad, ctx.channel_dim)
        known = (ctx.statistics, ctx.factors, ctx.relu, _tile(x))
        found = (of_weight, of_bias, of_input, of_residual)
        _run("differentiate", ctx.places, x, grad, *known, *found)
        return (
            _shaped(of_input, input, ctx.channel_dim) if wants_input else None,
            None,
            of_weight if wants_weight else None,
            of_bias if wants_bias else None,
            _shaped(of_residual, input, ctx.channel_dim) if wants_residual else None,
            None,
            None,
        )


@torch.no_grad()
def _rescale(call: Call, places: Tensor) -> Tensor:
    """Normalized by the running statistics."""
    running, x = call.running, _rows(call.input, call.channel_dim)
    assert running is not None, "evaluation has running statistics"
    mean = running.mean.double()
    centre = mean.to(x.dtype)
    scale = inverse_root(running.var.double(), call.eps) * _vector(call.weight, x, 1)
    scale = scale.to(x.dtype)
    shift = (_vector(call.bias, x, 0) - (mean - centre) * scale).to(x.dtype)
    added = x[:0] if call.residual is None else _rows(call.residual, call.channel_dim)
    out = torch.empty_like(x)
    factors = torch.stack([centre, scale, shift])
    _run("rescale", places, x, added, factors, call.relu, _tile(x), out)
    return _shaped(out, call.input, call.channel_dim)


def _run(name: str, places: Tensor, x: Tensor, *arguments: Tensor | float) -> None:
    """Call a loop by its name, on as many of torch's number of threads as there is work for.

    On one in a forked process, which has none of its parent's threads: OpenMP would end it.
    """
    loops = find_loops()
    assert loops is not None, "a covered call has loops"
    num_threads = min(torch.get_num_threads(), len(places) * x.shape[1] // WORTH_A_THREAD)
    if num_threads > 1:
        num_threads = min(num_threads, loops.usable_threads()) if os.getpid() == _home else 1
    arrays = (_array(a) if isinstance(a, Tensor) else a for a in arguments)
    getattr(loops, name)(max(num_threads, 1), _array(places), _array(x), *arrays)


def _array(values: Tensor) -> Array:
    """A view as an array."""
    if values.numel() and not values.data_ptr():
        raise RuntimeError(f"expected memory behind a tensor of shape {tuple(values.shape)}")
    found: Array = values.numpy()
    return found


def _rows(values: Tensor, channel_dim: int) -> Tensor:
    """``(N, C)``, contiguous, unseen by autograd."""
    values = values.detach()
    if not _is_last(channel_dim, values):
        values = values.movedim(channel_dim, -1)
    return values.contiguous().view(-1, values.shape[-1])


def _shaped(rows: Tensor, like: Tensor, channel_dim: int) -> Tensor:
    """Rows in the shape and order they came from."""
    if _is_last(channel_dim, like):
        return rows.view(like.shape)
    out = rows.view(like.movedim(channel_dim, -1).shape).movedim(-1, channel_dim)
    return laid_out(out, like)


def _is_last(channel_dim: int, values: Tensor) -> bool:
    return channel_dim % values.ndim == values.ndim - 1


def _places(mask: Tensor) -> Tensor:
    """The indices of the real rows, int64, rising."""
    loops = find_loops()
    assert loops is not None, "a covered call has loops"
    mask = mask.detach().contiguous().view(-1)
    places = torch.empty(mask.numel(), dtype=torch.int64, device="cpu")
    return places[: loops.find(_array(mask.view(torch.uint8)), _array(places))]


def _tile(x: Tensor) -> int:
    """Rows of a tile."""
    return min(max(TILE // x.shape[1], 8), 256)


def _vector(values: Tensor | None, like: Tensor, default: float) -> Tensor:
    """A parameter, or as many defaults as there are channels, in the dtype of the features."""
    if values is None:
        return like.new_full((like.shape[1],), default)
    return values.detach().to(like.dtype).contiguous()


def _differentiable_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Those of input, mask, weight, bias and residual, by the plain form."""
    input, mask, weight, bias = ctx.saved_tensors
    mask = view_mask(mask, input, ctx.channel_dim)
    of_residual = select_real(grad, mask) if ctx.needs_input_grad[4] else None
    with torch.enable_grad():
        input, mask, grad = (t.movedim(ctx.channel_dim, -1) for t in (input, mask, grad))
    if ctx.relu:
        centre, scale, shift = ctx.factors
        normal = (input.detach().to(scale.dtype) - centre) * scale + shift
        grad = torch.where(normal <= 0, grad.new_zeros(()), grad)
    mean, _, invstd = ctx.statistics
    share = torch.full_like(mean, 1 / len(ctx.places))
    statistics = Statistics(mean, invstd, share, share, tuple(range(input.ndim - 1)))
    of_input, *others = differentiable_backward(grad, input, mask, weight, bias, statistics)
    if of_input is not None:
        of_input = of_input.movedim(-1, ctx.channel_dim)
    return of_input, *others, of_residual


def _update(
    running: RunningStatistics, statistics: Tensor, size: int, momentum: float | None
) -> None:
    """``running.update`` for a batch with enough rows, in a third of its time where possible."""
    mean, m2, _ = statistics
    buffers = (running.mean, running.var)
    if (
        momentum is None
        or running.weight is not None
        or any(b.dtype not in DTYPES for b in buffers)
    ):
        n, enough = (torch.tensor(value, device="cpu") for value in (size, True))
        running.update(Moments(n, mean, m2), enough, momentum)
        return
    for buffer, value in zip(buffers, (mean, m2 / max(size - 1, 1)), strict=True):
        moved = _array(buffer.detach())
        moved += momentum * (value.numpy() - moved)
    torch.autograd.graph.increment_version(buffers)
    if running.num_batches is not None:
        running.num_batches.add_(1)


def _is_covered(call: Call) -> bool:
    input, mask, residual = call.input, call.mask, call.residual
    # Watched first: a traced program would be bound to the answers to the other questions.
    if is_watched(input) or not _is_here(input) or input.dtype not in DTYPES:
        return False
    if input.numel() < SMALLEST:
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
    return _is_here(mask) and find_loops() is not None


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
