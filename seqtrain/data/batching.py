"""Plans batches of records, and makes the padded tensors of one.

A plan is a pure function of lengths, seed, epoch, rank and world size: an interrupted epoch goes
on at a batch index, and every rank works out its own share without talking to the others.

This module imports torch, for :class:`Batch`; the plan itself is numpy only.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.labels import IGNORE
from seqtrain.data.tokenizer import PAD

PLANS = ("random", "bucketed", "packed")

# A sorting window holds this many batches, and an epoch at least this many windows: wide windows
# pad less, more windows leave more to chance. Padding falls as one over the window's width.
WINDOW_BATCHES = 50
MIN_WINDOWS = 4


def plan_batches(
    lengths: Int64[np.ndarray, " N"],
    kind: str,
    *,
    max_tokens: int,
    max_sequences: int | None = None,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    shuffle: bool = True,
) -> list[Int64[np.ndarray, " _"]]:
    """The batches of one rank in one epoch, each the positions of its records.

    Over all ranks every record comes exactly once and every rank gets equally many batches. The
    plan is made for the whole world and then dealt like cards, so the same records share a batch
    whatever the number of ranks, except in the few batches that are halved to come out even.
    With fewer records than ranks some batches are empty.

    ``packed`` takes records in random order too, for batches that hold no padding: the budget
    counts residues.

    ``bucketed`` shuffles all records, sorts them by length inside windows of many batches, cuts,
    and shuffles the batches: padding stays low while who meets whom stays random. Every second
    window is sorted downwards, so that no batch joins the longest of one window with the shortest
    of the next. This is sequence bucketing (Khomenko et al. 2016, arXiv:1708.05604) over shuffled
    pools, as in torchtext's ``BucketIterator`` and transformers' ``LengthGroupedSampler``.

    Args:
        lengths: Residues of each record.
        kind: ``random``, ``bucketed`` or ``packed``.
        max_tokens: Positions a batch may hold: its records times its longest, or when packed its
            residues. A record longer than that is a batch of its own.
        max_sequences: Records a batch may hold, if that is to be bounded too.
        seed: Together with ``epoch``, decides the order.
        epoch: Each one has another order.
        rank: Which share to return.
        world_size: Number of shares.
        shuffle: False keeps file order, or sorts everything by length (``bucketed``).

    Raises:
        ValueError: ``kind`` is unknown, or a budget or rank is out of range.
    """
    if kind not in PLANS:
        raise ValueError(f"kind must be one of {PLANS}, got {kind!r}")
    if max_tokens < 1 or (max_sequences is not None and max_sequences < 1):
        raise ValueError(f"budgets must be positive, got {max_tokens} and {max_sequences}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in 0..{world_size - 1}, got {rank}")
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths)) if shuffle else np.arange(len(lengths))
    if kind == "bucketed":
        window = _window_size(lengths, max_tokens, max_sequences) if shuffle else len(lengths)
        order = _sort_within_windows(order, lengths, window)
    cuts = _cut(lengths[order], max_tokens, max_sequences, padded=kind != "packed")
    cuts = _split_until_even(cuts, world_size)
    turns = rng.permutation(len(cuts) - 1) if shuffle else np.arange(len(cuts) - 1)
    return [order[cuts[i] : cuts[i + 1]] for i in turns[rank::world_size].tolist()]


def _window_size(
    lengths: Int64[np.ndarray, " N"], max_tokens: int, max_sequences: int | None
) -> int:
    """Records per sorting window."""
    per_batch = max_tokens / max(1.0, float(lengths.mean())) if len(lengths) else 1.0
    if max_sequences is not None:
        per_batch = min(per_batch, max_sequences)
    return max(1, min(int(WINDOW_BATCHES * per_batch), -(-len(lengths) // MIN_WINDOWS)))


def _sort_within_windows(
    order: Int64[np.ndarray, " N"], lengths: Int64[np.ndarray, " N"], window: int
) -> Int64[np.ndarray, " N"]:
    """``order`` with each window sorted by length, upwards and downwards in turn."""
    number = np.arange(len(order)) // max(1, window)
    upwards = np.where(number % 2 == 0, 1, -1)
    return order[np.lexsort((lengths[order] * upwards, number))]


def _cut(
    lengths: Int64[np.ndarray, " N"], max_tokens: int, max_sequences: int | None, *, padded: bool
) -> Int64[np.ndarray, " _"]:
    """Where batches begin when records are taken in turn until a budget is full, and the end.

    The longest so far makes this a chain, so it is one plain loop: 0.2 s for a million records.
    """
    most = len(lengths) if max_sequences is None else max_sequences
    cuts, begin, longest, residues = [0], 0, 0, 0
    for i, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        residues += length
        size = i + 1 - begin
        positions = size * longest if padded else residues
        if size > 1 and (positions > max_tokens or size > most):
            cuts.append(i)
            begin, longest, residues = i, length, length
    if len(lengths):
        cuts.append(len(lengths))
    return np.array(cuts, dtype=np.int64)


def _split_until_even(cuts: Int64[np.ndarray, " C"], world_size: int) -> Int64[np.ndarray, " _"]:
    """``cuts`` with the largest batches halved until every rank gets equally many.

    Halving keeps both budgets. A batch of one record is halved into itself and an empty one.
    """
    while (len(cuts) - 1) % world_size:
        largest = int(np.diff(cuts).argmax())
        middle = (cuts[largest] + cuts[largest + 1] + 1) // 2
        cuts = np.insert(cuts, largest + 1, middle)
    return cuts


def padding_share(
    lengths: Int64[np.ndarray, " N"], batches: Iterable[Int64[np.ndarray, " _"]]
) -> float:
    """Padded positions over all positions of these batches, from 0 to 1."""
    computed = sum(len(batch) * int(lengths[batch].max(initial=0)) for batch in batches)
    real = sum(int(lengths[batch].sum()) for batch in batches)
    return 1 - real / computed if computed else 0.0


@dataclass(frozen=True, eq=False)
class Batch:
    """Records as one tensor: right-padded, one a row, or packed end to end in a single row.

    ``lengths`` and ``index`` stay on the host when the batch travels, so that reading them never
    waits for a GPU.
    """

    tokens: Int64[Tensor, "B L"]
    """Token ids, ``PAD`` behind the end of a record; ``(1, R)`` when packed."""
    mask: Bool[Tensor, "B L"]
    """True where a residue is real: everywhere when packed."""
    targets: Tensor | None
    """``(S,)``, ``(S, K)``, or along ``tokens`` for residues, with ``IGNORE`` (int64) or NaN
    (float32) in the padding; nothing without labels."""
    index: Int64[Tensor, " S"]
    """Positions of the records in their dataset."""
    lengths: Int64[Tensor, " S"]
    """Residues of each record."""
    packed: bool = False

    @property
    def num_residues(self) -> int:
        """Real residues."""
        return int(self.lengths.sum())

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def padding_share(self) -> float:
        """Padded positions over all positions, from 0 to 1."""
        positions = self.mask.numel()
        return 1 - self.num_residues / positions if positions else 0.0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch on ``device``; targets of float64 become float32 on Apple's, which has none."""
        narrow = torch.device(device).type == "mps"

        def move(tensor: Tensor) -> Tensor:
            wide = tensor.dtype == torch.float64
            moved = tensor.float() if narrow and wide else tensor
            return moved.to(device, non_blocking=non_blocking)

        return self._each(move)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from where a GPU can fetch it by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            tokens=move(self.tokens),
            mask=move(self.mask),
            targets=None if self.targets is None else move(self.targets),
        )


def collate(
    dataset: SequenceDataset,
    index: Int[np.ndarray, " B"],
    *,
    pad_to: int | None = None,
    packed: bool = False,
) -> Batch:
    """The records at ``index`` as one batch.

    Args:
        dataset: Where they are.
        index: Which.
        pad_to: Width of the padded form; the longest of them if not given.
        packed: End to end instead, the longest first, so that neighbours are of similar length.

    Raises:
        ValueError: ``pad_to`` is shorter than a record.
    """
    chosen = index.astype(np.int64)
    if packed:
        return _pack(dataset, chosen[np.argsort(-dataset.lengths_of(chosen), kind="stable")])
    lengths = dataset.lengths_of(chosen)
    longest = int(lengths.max(initial=0))
    width = longest if pad_to is None else pad_to
    if width < longest:
        raise ValueError(f"pad_to={width} is shorter than a record of {longest} residues")
    mask = np.arange(width) < lengths[:, None]
    where = dataset.positions(chosen)
    tokens = np.full(mask.shape, PAD, dtype=np.int64)
    tokens[mask] = dataset.tokens[where]
    targets = dataset.targets
    if targets is not None and dataset.per_residue:
        filler = IGNORE if np.issubdtype(targets.dtype, np.integer) else np.nan
        padded = np.full(mask.shape, filler, dtype=targets.dtype)
        padded[mask] = targets[where]
        targets = padded
    elif targets is not None:
        targets = targets[chosen]
    return Batch(
        tokens=torch.from_numpy(tokens),
        mask=torch.from_numpy(mask),
        targets=None if targets is None else torch.from_numpy(targets),
        index=torch.from_numpy(chosen),
        lengths=torch.from_numpy(lengths),
    )


def _pack(dataset: SequenceDataset, chosen: Int64[np.ndarray, " B"]) -> Batch:
    where = dataset.positions(chosen)
    tokens = torch.from_numpy(dataset.tokens[where].astype(np.int64))[None]
    targets = None
    if dataset.targets is not None:
        targets = torch.from_numpy(dataset.targets[where if dataset.per_residue else chosen])
        targets = targets[None] if dataset.per_residue else targets
    return Batch(
        tokens=tokens,
        mask=torch.ones_like(tokens, dtype=torch.bool),
        targets=targets,
        index=torch.from_numpy(chosen),
        lengths=torch.from_numpy(dataset.lengths_of(chosen)),
        packed=True,
    )
