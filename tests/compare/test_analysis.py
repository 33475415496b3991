"""From arms to differences: against statistics worked out by other means."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compare.comparisons import made_up_result, tiny_comparison
from scipy.stats import norm as gaussian
from scipy.stats import t as student

from seqtrain.compare.analysis import Analysis, _detectable, analyse, arm_row, conclude
from seqtrain.compare.plan import Arm, Comparison
from seqtrain.compare.run import Result
from seqtrain.evaluation.statistics import Difference

NORMS = ["masked_batch", "batch", "layer"]
ACCURACY = {"masked_batch": 0.9, "batch": 0.9, "layer": 0.4}


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, list[Result], Path]:
    """Three norms, four seeds, 12 test records, with outputs that are made up and not trained."""
    folder = tmp_path_factory.mktemp("arms")
    comparison = tiny_comparison(folder, NORMS, num_seeds=4)
    test = comparison.plans["cnn"].data.test
    assert test is not None
    results = []
    for arm in comparison.arms():
        rng = np.random.default_rng([arm.seed, NORMS.index(arm.condition.norm)])
        right = rng.random(len(test)) < ACCURACY[arm.condition.norm]
        said = np.where(right, test.targets, 1 - test.targets)  # type: ignore[operator]
        result = made_up_result(arm.condition.norm, arm.seed, 0.0)
        result["metrics"] = {"loss": 0.5, "mcc": _mcc(said, test.targets)}  # type: ignore[arg-type]
        results.append(result)
        (folder / arm.name).mkdir()
        np.save(folder / arm.name / "outputs.npy", np.eye(2, dtype=np.float32)[said])
    return comparison, results, folder


def _mcc(said: np.ndarray, truth: np.ndarray) -> float:
    return float(np.corrcoef(said, truth)[0, 1]) if said.std() else 0.0


def analysed(
    arms: tuple[Comparison, list[Result], Path], clusters: dict[str, str] | None = None
) -> Analysis:
    comparison, results, folder = arms
    return analyse(comparison, results, folder, clusters=clusters, num_draws=400)


def test_a_contrast_is_the_mean_and_the_standardized_mean_of_paired_differences(
    arms: tuple[Comparison, list[Result], Path],
) -> None:
    score = {(r["norm"], r["seed"]): r["metrics"]["mcc"] for r in arms[1]}
    for contrast in analysed(arms).contrasts:
        name = contrast.condition.norm
        each = np.array([score[name, s] - score["masked_batch", s] for s in range(4)])
        assert contrast.difference.value == pytest.approx(each.mean())
        assert contrast.effect_size == pytest.approx(each.mean() / each.std(ddof=1))
        assert contrast.num_seeds == 4


def test_p_values_are_corrected_over_the_contrasts_as_holm_did_it(
    arms: tuple[Comparison, list[Result], Path],
) -> None:
    small, large = sorted(analysed(arms).contrasts, key=lambda c: c.p_value)
    assert small.adjusted_p == pytest.approx(min(1, 2 * small.p_value))
    assert large.adjusted_p == pytest.approx(max(large.p_value, small.adjusted_p))
    assert small.condition.norm == "layer"


def test_clusters_are_drawn_whole_and_records_without_one_alone(
    arms: tuple[Comparison, list[Result], Path],
) -> None:
    alone = analysed(arms).contrasts[1]
    ids = arms[0].plans["cnn"].data.test.ids  # type: ignore[union-attr]
    named = {record: record for record in ids}
    assert analysed(arms, named).contrasts[1].p_value == pytest.approx(alone.p_value, abs=0.05)
    pairs = {record: f"c{i // 6}" for i, record in enumerate(ids)}
    # Two clusters that change arms or not: both, neither, or one; half of these are as extreme.
    assert analysed(arms, pairs).contrasts[1].p_value >= 0.4
    assert analysed(arms, {}).contrasts[1].p_value == pytest.approx(alone.p_value, abs=0.05)


@pytest.mark.parametrize("num_seeds", [2, 5, 100])
@pytest.mark.parametrize("num_comparisons", [1, 5])
def test_the_power_note_asks_for_what_the_interval_and_the_test_ask(
    num_seeds: int, num_comparisons: int
) -> None:
    error = 0.01
    half = error * float(student.ppf(0.975, num_seeds - 1))
    found = _detectable(Difference(0.0, -half, half, error), num_comparisons)
    by_test = error * (gaussian.ppf(1 - 0.025 / num_comparisons) + gaussian.ppf(0.8))
    by_interval = half * (1 + gaussian.ppf(0.8) / gaussian.ppf(0.975))
    assert found == pytest.approx(max(by_test, by_interval))
    # A true difference of that size leaves the interval beyond zero four times in five.
    draws = found + error * np.random.default_rng(0).standard_normal(20_000)
    assert (draws > half).mean() >= 0.79


def test_a_row_counts_steps_and_residues_to_the_level(
    arms: tuple[Comparison, list[Result], Path],
) -> None:
    analysis = analysed(arms)
    for result in arms[1]:
        row = arm_row(analysis, result)
        above = [p["step"] for p in result["curve"] if p["value"] >= analysis.level]
        expected = min(above) if above else None
        assert row["steps_to_level"] == expected
        if expected is not None:
            per_step = result["residues"] / result["steps"]
            assert row["residues_to_level"] == pytest.approx(expected * per_step)
        gap = result["loss_as_in_evaluation"] - result["loss_as_in_training"]
        assert row["train_eval_gap"] == pytest.approx(gap)


def test_seeds_that_one_arm_lacks_are_left_out_of_the_pairs(
    arms: tuple[Comparison, list[Result], Path],
) -> None:
    comparison, results, folder = arms
    lost = Arm(comparison.conditions[1], 2)
    cut = [
        {**r, "status": "failed"} if (r["norm"], r["seed"]) == ("batch", lost.seed) else r
        for r in results
    ]
    analysis = analyse(comparison, cut, folder, num_draws=50)
    batch, layer = analysis.contrasts
    assert (batch.num_seeds, layer.num_seeds) == (3, 4)
    assert "and 3 to 4 seeds" in analysis.conclusion


def test_no_norm_is_not_nobody_in_a_sentence(
    arms: tuple[Comparison, list[Result], Path],
) -> None:
    comparison, results, folder = arms
    named = [{**r, "norm": "none"} if r["norm"] == "batch" else r for r in results]
    analysis = analyse(comparison, results, folder, num_draws=50)
    contrasts = [
        replace(c, condition=replace(c.condition, norm="none")) for c in analysis.contrasts
    ]
    sentence = conclude(replace(analysis, results=named, contrasts=contrasts))
    assert "no norm" in sentence
    assert "none" not in sentence


def test_equal_outputs_say_nothing_of_what_could_have_been_missed() -> None:
    assert np.isnan(_detectable(Difference(0.0, 0.0, 0.0, 0.0), 2))


def test_a_logit_that_is_not_finite_costs_no_report(
    arms: tuple[Comparison, list[Result], Path],
) -> None:
    comparison, results, folder = arms
    first = {**results[0], "padding_shift": {"padded_2x": [None, 0.25], "neighbours": [None]}}
    analysis = analyse(comparison, [first, *results[1:]], folder, num_draws=50)
    row = arm_row(analysis, first)
    assert (row["shift_padded_2x"], row["shift_neighbours"]) == (0.25, 0.0)
