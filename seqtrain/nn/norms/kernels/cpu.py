"""Masked batch norm on a CPU: two passes forward and two backward over the real rows alone."""

import functools
import importlib
import math
import os
from types import ModuleType
from typing import Any, NamedTuple

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

PIECE = 2**9
"""Positions of a piece, where channels come first."""

WORTH_A_THREAD = 2**16
"""Elements of real rows for each thread: to wake one takes the time of about half as many."""

_FILES = ("cpu_loops", "cpu_loops_first")

DTYPES = (torch.float32, torch.float64)

_home = os.getpid()


class Real(NamedTuple):
    """The real positions of a batch, as the loops for its layout take them."""

    places: Tensor
    """``(n,)``, the indices of rows whose channels lie side by side, or the pieces ``(K, 4)``."""
    size: int
    """Number of real positions."""
    mask: Tensor | None
    """``(B, L)`` as bytes, for pieces."""
    channel_dim: int

    def view(self, values: Tensor) -> Tensor:
        """``(N, C)`` or ``(B, C, L)``, contiguous, unseen by autograd."""
        values, at = values.detach(), self.channel_dim % values.ndim
        if self.mask is not None:
            shape = values.shape
            return values.contiguous().view(len(self.mask), shape[at], self.mask.shape[1])
        values = values if at == values.ndim - 1 else values.movedim(at, -1)
        return values.contiguous().view(-1, values.shape[-1])

    def new(self, x: Tensor, wanted: bool = True) -> Tensor:
        """Memory for what a loop returns in the form of ``x``; without any row if not wanted."""
        x = x if wanted else x[:0]
        return torch.empty_like(x) if self.mask is None else torch.zeros_like(x)

    def shaped(self, found: Tensor, like: Tensor) -> Tensor:
        """A loop's result, in the shape and order of the features."""
        if self.mask is not None or self.channel_dim % like.ndim == like.ndim - 1:
            return found.view(like.shape)
        moved = found.view(like.movedim(self.channel_dim, -1).shape)
        return laid_out(moved.movedim(-1, self.channel_dim), like)


def batch_norm(call: Call) -> Tensor | None:
    """The result of the call.

    ``None`` for half precision, masks per channel, too few real positions, gradients through
    running statistics, little data, and where Numba is missing or a tracer is watching.
    """
    if not _is_covered(call):
        return None
    real = find_real(call)
    if call.training:
        if real.size < max(call.min_count, 1):
            return None
        out: Tensor = _Normalize.apply(  # type: ignore[no-untyped-call]
            call.input, call.mask, call.weight, call.bias, call.residual, real, call
        )
        return out
    if torch.is_grad_enabled() and any(t.requires_grad for t in _differentiable(call)):
        return None
    return _rescale(call, real)


class Loops(NamedTuple):
    """The modules of compiled loops."""

    rows: ModuleType
    """``cpu_loops``."""
    first: ModuleType
    """``cpu_loops_first``."""


@functools.cache
def find_loops() -> Loops | None:
    """The loops, or ``None`` where Numba is missing, does not fit its numpy or is off.

    Nothing loads Numba before a norm asks: that takes most of a second.
    """
    folder = "seqtrain.nn.norms.kernels"
    try:
        found = Loops(*(importlib.import_module(f"{folder}.{n}") for n in _FILES))
    except ImportError:
        return None
    return None if found.rows.is_disabled() else found


class _Normalize(torch.autograd.Function):
    """Batch norm by the statistics of the real positions."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        mask: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        real: Real,
        call: Call,
    ) -> Tensor:
        # The input, not a copy in the order of its rows: autograd refuses one that has changed.
        ctx.save_for_backward(input, mask, weight, bias)
        ctx.real, ctx.relu = real, call.relu
        x = real.view(input)
        ctx.statistics = torch.empty((3, x.shape[1]), dtype=torch.float64, device="cpu")
        ctx.factors = torch.empty((3, x.shape[1]), dtype=x.dtype, device="cpu")
        out = real.new(x)
        added = x[:0] if residual is None else real.view(residual)
        affine = _vector(weight, x, 1), _vector(bias, x, 0)
        found = (ctx.statistics, ctx.factors, out)
        _run("normalize", real, x, added, *affine, call.eps, call.relu, *found)
        if call.running is not None:
            _update(call.running, ctx.statistics, real.size, call.momentum)
        return real.shaped(out, input)

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
        real: Real = ctx.real
        x = real.view(input.to(ctx.factors.dtype))
        of_input, of_residual = (real.new(x, wanted) for wanted in (wants_input, wants_residual))
        # autograd casts them to the dtypes of the parameters
        of_weight, of_bias = (x.new_empty(x.shape[1], device="cpu") for _ in range(2))
        known = (real.view(grad), ctx.statistics, ctx.factors, ctx.relu)
        _run("differentiate", real, x, *known, of_weight, of_bias, of_input, of_residual)
        return (
            real.shaped(of_input, grad) if wants_input else None,
            None,
            of_weight if wants_weight else None,
            of_bias if wants_bias else None,
            real.shaped(of_residual, grad) if wants_residual else None,
            None,
            None,
        )


@torch.no_grad()
def _rescale(call: Call, real: Real) -> Tensor:
    """Normalized by the running statistics."""
    running, x = call.running, real.view(call.input)
    assert running is not None, "evaluation has running statistics"
    mean = running.mean.double()
    centre = mean.to(x.dtype)
    scale = inverse_root(running.var.double(), call.eps) * _vector(call.weight, x, 1)
    scale = scale.to(x.dtype)
    shift = (_vector(call.bias, x, 0) - (mean - centre) * scale).to(x.dtype)
    added = x[:0] if call.residual is None else real.view(call.residual)
    out = real.new(x)
    _run("rescale", real, x, added, torch.stack([centre, scale, shift]), call.relu, out)
    return real.shaped(out, call.input)


def find_real(call: Call) -> Real:
    """The real positions: in pieces if channels come first in memory, else by rows."""
    loops, input = find_loops(), call.input
    assert loops is not None, "a covered call has loops"
    mask, at = call.mask.detach().contiguous(), call.channel_dim % input.ndim
    length = math.prod(input.shape[at + 1 :])
    if length > 1 and input.is_contiguous():
        real = mask.view(torch.uint8).view(-1, length)
        pieces = torch.empty(len(real) * -(-length // PIECE), 4, dtype=torch.int64, device="cpu")
        pieces = pieces[: loops.first.cut(1, _array(real), _array(pieces), PIECE)]
        return Real(pieces, int(pieces[:, 3].sum()), real, call.channel_dim)
    places = torch.empty(mask.numel(), dtype=torch.int64, device="cpu")
    size = loops.rows.find(1, _array(mask.view(torch.uint8).view(-1)), _array(places))
    return Real(places[:size], size, None, call.channel_dim)


def _run(name: str, real: Real, x: Tensor, *arguments: Tensor | float) -> None:
    """Call a loop by its name, on as many of torch's number of threads as there is work for.

    On one in a forked process, which has none of its parent's threads: OpenMP would end it.
    """
    loops = find_loops()
    assert loops is not None, "a covered call has loops"
    num_threads = min(torch.get_num_threads(), real.size * x.shape[1] // WORTH_A_THREAD)
    if num_threads > 1:
        num_threads = min(num_threads, loops.rows.usable_threads()) if os.getpid() == _home else 1
    loop = getattr(loops.rows if real.mask is None else loops.first, name)
    where = _tile(x) if real.mask is None else _array(real.mask)
    arrays = (_array(a) if isinstance(a, Tensor) else a for a in arguments)
    loop(max(num_threads, 1), _array(real.places), _array(x), where, *arrays)


def _array(values: Tensor) -> Array:
    """A view as an array."""
    if values.numel() and not values.data_ptr():
        raise RuntimeError(f"expected memory behind a tensor of shape {tuple(values.shape)}")
    found: Array = values.numpy()
    return found


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
    channel_dim = ctx.real.channel_dim
    mask = view_mask(mask, input, channel_dim)
    of_residual = select_real(grad, mask) if ctx.needs_input_grad[4] else None
    with torch.enable_grad():
        input, mask, grad = (t.movedim(channel_dim, -1) for t in (input, mask, grad))
    if ctx.relu:
        centre, scale, shift = ctx.factors
        normal = (input.detach().to(scale.dtype) - centre) * scale + shift
        grad = torch.where(normal <= 0, grad.new_zeros(()), grad)
    mean, _, invstd = ctx.statistics
    share = torch.full_like(mean, 1 / ctx.real.size)
    statistics = Statistics(mean, invstd, share, share, tuple(range(input.ndim - 1)))
    of_input, *others = differentiable_backward(grad, input, mask, weight, bias, statistics)
    if of_input is not None:
        of_input = of_input.movedim(-1, channel_dim)
    return of_input, *others, of_residual


def _update(
    running: RunningStatistics, statistics: Tensor, size: int, momentum: float | None
) -> None:
    """``running.update`` for a batch with enough rows, in a tenth of its time where possible."""
    buffers = (running.mean, running.var)
    if (
        momentum is None
        or running.weight is not None
        or any(b.dtype not in DTYPES for b in buffers)
    ):
        mean, m2, _ = statistics
        n, enough = (torch.tensor(value, device="cpu") for value in (size, True))
        running.update(Moments(n, mean, m2), enough, momentum)
        return
    loops = find_loops()
    assert loops is not None, "a covered call has loops"
    arrays = (_array(b.detach()) for b in buffers)
    loops.rows.move(1, _array(statistics), *arrays, max(size - 1, 1), float(momentum))
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
    """True if there is memory, in reach, that holds the values as they are."""
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
