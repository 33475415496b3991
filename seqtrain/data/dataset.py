"""Tokenized records as ragged arrays: no objects, so a million peptides are four arrays."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Int64, UInt8

GATHERED = 2**13
"""Records whose residues are copied at once."""

COUNTED = 2**20
"""Residues that are counted at once."""


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
    """int64 ``(N,)`` classes, float32 ``(N,)`` values, float32 ``(N, K)`` labels, or one int64 or
    float32 per residue (``per_residue``); nothing without labels."""
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
                anything else float32.
            per_residue: Each target is an array as long as its record.
        """
        lengths = np.fromiter(map(len, token_arrays), np.int64, len(token_arrays))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        tokens = np.concatenate([np.empty(0, np.uint8), *token_arrays])
        if targets is None:
            return cls(ids, tokens, offsets)
        if per_residue and [len(t) for t in targets] != lengths.tolist():
            raise ValueError("every residue target must be as long as its record")
        flat = np.concatenate(list(targets)) if per_residue and len(targets) else np.array(targets)
        kind = np.int64 if np.issubdtype(flat.dtype, np.integer) else np.float32
        return cls(ids, tokens, offsets, flat.astype(kind), per_residue)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Int64[np.ndarray, " N"]:
        """Residues of each record."""
        return np.diff(self.offsets)

    def residues(self, i: int) -> UInt8[np.ndarray, " L"]:
        """Token ids of record ``i``, a view."""
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    def token_counts(self) -> Int64[np.ndarray, " V"]:
        """How often each token occurs, up to the largest that does."""
        counts = np.zeros(256, np.int64)
        for first in range(0, len(self.tokens), COUNTED):  # numpy takes eight bytes for each
            counts += np.bincount(self.tokens[first : first + COUNTED], minlength=len(counts))
        return np.trim_zeros(counts, "b")

    def target(self, i: int) -> Any:
        """Target of record ``i``: a number, ``(K,)`` labels, or ``(L,)`` along its residues."""
        if self.targets is None:
            raise ValueError("this dataset has no targets")
        if self.per_residue:
            return self.targets[self.offsets[i] : self.offsets[i + 1]]
        return self.targets[i]

    def positions(self, indices: Int[np.ndarray, " B"]) -> Int64[np.ndarray, " T"]:
        """Where the residues of these records lie in ``tokens``, record after record."""
        lengths = self.offsets[indices + 1] - self.offsets[indices]
        begins = np.cumsum(lengths) - lengths
        return np.repeat(self.offsets[indices] - begins, lengths) + np.arange(lengths.sum())

    def subset(self, indices: Int[np.ndarray, " B"] | Sequence[int]) -> "SequenceDataset":
        """A copy of these records, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths[chosen])])
        targets = self.targets
        if targets is not None:
            targets = self._gather(targets, chosen) if self.per_residue else targets[chosen]
        ids = [self.ids[i] for i in chosen.tolist()]
        tokens = self._gather(self.tokens, chosen)
        return SequenceDataset(ids, tokens, offsets, targets, self.per_residue)

    def _gather(self, values: np.ndarray, chosen: Int64[np.ndarray, " B"]) -> np.ndarray:
        """What lies at the residues of these records.

        Some records at a time: a position takes eight times the memory of a token.
        """
        out = np.empty(int(self.lengths[chosen].sum()), values.dtype)
        end = 0
        for first in range(0, len(chosen), GATHERED):
            where = self.positions(chosen[first : first + GATHERED])
            begin, end = end, end + len(where)
            out[begin:end] = values[where]
        return out

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 over ids, residues and targets; the same wherever they are kept."""
        digest = hashlib.sha256(json.dumps(list(self.ids)).encode())
        for array in (self.tokens, self.offsets, self.targets):
            if array is not None:
                digest.update(f"{array.dtype.str}{array.shape}{self.per_residue}".encode())
                digest.update(np.ascontiguousarray(array).reshape(-1).data)
        return digest.hexdigest()
