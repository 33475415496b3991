"""Divides records into training, validation and test. Splits are seeded and reproducible.

Every function returns one of ``train``, ``valid``, ``test`` per record. Fractions are given in
that order; a fraction of zero leaves its split out.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.nearest import nearest_earlier
from seqtrain.data.similarity import IDENTITY, SimilarPairs, cluster, similar_pairs, word_length
from seqtrain.errors import ConfigError, DataError

SPLITS = ("train", "valid", "test")
FRACTIONS = (0.8, 0.1, 0.1)

QUANTILE_BINS = 10
# A cluster above this share of all records is placed before the others.
LARGE_CLUSTER = 0.01
MAX_ROUNDS = 20


class Strata(NamedTuple):
    """Groups of records that a split should hold in equal shares."""

    codes: Int64[np.ndarray, " N"]
    """The group of each record, numbered from 0."""
    rule: str
    """How the groups were made, for the run's report."""


def random_split(
    num_records: int, fractions: Sequence[float] = FRACTIONS, seed: int = 0
) -> Shaped[np.ndarray, " N"]:
    """A split by chance alone, with sizes that are the fractions rounded.

    Raises:
        ConfigError: the fractions are not three shares of one.
    """
    return _split_strata(np.zeros(num_records, np.int64), fractions, seed)


def stratified_split(
    labels: Sequence[Any] | np.ndarray, fractions: Sequence[float] = FRACTIONS, seed: int = 0
) -> Shaped[np.ndarray, " N"]:
    """A split in which every class has nearly the same share in each part.

    What counts as a class is said by :func:`strata`. A class has always a record in ``train``,
    so that one with a single record is nowhere else; what rounding takes from a part in one
    small class it gets back in the next.

    Args:
        labels: One label per record, as for :func:`strata`.
        fractions: Shares of train, valid and test.
        seed: Decides which records of a class go where.

    Raises:
        ConfigError: the fractions are not three shares of one.
    """
    return _split_strata(strata(labels).codes, fractions, seed)


def strata(labels: Sequence[Any] | np.ndarray) -> Strata:
    """The groups that a stratified split keeps in proportion, and the rule that made them.

    A string or an integer is a class. A float is a regression target: ten bins of equal count,
    fewer when there are under ten records for each. A collection of labels, or a row of a
    ``(N, K)`` array of 0 and 1, is several labels at once: the record counts for its rarest one,
    because that is the one that chance would miss (as the first step of Sechidis et al. 2011).
    Where every record is a class of its own there is nothing to keep in proportion, and the
    rule says so.
    """
    if isinstance(labels, np.ndarray) and labels.ndim == 2:
        labels = [np.flatnonzero(row).tolist() for row in labels]
    values = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    if any(isinstance(value, float | np.floating) for value in values):
        return _quantile_bins(np.array(values, dtype=np.float64))
    rule = "by class"
    if any(isinstance(value, Collection) and not isinstance(value, str) for value in values):
        values, rule = _rarest(values), "by the rarest label present"
    codes = np.unique(np.array(values, dtype=str), return_inverse=True)[1]
    if len(values) > 1 and codes.max() + 1 == len(values):
        return Strata(np.zeros_like(codes), "at random, as no label occurs twice")
    return Strata(codes, rule)


def similarity_split(
    dataset: SequenceDataset,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    *,
    kmer: int | None = None,
    identity: float = IDENTITY,
) -> Shaped[np.ndarray, " N"]:
    """A split that keeps similar records together.

    Records that share enough words form clusters (:mod:`seqtrain.data.similarity` says when), and
    a cluster stays whole. Large clusters are placed first, then the rest in random order, each in
    the part that lacks most. Clusters of which :mod:`seqtrain.data.nearest` then finds similar
    records in two parts are joined, and all are placed anew, until it finds none: so an audit of
    the split has nothing to say.

    Args:
        dataset: The records.
        fractions: Shares of train, valid and test, met as nearly as whole clusters allow.
        seed: Decides the order in which clusters are placed.
        kmer: Word length; chosen by alphabet and amount of data when not given.
        identity: Share of equal residues that makes two records similar.

    Raises:
        ConfigError: the fractions are not three shares of one.
        DataError: the clusters are too large to leave something for every part.
    """
    shares = _checked(fractions)
    k = word_length(dataset) if kmer is None else kmer
    clusters = cluster(len(dataset), similar_pairs(dataset, identity=identity, kmer=k))
    for _ in range(MAX_ROUNDS):
        sizes = np.bincount(clusters)
        parts = _place(sizes, shares, np.random.default_rng(seed))
        pairs = _torn(dataset, parts[clusters], identity, k)
        if not len(pairs.first):
            break
        joined = SimilarPairs(clusters[pairs.first], clusters[pairs.second], pairs.identity)
        clusters = cluster(len(sizes), joined)[clusters]
    empty = [SPLITS[i] for i in np.flatnonzero(shares) if not (parts == i).any()]
    if empty and len(dataset):
        raise DataError(
            f"a similarity split leaves nothing for {' and '.join(empty)}: {sizes.max():,} of "
            f"{len(dataset):,} records are one family, in which each is at least {identity:.0%} "
            f"identical to another. Families are not divided: use "
            "a stratified or random split (data split: --method, training: data.split_method), or "
            "assign the records to parts yourself."
        )
    return _names(parts[clusters])


def _torn(
    dataset: SequenceDataset, parts: Int64[np.ndarray, " N"], identity: float, k: int
) -> SimilarPairs:
    """Similar records in different parts: one pair for each record that has some."""
    order = np.argsort(parts, kind="stable")
    found = nearest_earlier(dataset.subset(order), parts[order], identity=identity, kmer=k)
    later = np.flatnonzero(found.record >= 0)
    return SimilarPairs(order[found.record[later]], order[later], found.identity[later])


def _checked(fractions: Sequence[float]) -> Float64[np.ndarray, "3"]:
    shares = np.array(fractions, dtype=np.float64)
    if shares.shape != (3,) or (shares < 0).any() or abs(shares.sum() - 1) > 1e-6 or not shares[0]:
        raise ConfigError(
            "split fractions must be three numbers (train, valid, test) that add up to 1, with "
            f"something for train; got {tuple(fractions)}"
        )
    shares /= shares.sum()
    return shares


def _split_strata(
    codes: Int64[np.ndarray, " N"], fractions: Sequence[float], seed: int
) -> Shaped[np.ndarray, " N"]:
    shares = _checked(fractions)
    rng = np.random.default_rng(seed)
    parts = np.zeros(len(codes), np.int64)
    shuffled = rng.permutation(len(codes))
    members_of = np.split(
        shuffled[np.argsort(codes[shuffled], kind="stable")], np.cumsum(np.bincount(codes))[:-1]
    )
    owed = np.zeros(3)
    for members in members_of:
        if len(members) > 1:
            counts = _whole(len(members), shares, owed)
            owed = (owed + len(members) * shares - counts).clip(-1, 1)
            parts[members] = np.repeat(np.arange(3), counts)
    return _names(parts)


def _names(parts: Int64[np.ndarray, " N"]) -> Shaped[np.ndarray, " N"]:
    return np.array([SPLITS[part] for part in parts.tolist()], dtype=np.str_)


def _whole(
    total: int, shares: Float64[np.ndarray, "3"], owed: Float64[np.ndarray, "3"]
) -> Int64[np.ndarray, "3"]:
    """``total`` in whole shares, the first at least 1; what is left after rounding pays debts."""
    counts: np.ndarray = np.floor(total * shares).astype(np.int64)
    counts[0] = max(1, counts[0])
    while counts.sum() < total:
        counts[np.argmax(total * shares + owed - counts)] += 1
    return counts


def _quantile_bins(values: Float64[np.ndarray, " N"]) -> Strata:
    bins = min(QUANTILE_BINS, len(values) // 10)
    if bins < 2:
        rule = "at random, as there are too few records for quantile bins of the target"
        return Strata(np.zeros(len(values), np.int64), rule)
    edges = np.quantile(values, np.arange(1, bins) / bins)
    codes = np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)[1]
    return Strata(codes, f"by {codes.max() + 1} quantile bins of the target")


def _rarest(rows: Sequence[Collection[Any]]) -> list[str]:
    """The rarest label of each row, of equally rare ones the first by name; "" without labels."""
    named = [sorted({str(label) for label in row}) for row in rows]
    counts = Counter(label for row in named for label in row)
    return [min(row, key=counts.__getitem__, default="") for row in named]


def _place(
    sizes: Int64[np.ndarray, " K"], shares: Float64[np.ndarray, "3"], rng: np.random.Generator
) -> Int64[np.ndarray, " K"]:
    """The part of each cluster, by what each part still lacks."""
    order = rng.permutation(len(sizes))
    rest = np.where(sizes > LARGE_CLUSTER * sizes.sum(), sizes, 0)
    order = order[np.argsort(-rest[order], kind="stable")]
    parts = np.zeros(len(sizes), np.int64)
    lacking = (shares * sizes.sum()).tolist()
    for number, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        part = lacking.index(max(lacking))
        parts[number] = part
        lacking[part] -= size
    return _fill(parts, sizes, shares)


def _fill(
    parts: Int64[np.ndarray, " K"], sizes: Int64[np.ndarray, " K"], shares: Float64[np.ndarray, "3"]
) -> Int64[np.ndarray, " K"]:
    """The parts, with the smallest cluster to spare moved to each wanted one that is empty."""
    for part in np.flatnonzero(shares).tolist():
        counts = np.bincount(parts, minlength=3)
        to_spare = np.flatnonzero(counts[parts] > 1)
        if not counts[part] and len(to_spare):
            parts[to_spare[np.argmin(sizes[to_spare])]] = part
    return parts
