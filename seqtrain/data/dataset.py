"""Tokenized records as ragged arrays: no objects, so a million peptides are four arrays."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Int64, UInt8

from seqtrain.data.ragged import ITERATED, Texts, bounds, byte_counts, gather, offsets_of, positions


@dataclass(frozen=True, eq=False)
class SequenceDataset:
    """Records laid end to end; record ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``.

    Raises:
        ValueError: the arrays contradict each other.
    """

    ids: Sequence[str]
    """Record ids, in input order."""
    tokens: UInt8[np.ndarray, " R"]
    """Token ids of all residues."""
    offsets: Int64[np.ndarray, " S"]
    """Where each record starts, and at last where the last one ends: one more than records."""
    targets: np.ndarray | None = None
    """int64 ``(N,)`` classes, float64 ``(N,)`` values, float32 ``(N, K)`` labels, or one int64 or
    float64 per residue (``per_residue``); nothing without labels."""
    per_residue: bool = False
    """True when ``targets`` runs along ``tokens`` rather than along the records."""

    def __post_init__(self) -> None:
        if len(self.offsets) != len(self.ids) + 1:
            raise ValueError(f"{len(self.ids)} ids need one more offset, got {len(self.offsets)}")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.tokens):
            raise ValueError(
                f"offsets must run from 0 to {len(self.tokens)} tokens, "
                f"got {self.offsets[0]} to {self.offsets[-1]}"
            )
        if self.targets is not None:
            expected = len(self.tokens) if self.per_residue else len(self.ids)
            if len(self.targets) != expected:
                raise ValueError(
                    f"expected {expected} targets (per_residue={self.per_residue}), "
                    f"got {len(self.targets)}"
                )

    @classmethod
    def from_lists(
        cls,
        ids: Sequence[str],
        token_arrays: Sequence[UInt8[np.ndarray, " _"]],
        targets: Sequence[Any] | np.ndarray | None = None,
        *,
        per_residue: bool = False,
    ) -> "SequenceDataset":
        """The dataset of one token array, and one target, per record.

        Args:
            ids: Record ids.
            token_arrays: Token ids of each record.
            targets: What :meth:`LabelCodec.encode` gave for each record: integers become int64,
                float32 stays, anything else becomes float64.
            per_residue: Each target is an array as long as its record.
        """
        offsets = offsets_of(np.fromiter(map(len, token_arrays), np.int64, len(token_arrays)))
        dataset = cls(ids, np.concatenate([np.empty(0, np.uint8), *token_arrays]), offsets)
        return dataset if targets is None else dataset.labelled(targets, per_residue=per_residue)

    @classmethod
    def concatenated(cls, parts: Sequence["SequenceDataset"]) -> "SequenceDataset":
        """The records of all parts, one part after the other; a copy unless there is but one.

        Either all parts have targets, of one kind, or none has.
        """
        if len(parts) == 1:
            return parts[0]
        ids = Texts.of(record for part in parts for record in part.ids)
        offsets = offsets_of(np.concatenate([part.lengths for part in parts]))
        tokens = np.concatenate([part.tokens for part in parts])
        targets = [part.targets for part in parts if part.targets is not None]
        flat = np.concatenate(targets) if targets else None
        return cls(ids, tokens, offsets, flat, parts[0].per_residue)

    def labelled(
        self, targets: Sequence[Any] | np.ndarray, *, per_residue: bool = False
    ) -> "SequenceDataset":
        """The same records with targets, as :meth:`from_lists` takes them."""
        if per_residue and [len(t) for t in targets] != self.lengths.tolist():
            raise ValueError("every residue target must be as long as its record")
        flat = np.concatenate(list(targets)) if per_residue and len(targets) else np.array(targets)
        if flat.dtype != np.float32:
            kind = np.int64 if np.issubdtype(flat.dtype, np.integer) else np.float64
            flat = flat.astype(kind, copy=False)
        return SequenceDataset(self.ids, self.tokens, self.offsets, flat, per_residue)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Int64[np.ndarray, " N"]:
        """Residues of each record."""
        return np.diff(self.offsets)

    def lengths_of(self, indices: Int[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
        """Residues of these records, in time that does not depend on how many others there are."""
        return bounds(self.offsets, indices)[1]

    def residues(self, i: int) -> UInt8[np.ndarray, " L"]:
        """Token ids of record ``i``, a view."""
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    def token_counts(self) -> Int64[np.ndarray, " V"]:
        """Counts of the tokens, up to the largest that occurs."""
        return np.trim_zeros(byte_counts(self.tokens), "b")

    def target(self, i: int) -> Any:
        """Target of record ``i``: a number, ``(K,)`` labels, or ``(L,)`` along its residues."""
        if self.targets is None:
            raise ValueError("this dataset has no targets")
        if self.per_residue:
            return self.targets[self.offsets[i] : self.offsets[i + 1]]
        return self.targets[i]

    def positions(self, indices: Int[np.ndarray, " B"]) -> Int64[np.ndarray, " T"]:
        """Where the residues of these records lie in ``tokens``, record after record."""
        return positions(*bounds(self.offsets, indices))

    def subset(self, indices: Int[np.ndarray, " B"] | Sequence[int]) -> "SequenceDataset":
        """A copy of these records, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        ids = (
            self.ids.take(chosen) if isinstance(self.ids, Texts) else [self.ids[i] for i in chosen]
        )
        begins, lengths = bounds(self.offsets, chosen)
        targets = self.targets
        if targets is not None:
            targets = gather(targets, begins, lengths) if self.per_residue else targets[chosen]
        tokens = gather(self.tokens, begins, lengths)
        return SequenceDataset(ids, tokens, offsets_of(lengths), targets, self.per_residue)

    def truncated(self, longest: int) -> "SequenceDataset":
        """A copy of the first ``longest`` residues of each record, without targets."""
        lengths = np.minimum(self.lengths, longest)
        tokens = gather(self.tokens, self.offsets[:-1], lengths)
        return SequenceDataset(self.ids, tokens, offsets_of(lengths))

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 over ids, residues and targets; the same wherever they are kept."""
        digest = hashlib.sha256(b"[")
        for first in range(0, len(self), ITERATED):  # as JSON would give all ids at once
            text = json.dumps(list(self.ids[first : first + ITERATED]))[1:-1]
            digest.update((", " * (first > 0) + text).encode())
        digest.update(b"]")
        for array in (self.tokens, self.offsets, *_for_digest(self.targets)):
            if array is not None:
                digest.update(f"{array.dtype.str}{array.shape}{self.per_residue}".encode())
                digest.update(np.ascontiguousarray(array).reshape(-1).data)
        return digest.hexdigest()


def _for_digest(targets: np.ndarray | None) -> tuple[np.ndarray | None, ...]:
    """Targets as a fingerprint counts them: in float32, as runs before float64 targets did.

    In float64 as well where float32 tells fewer values apart.
    """
    if targets is None or targets.dtype != np.float64:
        return (targets,)
    narrow = targets.astype(np.float32)
    is_enough = len(np.unique(narrow)) == len(np.unique(targets))
    return (narrow,) if is_enough else (narrow, targets)
