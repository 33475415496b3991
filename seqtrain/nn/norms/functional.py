"""The masked group norm and the general form, as functions.

Padding comes out as exact zeros and gets no gradient, whatever lies there.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from seqtrain.nn.norms.checks import check_dims, check_eps, check_floating, check_rank
from seqtrain.nn.norms.masks import broadcast_mask, place_mask, select_real
from seqtrain.nn.norms.moments import Moments, masked_moments
from seqtrain.nn.norms.rows import laid_out
from seqtrain.nn.norms.standardize import (
    Statistics,
    inverse_root,
    per_channel,
    standardize,
)


def masked_group_norm(
    input: Float[Tensor, "..."],
    mask: Bool[Tensor, "..."] | None,
    num_groups: int,
    weight: Float[Tensor, " C"] | None = None,
    bias: Float[Tensor, " C"] | None = None,
    eps: float = 1e-5,
    *,
    channel_dim: int = 1,
) -> Float[Tensor, "..."]:
    """Group norm: groups of channels of each sequence over its real positions (Wu and He 2018).

    Args:
        input: Features, with the sequences at dimension 0.
        mask: True where real, without the channel dimension or with 1 or all channels there.
            ``None`` is ``torch.nn.functional.group_norm``.
        num_groups: Number of groups; has to divide the number of channels.
        weight: Scale of each channel.
        bias: Shift of each channel.
        eps: Added to the variance.
        channel_dim: Where the channels are.

    Returns:
        A tensor like ``input``, 0 at padding.

    Raises:
        NotImplementedError: The features are no real floating-point numbers.
        ValueError: The mask does not fit, or the groups are not of equal size.
    """
    channel = channel_dim % max(input.ndim, 1)
    if input.ndim > 1 and channel == 0:
        raise ValueError("expected the sequences at dimension 0, found the channels there")
    if mask is None:
        moved = input if channel < 2 else input.movedim(channel, 1)
        out = F.group_norm(moved, num_groups, weight, bias, eps)
        return out if channel < 2 else laid_out(out.movedim(1, channel), input)
    check_floating(input)
    check_rank(input, 2)
    check_eps(eps)
    channels = input.shape[channel]
    if channels % num_groups:
        raise ValueError(f"{channels} channels cannot be cut into {num_groups} equal groups")
    placed = place_mask(mask, input, channel)
    assert placed is not None
    groups = num_groups if placed.shape[channel] > 1 else 1
    grouped_mask = placed.unflatten(channel, (groups, -1))
    grouped = input.unflatten(channel, (num_groups, -1))
    dims = tuple(d for d in range(1, grouped.ndim) if d != channel)
    statistics = own_statistics(own_moments(grouped, grouped_mask, dims), eps, dims)
    weight, bias = (
        None if p is None else per_channel(p, input, channel).unflatten(channel, (num_groups, -1))
        for p in (weight, bias)
    )
    out = standardize(grouped, grouped_mask, statistics, weight, bias)
    return out.flatten(channel, channel + 1)


def masked_norm(
    input: Float[Tensor, "..."],
    mask: Bool[Tensor, "..."] | None,
    dims: int | Sequence[int],
    *,
    eps: float = 0.0,
    correction: int = 0,
    constant: Literal["zero", "keep"] = "zero",
) -> Float[Tensor, "..."]:
    """Mean 0 and variance 1 over the real positions along ``dims``: the general form.

    Batch, layer, group and instance norm are this over suitably reshaped axes.

    Args:
        input: Features of any rank.
        mask: True where real: of the input's rank, every dimension equal or 1; or of one rank
            less, for all of the last dimension.
        dims: Dimensions that mean and variance are taken over.
        eps: Added to the variance.
        correction: The variance divides by n minus this.
        constant: A selection without variance comes out as zeros or, with ``"keep"``, unaltered.
            With ``eps=0`` a deviation that rounding alone can make counts as none, because the
            division would blow it up to 1.

    Returns:
        A tensor like ``input``, 0 at padding.

    Raises:
        NotImplementedError: The features are no real floating-point numbers.
        ValueError: The mask does not fit, ``dims`` is empty, or ``eps`` is negative.
    """
    check_floating(input)
    check_eps(eps)
    axes = tuple(d % input.ndim for d in ([dims] if isinstance(dims, int) else dims))
    check_dims(axes)
    placed = broadcast_mask(mask, input)
    with torch.no_grad():
        moments = masked_moments(input.detach(), placed, axes)
        rounding = moments.mean * (torch.finfo(input.dtype).eps if eps == 0 else 0)
        flat = moments.variance(correction) <= rounding.square()
        moments = moments._replace(m2=moments.m2.masked_fill(flat, 0))
    out = standardize(input, placed, own_statistics(moments, eps, axes, correction))
    return torch.where(flat, select_real(input, placed), out) if constant == "keep" else out


@torch.no_grad()
def own_moments(input: Tensor, mask: Tensor | None, dims: tuple[int, ...]) -> Moments:
    """The input's own moments, as constants: ``standardize`` has their derivatives."""
    return masked_moments(input.detach(), mask, dims)


def own_statistics(
    moments: Moments, eps: float, dims: tuple[int, ...], correction: int = 0
) -> Statistics:
    """Standardize by the input's own moments."""
    invstd = inverse_root(moments.variance(correction), eps)
    mean_share, var_share = (
        1 / (moments.n - c).clamp(min=1).to(invstd.dtype) for c in (0, correction)
    )
    return Statistics(moments.mean, invstd, mean_share, var_share, dims)
