"""Places a mask on the input of a norm."""

import torch
from jaxtyping import Bool
from torch import Tensor


def place_mask(mask: Tensor | None, input: Tensor, channel_dim: int) -> Bool[Tensor, "..."] | None:
    """The mask as a view of the input's rank, with 1 or all channels at ``channel_dim``.

    Aligning trailing dimensions instead would broadcast a ``(B, L)`` mask over the wrong axes,
    without a word, whenever B = L = C.

    Args:
        mask: True where a position is real. The shape of ``input`` without its channels, or with
            1 or all of them. ``None``, for all positions, stays ``None``.
        input: Features.
        channel_dim: Where the channels of ``input`` are.

    Raises:
        TypeError: The mask is not boolean.
        ValueError: The shapes do not fit.
    """
    if mask is None:
        return None
    check_mask(mask, input, channel_dim)
    return view_mask(mask, input, channel_dim)


def check_mask(mask: Tensor, input: Tensor, channel_dim: int) -> None:
    """Nothing, if the mask fits the input; a view is not made.

    Args:
        mask: As in ``place_mask``, like all that follows.
        input: As there.
        channel_dim: As there.

    Raises:
        TypeError: The mask is not boolean.
        ValueError: The shapes do not fit.
    """
    channel = channel_dim % input.ndim
    shape = input.shape
    before, after = shape[:channel], shape[channel + 1 :]
    # One by one: torch.compile takes no size that it keeps open for a member of a tuple.
    if (
        mask.shape != (*before, *after)
        and mask.shape != (*before, 1, *after)
        and mask.shape != shape
    ):
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} does not fit input of shape {tuple(shape)} "
            f"with its channels at dimension {channel}: expected the shape of the input without "
            "its channels, or with 1 or all of them"
        )
    _boolean(mask)


def view_mask(mask: Tensor, input: Tensor, channel_dim: int) -> Bool[Tensor, "..."]:
    """A mask that fits as a view of the input's rank, with 1 or all channels at ``channel_dim``.

    Args:
        mask: As in ``place_mask``, like all that follows.
        input: As there.
        channel_dim: As there.
    """
    return mask.unsqueeze(channel_dim % input.ndim) if mask.ndim < input.ndim else mask


def broadcast_mask(mask: Tensor | None, input: Tensor) -> Bool[Tensor, "..."] | None:
    """The mask for the general form: of the input's rank, every dimension equal or 1.

    Args:
        mask: Such a mask, or one without the last dimension, or ``None`` for all positions.
        input: Features.

    Raises:
        TypeError: The mask is not boolean.
        ValueError: The shapes do not fit.
    """
    if mask is None or mask.ndim == input.ndim - 1:
        return place_mask(mask, input, -1)
    if mask.ndim != input.ndim or any(
        size not in (1, wanted) for size, wanted in zip(mask.shape, input.shape, strict=True)
    ):
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} does not broadcast against input of shape "
            f"{tuple(input.shape)}: expected its rank, every dimension equal or 1, or its shape "
            "without the last dimension"
        )
    return _boolean(mask)


def select_real(values: Tensor, mask: Tensor | None) -> Tensor:
    """``values`` with exact zeros where ``mask`` is False, whatever they hold there."""
    return values if mask is None else values.masked_fill(~mask, 0)


def _boolean(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = real), but its dtype is {mask.dtype}")
    return mask
