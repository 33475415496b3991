"""From the results of arms to differences, and from the differences to one sentence."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from seqtrain.compare.measures import steps_to
from seqtrain.compare.plan import Comparison, Condition
from seqtrain.compare.run import Result, outputs_of
from seqtrain.compare.trained import trained_facts
from seqtrain.data.dataset import SequenceDataset
from seqtrain.evaluation.score import residue_counts
from seqtrain.evaluation.statistics import (
    Difference,
    holm_correction,
    minimum_detectable_difference,
    paired_bootstrap,
    paired_permutation_test,
)
from seqtrain.training.metrics import HIGHER_IS_BETTER

ALPHA = 0.05
ROUNDING = 1e-3
"""A logit that moves by less is taken to be where it was: float32 sums in another order."""


@dataclass(frozen=True)
class Contrast:
    """One condition held against its reference, over the seeds that both finished."""

    condition: Condition
    reference: Condition
    num_seeds: int
    difference: Difference
    """Condition minus reference, in the metric."""
    p_value: float
    """Permutation of records between the arms."""
    adjusted_p: float
    """After Holm, over all contrasts."""
    effect_size: float
    """Mean over standard deviation of the seeds' differences (Cohen's d for pairs)."""
    detectable: float
    """Smallest true difference found with a chance of 80 %."""

    @property
    def is_found(self) -> bool:
        """True when both say so: the interval, which knows of seeds, and the corrected test."""
        return self.doubt is None

    @property
    def doubt(self) -> str | None:
        """The part of the rule that does not hold, in words; None where a difference is found."""
        low, high = self.difference.low, self.difference.high
        lacking = [
            *(["the interval includes 0"] if not (low > 0 or high < 0) else []),
            *([f"p (Holm) is not below {ALPHA}"] if not self.adjusted_p < ALPHA else []),
        ]
        return " and ".join(lacking) or None


@dataclass(frozen=True)
class Analysis:
    """Everything that a report shows."""

    metric: str
    task: str
    part: str
    num_records: int
    num_seeds: int
    results: Sequence[Result]
    """Of every arm, failed ones among them."""
    contrasts: Sequence[Contrast]
    level: float
    """Of validation; what steps and residues to are counted."""
    conclusion: str
    notes: Sequence[str]
    trained: Sequence[tuple[str, str]] = ()
    """Data, model, settings and versions, each by its name."""

    def finished(self, condition: Condition) -> list[Result]:
        """The finished arms of a condition, by seed."""
        return [r for r in self.results if r["status"] == "ok" and condition_of(r) == condition]

    @property
    def conditions(self) -> list[Condition]:
        """Those with a finished arm, in order."""
        done = [condition_of(r) for r in self.results if r["status"] == "ok"]
        every = dict.fromkeys(condition_of(r) for r in self.results)
        return [condition for condition in every if condition in done]

    def label(self, condition: Condition) -> str:
        """Its name as short as all conditions allow."""
        every = [condition_of(r) for r in self.results]
        parts = [condition.norm]
        for key in ("batching", "encoder"):
            if len({getattr(c, key) for c in every}) > 1:
                parts.append(getattr(condition, key))
        return ", ".join(parts)

    def spoken(self, condition: Condition) -> str:
        """The label as a sentence needs it: "none had a higher score" would say the opposite."""
        return re.sub(r"^none\b", "no norm", self.label(condition))


def condition_of(result: Mapping[str, Any]) -> Condition:
    """The condition of an arm's result."""
    return Condition(result["norm"], result["batching"], result["encoder"])


def analyse(
    comparison: Comparison,
    results: Sequence[Result],
    folder: Path,
    *,
    clusters: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    num_draws: int = 1000,
    command: Sequence[str] | None = None,
) -> Analysis:
    """Contrast every condition with its reference.

    Args:
        comparison: What was trained.
        results: From ``run.collect``.
        folder: Where the arms lie.
        clusters: Cluster id by record id; whole clusters are drawn then.
        notes: What the reader must know, carried into the report.
        num_draws: Of bootstrap and permutation.
        command: The words of the command line, for the report.
    """
    data = next(iter(comparison.plans.values())).data
    task, num_classes = data.codec.task, data.codec.num_outputs
    scored = data.test if data.test is not None else data.valid
    finished = [r for r in results if r["status"] == "ok"]
    if not finished:
        raise ValueError("no arm finished: there is nothing to analyse")
    metric = finished[0]["metric"]
    groups = None
    if clusters is not None:
        groups = [clusters.get(record, f"alone:{record}") for record in scored.ids]
    contrasts = _contrasts(
        comparison, finished, folder, scored, task, num_classes, metric, groups, num_draws
    )
    analysis = Analysis(
        metric=metric,
        task=task,
        part="test" if data.test is not None else "valid",
        num_records=len(scored),
        num_seeds=comparison.num_seeds,
        results=results,
        contrasts=contrasts,
        level=_level(finished, metric),
        conclusion="",
        notes=notes,
        trained=trained_facts(comparison, results, command),
    )
    return Analysis(**{**vars(analysis), "conclusion": conclude(analysis)})


def _level(finished: Sequence[Result], metric: str) -> float:
    """What three quarters of the arms reach: the lower quartile of their best validation."""
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    curves = [[sign * p["value"] for p in r["curve"] if p["value"] is not None] for r in finished]
    best = [max(values) for values in curves if values]
    return sign * float(np.quantile(best, 0.25, method="lower")) if best else float("nan")


def _contrasts(
    comparison: Comparison,
    finished: Sequence[Result],
    folder: Path,
    scored: SequenceDataset,
    task: str,
    num_classes: int,
    metric: str,
    groups: Sequence[str] | None,
    num_draws: int,
) -> list[Contrast]:
    def prepared(condition: Condition, seed: int) -> np.ndarray:
        values = outputs_of(folder, condition, seed)
        return residue_counts(values, scored, task, num_classes) if scored.per_residue else values

    value = {(condition_of(r), r["seed"]): r["metrics"][metric] for r in finished}
    targets = None if scored.per_residue else scored.targets
    found = []
    for condition in comparison.conditions:
        reference = comparison.reference(condition)
        seeds = [
            s
            for s in range(comparison.num_seeds)
            if {(condition, s), (reference, s)} <= value.keys()
        ]
        if reference is None or not seeds:
            continue
        a = [prepared(reference, seed) for seed in seeds]
        b = [prepared(condition, seed) for seed in seeds]
        difference = paired_bootstrap(task, a, b, targets, groups=groups, num_draws=num_draws)
        p_value = paired_permutation_test(task, a, b, targets, groups=groups, num_draws=num_draws)
        each = np.array([_minus(value[condition, s], value[reference, s]) for s in seeds])
        found.append((condition, reference, each, difference[metric], p_value[metric]))
    p_values = np.array([1.0 if np.isnan(p) else p for *_, p in found])
    adjusted = holm_correction(p_values)
    return [
        Contrast(
            condition,
            reference,
            len(each),
            difference,
            float(p),
            float(holm),
            float(each.mean() / spread)
            if len(each) > 1 and (spread := each.std(ddof=1))
            else np.nan,
            _detectable(difference, len(found)),
        )
        for (condition, reference, each, difference, p), holm in zip(found, adjusted, strict=True)
    ]


def _detectable(difference: Difference, num_comparisons: int) -> float:
    """By the standard error, or by the interval where that is wider: few seeds make it so.

    NaN where nothing that was drawn differed: that says nothing of other records.
    """
    half_width = (difference.high - difference.low) / 2
    if not half_width:
        return float("nan")
    of_interval = half_width / NormalDist().inv_cdf(1 - ALPHA / 2)
    return max(
        minimum_detectable_difference(
            difference.standard_error, level=1 - ALPHA, num_comparisons=num_comparisons
        ),
        minimum_detectable_difference(of_interval, level=1 - ALPHA),
    )


def _minus(a: float | None, b: float | None) -> float:
    return np.nan if a is None or b is None else a - b


def conclude(analysis: Analysis) -> str:
    """The one sentence that the numbers allow, by rule.

    A difference counts as found where its 95 % interval leaves out zero and its permutation test
    stays below 0.05 after Holm. A logit counts as moved beyond ``ROUNDING``.
    """
    clauses = []
    found = [c for c in analysis.contrasts if c.is_found]
    null = [c for c in analysis.contrasts if not c.is_found]
    metric, seeds = analysis.metric, _seeds(analysis)
    where = f"On {analysis.num_records:,} {analysis.part} records and {seeds}"
    for c in found:
        word = "higher" if c.difference.value > 0 else "lower"
        d = c.difference
        size = f"{d.value:+.3f}, 95 % interval {d.low:+.3f} to {d.high:+.3f}"
        clauses.append(
            f"{analysis.spoken(c.condition)} had a {word} {metric} than "
            f"{analysis.spoken(c.reference)} ({size})"
        )
    if null:
        names = _with_missed(analysis, null)
        clauses.append(f"no difference in {metric} was found for {_listed(names)}")
    if any(c.num_seeds == 1 for c in analysis.contrasts):
        clauses.append("with one seed this speaks of these trained models, not of other trainings")
    if not analysis.contrasts:
        clauses.append(
            "there was nothing to compare: fewer than two conditions share a finished seed"
        )
    return f"{where}, {'; '.join(clauses)}; {_shift_clause(analysis)}."


def _with_missed(analysis: Analysis, null: Sequence[Contrast]) -> list[str]:
    """Each condition with the differences that could not have been seen for it."""
    names, words = [], ("differences below", " could have been missed")
    for c in null:
        name = analysis.spoken(c.condition)
        if not np.isnan(c.detectable):
            name += f" ({words[0]} {c.detectable:.3f}{words[1]})"
            words = ("below", "")  # once is enough to be understood
        names.append(name)
    return names


def _seeds(analysis: Analysis) -> str:
    """As many as contrasts have, which is fewer than were asked for where arms failed."""
    numbers = [c.num_seeds for c in analysis.contrasts] or [analysis.num_seeds]
    few, many = min(numbers), max(numbers)
    return _count(many, "seed") if few == many else f"{few} to {many} seeds"


def _shift_clause(analysis: Analysis) -> str:
    moved = {}
    for condition in analysis.conditions:
        worst = max(worst_shift(r) for r in analysis.finished(condition))
        if worst > ROUNDING:
            moved[analysis.spoken(condition)] = worst
    if not moved:
        return "padding moved no logit beyond rounding in any arm"
    said = [f"up to {worst:.2g} with {name}" for name, worst in moved.items()]
    rest = " and by nothing beyond rounding with the others"
    return (
        "padding moved a record's logits by "
        + _listed(said)
        + (rest if len(moved) < len(analysis.conditions) else "")
    )


def worst_shift(result: Mapping[str, Any]) -> float:
    """The largest change of any logit by any padding or neighbour."""
    return max((_largest(way) for way in result["padding_shift"].values()), default=0.0)


def _largest(shifts: Sequence[float | None]) -> float:
    """JSON has null for what is not finite."""
    return max((shift for shift in shifts if shift is not None), default=0.0)


def statistics_error(result: Mapping[str, Any]) -> float:
    """Mean over the layers of the distance of running means, in standard deviations; NaN: none."""
    rows = result["running_statistics"]
    return float(np.mean([row["mean"] for row in rows])) if rows else float("nan")


def variance_error(result: Mapping[str, Any]) -> float:
    """Mean over the layers of the absolute log ratio of variances; NaN: none."""
    rows = result["running_statistics"]
    return float(np.mean([row["log_var"] for row in rows])) if rows else float("nan")


def arm_row(analysis: Analysis, result: Result) -> dict[str, Any]:
    """One line of ``results.csv``; measures are empty where the arm failed."""
    row = {k: result[k] for k in ("norm", "batching", "encoder", "seed", "status")}
    if result["status"] != "ok":
        return {**row, "error": result.get("error", "")}
    higher = HIGHER_IS_BETTER[analysis.metric]
    steps = steps_to(analysis.level, result["curve"], higher=higher)
    shift = {f"shift_{way}": _largest(v) for way, v in result["padding_shift"].items()}
    per_step = result["residues"] / max(result["steps"], 1)
    return {
        **row,
        "part": analysis.part,
        analysis.metric: result["metrics"][analysis.metric],
        **result["metrics"],
        "steps_to_level": steps,
        "residues_to_level": None if steps is None else round(steps * per_step),
        "microseconds_per_residue": result["microseconds_per_residue"],
        **shift,
        "running_mean_error": statistics_error(result),
        "running_log_var_error": variance_error(result),
        "train_eval_gap": _minus(result["loss_as_in_evaluation"], result["loss_as_in_training"]),
        "calibration_error": result["calibration_error"],
        "padding_share": result["padding_share"],
        "best_epoch": result["best_epoch"],
        "steps": result["steps"],
        "seconds": result["seconds"],
        "error": "",
    }


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")
