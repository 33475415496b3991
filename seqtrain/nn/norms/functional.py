"""The masked norms that keep no running statistics, as functions.

Padding comes out as exact zeros and gets no gradient, whatever lies there.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from seqtrain.nn.norms.masks import broadcast_mask, place_mask, select_real
from seqtrain.nn.norms.moments import Moments, masked_moments
from seqtrain.nn.norms.standardize import (
    Statistics,
    inverse_root,
    per_channel,
    standardize,
)


def masked_layer_norm(
    input: Float[Tensor, "..."],
    mask: Bool[Tensor, "..."] | None,
    normalized_shape: Sequence[int],
    weight: Float[Tensor, " C"] | None = None,
    bias: Float[Tensor, " C"] | None = None,
    eps: float = 1e-5,
    *,
    channel_dim: int = -1,
    over: Literal["position", "sequence"] = "position",
) -> Float[Tensor, "..."]:
    """Layer norm of real positions (Ba, Kiros and Hinton 2016).

    Args:
        input: Features ``(B, ..., C)``.
        mask: True where real, without the channel dimension or with 1 or all channels there.
        normalized_shape: The number of channels, as a sequence of one.
        weight: Scale of each channel.
        bias: Shift of each channel.
        eps: Added to the variance.
        channel_dim: Where the channels are.
        over: ``"position"`` takes one mean and variance per position, over its channels, as
            ``torch.nn.functional.layer_norm`` does; ``"sequence"`` one per sequence, over the
            channels of all its real positions.

    Returns:
        A tensor like ``input``, 0 at padding.
    """
    _check_channels(input, channel_dim, normalized_shape)
    placed = place_mask(mask, input, channel_dim)
    if over == "position" and (placed is None or placed.shape[channel_dim] == 1):

        def norm(x: Tensor) -> Tensor:
            return F.layer_norm(x, normalized_shape, weight, bias, eps)

        return _at_positions(norm, input, placed, channel_dim)
    dims = (channel_dim % input.ndim,) if over == "position" else tuple(range(1, input.ndim))
    statistics = own_statistics(own_moments(input, placed, dims), eps, dims)
    return standardize(input, placed, statistics, weight, bias, channel_dim)


def masked_rms_norm(
    input: Float[Tensor, "..."],
    mask: Bool[Tensor, "..."] | None,
    normalized_shape: Sequence[int],
    weight: Float[Tensor, " C"] | None = None,
    eps: float | None = None,
    *,
    channel_dim: int = -1,
) -> Float[Tensor, "..."]:
    """Root mean square norm of each real position over its channels (Zhang and Sennrich 2019).

    Args:
        input: Features.
        mask: True where real, without the channel dimension or with 1 channel there.
        normalized_shape: The number of channels, as a sequence of one.
        weight: Scale of each channel.
        eps: Added to the mean square; when not given, the step at 1 of the dtype it is taken in.
        channel_dim: Where the channels are.

    Returns:
        A tensor like ``input``, 0 at padding.
    """
    _check_channels(input, channel_dim, normalized_shape)
    placed = place_mask(mask, input, channel_dim)
    if placed is not None and placed.shape[channel_dim] != 1:
        raise ValueError("the root mean square is taken over all channels: mask positions alone")

    # torch warns when it cannot use its fused kernel because weight and input differ in dtype.
    dtype = input.dtype if weight is None else torch.promote_types(input.dtype, weight.dtype)

    def norm(x: Tensor) -> Tensor:
        return F.rms_norm(x.to(dtype), list(normalized_shape), weight, eps)

    return _at_positions(norm, input, placed, channel_dim)


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
        num_groups: Number of groups; has to divide the number of channels.
        weight: Scale of each channel.
        bias: Shift of each channel.
        eps: Added to the variance.
        channel_dim: Where the channels are.

    Returns:
        A tensor like ``input``, 0 at padding.
    """
    channel = channel_dim % input.ndim
    channels = input.shape[channel]
    if channels % num_groups:
        raise ValueError(f"{channels} channels cannot be cut into {num_groups} equal groups")
    placed = place_mask(mask, input, channel)
    grouped_mask = None
    if placed is not None:
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
    """
    axes = tuple(d % input.ndim for d in ([dims] if isinstance(dims, int) else dims))
    placed = broadcast_mask(mask, input)
    with torch.no_grad():
        moments = masked_moments(input, placed, axes)
        rounding = moments.mean * (torch.finfo(input.dtype).eps if eps == 0 else 0)
        flat = moments.variance(correction) <= rounding.square()
        moments = moments._replace(m2=moments.m2.masked_fill(flat, 0))
    out = standardize(input, placed, own_statistics(moments, eps, axes, correction))
    return torch.where(flat, select_real(input, placed), out) if constant == "keep" else out


@torch.no_grad()
def own_moments(input: Tensor, mask: Tensor | None, dims: tuple[int, ...]) -> Moments:
    """The input's own moments, as constants: ``standardize`` has their derivatives."""
    return masked_moments(input, mask, dims)


def own_statistics(
    moments: Moments, eps: float, dims: tuple[int, ...], correction: int = 0
) -> Statistics:
    """Standardize by the input's own moments."""
    invstd = inverse_root(moments.variance(correction), eps)
    mean_share, var_share = (
        1 / (moments.n - c).clamp(min=1).to(invstd.dtype) for c in (0, correction)
    )
    return Statistics(moments.mean, invstd, mean_share, var_share, dims)


def _at_positions(
    norm: Callable[[Tensor], Tensor], input: Tensor, mask: Tensor | None, channel_dim: int
) -> Tensor:
    """torch's ``norm`` of each position over its channels, between two selections.

    Zeros go in at padding, so that nothing that lies there reaches the gradient of the parameters.
    """
    real = select_real(input, mask).movedim(channel_dim, -1)
    out = norm(real).to(input.dtype).movedim(-1, channel_dim)
    return select_real(out, mask)


def _check_channels(input: Tensor, channel_dim: int, normalized_shape: Sequence[int]) -> None:
    found = input.shape[channel_dim]
    if list(normalized_shape) != [found]:
        raise ValueError(
            f"expected {list(normalized_shape)} channels at dimension {channel_dim} of an input "
            f"of shape {tuple(input.shape)}, found {found}"
        )
