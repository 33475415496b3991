"""The elementwise half of every masked norm, with its gradient.

``masked_moments`` reads, ``standardize`` writes: faster kernels belong behind these two functions.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from seqtrain.nn.norms.masks import select_real
from seqtrain.nn.norms.moments import sum_along, sum_over_ranks
from seqtrain.nn.norms.watching import is_transformed


class Statistics(NamedTuple):
    """What ``standardize`` subtracts and multiplies with, and how far it depends on the input."""

    mean: Tensor
    invstd: Tensor
    mean_share: Tensor | None
    """Derivative of the mean by each real position: 1/n, 0 where the mean is a constant."""
    var_share: Tensor | None
    """Weight of a squared deviation in the variance: 1/(n − correction), 0 where it is constant."""
    dims: tuple[int, ...]
    """Dimensions that mean and variance were taken over."""
    group: dist.ProcessGroup | None = None
    """The ranks that share the statistics."""


def inverse_root(variance: Tensor, eps: float) -> Tensor:
    """``1 / sqrt(variance + eps)``, and 0 instead of infinity."""
    shifted = variance + eps
    return torch.where(shifted > 0, shifted.rsqrt(), shifted.new_zeros(()))


def standardize(
    input: Float[Tensor, "..."],
    mask: Bool[Tensor, "..."] | None,
    statistics: Statistics,
    weight: Float[Tensor, "..."] | None = None,
    bias: Float[Tensor, "..."] | None = None,
    channel_dim: int | None = None,
) -> Float[Tensor, "..."]:
    """``(input - mean) * invstd * weight + bias`` at real positions and exactly 0 elsewhere.

    The gradient reaches ``input`` through mean and variance as well, and is exactly 0 at padding,
    whatever lies there in ``input`` or in the upstream gradient.

    Args:
        input: Features.
        mask: True where real; of the input's rank, every dimension equal or 1. ``None`` for all.
        statistics: Constants to autograd, taken from ``input`` under ``no_grad``.
        weight: Scale: ``(C,)`` with ``channel_dim``, else broadcasting at the input's rank.
        bias: Shift, shaped like ``weight``.
        channel_dim: Where the channels of ``weight`` and ``bias`` are.

    Returns:
        A tensor like ``input``, in its dtype.
    """
    if channel_dim is not None:
        weight, bias = (
            None if p is None else per_channel(p, input, channel_dim) for p in (weight, bias)
        )
    if is_transformed():
        return differentiable(input, mask, weight, bias, statistics)
    out: Tensor = _Standardize.apply(  # type: ignore[no-untyped-call]
        input, mask, weight, bias, *statistics
    )
    return out


class _Standardize(torch.autograd.Function):
    """The closed-form first derivative; higher ones differentiate ``differentiable_backward``."""

    @staticmethod
    def forward(
        input: Tensor,
        mask: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        _mean_share: Tensor | None,
        _var_share: Tensor | None,
        _dims: tuple[int, ...],
        _group: dist.ProcessGroup | None,
    ) -> Tensor:
        return scaled(input, mask, weight, bias, mean, invstd)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        *tensors, ctx.dims, ctx.group = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, mask, weight, bias, *tensors = ctx.saved_tensors
        mean, invstd, mean_share, var_share = tensors
        statistics = Statistics(mean, invstd, mean_share, var_share, ctx.dims, ctx.group)
        gradients = differentiable_backward if torch.is_grad_enabled() else closed_form
        return *gradients(grad, input, mask, weight, bias, statistics), *[None] * 6


def scaled(
    input: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
) -> Tensor:
    """``(input - mean) * invstd * weight + bias`` at real positions, 0 elsewhere."""
    # Subtract first: input * scale - mean * scale would cancel at a large mean.
    out = (input - mean).mul_(invstd if weight is None else invstd * weight)
    if bias is not None:
        out += bias
    return select_real(out, mask).to(input.dtype)


Gradients = tuple[Tensor | None, None, Tensor | None, Tensor | None]
"""Of input, mask, weight and bias."""


def closed_form(
    grad: Tensor,
    input: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Statistics,
) -> Gradients:
    """The first derivative: ``dx = weight * invstd * (dy - mean dy - x̂ * mean(dy * x̂))``."""
    mean, invstd, mean_share, var_share, dims, group = statistics
    normal = select_real((input - mean).mul_(invstd), mask)
    grad = select_real(grad.to(normal.dtype), mask)
    shared = [d for d in dims if weight is None or weight.shape[d] == 1]
    # Everything after these two sums is small, or elementwise.
    grad_sum = sum_along(grad, shared)
    product_sum = sum_along(grad * normal, shared)
    grad_weight = None if weight is None else product_sum.sum_to_size(weight.shape)
    grad_bias = None if bias is None else grad_sum.sum_to_size(bias.shape)
    grad_input = grad * (invstd if weight is None else invstd * weight)
    if mean_share is not None and var_share is not None:
        if weight is not None:
            grad_sum, product_sum = grad_sum * weight, product_sum * weight
        mean_term, var_term = sum_along(grad_sum, dims), sum_along(product_sum, dims)
        if group is not None:
            mean_term, var_term = sum_over_ranks(mean_term, var_term, group=group)
        # Not into ``normal``, which is one and the same for a batch of gradients.
        grad_input = grad_input - normal * (invstd * var_share * var_term)
        grad_input -= invstd * mean_share * mean_term
        grad_input = select_real(grad_input, mask)
    return grad_input.to(input.dtype), None, grad_weight, grad_bias


def differentiable_backward(
    grad: Tensor,
    input: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Statistics,
) -> Gradients:
    """The first derivative, which can be differentiated again."""
    with torch.enable_grad():
        out = differentiable(input, mask, weight, bias, statistics)
    wanted = [t for t in (input, weight, bias) if t is not None and t.requires_grad]
    grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=True) if wanted else ())
    of_input, of_weight, of_bias = (
        next(grads) if t is not None and t.requires_grad else None for t in (input, weight, bias)
    )
    return of_input, None, of_weight, of_bias


def differentiable(
    input: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Statistics,
) -> Tensor:
    """``standardize`` in torch's own operations, in which derivatives of any kind and order exist.

    Raises:
        RuntimeError: The statistics are shared by ranks, whose inputs are not at hand.
    """
    mean, invstd, mean_share, var_share, dims, group = statistics
    if group is not None:
        raise RuntimeError(
            "statistics that are synchronised over ranks have no second derivative, and none in "
            "forward mode or under torch.func"
        )
    # Forward mode, unlike reverse mode, goes on under ``no_grad``.
    mean, invstd = mean.detach(), invstd.detach()
    out = select_real(input - mean, mask)
    if mean_share is not None and var_share is not None:
        # Both corrections have the value 0 and the derivative of the statistic by the input.
        drift = mean_share * sum_along(out, dims)
        out = select_real(out - (drift - drift.detach()), mask)
        spread = var_share * sum_along(out * out, dims)
        spread = spread - spread.detach()
        out = out * (1 + invstd * invstd * spread).rsqrt()
    out = out * invstd
    out = out if weight is None else out * weight
    out = out if bias is None else select_real(out + bias, mask)
    return out.to(input.dtype)


def per_channel(values: Tensor, input: Tensor, channel_dim: int) -> Tensor:
    """A view of ``(C,)`` that broadcasts against the channels of ``input``.

    Raises:
        ValueError: The input has another number of channels.
    """
    channels = input.shape[channel_dim]
    if values.shape != (channels,):
        raise ValueError(
            f"expected {values.numel()} channels at dimension {channel_dim} of an input of shape "
            f"{tuple(input.shape)}, found {channels}"
        )
    shape = [1] * input.ndim
    shape[channel_dim] = channels
    return values.view(shape)


def other_dims(input: Tensor, channel_dim: int) -> tuple[int, ...]:
    """All dimensions of ``input`` but that of the channels."""
    return tuple(d for d in range(input.ndim) if d != channel_dim % input.ndim)
