"""Finds similar records by shared words (k-mers), without an external program.

If each residue of a record is kept with probability ``identity``, each word of ``k`` residues is
kept with probability ``identity ** k``. This is the model behind Mash (Ondov et al. 2016,
doi:10.1186/s13059-016-0997-x), used here with containment in place of the Jaccard index, so that
a fragment is found in its parent. It sees relatives down to about 70 % identity in proteins and
80 % in nucleotides; remote homology needs an alignment program.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt64

from seqtrain.data.dataset import SequenceDataset

IDENTITY = 0.8
"""Share of equal residues from which two records count as similar."""

# Records that share a word are paired with the next one that shares it, the one after, and so on,
# until there are this many meetings: with few relatives that is every pair, with many a part.
MAX_MEETINGS = 30_000_000
# Fewer shared words than this are chance, however short the record.
MIN_SHARED_WORDS = 3
# Above this many words a part of them, chosen by hash, stands for all (FracMinHash, Irber et al.
# 2022, doi:10.1101/2022.01.11.475838).
MAX_WORDS = 50_000_000

_BASE = np.uint64(0x9E3779B97F4A7C15)
_BASE_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))


class SimilarPairs(NamedTuple):
    """Pairs of similar records, each pair once."""

    first: Int64[np.ndarray, " P"]
    second: Int64[np.ndarray, " P"]
    identity: Float32[np.ndarray, " P"]
    """Estimated share of the shorter record's residues that the other one has, from 0 to 1."""


def word_length(dataset: SequenceDataset) -> int:
    """The ``k`` at which a word rarely recurs by chance: 5 in proteins, 11 in nucleotides.

    There are to be as many possible words as residues, and at least ``20 ** 5``. The letters
    counted are those that make up a hundredth of the residues: a few ambiguity codes do not
    make DNA a protein.
    """
    counts = dataset.token_counts()
    letters = max(2, int((counts >= len(dataset.tokens) / 100).sum()))
    return round(float(np.log(max(20**5, len(dataset.tokens))) / np.log(letters)))


def similar_pairs(
    dataset: SequenceDataset, *, identity: float = IDENTITY, kmer: int | None = None
) -> SimilarPairs:
    """Pairs of records that are about ``identity`` alike or more.

    Records that share a word stand in a fixed order, in which those with the same smallest word
    hash (MinHash, Broder 1997) are neighbours, and each meets those that follow. All of them, if
    that is feasible; otherwise as many as time and memory linear in the residues allow: then not
    every pair of a large family is listed, but its members hang together. Equal records are
    always paired, and so are records too short to share words after a change when taking at most
    one residue out of each makes them equal.

    Args:
        dataset: The records, in any one-byte code.
        identity: Share of equal residues that makes two records similar.
        kmer: Word length; :func:`word_length` when not given.

    Raises:
        ValueError: ``identity`` does not lie between 0 and 1, or ``kmer`` is not positive.
    """
    if not 0 < identity < 1 or (kmer is not None and kmer < 1):
        raise ValueError(f"need 0 < identity < 1 and kmer > 0, got {identity} and {kmer}")
    k = word_length(dataset) if kmer is None else kmer
    by_words = _pairs_by_words(dataset, identity, k)
    by_edit = _pairs_by_one_edit(dataset, identity, longest=4 * k)
    first, second, found = map(np.concatenate, zip(by_words, by_edit, strict=True))
    keys = np.minimum(first, second) * len(dataset) + np.maximum(first, second)
    best = np.lexsort((-found, keys))
    best = best[np.diff(keys[best], prepend=-1) > 0]
    one, other = np.divmod(keys[best], max(1, len(dataset)))
    return SimilarPairs(one, other, found[best])


def cluster(num_records: int, pairs: SimilarPairs) -> Int64[np.ndarray, " N"]:
    """The cluster of each record, numbered from 0 by first appearance: single linkage.

    Union-find for whole arrays: every pair hangs the higher of its two roots under the lower
    (Shiloach and Vishkin 1982), until no pair has two roots.
    """
    root = np.arange(num_records)
    while (root[pairs.first] != root[pairs.second]).any():
        lowest = np.minimum(root[pairs.first], root[pairs.second])
        np.minimum.at(root, root[pairs.first], lowest)
        np.minimum.at(root, root[pairs.second], lowest)
        while (root[root] != root).any():
            root = root[root]
    return np.unique(root, return_inverse=True)[1]


def _pairs_by_words(dataset: SequenceDataset, identity: float, k: int) -> SimilarPairs:
    """Pairs in which enough of the shorter record's words occur in the longer one."""
    words, owners, _ = word_hashes(dataset, k, MAX_WORDS)
    by_rank = _minhash_order(words, owners, len(dataset))
    rank = np.argsort(by_rank)
    pairs, shared, num_words = _pairs_in_buckets(words, rank[owners], len(dataset))
    containment = shared / np.minimum(num_words[pairs[0]], num_words[pairs[1]])
    similar = (containment >= identity**k) & (shared >= MIN_SHARED_WORDS)
    first, second = by_rank[pairs[:, similar]]
    return SimilarPairs(first, second, (containment[similar] ** (1 / k)).astype(np.float32))


def _pairs_by_one_edit(dataset: SequenceDataset, identity: float, longest: int) -> SimilarPairs:
    """Pairs of equal records, and short ones equal after taking at most one residue out of each.

    The latter holds for one substitution, insertion or deletion, where one residue is no more
    than ``identity`` allows. A record is its polynomial hash, so leaving out a residue is one
    subtraction and one shift of what follows.
    """
    lengths, whole = dataset.lengths, whole_hashes(dataset)
    hashes, members = edit_hashes(dataset, identity, longest)
    hashes = np.concatenate([whole, hashes])
    members = np.concatenate([np.arange(len(dataset)), members])
    (first, second), _, _ = _pairs_in_buckets(hashes, members, len(dataset))
    longer = np.maximum(lengths[first], lengths[second])
    found = np.where(whole[first] == whole[second], 1, 1 - 1 / longer)
    return SimilarPairs(first, second, found.astype(np.float32))


def whole_hashes(dataset: SequenceDataset) -> UInt64[np.ndarray, " N"]:
    """A hash of each record, equal where all residues are."""
    sums = _prefix_hashes(dataset)
    found: np.ndarray = sums[dataset.offsets[1:]] - sums[dataset.offsets[:-1]]
    return found


def edit_hashes(
    dataset: SequenceDataset, identity: float, longest: int
) -> tuple[UInt64[np.ndarray, " W"], Int64[np.ndarray, " W"]]:
    """Hashes of short records, whole and without each of their residues, and whose they are.

    Two that share one are a substitution, an insertion or a deletion apart, or are equal. Records
    of ``longest`` residues and more, and those of which one residue is more than ``identity``
    allows, have none.
    """
    lengths = dataset.lengths
    owners = np.repeat(np.arange(len(dataset)), lengths)
    begins, ends = dataset.offsets[:-1], dataset.offsets[1:]
    sums = _prefix_hashes(dataset)
    short = (lengths * (1 - identity) >= 1) & (lengths < longest)
    out = np.flatnonzero(short[owners])
    before = sums[out] - sums[begins[owners[out]]]
    after = sums[ends[owners[out]]] - sums[out + 1]
    whole = np.flatnonzero(short)
    hashes = np.concatenate(
        [sums[ends[whole]] - sums[begins[whole]], before + after * _BASE_INVERSE]
    )
    members = np.concatenate([whole, owners[out]])
    order = np.argsort(members, kind="stable")
    return hashes[order], members[order]


def _prefix_hashes(dataset: SequenceDataset) -> UInt64[np.ndarray, " S"]:
    """Sums over all residues before a place of their terms in a polynomial of their record."""
    owners = np.repeat(np.arange(len(dataset)), dataset.lengths)
    powers = np.cumprod(np.full(int(dataset.lengths.max(initial=0)), _BASE))
    terms = _mix(dataset.tokens.astype(np.uint64))
    terms *= powers[np.arange(len(owners)) - dataset.offsets[:-1][owners]]
    return np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms)])


def word_hashes(
    dataset: SequenceDataset, k: int, most: int
) -> tuple[UInt64[np.ndarray, " W"], Int64[np.ndarray, " W"], bool]:
    """Hashes of all words of ``k`` residues, the record of each, and whether they are a sample.

    Above ``most`` words they are: a part of that size, chosen by hash, stands for all.
    """
    tokens, offsets = dataset.tokens, dataset.offsets
    count = max(0, len(tokens) - k + 1)
    hashes = np.zeros(count, np.uint64)
    for step in range(k):
        hashes = _mix(hashes + tokens[step : step + count])
    owners = np.repeat(np.arange(len(dataset)), dataset.lengths)[:count]
    kept = np.arange(count) + k <= offsets[owners + 1]
    if count > most:
        kept &= hashes < np.uint64(2**64 * most / count)
    return hashes[kept], owners[kept], count > most


def _minhash_order(
    words: UInt64[np.ndarray, " W"], owners: Int64[np.ndarray, " W"], num_records: int
) -> Int64[np.ndarray, " N"]:
    """Records sorted by their two smallest word hashes, under two hash functions."""
    smallest = np.full((2, num_records), np.iinfo(np.uint64).max)
    begins = np.flatnonzero(np.diff(owners, prepend=-1))
    for row, salt in enumerate((1, 2)):
        salted = _mix(words ^ np.uint64(salt))
        smallest[row, owners[begins]] = np.minimum.reduceat(salted, begins) if len(begins) else 0
    return np.lexsort(smallest)


def _pairs_in_buckets(
    hashes: UInt64[np.ndarray, " W"], members: Int64[np.ndarray, " W"], num_members: int
) -> tuple[Int64[np.ndarray, "2 P"], Int64[np.ndarray, " P"], Int64[np.ndarray, " M"]]:
    """Pairs with a common hash, in how many hashes they met, and the distinct hashes of each."""
    order = np.lexsort((members, hashes))
    hashes, members = hashes[order], members[order]
    distinct = np.ones(len(hashes), bool)
    distinct[1:] = (hashes[1:] != hashes[:-1]) | (members[1:] != members[:-1])
    hashes, members = hashes[distinct], members[distinct]
    met = np.arange(len(hashes))
    keys, meetings, step = [], 0, 1
    while len(met) and meetings < MAX_MEETINGS:
        met = met[: np.searchsorted(met, len(hashes) - step)]
        met = met[hashes[met] == hashes[met + step]]
        keys.append(members[met] * num_members + members[met + step])
        meetings, step = meetings + len(met), step + 1
    pairs, shared = np.unique(np.concatenate([np.empty(0, np.int64), *keys]), return_counts=True)
    return (
        np.array(np.divmod(pairs, max(1, num_members))),
        shared,
        np.bincount(members, minlength=num_members),
    )


def _mix(x: UInt64[np.ndarray, " W"]) -> UInt64[np.ndarray, " W"]:
    """A bijection that scatters 64-bit numbers: SplitMix64's finalizer (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
