"""Families of variants: many records that differ from one sequence in a few residues."""

from dataclasses import dataclass

import numpy as np

from seqtrain.data.dataset import SequenceDataset

LOOKED_AT = 2000
"""Records, spread over all, that decide whether they are a family."""

FEWEST = 20
"""Fewer records than this are no family."""

SHARE_OF_LENGTH = 0.9
"""Share of the records that have the commonest length, at least."""

SHARE_CHANGED = 0.1
"""Share of the residues in which the median record differs from the consensus, at most."""


@dataclass(frozen=True)
class Family:
    """Variants of one sequence."""

    length: int
    """Residues of most records."""
    changes: float
    """Residues in which the median record differs from the consensus."""

    def __str__(self) -> str:
        return f"variants of one sequence ({self.changes:g} of {self.length:,} residues differ)"


def find_family(records: SequenceDataset) -> Family | None:
    """The family that the records are, or None for anything else.

    Nine records of ten are of one length, and the median one of these differs from the consensus
    of all in at most a tenth of its residues. The consensus has the commonest letter of each
    position.
    """
    chosen = np.unique(np.linspace(0, len(records) - 1, LOOKED_AT, dtype=np.int64))
    lengths = records.lengths_of(chosen)
    length = int(np.bincount(lengths).argmax())
    alike = chosen[lengths == length]
    if len(alike) < max(FEWEST, SHARE_OF_LENGTH * len(chosen)):
        return None
    letters = records.tokens[records.positions(alike)].reshape(len(alike), length)
    consensus = np.array([np.bincount(column).argmax() for column in letters.T], letters.dtype)
    changes = float(np.median((letters != consensus).sum(axis=1)))
    # Equal records are no variants: there is nothing that positions could tell apart.
    return Family(length, changes) if 0 < changes <= SHARE_CHANGED * length else None
