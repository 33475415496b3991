"""All mask arithmetic. A mask is boolean and True means *a real residue*, everywhere.

Padding is always removed by selection, never by multiplication: ``NaN * 0`` is ``NaN``, so a
product would let whatever lies in the padding through.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def lengths_to_mask(
    lengths: Int[Tensor, " B"], max_length: int | None = None
) -> Bool[Tensor, "B L"]:
    """The mask of right-padded sequences, ``(B, max_length)``.

    Args:
        lengths: Number of real residues of each sequence.
        max_length: Width of the mask; the longest sequence when not given.
    """
    width = int(lengths.max()) if max_length is None else max_length
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def zero_padding(
    x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"] | None
) -> Float[Tensor, "B L C"]:
    """``x`` with exact zeros at padding, in the dtype of ``x``; the gradient there is 0.

    Without a mask every position is real.
    """
    if mask is None:
        return x
    return torch.where(mask[..., None], x, x.new_zeros(()))


def masked_mean(x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B C"]:
    """Mean over real positions, in the dtype of ``x``; a sequence with none gives zeros.

    The sum is taken in float32 or wider.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    total = zero_padding(x, mask).sum(dim=1, dtype=wide)
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (total / count).to(x.dtype)


def masked_max(x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B C"]:
    """Largest value at real positions, in the dtype of ``x``; a sequence with none gives zeros.

    The gradient goes to the first of equals.
    """
    lowest = torch.finfo(x.dtype).min
    # Not amax, whose gradient is shared among equals and takes twice as long.
    highest = torch.where(mask[..., None], x, x.new_full((), lowest)).max(dim=1).values
    return torch.where(mask.any(dim=1, keepdim=True), highest, highest.new_zeros(()))


def masked_softmax(scores: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Weights over real positions that sum to 1, in float32 or wider; padding weighs exactly 0.

    A sequence with no real position gets weights of zero.
    """
    wide = torch.promote_types(scores.dtype, torch.float32)
    lowest = torch.finfo(wide).min
    weights = torch.where(mask, scores.to(wide), lowest).softmax(dim=1)
    return torch.where(mask, weights, weights.new_zeros(()))
