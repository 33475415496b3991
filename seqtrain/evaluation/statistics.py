"""Intervals of metrics and tests of differences: bootstrap, permutation, Holm.

All resample records, never residues: residues of one record are not independent. With cluster ids
whole clusters are resampled, because similar sequences are not independent either.

Everywhere, ``task`` says what the arrays hold:
    ``classification``, ``multilabel``, ``regression``: outputs and targets of each record, as
        ``training.metrics.compute_metrics`` takes them.
    ``residue_classification``: outputs are the confusion counts ``(N, K, K)`` of each record, rows
        are targets (``training.metrics.record_confusions``); targets are None.
    ``residue_regression``: outputs are the sums ``(N, 8)`` of each record
        (``training.metrics.record_moments``); targets are None.
    ``loss``: outputs are the sum of losses and the count they are over, ``(N, 2)`` float; targets
        are None. Any task's loss, for records of any number of residues.
    ``mlm``: the same, of negative log-likelihoods: there is a perplexity too.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64, Num, Shaped

from seqtrain.training.metrics import (
    WeightedMetrics,
    confusion_metrics,
    moment_metrics,
    perplexity_metrics,
    ratio_metric,
    weighted_metrics,
)
from seqtrain.training.ranking import Counts, PerDraw

_COUNTS_AT_ONCE = 1_000_000  # records x draws, float64: 8 MB, and as much for each copy


class Interval(NamedTuple):
    """A value and its percentile interval; NaN where not defined."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A difference of two arms, its percentile interval, and its bootstrap standard error."""

    value: float
    low: float
    high: float
    standard_error: float


def bootstrap_intervals(
    task: str,
    outputs: Num[np.ndarray, "N ..."],
    targets: Num[np.ndarray, "N ..."] | None,
    *,
    groups: Sequence[str] | Shaped[np.ndarray, " N"] | None = None,
    num_draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Every metric of ``task`` with its percentile bootstrap interval (Efron 1979).

    Draw d takes ``rng.integers(U, size=U)`` of the U records, or clusters in sorted order, the
    d-th call on one ``numpy.random.default_rng(seed)``. Draws in which a metric is not defined,
    such as AUROC with one class, are left out of its interval. A percentile interval of few
    records is somewhat short, and of a metric at its bound (accuracy 1) has no width. Draws lack
    rare classes, so that means over classes (macro_f1, macro_auprc) can be lower, or higher, in
    nearly every draw than on all records: an interval that would leave out the value itself
    reaches to it.

    Args:
        task: What the arrays hold, see the module.
        outputs: See the module.
        targets: See the module.
        groups: Cluster id of each record.
        num_draws: Bootstrap draws.
        level: Share of the draws inside the interval.
        seed: Of the draws.
    """
    metrics = _record_metrics(task, outputs, targets)
    values = metrics(np.ones((len(outputs), 1)))
    units = _Units(groups, len(outputs))
    draws = _over_draws([metrics], units.resampled(num_draws, np.random.default_rng(seed)))
    return {name: _interval(values[name][0], draws[name][0], level) for name in values}


def paired_bootstrap(
    task: str,
    outputs_a: Sequence[Num[np.ndarray, "N ..."]],
    outputs_b: Sequence[Num[np.ndarray, "N ..."]],
    targets: Num[np.ndarray, "N ..."] | None,
    *,
    groups: Sequence[str] | Shaped[np.ndarray, " N"] | None = None,
    num_draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Arm b minus arm a in every metric, averaged over seeds, with its bootstrap interval.

    Both arms are scored on the same draws of records (or clusters). With one training seed per
    arm the interval speaks of these two trained models. With S > 1 it speaks of the two ways of
    training: draws keep the spread that all seeds share, and the spread between seeds is added
    as a t variate with S - 1 degrees of freedom. (Resampling the seeds as well would count the
    same noise thrice: Owen 2007, doi:10.1214/07-AOAS122.) With two seeds it is very wide.

    Args:
        task: What the arrays hold, see the module.
        outputs_a: Outputs of arm a on the same records, one array per training seed.
        outputs_b: Those of arm b, in the same order of seeds.
        targets: See the module.
        groups: Cluster id of each record.
        num_draws: Bootstrap draws.
        level: Share of the draws inside the interval.
        seed: Of the draws.

    Raises:
        ValueError: The arms have different numbers of seeds, or none.
    """
    _check_paired(outputs_a, outputs_b)
    num_seeds, num_records = len(outputs_a), len(outputs_a[0])
    arms = [_record_metrics(task, outputs, targets) for outputs in (*outputs_a, *outputs_b)]
    values = _over_draws(arms, [np.ones((num_records, 1))])
    counts = _Units(groups, num_records).resampled(num_draws, np.random.default_rng(seed))
    draws = _over_draws(arms, counts)
    rng = np.random.default_rng([seed, 1])
    return {
        name: _difference(
            (value[num_seeds:] - value[:num_seeds])[:, 0],
            draws[name][num_seeds:] - draws[name][:num_seeds],
            level,
            rng,
        )
        for name, value in values.items()
    }


def paired_permutation_test(
    task: str,
    outputs_a: Sequence[Num[np.ndarray, "N ..."]],
    outputs_b: Sequence[Num[np.ndarray, "N ..."]],
    targets: Num[np.ndarray, "N ..."] | None,
    *,
    groups: Sequence[str] | Shaped[np.ndarray, " N"] | None = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Two-sided p-value of every metric: are the arms' outputs exchangeable record by record?

    In each draw the outputs of a random half of the records (or clusters) change arms, in all
    seeds alike. The p-value is the share of draws, the observed one among them, whose difference
    is at least as large: never below 1 / (num_draws + 1). It speaks of the models that were
    trained, not of other seeds: ``paired_bootstrap`` does. NaN where a metric is not defined.

    Arguments and errors are those of ``paired_bootstrap``.
    """
    _check_paired(outputs_a, outputs_b)
    num_records = len(outputs_a[0])
    both = None if targets is None else np.concatenate([targets, targets])
    arms = [
        _swapped(_record_metrics(task, np.concatenate(pair), both))
        for pair in zip(outputs_a, outputs_b, strict=True)
    ]
    swaps = _Units(groups, num_records).halved(num_draws, np.random.default_rng(seed))
    differences = _over_draws(arms, chain([np.zeros((num_records, 1))], swaps))
    return {name: _p_value(values.mean(axis=0)) for name, values in differences.items()}


def holm_correction(p_values: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
    """Holm's (1979) step-down adjusted p-values, in the order given.

    Rejecting those below alpha keeps the chance of any false rejection below alpha, whatever the
    dependence of the tests.

    Raises:
        ValueError: A p-value is NaN or outside 0 to 1.
    """
    if not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"p-values must lie between 0 and 1, received {p_values}")
    order = np.argsort(p_values, kind="stable")
    stepped = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted


def minimum_detectable_difference(
    standard_error: float, *, power: float = 0.8, level: float = 0.95, num_comparisons: int = 1
) -> float:
    """The smallest true difference that such a comparison finds with probability ``power``.

    ``(z(1 - alpha / 2) + z(power)) * standard_error``, for a two-sided test at alpha = 1 - level,
    shared among the comparisons (Bonferroni, the first step of Holm).

    Args:
        standard_error: Of the difference, as ``paired_bootstrap`` gives it.
        power: Chance of finding it.
        level: Confidence level of all comparisons together.
        num_comparisons: How many differences are tested.
    """
    normal = NormalDist()
    critical = normal.inv_cdf(1 - (1 - level) / (2 * num_comparisons))
    return (critical + normal.inv_cdf(power)) * standard_error


def _record_metrics(task: str, outputs: np.ndarray, targets: np.ndarray | None) -> WeightedMetrics:
    if task == "loss":
        return ratio_metric("loss", outputs)
    if task == "mlm":
        return perplexity_metrics(outputs)
    if task == "residue_regression":
        return moment_metrics(outputs)
    if targets is None:
        return confusion_metrics(outputs)
    return weighted_metrics(task, outputs, targets)


def _check_paired(outputs_a: Sequence[np.ndarray], outputs_b: Sequence[np.ndarray]) -> None:
    if len(outputs_a) != len(outputs_b) or not outputs_a:
        raise ValueError(
            f"arms are paired by seed, received {len(outputs_a)} and {len(outputs_b)} seeds"
        )


class _Units:
    """What is drawn: records, or clusters of records."""

    def __init__(self, groups: Sequence[str] | np.ndarray | None, num_records: int) -> None:
        names = np.arange(num_records) if groups is None else np.asarray(groups)
        if len(names) != num_records:
            raise ValueError(f"{len(names)} cluster ids for {num_records} records")
        unique, self.unit_of = np.unique(names, return_inverse=True)
        self.num_units = len(unique)

    def resampled(self, num_draws: int, rng: np.random.Generator) -> Iterator[Counts]:
        """Draws of each record, ``(N, D)`` at a time, when units are resampled."""
        for size in self._sizes(num_draws):
            drawn = (rng.integers(self.num_units, size=self.num_units) for _ in range(size))
            yield self._of_records([np.bincount(d, minlength=self.num_units) for d in drawn])

    def halved(self, num_draws: int, rng: np.random.Generator) -> Iterator[Counts]:
        """1 for the records of a random half of the units, else 0, ``(N, D)`` at a time."""
        for size in self._sizes(num_draws):
            yield self._of_records([rng.integers(2, size=self.num_units) for _ in range(size)])

    def _sizes(self, num_draws: int) -> list[int]:
        most = max(1, _COUNTS_AT_ONCE // max(1, len(self.unit_of)))
        return [min(most, num_draws - start) for start in range(0, num_draws, most)]

    def _of_records(self, draws: list[Int64[np.ndarray, " U"]]) -> Counts:
        return np.stack(draws, axis=1).astype(np.float64)[self.unit_of]


def _swapped(metrics: WeightedMetrics) -> WeightedMetrics:
    """Arm b minus arm a by which records change arms, for metrics of both arms' outputs in a row.

    A record that stays counts in its arm's half, one that changes in the other half.
    """

    def differences(swaps: Counts) -> dict[str, PerDraw]:
        arm_a = metrics(np.concatenate([1 - swaps, swaps]))
        arm_b = metrics(np.concatenate([swaps, 1 - swaps]))
        return {name: arm_b[name] - arm_a[name] for name in arm_a}

    return differences


def _over_draws(
    metrics: Sequence[WeightedMetrics], counts: Iterable[Counts]
) -> dict[str, Float[np.ndarray, "M D"]]:
    """Each function's values by metric, over all draws: ``(number of functions, draws)``."""
    parts = [[function(chunk) for function in metrics] for chunk in counts]
    return {
        name: np.concatenate([np.stack([v[name] for v in part]) for part in parts], axis=1)
        for name in parts[0][0]
    }


def _interval(value: float, draws: PerDraw, level: float) -> Interval:
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return Interval(float(value), np.nan, np.nan)
    low, high = map(float, np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]))
    value = float(value)
    return Interval(value, min(low, value), max(high, value))  # as they are where value is NaN


def _difference(
    observed: Float[np.ndarray, " S"],
    drawn: Float[np.ndarray, "S D"],
    level: float,
    rng: np.random.Generator,
) -> Difference:
    """Mean over seeds of observed differences, with the errors of records and of seeds.

    The spread of the observed values holds a seed's own luck and its own share of the record
    noise. What is left to the records is how far the draws of two seeds vary together.
    """
    mean = float(observed.mean())
    drawn = drawn[:, ~np.isnan(drawn).any(axis=0)]
    num_seeds, num_draws = drawn.shape
    if num_draws < 2:
        return Difference(mean, np.nan, np.nan, np.nan)
    averaged = drawn.mean(axis=0)
    error = averaged.std(ddof=1)
    if num_seeds == 1:
        return Difference(*_interval(mean, averaged, level), float(error))
    covariance = np.cov(drawn)
    shared = (covariance.sum() - np.trace(covariance)) / (num_seeds * (num_seeds - 1))
    record_error = np.sqrt(max(0.0, shared))
    seed_error = observed.std(ddof=1) / np.sqrt(num_seeds)
    of_records = (averaged - mean) * record_error / max(error, np.finfo(np.float64).tiny)
    of_seeds = seed_error * rng.standard_t(num_seeds - 1, size=num_draws)
    interval = _interval(mean, mean + of_records + of_seeds, level)
    return Difference(*interval, float(np.hypot(record_error, seed_error)))


def _p_value(differences: PerDraw) -> float:
    """Share of differences at least as large as the first, which is the observed one."""
    sizes = np.abs(differences[~np.isnan(differences)])
    if np.isnan(differences[0]):
        return np.nan
    # A swap that changes nothing must count as equal, whatever the order of its sums.
    return float((sizes >= sizes[0] * (1 - 1e-9) - 1e-12).mean())
