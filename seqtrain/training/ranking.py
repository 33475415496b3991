"""Statistics of ranks as functions of how often each record counts.

Each takes the values, sorts them once, and returns a function of a float64 matrix of counts
``(N, D)``, one column per draw, to values ``(D,)``. A bootstrap of thousands of draws then costs
sums, not sorts. What is not defined is 0/0, and NaN; silencing the warning is the caller's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int64, Shaped

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
        """How often each group counts."""
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
