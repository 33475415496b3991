"""Where each sequence lies in a grid of positions."""

from typing import NamedTuple

import torch
from torch import Tensor

from seqtrain.masking import lengths_to_mask


class Layout(NamedTuple):
    """The real positions of a ``(B, L)`` grid and what belongs together in it."""

    mask: Tensor
    """Bool ``(B, L)``, True at a real residue."""
    positions: Tensor
    """Int64 ``(L,)`` or ``(B, L)``: place within the sequence, from 0."""
    spans: tuple[tuple[int, int, int], ...] | None
    """Row, first column and length of each sequence, known to the host; None while a program is
    traced, where lengths are data."""


def padded_layout(lengths: Tensor, width: int) -> Layout:
    """One sequence a row, from its first column on.

    Args:
        lengths: Int64 ``(B,)``.
        width: Columns of the grid, at least the longest length.
    """
    mask = lengths_to_mask(lengths, width)
    positions = torch.arange(width, device=lengths.device)
    spans = None
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
        spans = tuple((row, 0, length) for row, length in enumerate(lengths.tolist()) if length)
    return Layout(mask, positions, spans)
