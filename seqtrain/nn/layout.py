"""Where each sequence lies among the positions of a batch.

Two forms carry the same sequences. *Padded*: one sequence a row, ``(B, L)``. *Packed*: all
residues end to end in a single row, ``(1, R)``, with no padding at all. What works on each
position alone, and every norm, runs on either. What looks at neighbours opens a packed batch:
convolutions by gaps as wide as they reach (:meth:`Layout.with_gaps`), pooling, and attention on a
GPU, into a few :class:`Grid` of similar lengths.
"""

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqtrain.masking import lengths_to_mask

ROW_QUANTUM = 256
"""A row between convolutions is as long as a multiple of this. oneDNN compiles a convolution for
each shape it meets, which costs as much as running it, and so it meets the same few again."""

GRID_OVERHEAD = 256
"""Padded positions that cost about as much as opening one more grid."""


class Places(NamedTuple):
    """Where residues lie among more positions than there are residues."""

    real: Tensor
    """Int64 ``(R,)``: of each residue."""
    empty: Tensor
    """Int64 ``(P - R,)``: all the others."""
    source: Tensor
    """Int64 ``(P,)``: which residue lies at each position; any where it is empty."""

    @classmethod
    def of(cls, real: Tensor, empty: Tensor) -> "Places":
        """Both, and the way back."""
        source = real.new_zeros(len(real) + len(empty))
        number = torch.arange(len(real), device=real.device)
        return cls(real, empty, source.index_copy_(0, real, number))


class Grid(NamedTuple):
    """Sequences that lie side by side in a packed batch, as a padded grid of their own."""

    mask: Tensor
    """Bool ``(b, L)``."""
    places: Places
    """Of their residues among the ``b * L`` positions."""

    def pad(self, rows: Tensor) -> Tensor:
        """From these residues, ``(r, C)``, to ``(b, L, C)``, zeros between."""
        return _spread(rows, self.places).view(*self.mask.shape, rows.shape[-1])

    def unpad(self, x: Tensor) -> Tensor:
        """From ``(b, L, C)`` back to ``(r, C)``."""
        return _pick(x.flatten(0, 1), self.places)


class _Spread(torch.autograd.Function):
    """Rows put at distinct places among zeros.

    Autograd's own gradient of indexing adds up, since it cannot know that no place comes twice,
    and takes four times as long as this pair.
    """

    @staticmethod
    def forward(rows: Tensor, real: Tensor, empty: Tensor, source: Tensor) -> Tensor:  # noqa: ARG004
        # Fetched, not sent: index_copy_ takes twice as long, and fills what it writes to.
        return rows.index_select(0, source).index_fill_(0, empty, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _pick(grad, Places(*ctx.saved_tensors)), None, None, None


class _Pick(torch.autograd.Function):
    """Rows taken from distinct places; the inverse of :class:`_Spread`."""

    @staticmethod
    def forward(rows: Tensor, real: Tensor, empty: Tensor, source: Tensor) -> Tensor:  # noqa: ARG004
        return rows.index_select(0, real)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _spread(grad, Places(*ctx.saved_tensors)), None, None, None


def _spread(rows: Tensor, places: Places) -> Tensor:
    out: Tensor = _Spread.apply(rows, *places)  # type: ignore[no-untyped-call]
    return out


def _pick(rows: Tensor, places: Places) -> Tensor:
    out: Tensor = _Pick.apply(rows, *places)  # type: ignore[no-untyped-call]
    return out


class Layout(NamedTuple):
    """The real positions of a batch and what belongs together."""

    mask: Tensor | None
    """Bool ``(B, L)``, True at a real residue; None when packed end to end: all are."""
    positions: Tensor
    """Int64 ``(L,)`` or ``(B, L)``: place within the sequence, from 0."""
    spans: tuple[tuple[int, int, int], ...] | None
    """Row, first column and length of each sequence; None where a program is traced, or where
    going through them one by one would be slow."""
    sequences: Tensor | None = None
    """Packed: int64 ``(R,)``, the number of the sequence that each position belongs to."""
    ends: Tensor | None = None
    """Packed: int64 ``(S,)``, where each sequence ends among the residues."""
    longest: int = 0
    """Packed: residues of the longest sequence."""
    grids: tuple[Grid, ...] | None = None
    """Packed: all sequences, in order."""
    places: Places | None = None
    """Packed with gaps: where the residues lie. Mask and sequences are of the positions of the row,
    all else is of the residues."""

    @property
    def is_packed(self) -> bool:
        """True if the sequences lie in one row.

        Not told from the grids: a compiled block would hold for batches of as many grids alone.
        """
        return self.sequences is not None

    @property
    def num_sequences(self) -> int:
        """Sequences in the batch; of a padded one its rows."""
        if self.ends is not None:
            return len(self.ends)
        assert self.mask is not None, "a padded batch has a mask"
        return len(self.mask)

    def in_grids(self, x: Tensor) -> list[tuple[Grid, Tensor]]:
        """Each grid of a packed ``(1, R, C)`` with its residues, ``(r, C)``.

        Split at once: the gradient of one slice after the other fills all of ``x`` for each.
        """
        assert self.grids is not None, "only a packed batch has grids"
        rows = x.squeeze(0).split([len(grid.places.real) for grid in self.grids])
        return list(zip(self.grids, rows, strict=True))

    def with_gaps(self, reach: int) -> "Layout":
        """Of the same packed residues with ``reach`` empty positions between two sequences.

        The row is filled up to a multiple of ``ROW_QUANTUM``.
        """
        assert self.sequences is not None, "only a packed batch has sequences side by side"
        assert self.ends is not None, "only a packed batch has sequences side by side"
        R, S, device = len(self.sequences), len(self.ends), self.ends.device
        last = R + (S - 1) * reach
        size = -(-last // ROW_QUANTUM) * ROW_QUANTUM
        gaps = self.ends[:-1] + reach * torch.arange(S - 1, device=device)
        gaps = (gaps[:, None] + torch.arange(reach, device=device)).flatten()
        empty = torch.cat([gaps, torch.arange(last, size, device=device)])
        real = torch.arange(R, device=device) + self.sequences * reach
        places = Places.of(real, empty)
        mask = torch.ones(1, size, dtype=torch.bool, device=device).index_fill_(1, empty, False)
        return self._replace(mask=mask, sequences=self.sequences[places.source], places=places)

    def open(self, x: Tensor) -> Tensor:
        """Of residues end to end, ``(1, R, ...)``, the row with gaps, zeros in them."""
        assert self.places is not None, "the layout has gaps"
        return _spread(x.squeeze(0), self.places)[None]

    def close(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`open`."""
        assert self.places is not None, "the layout has gaps"
        return _pick(x.squeeze(0), self.places)[None]


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

    All is worked out from the lengths, those on the host where a size is wanted and their copy on
    the device otherwise: nothing waits for a GPU.

    Args:
        lengths: Int64 ``(S,)``, on the host. Grids have least padding if they are sorted.
        device: Where the tokens are.
    """
    sizes = lengths.tolist()
    starts = [0, *accumulate(sizes)]
    if device.type == "cuda":
        lengths = lengths.pin_memory()
    lengths = lengths.to(device, non_blocking=True)
    numbers = torch.arange(len(sizes), device=device)
    sequences = torch.repeat_interleave(numbers, lengths, output_size=starts[-1])
    ends = lengths.cumsum(0)
    positions = torch.arange(starts[-1], device=device) - (ends - lengths)[sequences]
    spans = tuple((0, start, size) for start, size in zip(starts, sizes, strict=False) if size)
    grids = []
    for a, b in _neighbours(sizes):
        own = slice(starts[a], starts[b])
        width = max(sizes[a:b], default=0)
        mask = lengths_to_mask(lengths[a:b], width)
        real = (sequences[own] - a) * width + positions[own]
        num_empty = mask.numel() - len(real)
        empty = torch.nonzero_static(~mask.flatten(), size=num_empty).squeeze(1)
        grids.append(Grid(mask, Places.of(real, empty)))
    return Layout(
        mask=None,
        positions=positions[None],
        spans=spans if device.type == "cpu" else None,
        sequences=sequences,
        ends=ends,
        longest=max(sizes, default=0),
        grids=tuple(grids),
    )


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
