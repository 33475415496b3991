"""For each record a similar one of an earlier split, if there is one: exact within stated bounds.

Records of equal length are compared position by position, so that of a family of variants none
is missed; the others by the words that they share, as :mod:`seqtrain.data.similarity` says.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.meetings import Entries, Shared, meetings_of, shared_hashes
from seqtrain.data.similarity import (
    IDENTITY,
    MAX_WORDS,
    MIN_SHARED_WORDS,
    edit_hashes,
    whole_hashes,
    word_hashes,
    word_length,
)
from seqtrain.words import counted

_QUERIES, _REFERENCES = 256, 4096
"""Records of a block that is compared at once."""

_LOOKS = 16
"""Positions after which a block is given up if none of its pairs can be similar any more."""

_SAMPLES = (1 / 16, 1 / 4, 1)
"""Shares of the earlier records that are tried in turn: a large family shows in a few."""

Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Later records, earlier ones, and the share of residues in which each pair is equal."""


class Effort(NamedTuple):
    """Bounds on what is compared."""

    words: int = MAX_WORDS
    """Above this a sample of the words stands for all."""
    positions: int = 20_000_000_000
    """Pairs of residues in records of equal length: some seconds."""
    meetings: int = 300_000_000
    """Pairs of records with a word in common, counted once for each word: some seconds."""


class Nearest(NamedTuple):
    """A similar record of an earlier split for each record."""

    record: Int64[np.ndarray, " N"]
    """-1: none was found."""
    identity: Float32[np.ndarray, " N"]
    """Share of equal residues; 0 without such a record."""
    limits: list[str]
    """Why there may be more; empty: there are none."""
    is_sample: bool = False
    """True if words were sampled, so that identities are estimates from a part of them."""


class _Best:
    """The most similar earlier record so far."""

    def __init__(self, num_records: int):
        self.record = np.full(num_records, -1, np.int64)
        self.identity = np.zeros(num_records, np.float32)

    def offer(
        self,
        later: Int64[np.ndarray, " P"],
        earlier: Int64[np.ndarray, " P"],
        identity: Float32[np.ndarray, " P"],
    ) -> None:
        order = np.lexsort((earlier, -identity, later))
        order = order[np.diff(later[order], prepend=-1) > 0]
        order = order[identity[order] > self.identity[later[order]]]
        self.record[later[order]] = earlier[order]
        self.identity[later[order]] = identity[order]

    def open(self) -> Bool[np.ndarray, " N"]:
        return np.asarray(self.record < 0)


def nearest_earlier(
    dataset: SequenceDataset,
    home: Int64[np.ndarray, " N"],
    *,
    identity: float = IDENTITY,
    kmer: int | None = None,
    effort: Effort | None = None,
) -> Nearest:
    """A record of an earlier split that is about ``identity`` alike or more, for each that has one.

    It is the most similar one, unless that would take too long.

    Args:
        dataset: Records of all splits, in any one-byte code.
        home: Number of each record's split, which never falls from one record to the next.
        identity: Share of equal residues that makes two records similar.
        kmer: Word length; chosen by alphabet and amount of data when not given.
        effort: What may be compared.
    """
    effort = effort or Effort()
    k = word_length(dataset) if kmer is None else kmer
    # Of equal records the first stands for all: it is in the earliest split.
    _, first, group = np.unique(whole_hashes(dataset), return_index=True, return_inverse=True)
    kept = np.sort(first)
    unique, homes = dataset.subset(kept), home[kept]
    best = _Best(len(unique))
    skipped = _by_position(unique, homes, identity, best, effort.positions)
    edits = Entries.of(*edit_hashes(unique, identity, longest=4 * k))
    words, owners, is_sample = word_hashes(unique, k, effort.words)
    entries = Entries.of(words, owners)
    sizes = np.bincount(entries.records, minlength=len(unique))
    left = _by_hashes(edits, homes, best, effort.meetings, _OneEdit(unique.lengths))
    left |= _by_hashes(entries, homes, best, effort.meetings, _Words(sizes, identity, k))
    limits = _limits(skipped & best.open(), left & best.open())
    if is_sample:
        limits.append(f"only {len(words):,} words, chosen by hash, were compared")
    return _for_all(first[group], kept, home, best)._replace(limits=limits, is_sample=is_sample)


def _for_all(
    same: Int64[np.ndarray, " N"],
    kept: Int64[np.ndarray, " U"],
    home: Int64[np.ndarray, " N"],
    best: _Best,
) -> Nearest:
    """Results of the first of equal records, copied to each of them."""
    place = np.searchsorted(kept, same)
    record = np.where(best.record[place] < 0, -1, kept[best.record[place]])
    is_copy = home[same] < home
    return Nearest(
        np.where(is_copy, same, record),
        np.where(is_copy, np.float32(1), best.identity[place]),
        [],
    )


def _limits(skipped: Bool[np.ndarray, " N"], left: Bool[np.ndarray, " N"]) -> list[str]:
    limits = []
    if skipped.any():
        words = "was not compared position by position", "were not compared position by position"
        limits.append(counted(int(skipped.sum()), f"record {words[0]}", f"records {words[1]}"))
    if left.any():
        rest = "words with too many others to compare all"
        limits.append(counted(int(left.sum()), f"record shares {rest}", f"records share {rest}"))
    return limits


def _by_position(
    dataset: SequenceDataset,
    home: Int64[np.ndarray, " N"],
    identity: float,
    best: _Best,
    budget: int,
) -> Bool[np.ndarray, " N"]:
    """Compares records of equal length; returns those for which the budget was too small."""
    skipped = np.zeros(len(dataset), bool)
    order = np.argsort(dataset.lengths, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(dataset.lengths[order])) + 1)
    tasks = []
    for group in groups:
        for level in np.unique(home[group])[1:]:
            later, earlier = group[home[group] == level], group[home[group] < level]
            length = int(dataset.lengths[group[0]])
            tasks.append((len(later) * len(earlier) * length, length, later, earlier))
    for cost, length, later, earlier in sorted(tasks, key=lambda task: task[0]):
        allowed = int(length * (1 - identity) + 1e-6)
        if not allowed:
            continue  # equal records are known already
        # Where all can be compared the nearest is found; else those that are found are left out.
        can_all = cost <= budget / 4
        columns, references = _columns(dataset, later), _columns(dataset, earlier)
        for begin in range(0, len(earlier), _REFERENCES):
            active = np.flatnonzero(np.full(len(later), can_all) | best.open()[later])
            part = slice(begin, begin + _REFERENCES)
            for first in range(0, len(active), _QUERIES):
                some = active[first : first + _QUERIES]
                if budget < len(some) * len(earlier[part]) * length:
                    skipped[later[some]] = True
                    continue
                block = np.ascontiguousarray(columns[:, some])
                (rows, refs, found), spent = _alike(block, references[:, part], allowed)
                budget -= spent
                best.offer(later[some][rows], earlier[part][refs], found)
    return skipped


def _columns(dataset: SequenceDataset, rows: Int64[np.ndarray, " B"]) -> UInt8[np.ndarray, "L B"]:
    """Records of equal length, one per column."""
    tokens = dataset.tokens[dataset.positions(rows)]
    return np.ascontiguousarray(tokens.reshape(len(rows), -1).T)


def _alike(
    later: UInt8[np.ndarray, "L A"], earlier: UInt8[np.ndarray, "L B"], allowed: int
) -> tuple[Candidates, int]:
    """Rows and columns with at most so many different positions, and the comparisons it took."""
    apart = np.zeros((later.shape[1], earlier.shape[1]), np.uint32)
    few = np.zeros(apart.shape, np.uint8)
    differ = np.empty(apart.shape, bool)
    taken = len(later)
    for place in range(len(later)):
        np.not_equal(later[place][:, None], earlier[place][None, :], out=differ)
        few += differ.view(np.uint8)
        if place % _LOOKS == _LOOKS - 1:
            apart += few
            few[:] = 0
            if apart.min() > allowed:
                taken = place + 1
                break
    apart += few
    rows, columns = np.nonzero(apart <= allowed)
    identity = (1 - apart[rows, columns] / len(later)).astype(np.float32)
    return (rows, columns, identity), apart.size * taken


class _OneEdit(NamedTuple):
    """Short records that are equal after taking at most one residue out of each."""

    lengths: Int64[np.ndarray, " N"]

    def similar(self, pairs: Shared) -> Candidates:
        longer = np.maximum(self.lengths[pairs.later], self.lengths[pairs.earlier])
        return pairs.later, pairs.earlier, (1 - 1 / longer).astype(np.float32)


class _Words(NamedTuple):
    """Records that share so many words as ``identity`` leaves."""

    sizes: Int64[np.ndarray, " N"]
    identity: float
    k: int

    def similar(self, pairs: Shared) -> Candidates:
        fewer = np.minimum(self.sizes[pairs.later], self.sizes[pairs.earlier])
        share = pairs.hashes / fewer
        kept = (share >= self.identity**self.k) & (pairs.hashes >= MIN_SHARED_WORDS)
        identity = (share[kept] ** (1 / self.k)).astype(np.float32)
        return pairs.later[kept], pairs.earlier[kept], identity


def _by_hashes(
    entries: Entries,
    home: Int64[np.ndarray, " N"],
    best: _Best,
    budget: int,
    rule: _OneEdit | _Words,
) -> Bool[np.ndarray, " N"]:
    """Compares by shared hashes; returns the records for which the budget was too small."""
    postings = entries.postings(home)
    costs = meetings_of(postings, len(home))
    if costs.sum() <= budget / 4:
        for pairs in shared_hashes(postings, np.ones(len(home), bool)):
            best.offer(*rule.similar(pairs))
        return np.zeros(len(home), bool)
    left = np.zeros(len(home), bool)
    for sample in _samples(len(home)):
        chosen = best.open() & (home > 0)
        part = entries.take((sample | chosen)[entries.records])
        postings = part.postings(home)
        costs = meetings_of(postings, len(home))
        cheap = np.argsort(np.where(chosen, costs, np.iinfo(np.int64).max), kind="stable")
        cheap = cheap[: chosen.sum()]
        reach = np.cumsum(costs[cheap]) <= budget
        budget -= int(costs[cheap[reach]].sum())
        wanted = np.zeros(len(home), bool)
        wanted[cheap[reach]] = True
        left = chosen & ~wanted
        for pairs in shared_hashes(postings, wanted):
            best.offer(*rule.similar(pairs))
    return left


def _samples(num_records: int) -> Iterator[Bool[np.ndarray, " N"]]:
    """More and more of the records, at last all."""
    draws = np.random.default_rng(0).random(num_records)
    yield from (draws <= share for share in _SAMPLES)
