import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtrain.evaluation import statistics
from seqtrain.evaluation.statistics import (
    bootstrap_intervals,
    holm_correction,
    minimum_detectable_difference,
    paired_bootstrap,
    paired_permutation_test,
)
from seqtrain.training.metrics import compute_metrics, confusion_metrics, record_moments

TASKS = (
    "classification",
    "multilabel",
    "regression",
    "residue_classification",
    "residue_regression",
    "loss",
    "mlm",
)
NUM_RECORDS = 24


@pytest.fixture
def few_draws_at_once(monkeypatch):
    """Chunks of two draws, so that whatever depends on the chunks goes wrong."""
    monkeypatch.setattr(statistics, "_COUNTS_AT_ONCE", 2 * NUM_RECORDS)


def scored(task, seed, num_records=NUM_RECORDS):
    """Outputs of two arms and the targets of the same records."""
    rng = np.random.default_rng(seed)
    match task:
        case "classification":
            arms = rng.dirichlet(np.ones(3), (2, num_records))
            return *arms, rng.integers(0, 3, num_records)
        case "multilabel":
            arms = rng.random((2, num_records, 3))
            return *arms, rng.integers(0, 2, (num_records, 3)).astype(float)
        case "regression":
            return rng.normal(size=(3, num_records))
        case "residue_classification":
            return *rng.integers(0, 9, (2, num_records, 3, 3)), None
        case "residue_regression":
            ends = np.append(0, rng.integers(1, 9, num_records).cumsum())
            targets = rng.normal(size=ends[-1])
            arms = rng.normal(targets, [[1], [2]])
            return *(record_moments(arm, targets, ends) for arm in arms), None
    sums = rng.gamma(2, 1, (2, num_records))
    lengths = rng.integers(1, 30, num_records).astype(float)
    return *(np.stack([lengths * arm, lengths], axis=1) for arm in sums), None


def slow_metrics(task, outputs, targets):
    """Metrics of records that lie there, resampled rows and all."""
    if task == "loss":
        return {"loss": outputs[:, 0].sum() / outputs[:, 1].sum()}
    if task == "mlm":
        loss = outputs[:, 0].sum() / outputs[:, 1].sum()
        return {"loss": loss, "perplexity": np.exp(loss)}
    if task == "residue_classification":
        values = confusion_metrics(outputs.sum(axis=0, keepdims=True))(np.ones((1, 1)))
        return {name: value[0] for name, value in values.items()}
    if task == "residue_regression":
        return errors_of(*outputs.sum(axis=0))
    return compute_metrics(task, outputs, targets)


def errors_of(n, x, y, xx, yy, xy, squared, absolute):
    """What the sums over all residues say."""
    return {
        "r2": 1 - squared / (yy - y**2 / n),
        "pearson": (n * xy - x * y) / np.sqrt((n * xx - x**2) * (n * yy - y**2)),
        "rmse": np.sqrt(squared / n),
        "mae": absolute / n,
    }


def rows_of(outputs, targets, rows):
    return outputs[rows], None if targets is None else targets[rows]


def explicit_draws(groups, num_draws, seed):
    """Rows of each draw as the docstring promises them."""
    rng = np.random.default_rng(seed)
    units = np.unique(groups)
    members = [np.flatnonzero(groups == unit) for unit in units]
    for _ in range(num_draws):
        drawn = rng.integers(len(units), size=len(units))
        yield np.concatenate([members[unit] for unit in drawn])


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_intervals_equal_those_of_explicitly_resampled_records(task, clustered, few_draws_at_once):
    outputs, _, targets = scored(task, seed=1)
    names = np.array([f"cluster{i % 7}" for i in range(NUM_RECORDS)])
    groups = names if clustered else np.arange(NUM_RECORDS)
    got = bootstrap_intervals(
        task, outputs, targets, groups=names if clustered else None, num_draws=25, level=0.8, seed=3
    )
    draws = [
        slow_metrics(task, *rows_of(outputs, targets, rows))
        for rows in explicit_draws(groups, 25, seed=3)
    ]
    assert got.keys() == draws[0].keys()
    for name, value in slow_metrics(task, outputs, targets).items():
        low, high = np.quantile([draw[name] for draw in draws], [0.1, 0.9])
        assert got[name] == pytest.approx((value, low, high), abs=1e-9), name


@pytest.mark.parametrize("task", TASKS)
def test_paired_differences_equal_those_of_explicitly_resampled_records(task, few_draws_at_once):
    outputs_a, outputs_b, targets = scored(task, seed=2)
    groups = [f"cluster{i % 7}" for i in range(NUM_RECORDS)]
    got = paired_bootstrap(
        task, [outputs_a], [outputs_b], targets, groups=groups, num_draws=25, seed=4
    )
    draws = []
    for rows in explicit_draws(np.array(groups), 25, seed=4):
        of_a = slow_metrics(task, *rows_of(outputs_a, targets, rows))
        of_b = slow_metrics(task, *rows_of(outputs_b, targets, rows))
        draws.append({name: of_b[name] - of_a[name] for name in of_a})
    of_a, of_b = (slow_metrics(task, arm, targets) for arm in (outputs_a, outputs_b))
    for name in of_a:
        drawn = [draw[name] for draw in draws]
        low, high = np.quantile(drawn, [0.025, 0.975])
        expected = (of_b[name] - of_a[name], low, high, np.std(drawn, ddof=1))
        assert got[name] == pytest.approx(expected, abs=1e-9), name


@pytest.mark.parametrize("task", TASKS)
def test_permutation_p_value_is_near_that_of_all_swaps(task):
    outputs_a, outputs_b, targets = scored(task, seed=5)
    clusters = np.arange(NUM_RECORDS) % 6
    observed, as_large = None, {}
    for swap in product([False, True], repeat=6):
        chosen = np.array(swap)[clusters]
        shape = (-1,) + (1,) * (outputs_a.ndim - 1)
        arm_a = np.where(chosen.reshape(shape), outputs_b, outputs_a)
        arm_b = np.where(chosen.reshape(shape), outputs_a, outputs_b)
        of_a, of_b = (slow_metrics(task, arm, targets) for arm in (arm_a, arm_b))
        difference = {name: abs(of_b[name] - of_a[name]) for name in of_a}
        observed = observed or difference
        for name, size in difference.items():
            as_large.setdefault(name, []).append(size >= observed[name] - 1e-12)
    got = paired_permutation_test(
        task, [outputs_a], [outputs_b], targets, groups=clusters, num_draws=2000
    )
    for name, hits in as_large.items():
        assert got[name] == pytest.approx(np.mean(hits), abs=0.04), name


@pytest.mark.parametrize("task", TASKS)
def test_arms_that_change_places_as_a_whole_differ_as_much_as_before(task):
    for seed in range(5):
        outputs_a, outputs_b, targets = scored(task, seed)
        p_values = paired_permutation_test(
            task, [outputs_a], [outputs_b], targets, groups=["one"] * NUM_RECORDS, num_draws=20
        )
        assert set(p_values.values()) == {1.0}


def test_intervals_cover_the_true_accuracy_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(300):
        targets = rng.integers(0, 2, 150)
        right = rng.random(150) < 0.8
        outputs = np.eye(2)[np.where(right, targets, 1 - targets)]
        interval = bootstrap_intervals(
            "classification", outputs, targets, num_draws=300, seed=seed
        )["accuracy"]
        covered.append(interval.low <= 0.8 <= interval.high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_clusters_must_be_resampled_whole_to_cover():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 8)
    covered = {"clusters": [], "records": []}
    for seed in range(200):
        # Half the clusters are always right, half always wrong: 50 observations, not 400.
        losses = np.stack([(rng.random(50) < 0.5)[groups], np.ones(400)], axis=1).astype(float)
        for unit, ids in (("clusters", groups), ("records", None)):
            interval = bootstrap_intervals(
                "loss", losses, None, groups=ids, num_draws=200, seed=seed
            )["loss"]
            covered[unit].append(interval.low <= 0.5 <= interval.high)
    assert 0.89 <= np.mean(covered["clusters"]) <= 0.99
    assert np.mean(covered["records"]) < 0.6


@pytest.mark.parametrize("seed_spread", [0.0, 0.3])
def test_paired_intervals_cover_over_training_seeds_too(seed_spread):
    rng = np.random.default_rng(1)
    covered, errors, values, widths = [], [], [], []
    for seed in range(150):
        difficulty = rng.normal(size=60)
        arms = [
            [difficulty + rng.normal(size=60) + seed_spread * rng.normal() for _ in range(5)]
            for _ in range(2)
        ]
        losses = [[np.stack([loss, np.ones(60)], axis=1) for loss in arm] for arm in arms]
        difference = paired_bootstrap("loss", *losses, None, num_draws=150, seed=seed)["loss"]
        covered.append(difference.low <= 0 <= difference.high)
        errors.append(difference.standard_error)
        values.append(difference.value)
        widths.append(difference.high - difference.low)
    assert 0.9 <= np.mean(covered) <= 0.99
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)
    # Seeds share no record noise here, so all of the width is Student's, with 4 degrees of freedom.
    assert np.mean(widths) == pytest.approx(2 * 2.776 * np.mean(errors), rel=0.1)


def test_the_value_over_seeds_is_the_mean_difference():
    arms_a, arms_b = ([scored("regression", seed)[arm] for seed in (1, 2)] for arm in (0, 1))
    targets = scored("regression", 3)[2]
    got = paired_bootstrap("regression", arms_a, arms_b, targets, num_draws=2)
    singles = [
        compute_metrics("regression", b, targets)["mae"]
        - compute_metrics("regression", a, targets)["mae"]
        for a, b in zip(arms_a, arms_b, strict=True)
    ]
    assert got["mae"].value == pytest.approx(np.mean(singles))


def test_permutation_over_seeds_tests_the_mean_difference():
    outputs_a, outputs_b, targets = scored("regression", seed=5)
    one = paired_permutation_test("regression", [outputs_a], [outputs_b], targets)
    same = paired_permutation_test("regression", [outputs_a] * 3, [outputs_b] * 3, targets)
    assert same == one
    opposed = [outputs_a, outputs_b], [outputs_b, outputs_a]
    assert set(paired_permutation_test("regression", *opposed, targets).values()) == {1.0}


def test_pairing_takes_out_what_both_arms_share():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 10, 400)
    arm_a, arm_b = (
        np.stack([shared + rng.normal(size=400) + shift, np.ones(400)], axis=1) for shift in (0, 1)
    )
    difference = paired_bootstrap("loss", [arm_a], [arm_b], None)["loss"]
    assert 0.7 < difference.low < 1 < difference.high < 1.3
    assert paired_permutation_test("loss", [arm_a], [arm_b], None)["loss"] == 1 / 1001


def test_equal_arms_do_not_differ():
    outputs, _, targets = scored("classification", seed=0)
    arms = [outputs, outputs], [outputs, outputs]
    for difference in paired_bootstrap("classification", *arms, targets).values():
        assert difference == (0, 0, 0, 0)
    assert set(paired_permutation_test("classification", *arms, targets).values()) == {1.0}


def test_p_values_of_arms_that_do_not_differ_are_uniform():
    rng = np.random.default_rng(0)
    p_values = []
    for seed in range(300):
        arms = [
            [np.stack([rng.normal(size=30), np.ones(30)], axis=1) for _ in range(2)]
            for _ in range(2)
        ]
        p_values.append(
            paired_permutation_test("loss", *arms, None, num_draws=99, seed=seed)["loss"]
        )
    assert np.mean(np.array(p_values) <= 0.05) < 0.09
    assert np.quantile(p_values, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.08)


def test_draws_without_both_classes_are_left_out_and_never_warn():
    outputs = np.array([[0.3, 0.7], [0.6, 0.4], [0.2, 0.8]])
    got = bootstrap_intervals("classification", outputs, np.array([1, 0, 1]), num_draws=50)
    assert got["auroc"] == (1, 1, 1)
    undefined = bootstrap_intervals("classification", outputs, np.ones(3, np.int64), num_draws=50)
    assert np.isnan(undefined["auroc"]).all()
    assert not np.isnan(undefined["accuracy"]).any()
    arms = [outputs], [1 - outputs]
    assert np.isnan(paired_bootstrap("classification", *arms, np.ones(3, np.int64))["mcc"]).all()
    assert np.isnan(paired_permutation_test("classification", *arms, np.ones(3, int))["mcc"])


def test_undefined_draws_do_not_reach_the_spread_over_seeds():
    rng = np.random.default_rng(0)
    arms = [list(rng.dirichlet([1, 1], (2, 12))) for _ in range(2)]
    targets = np.arange(12) // 11  # one positive, absent from a third of the draws
    got = paired_bootstrap("classification", *arms, targets, num_draws=50)["auroc"]
    assert np.isfinite(got).all()


def test_no_records_give_undefined_intervals():
    got = bootstrap_intervals("regression", np.zeros(0), np.zeros(0), num_draws=5)
    assert np.isnan(np.array(list(got.values()))).all()


@pytest.mark.parametrize("task", TASKS)
def test_the_seed_decides_every_draw(task):
    outputs, other, targets = scored(task, seed=6)
    once, again, differently = (
        bootstrap_intervals(task, outputs, targets, num_draws=20, seed=seed) for seed in (1, 1, 2)
    )
    assert once == again != differently
    pair = [outputs, other], [other, 0.5 * other + 0.5 * outputs]
    if task != "residue_classification":
        runs = [paired_bootstrap(task, *pair, targets, num_draws=20, seed=s) for s in (1, 1, 2)]
        assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("function", [paired_bootstrap, paired_permutation_test])
def test_arms_that_do_not_pair_are_refused(function):
    losses = scored("loss", seed=0)[0]
    for arms in (([losses], [losses, losses]), ([], [])):
        with pytest.raises(ValueError, match="paired by seed"):
            function("loss", *arms, None)


def test_cluster_ids_must_name_every_record():
    outputs, _, targets = scored("regression", seed=0)
    with pytest.raises(ValueError, match="3 cluster ids for 24 records"):
        bootstrap_intervals("regression", outputs, targets, groups=["a", "a", "b"])


def test_twenty_thousand_records_of_twenty_classes_take_seconds():
    rng = np.random.default_rng(0)
    outputs, targets = rng.dirichlet(np.ones(20), 20_000), rng.integers(0, 20, 20_000)
    start = time.process_time()
    bootstrap_intervals("classification", outputs, targets, num_draws=200)
    # 0.4 s on an idle core; sorting in every draw would take 20 s.
    assert time.process_time() - start < 5


def test_holm_correction_of_a_case_worked_out_by_hand():
    adjusted = holm_correction(np.array([0.01, 0.04, 0.03, 0.005]))
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])


@settings(deadline=None)
@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=8), alpha=st.floats(0.001, 0.5))
def test_holm_rejects_what_its_step_down_procedure_rejects(p_values, alpha):
    adjusted = holm_correction(np.array(p_values))
    rejected = set()
    for step, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] * (len(p_values) - step) > alpha:
            break
        rejected.add(int(index))
    assert set(np.flatnonzero(adjusted <= alpha).tolist()) == rejected


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.1])
def test_holm_refuses_what_is_no_p_value(bad):
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm_correction(np.array([0.5, bad]))


def test_the_minimum_detectable_difference_is_found_with_the_stated_power():
    normal = np.random.default_rng(0).normal(size=100_000)
    found = minimum_detectable_difference(2.0, power=0.8) + 2.0 * normal
    assert np.mean(np.abs(found) > 1.959964 * 2.0) == pytest.approx(0.8, abs=0.005)
    shared = minimum_detectable_difference(2.0, power=0.9, level=0.9, num_comparisons=5)
    # Five tests at alpha 0.1 together: each at 0.02 two-sided, so z = 2.326.
    assert shared == pytest.approx((2.326348 + 1.281552) * 2.0, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_an_interval_holds_its_own_value_also_when_rare_classes_drop_out_of_draws(seed):
    """Forty classes of one record each, all missed: a draw has fewer of them and a higher mean."""
    targets = np.array([0] * 20 + list(range(1, 41)))
    outputs = np.eye(41)[np.zeros(60, int)] + 0.1 * np.random.default_rng(seed).random((60, 41))
    found = bootstrap_intervals("classification", outputs, targets, num_draws=200, seed=seed)
    assert found["macro_f1"].low == found["macro_f1"].value == pytest.approx(0.5 / 41)
    for low, value, high in ((i.low, i.value, i.high) for i in found.values()):
        assert np.isnan(value) or low <= value <= high
