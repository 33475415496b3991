"""The masked norms of each position over its features, as functions.

Padding comes out as exact zeros and gets no gradient, whatever lies there.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from seqtrain.nn.norms.checks import check_dims, check_eps, check_floating
from seqtrain.nn.norms.functional import own_moments, own_statistics
from seqtrain.nn.norms.masks import place_mask, select_real
from seqtrain.nn.norms.moments import count_real, sum_along, wide_dtype
from seqtrain.nn.norms.rows import laid_out
from seqtrain.nn.norms.standardize import Statistics, inverse_root, standardize

Affine = Float[Tensor, "..."] | None


def masked_layer_norm(
    input: Float[Tensor, "..."],
    mask: Bool[Tensor, "..."] | None,
    normalized_shape: Sequence[int],
    weight: Affine = None,
    bias: Affine = None,
    eps: float = 1e-5,
    *,
    channel_dim: int = -1,
    over: Literal["position", "sequence"] = "position",
) -> Float[Tensor, "..."]:
    """Layer norm of real positions (Ba, Kiros and Hinton 2016).

    Args:
        input: Features ``(B, ..., C)``.
        mask: True where real, without the channel dimension or with 1 or all channels there.
        normalized_shape: The number of channels, as a sequence of one; or the sizes of several
            last dimensions, which take the place of the channels.
        weight: Scale, of shape ``normalized_shape``.
        bias: Shift, likewise.
        eps: Added to the variance.
        channel_dim: Where the channels are; the last, if they are several dimensions.
        over: ``"position"`` takes one mean and variance per position, over its channels, as
            ``torch.nn.functional.layer_norm`` does; ``"sequence"`` one per sequence, over the
            channels of all its real positions.

    Returns:
        A tensor like ``input``, 0 at padding.

    Raises:
        ValueError: The mask or ``normalized_shape`` does not fit the input.
    """
    shape = list(normalized_shape)

    def norm(x: Tensor, mask: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if over == "position" and (mask is None or mask.shape[channel_dim] == 1):
            return _at_positions(
                lambda x: F.layer_norm(x, x.shape[-1:], weight, bias, eps), x, mask, channel_dim
            )
        check_floating(x)
        check_eps(eps)
        dims = (channel_dim % x.ndim,) if over == "position" else tuple(range(1, x.ndim))
        check_dims(dims)
        statistics = own_statistics(own_moments(x, mask, dims), eps, dims)
        return standardize(x, mask, statistics, weight, bias, channel_dim)

    return _over_channels(norm, input, mask, shape, channel_dim, weight, bias)


def masked_rms_norm(
    input: Float[Tensor, "..."],
    mask: Bool[Tensor, "..."] | None,
    normalized_shape: Sequence[int],
    weight: Affine = None,
    eps: float | None = None,
    *,
    channel_dim: int = -1,
) -> Float[Tensor, "..."]:
    """Root mean square norm of each real position over its channels (Zhang and Sennrich 2019).

    Args:
        input: Features.
        mask: True where real, without the channel dimension or with 1 or all channels there; the
            mean square is that of a position's real channels.
        normalized_shape: As in :func:`masked_layer_norm`.
        weight: Scale, of shape ``normalized_shape``.
        eps: Added to the mean square; when not given, the step at 1 of the dtype it is taken in.
        channel_dim: Where the channels are; the last, if they are several dimensions.

    Returns:
        A tensor like ``input``, 0 at padding.

    Raises:
        ValueError: The mask or ``normalized_shape`` does not fit the input.
    """

    def norm(x: Tensor, mask: Tensor | None, weight: Tensor | None, _: Tensor | None) -> Tensor:
        if not x.is_complex():  # torch's takes complex features, and no integers
            check_floating(x)
        if mask is not None and mask.shape[channel_dim] != 1:
            check_floating(x)
            statistics = _root_mean_squares(x, mask, channel_dim % x.ndim, eps)
            return standardize(x, mask, statistics, weight, None, channel_dim)
        # torch warns when its fused kernel cannot take a weight of another dtype than the input.
        dtype = x.dtype if weight is None else torch.promote_types(x.dtype, weight.dtype)
        return _at_positions(
            lambda x: F.rms_norm(x.to(dtype), list(x.shape[-1:]), weight, eps),
            x,
            mask,
            channel_dim,
        )

    return _over_channels(norm, input, mask, list(normalized_shape), channel_dim, weight, None)


def _root_mean_squares(input: Tensor, mask: Tensor, dim: int, eps: float | None) -> Statistics:
    """Of each position's real channels, as statistics with a mean of 0 that nothing moves."""
    wide = wide_dtype(input.dtype)
    values = select_real(input.detach().to(wide), mask)
    n = count_real(input, mask, (dim,)).clamp(min=1)
    eps = torch.finfo(wide).eps if eps is None else eps
    invstd = inverse_root(sum_along(values * values, (dim,)) / n, eps)
    nothing = torch.zeros_like(invstd)
    return Statistics(nothing, invstd, nothing.clone(), 1 / n.to(wide), (dim,))


def _over_channels(
    norm: Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None], Tensor],
    input: Tensor,
    mask: Tensor | None,
    shape: list[int],
    channel_dim: int,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """``norm`` of one channel dimension, for ``shape`` of one or several."""
    if len(shape) == 1:
        _check_channels(input, channel_dim, shape)
        return norm(input, place_mask(mask, input, channel_dim), weight, bias)
    if channel_dim != -1 or not shape or list(input.shape[-len(shape) :]) != shape:
        raise ValueError(
            f"expected the last dimensions to be normalized_shape={shape}, found an input of shape "
            f"{tuple(input.shape)} with channel_dim={channel_dim}"
        )
    flat = input.flatten(-len(shape))
    if mask is not None and mask.ndim == input.ndim:
        of_positions = all(size == 1 for size in mask.shape[-len(shape) :])
        mask = mask if of_positions else mask.expand(input.shape)
        mask = mask.flatten(-len(shape))
    weight, bias = (None if p is None else p.flatten() for p in (weight, bias))
    return norm(flat, place_mask(mask, flat, -1), weight, bias).view(input.shape)


def _at_positions(
    norm: Callable[[Tensor], Tensor], input: Tensor, mask: Tensor | None, channel_dim: int
) -> Tensor:
    """torch's ``norm`` of each position over its channels, between two selections.

    Zeros go in at padding, so that nothing that lies there reaches the gradient of the parameters.
    """
    real = select_real(input, mask).movedim(channel_dim, -1)
    out = norm(real).to(input.dtype).movedim(-1, channel_dim)
    return laid_out(select_real(out, mask), input)


def _check_channels(input: Tensor, channel_dim: int, normalized_shape: list[int]) -> None:
    found = input.shape[channel_dim]
    if normalized_shape != [found]:
        raise ValueError(
            f"expected {normalized_shape} channels at dimension {channel_dim} of an input "
            f"of shape {tuple(input.shape)}, found {found}"
        )
