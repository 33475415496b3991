"""Joins records to those of earlier splits by hashes that they share."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from seqtrain.data.ragged import positions

MAX_TOGETHER = 1 << 22
"""Meetings that are counted at once."""


class Postings(NamedTuple):
    """Of each hash of a later record, the earlier records that have it too."""

    records: Int64[np.ndarray, " E"]
    """Owners of all entries, sorted by hash, then by record."""
    query: Int64[np.ndarray, " Q"]
    """The later record of each posting list, in rising order."""
    begins: Int64[np.ndarray, " Q"]
    """Start of the list in ``records``."""
    lengths: Int64[np.ndarray, " Q"]


class Shared(NamedTuple):
    """Pairs of a later and an earlier record, and how many hashes they have in common."""

    later: Int64[np.ndarray, " P"]
    earlier: Int64[np.ndarray, " P"]
    hashes: Int64[np.ndarray, " P"]


class Entries(NamedTuple):
    """Distinct hashes of records, sorted by hash, then by record."""

    hashes: UInt64[np.ndarray, " E"]
    records: Int64[np.ndarray, " E"]

    @classmethod
    def of(cls, hashes: UInt64[np.ndarray, " W"], records: Int64[np.ndarray, " W"]) -> "Entries":
        """Those of hashes whose records are in rising order."""
        order = np.argsort(hashes, kind="stable")  # equal ones keep the order of their records
        hashes, records = hashes[order], records[order]
        distinct = np.ones(len(hashes), bool)
        distinct[1:] = (hashes[1:] != hashes[:-1]) | (records[1:] != records[:-1])
        return cls(hashes[distinct], records[distinct])

    def take(self, kept: Bool[np.ndarray, " E"]) -> "Entries":
        """These of them."""
        return Entries(self.hashes[kept], self.records[kept])

    def postings(self, home: Int64[np.ndarray, " N"]) -> Postings:
        """The lists of all entries for which there are earlier ones.

        Args:
            home: Number of each record's split. It never falls from one record to the next.
        """
        homes = home[self.records]
        new = np.ones(len(homes), bool)
        new[1:] = self.hashes[1:] != self.hashes[:-1]
        begins = np.maximum.accumulate(np.where(new, np.arange(len(homes)), 0))
        new[1:] |= homes[1:] != homes[:-1]
        ends = np.maximum.accumulate(np.where(new, np.arange(len(homes)), 0))
        later = np.flatnonzero(ends > begins)
        later = later[np.argsort(self.records[later], kind="stable")]
        return Postings(
            self.records, self.records[later], begins[later], ends[later] - begins[later]
        )


def meetings_of(postings: Postings, num_records: int) -> Int64[np.ndarray, " N"]:
    """Number of meetings that compare each record with all earlier ones."""
    found = np.bincount(postings.query, weights=postings.lengths, minlength=num_records)
    return found.astype(np.int64)


def shared_hashes(postings: Postings, chosen: Bool[np.ndarray, " N"]) -> Iterator[Shared]:
    """The pairs of the chosen records, so many at a time."""
    kept = chosen[postings.query]
    query, begins, lengths = (values[kept] for values in postings[1:])
    num_records = len(chosen)
    ends = np.flatnonzero(np.diff(query, append=-1)) + 1  # where the lists of a record end
    total = np.cumsum(lengths)
    first = 0
    while first < len(query):
        before = total[first - 1] if first else 0
        upto = ends[np.searchsorted(ends, first, "right") :]
        last = upto[max(0, np.searchsorted(total[upto - 1], before + MAX_TOGETHER, "right") - 1)]
        part = slice(first, last)
        yield _counted(
            np.repeat(query[part], lengths[part]),
            postings.records[positions(begins[part], lengths[part])],
            num_records,
        )
        first = int(last)


def _counted(
    later: Int64[np.ndarray, " M"], earlier: Int64[np.ndarray, " M"], num_records: int
) -> Shared:
    """Pairs and how often each occurs, counted in a table where it is not much larger."""
    low, high = int(later[0]), int(later[-1])
    cells = (high - low + 1) * num_records
    keys = (later - low) * num_records + earlier
    if cells <= 4 * max(len(keys), 1 << 16):
        counts = np.bincount(keys)
        pairs = np.flatnonzero(counts)
        counts = counts[pairs]
    else:
        pairs, counts = np.unique(keys, return_counts=True)
    return Shared(pairs // num_records + low, pairs % num_records, counts)
