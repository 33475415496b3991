"""Statistics of ranks as functions of how often each record counts.

Each takes the values, sorts them once, and returns a function of a float64 matrix of counts
``(N, D)``, one column per draw, to values ``(D,)``. A bootstrap of thousands of draws then costs
sums, not sorts. What is not defined is 0/0, and NaN; silencing the warning is the caller's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int64, Shaped

_COMPARISONS_AT_ONCE = 4_000_000

Counts: TypeAlias = Float[np.ndarray, "N D"]
PerDraw: TypeAlias = Float[np.ndarray, " D"]


@dataclass(frozen=True)
class Groups:
    """Records grouped by equal keys."""

    keys: Shaped[np.ndarray, " G"]
    """The key of each group, ascending."""
    member_of: Int64[np.ndarray, " N"]
    """The group of each record."""
    order: Int64[np.ndarray, " N"]
    """Records, group after group."""
    starts: Int64[np.ndarray, " G"]
    """Where each group starts in ``order``."""

    @classmethod
    def of(cls, keys: Shaped[np.ndarray, " N"]) -> "Groups":
        """Group records by their key."""
        unique, member_of = np.unique(keys, return_inverse=True)
        order = np.argsort(member_of, kind="stable")
        starts = np.searchsorted(member_of[order], np.arange(len(unique)))
        return cls(unique, member_of, order, starts)

    def sums(self, counts: Counts) -> Float[np.ndarray, "G D"]:
        """Count of times each group counts."""
        return np.asarray(np.add.reduceat(counts[self.order], self.starts, axis=0))


def ranking_areas(
    scores: Float[np.ndarray, " N"], positive: Bool[np.ndarray, " N"]
) -> Callable[[Counts], Float[np.ndarray, "2 D"]]:
    """AUROC and average precision of a score; NaN for both unless both kinds of record count.

    Only the groups of tied positives matter: the negatives are summed in the blocks between them,
    whose borders are found here, so a draw costs one pass over its counts and no sorting.
    """
    hits, misses = np.flatnonzero(positive), np.flatnonzero(~positive)
    misses = misses[np.argsort(-scores[misses], kind="stable")]
    groups = Groups.of(-scores[hits])
    above = np.searchsorted(-scores[misses], groups.keys, side="left")
    above_or_tied = np.searchsorted(-scores[misses], groups.keys, side="right")
    borders = np.unique(np.concatenate([[0], above, above_or_tied]))
    blocks = borders[borders < len(misses)]

    def areas(counts: Counts) -> Float[np.ndarray, "2 D"]:
        if not len(hits) or not len(misses):
            return np.full((2, counts.shape[1]), np.nan)
        hit = groups.sums(counts[hits])
        missed = np.zeros((len(blocks) + 1, counts.shape[1]))
        np.add.reduceat(counts[misses], blocks, axis=0).cumsum(axis=0, out=missed[1:])
        true, false = hit.cumsum(axis=0), missed[np.searchsorted(blocks, above_or_tied)]
        tied_half = (missed[np.searchsorted(blocks, above)] + false) / 2
        auroc = (hit * (missed[-1] - tied_half)).sum(axis=0) / (true[-1] * missed[-1])
        precision = true / np.maximum(true + false, 1)
        auprc = (hit * precision).sum(axis=0) / true[-1]
        return np.stack([auroc, np.where(missed[-1] > 0, auprc, np.nan)])

    return areas


def class_areas(
    scores: Float[np.ndarray, "N K"], targets: Int64[np.ndarray, " N"]
) -> Callable[[Counts], Float[np.ndarray, "2 G D"]]:
    """AUROC and average precision of each class that has records, one against the rest.

    The same as :func:`ranking_areas` class by class, where there are many: how many records rank
    above each record in its own class are products of comparisons and counts, ``N² D`` sums in a
    matrix product where going through the classes takes ``N K D`` gathered ones. Comparisons are
    made anew for each matrix of counts, a block at a time, so memory does not grow with ``N²``.
    """
    order = np.argsort(targets, kind="stable")
    sorted_scores, classes = scores[order], targets[order]
    starts = np.flatnonzero(np.diff(classes, prepend=-1))
    first = np.searchsorted(classes, classes, side="left")
    end = np.searchsorted(classes, classes, side="right")
    step = max(1, _COMPARISONS_AT_ONCE // max(1, len(classes)))

    def areas(counts: Counts) -> Float[np.ndarray, "2 G D"]:
        counts = counts[order]
        total = counts.sum(axis=0)
        beaten, precision = np.empty_like(counts), np.empty_like(counts)
        for begin in range(0, len(classes), step):
            rows = slice(begin, begin + step)
            own = sorted_scores.T[classes[rows]]
            mine = np.take_along_axis(own, np.arange(len(classes))[rows, None], axis=1)
            # All records of the classes of these rows lie in these columns.
            near = slice(first[rows][0], end[rows][-1])
            same = classes[rows, None] == classes[None, near]
            ranked = _Ranked(own >= mine, own == mine, counts, near, same)
            beaten[rows], precision[rows] = ranked.beaten(total), ranked.precision()
        positives = np.add.reduceat(counts, starts, axis=0)
        negatives = total - positives
        auroc = np.add.reduceat(counts * beaten, starts, axis=0) / (positives * negatives)
        auprc = np.add.reduceat(counts * precision, starts, axis=0) / positives
        return np.stack([auroc, np.where(negatives > 0, auprc, np.nan)])

    return areas


@dataclass(frozen=True)
class _Ranked:
    """Some records against all: which of these rank as high or higher in the class of those."""

    reached: Bool[np.ndarray, "R N"]
    tied: Bool[np.ndarray, "R N"]
    counts: Counts
    near: slice
    """Columns that hold all records of the same class."""
    same: Bool[np.ndarray, "R M"]
    """Mask of those of the same class."""

    @cached_property
    def _all(self) -> Float[np.ndarray, "R D"]:
        return np.asarray(self.reached.astype(np.float64) @ self.counts)

    @cached_property
    def _own(self) -> Float[np.ndarray, "R D"]:
        return self._of_class(self.reached)

    def _of_class(self, chosen: Bool[np.ndarray, "R N"]) -> Float[np.ndarray, "R D"]:
        among = (chosen[:, self.near] & self.same).astype(np.float64)
        return np.asarray(among @ self.counts[self.near])

    def beaten(self, total: PerDraw) -> Float[np.ndarray, "R D"]:
        """Negatives ranked below, ties counted half."""
        negatives = total - self._of_class(np.ones_like(self.reached))
        below = negatives - (self._all - self._own)
        elsewhere = self.tied.copy()
        elsewhere[:, self.near] &= ~self.same
        if not elsewhere.any():
            return np.asarray(below)
        return np.asarray(below + elsewhere.astype(np.float64) @ self.counts / 2)

    def precision(self) -> Float[np.ndarray, "R D"]:
        """Positives among those that rank as high or higher."""
        return np.asarray(self._own / np.maximum(self._all, 1))


def rank_correlation(
    x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]
) -> Callable[[Counts], PerDraw]:
    """Spearman's correlation of two variables, mid-ranks for ties; NaN where one is constant."""
    sides = Groups.of(x), Groups.of(y)

    def correlation(counts: Counts) -> PerDraw:
        ranks, variances = [], []
        for groups in sides:
            sums = groups.sums(counts)
            rank = sums.cumsum(axis=0) - sums / 2 - counts.sum(axis=0) / 2
            variances.append((sums * rank**2).sum(axis=0))
            ranks.append(rank[groups.member_of])
        covariance = np.einsum("nd,nd,nd->d", counts, *ranks)
        value: PerDraw = covariance / np.sqrt(variances[0] * variances[1])
        return value

    return correlation
