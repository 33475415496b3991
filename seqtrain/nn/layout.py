"""Where each sequence lies among the positions of a batch.

Two forms carry the same sequences. *Padded*: one sequence a row, ``(B, L)``. *Packed*: all
residues end to end in a single row, ``(1, R)``, with no padding at all. What works on each
position alone, and every norm, runs on either. What looks at neighbours opens a packed batch:
a convolution by gaps as wide as it reaches (:func:`with_gaps`), pooling and attention into a few
:class:`Grid` of similar lengths.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqtrain.masking import lengths_to_mask

ROW_QUANTUM = 512

GRID_OVERHEAD = 256
"""Padded positions that cost about as much as opening one more grid."""


class Grid(NamedTuple):
    """Sequences that lie side by side in a packed batch, as a padded grid of their own."""

    first: int
    """Where the first of them begins among the packed residues."""
    last: int
    """Where the last of them ends."""
    mask: Tensor
    """Bool ``(b, L)``."""
    places: Tensor
    """Int64 ``(last - first,)``: of their residues among the ``b * L`` positions."""

    def pad(self, x: Tensor) -> Tensor:
        """From packed ``(1, R, C)`` to ``(b, L, C)``, zeros between."""
        rows = _spread(x[0, self.first : self.last], self.places, self.mask.numel())
        return rows.view(*self.mask.shape, x.shape[-1])

    def unpad(self, x: Tensor) -> Tensor:
        """From ``(b, L, C)`` back to packed, ``(1, last - first, C)``."""
        return _pick(x.flatten(0, 1), self.places)[None]


class _Spread(torch.autograd.Function):
    """Rows put at distinct places among zeros.

    Autograd's own gradient of indexing adds up, since it cannot know that no place comes twice,
    and takes four times as long as this pair.
    """

    @staticmethod
    def forward(rows: Tensor, places: Tensor, size: int) -> Tensor:
        return rows.new_zeros(size, rows.shape[1]).index_copy_(0, places, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        return _pick(grad, places), None, None


class _Pick(torch.autograd.Function):
    """Rows taken from distinct places; the inverse of :class:`_Spread`."""

    @staticmethod
    def forward(rows: Tensor, places: Tensor) -> Tensor:
        return rows.index_select(0, places)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        rows, places = inputs
        ctx.save_for_backward(places)
        ctx.size = len(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        return _spread(grad, places, ctx.size), None


def _spread(rows: Tensor, places: Tensor, size: int) -> Tensor:
    out: Tensor = _Spread.apply(rows, places, size)  # type: ignore[no-untyped-call]
    return out


def _pick(rows: Tensor, places: Tensor) -> Tensor:
    out: Tensor = _Pick.apply(rows, places)  # type: ignore[no-untyped-call]
    return out


class Layout(NamedTuple):
    """The real positions of a batch and what belongs together."""

    mask: Tensor | None
    """Bool ``(B, L)``, True at a real residue; None when packed: every position is real."""
    positions: Tensor
    """Int64 ``(L,)`` or ``(B, L)``: place within the sequence, from 0."""
    spans: tuple[tuple[int, int, int], ...] | None
    """Row, first column and length of each sequence; None where a program is traced, or where
    going through them one by one would be slow."""
    sequences: Tensor | None = None
    """Packed: int64 ``(R,)``, the number of the sequence that each residue belongs to."""
    grids: tuple[Grid, ...] | None = None
    """Packed: all sequences, in order."""

    @property
    def num_sequences(self) -> int:
        """Sequences in the batch; of a padded one its rows."""
        if self.grids is not None:
            return sum(len(grid.mask) for grid in self.grids)
        assert self.mask is not None, "a padded batch has a mask"
        return len(self.mask)


def with_gaps(x: Tensor, layout: Layout, gap: int, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """A packed ``(1, R, C)`` transformed with ``gap`` zeros between neighbouring sequences.

    The row is as long as a multiple of ``ROW_QUANTUM``: oneDNN compiles a convolution for each
    shape it meets, which costs as much as running it, and so it meets the same few again.
    """
    assert layout.sequences is not None, "only a packed batch has sequences side by side"
    places = torch.arange(x.shape[1], device=x.device) + layout.sequences * gap
    size = x.shape[1] + (layout.num_sequences - 1) * gap
    row = _spread(x[0], places, -(-size // ROW_QUANTUM) * ROW_QUANTUM)
    return _pick(transform(row[None])[0], places)[None]


def padded_layout(lengths: Tensor, width: int, device: torch.device | None = None) -> Layout:
    """One sequence a row, from its first column on.

    Args:
        lengths: Int64 ``(B,)``.
        width: Columns, at least the longest length.
        device: Where the tokens are; where the lengths are if not given.
    """
    spans = None
    device = lengths.device if device is None else device
    if device.type == "cpu" and not torch.compiler.is_compiling():
        spans = tuple((row, 0, length) for row, length in enumerate(lengths.tolist()) if length)
    positions = torch.arange(width, device=device)
    return Layout(lengths_to_mask(lengths.to(device), width), positions, spans)


def packed_layout(lengths: Tensor, device: torch.device) -> Layout:
    """All sequences end to end in one row.

    Args:
        lengths: Int64 ``(S,)``, on the host. Grids have least padding if they are sorted.
        device: Where the tokens are.
    """
    sizes = lengths.tolist()
    starts = [0, *accumulate(sizes)]
    sequences = torch.repeat_interleave(torch.arange(len(sizes)), lengths)
    positions = torch.arange(starts[-1]) - torch.tensor(starts)[sequences]
    is_cpu = device.type == "cpu"
    spans = tuple((0, start, size) for start, size in zip(starts, sizes, strict=False) if size)
    grids = tuple(_grid(lengths[a:b], starts[a], starts[b], device) for a, b in _neighbours(sizes))
    return Layout(
        mask=None,
        positions=positions[None].to(device),
        spans=spans if is_cpu else None,
        sequences=sequences.to(device),
        grids=grids,
    )


def _grid(lengths: Tensor, first: int, last: int, device: torch.device) -> Grid:
    mask = lengths_to_mask(lengths)
    return Grid(first, last, mask.to(device), mask.flatten().nonzero().squeeze(1).to(device))


def _neighbours(sizes: list[int]) -> list[tuple[int, int]]:
    """Cuts into runs of sequences, each of which is closed before its padding is worth another."""
    runs, begin, longest, total = [], 0, 0, 0
    for i, size in enumerate(sizes):
        wider = max(longest, size)
        if i > begin and wider * (i + 1 - begin) - total - size > GRID_OVERHEAD:
            runs.append((begin, i))
            begin, wider, total = i, size, 0
        longest, total = wider, total + size
    return [*runs, (begin, len(sizes))]
