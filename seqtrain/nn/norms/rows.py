"""Statistics of gathered real positions, where that is the fastest way."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqtrain.nn.norms.standardize import (
    Statistics,
    closed_form,
    differentiable_backward,
    per_channel,
    scaled,
    standardize,
)
from seqtrain.nn.norms.watching import is_watched


class Standard(NamedTuple):
    """Standardizes the input of a norm, of any rank."""

    statistics: Statistics
    weight: Tensor | None
    """``(C,)``, like the next."""
    bias: Tensor | None


def over_real_rows(
    standard: Callable[[Tensor, Tensor | None, int], Standard],
    input: Tensor,
    mask: Tensor | None,
    channel_dim: int,
) -> Tensor:
    """``input`` standardized, if possible by way of the real rows of channels alone.

    On the CPU in eager mode, where every pass counts and selection costs several, the real rows
    are gathered, normalized without a mask, and put back among zeros. Their number depends on the
    data, which a traced program cannot have and a GPU would have to be waited for.

    Args:
        standard: Takes input, mask and channel dimension, of a norm that treats positions alike.
        input: Features.
        mask: Of the input's rank, or ``None``.
        channel_dim: Where the channels are.

    Returns:
        A tensor like ``input``, with its strides.
    """
    if mask is None or not _pays(input, mask, channel_dim):
        return standardize(input, mask, *standard(input, mask, channel_dim), channel_dim)
    real = mask.flatten().nonzero().squeeze(1)
    rows = _gathered(input.detach(), real, channel_dim)
    statistics, *affine = standard(rows, None, 1)
    weight, bias = (None if p is None else per_channel(p, rows, 1) for p in affine)
    out: Tensor = _StandardizeRows.apply(  # type: ignore[no-untyped-call]
        input, rows, real, weight, bias, channel_dim, *statistics
    )
    return out


def _pays(input: Tensor, mask: Tensor, channel_dim: int) -> bool:
    return mask.shape[channel_dim] == 1 and input.is_cpu and not is_watched(input, mask)


def _gathered(values: Tensor, real: Tensor, channel_dim: int) -> Tensor:
    """The real rows ``(n, C)``."""
    moved = values.movedim(channel_dim, -1)
    # Not flattened: a batch of gradients has no rule for that.
    rows = moved.reshape(math.prod(moved.shape[:-1]), moved.shape[-1])
    return rows.index_select(0, real)


def _scattered(rows: Tensor, real: Tensor, like: Tensor, channel_dim: int) -> Tensor:
    """The rows back where they were, among zeros, with the strides of ``like``."""
    shape = like.movedim(channel_dim, -1).shape
    everything = rows.new_zeros(math.prod(shape[:-1]), shape[-1])
    out = everything.index_copy(0, real, rows).view(shape).movedim(-1, channel_dim)
    return laid_out(out, like)


def laid_out(out: Tensor, like: Tensor) -> Tensor:
    """``out``, made contiguous if ``like`` is: then ``out.view`` works as behind torch's norms."""
    return out.contiguous() if like.is_contiguous() else out


class _StandardizeRows(torch.autograd.Function):
    """``standardize`` of real rows, which are gathered again from the saved input going back.

    To save the rows would take more memory, and an input that is changed before it goes back would
    pass unseen, where torch raises.
    """

    @staticmethod
    def forward(
        input: Tensor,
        rows: Tensor,
        real: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        channel_dim: int,
        *statistics: Any,
    ) -> Tensor:
        normal = scaled(rows, None, weight, bias, *statistics[:2])
        return _scattered(normal, real, input, channel_dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        input, _, real, weight, bias, ctx.channel_dim, *statistics = inputs
        *tensors, ctx.dims, ctx.group = statistics
        ctx.save_for_backward(input, real, weight, bias, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, real, weight, bias, *tensors = ctx.saved_tensors
        mean, invstd, mean_share, var_share = tensors
        statistics = Statistics(mean, invstd, mean_share, var_share, ctx.dims, ctx.group)
        further = torch.is_grad_enabled()
        gradients = differentiable_backward if further else closed_form
        rows, grad_rows = (_gathered(t, real, ctx.channel_dim) for t in (input, grad))
        of_rows, _, *of_affine = gradients(grad_rows, rows, None, weight, bias, statistics)
        of_input = None
        if of_rows is not None and ctx.needs_input_grad[0]:
            of_input = _scattered(of_rows, real, input, ctx.channel_dim)
        return of_input, None, None, *of_affine, *[None] * 7
