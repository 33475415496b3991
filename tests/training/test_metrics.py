import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from traced_memory import most_memory

from seqtrain.training.metrics import (
    HIGHER_IS_BETTER,
    ConfusionCounts,
    compute_metrics,
    confusion_metrics,
    primary_metric,
    ratio_metric,
    record_confusions,
    weighted_metrics,
)
from seqtrain.training.ranking import class_areas, ranking_areas

NAMES = [
    *("loss", "accuracy", "macro_f1", "mcc", "auroc", "auprc", "macro_auroc", "macro_auprc"),
    *("r2", "pearson", "spearman", "rmse", "mae", "perplexity"),
]
TASKS = ("classification", "multilabel", "regression", "residue_classification", "mlm")
seeds = st.integers(0, 2**32 - 1)


def predictions(task, num_records, num_classes, seed):
    """Outputs and targets with many ties, unbalanced classes and some signal."""
    rng = np.random.default_rng(seed)
    if task == "regression":
        targets = np.round(rng.normal(3, 2, num_records), 1)
        return np.round(targets + rng.normal(0, 2, num_records), 1), targets
    if task == "multilabel":
        targets = (rng.random((num_records, num_classes)) < 0.3).astype(np.float32)
        noise = rng.random((num_records, num_classes))
        return np.round(0.3 * targets + 0.7 * noise, 1), targets
    targets = np.minimum(rng.geometric(0.5, num_records) - 1, num_classes - 1)
    scores = rng.integers(1, 6, (num_records, num_classes)).astype(float)
    scores[np.arange(num_records), targets] += rng.integers(0, 3, num_records)
    return scores / scores.sum(axis=1, keepdims=True), targets


def one_against_rest(metric, targets, outputs):
    """Mean over the columns that have both positives and negatives."""
    columns = zip(targets.T, outputs.T, strict=True)
    return np.mean([metric(t, o) for t, o in columns if 0 < t.sum() < len(t)])


def sklearn_metrics(task, outputs, targets):
    """The slow obvious version, for targets that hold at least two classes."""
    if task == "regression":
        return {
            "r2": sk.r2_score(targets, outputs),
            "pearson": scipy.stats.pearsonr(outputs, targets).statistic,
            "spearman": scipy.stats.spearmanr(outputs, targets).statistic,
            "rmse": sk.root_mean_squared_error(targets, outputs),
            "mae": sk.mean_absolute_error(targets, outputs),
        }
    num_classes = outputs.shape[1]
    if task == "multilabel":
        chosen = outputs > 0.5
        eps = np.finfo(outputs.dtype).eps
        cells = np.stack([1 - outputs.ravel(), outputs.ravel()], axis=1).clip(eps, 1 - eps)
        return {
            "loss": sk.log_loss(targets.ravel(), cells),
            "accuracy": sk.accuracy_score(targets, chosen),
            "macro_f1": sk.f1_score(targets, chosen, average="macro", zero_division=np.nan),
            "macro_auroc": one_against_rest(sk.roc_auc_score, targets, outputs),
            "macro_auprc": one_against_rest(sk.average_precision_score, targets, outputs),
        }
    chosen = outputs.argmax(axis=1)
    loss = sk.log_loss(targets, outputs, labels=np.arange(num_classes))
    values = {
        "loss": loss,
        "accuracy": sk.accuracy_score(targets, chosen),
        "macro_f1": sk.f1_score(targets, chosen, average="macro", zero_division=0),
        "mcc": sk.matthews_corrcoef(targets, chosen),
    }
    if task == "mlm":
        return values | {"perplexity": np.exp(loss)}
    if num_classes == 2:
        return values | {
            "auroc": sk.roc_auc_score(targets, outputs[:, 1]),
            "auprc": sk.average_precision_score(targets, outputs[:, 1]),
        }
    one_hot = targets[:, None] == np.arange(num_classes)
    return values | {
        "macro_auroc": one_against_rest(sk.roc_auc_score, one_hot, outputs),
        "macro_auprc": one_against_rest(sk.average_precision_score, one_hot, outputs),
    }


@pytest.mark.parametrize("task", TASKS)
@settings(deadline=None, max_examples=40)
@given(num_records=st.integers(20, 60), num_classes=st.integers(2, 5), seed=seeds)
def test_every_metric_equals_scikit_learns(task, num_records, num_classes, seed):
    outputs, targets = predictions(task, num_records, num_classes, seed)
    if task != "regression" and targets.reshape(num_records, -1).max(axis=1).std() == 0:
        return
    values = compute_metrics(task, outputs, targets, num_classes)
    expected = sklearn_metrics(task, outputs, targets)
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


def test_metrics_of_a_binary_case_worked_out_by_hand():
    probability = np.array([0.9, 0.8, 0.6, 0.4, 0.3, 0.2])
    targets = np.array([1, 0, 1, 1, 0, 0])
    values = compute_metrics(
        "classification", np.stack([1 - probability, probability], axis=1), targets, 2
    )
    # Two true positives, one false negative, one false positive, two true negatives.
    assert values["accuracy"] == pytest.approx(4 / 6)
    assert values["macro_f1"] == pytest.approx(2 / 3)
    assert values["mcc"] == pytest.approx((2 * 2 - 1 * 1) / 9)
    # Of nine pairs the positives at 0.6 and 0.4 each lose one, to the negative at 0.8.
    assert values["auroc"] == pytest.approx(7 / 9)
    assert values["auprc"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 4) / 3)


def test_macro_f1_is_over_classes_in_targets_or_predictions():
    certain = np.eye(4)[[0, 0, 2]]
    values = compute_metrics("classification", certain, np.array([0, 0, 1]))
    # Class 0 is right, 1 never predicted, 2 never right, 3 nowhere and left out.
    assert values["macro_f1"] == pytest.approx((1 + 0 + 0) / 3)


def test_tied_scores_count_half_in_auroc():
    outputs = np.full((4, 2), 0.5)
    values = compute_metrics("classification", outputs, np.array([0, 1, 1, 0]))
    assert values["auroc"] == 0.5
    assert values["auprc"] == 0.5


def test_regression_is_exact_far_from_zero():
    rng = np.random.default_rng(0)
    targets = rng.normal(size=200)
    outputs = targets + rng.normal(size=200)
    near = compute_metrics("regression", outputs, targets)
    far = compute_metrics("regression", outputs + 1e6, targets + 1e6)
    assert far == pytest.approx(near, rel=1e-6)


@pytest.mark.parametrize("task", TASKS)
@settings(deadline=None, max_examples=25)
@given(num_classes=st.integers(2, 4), seed=seeds)
def test_counting_a_record_twice_equals_having_it_twice(task, num_classes, seed):
    outputs, targets = predictions(task, 15, num_classes, seed)
    counts = np.random.default_rng(seed).integers(0, 3, (15, 4))
    counts[0] += 1
    drawn = weighted_metrics(task, outputs, targets, num_classes)(counts.astype(float))
    for draw in range(4):
        rows = np.repeat(np.arange(15), counts[:, draw])
        expected = compute_metrics(task, outputs[rows], targets[rows], num_classes)
        got = {name: value[draw] for name, value in drawn.items()}
        assert got == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_one_class_in_the_targets_leaves_rank_metrics_and_mcc_undefined():
    outputs = np.array([[0.3, 0.7], [0.6, 0.4], [0.2, 0.8]])
    for target in (0, 1):
        values = compute_metrics("classification", outputs, np.full(3, target), 2)
        assert np.isnan([values["auroc"], values["auprc"], values["mcc"]]).all()
        assert values["accuracy"] == pytest.approx([1 / 3, 2 / 3][target])
    one_class_everywhere = compute_metrics("classification", np.eye(2)[[1, 1]], np.array([1, 1]))
    assert np.isnan(one_class_everywhere["mcc"])
    one_label = compute_metrics("multilabel", outputs, np.zeros((3, 2)))
    assert np.isnan([one_label["macro_auroc"], one_label["macro_auprc"]]).all()


def test_labels_with_one_class_are_left_out_of_macro_areas():
    outputs = np.array([[0.9, 0.5], [0.1, 0.5], [0.2, 0.5]])
    values = compute_metrics("multilabel", outputs, np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    assert values["macro_auroc"] == 1
    assert values["macro_auprc"] == 1
    assert values["macro_f1"] == 1


def test_predicting_one_class_has_mcc_zero():
    outputs = np.tile([0.9, 0.1], (4, 1))
    assert compute_metrics("classification", outputs, np.array([0, 1, 0, 1]))["mcc"] == 0


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9 + 0.1])
def test_constants_leave_correlations_undefined(constant):
    varied, flat = np.array([1.0, 2.0, 4.0]) + constant, np.full(3, constant)
    of_flat_predictions = compute_metrics("regression", flat, varied)
    assert np.isnan([of_flat_predictions["pearson"], of_flat_predictions["spearman"]]).all()
    assert of_flat_predictions["rmse"] == pytest.approx(np.sqrt(7))
    of_flat_targets = compute_metrics("regression", varied, flat)
    undefined = {name for name, value in of_flat_targets.items() if np.isnan(value)}
    assert undefined == {"r2", "pearson", "spearman"}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, None])
def test_non_finite_outputs_and_no_records_make_all_metrics_nan_in_silence(task, poison):
    outputs, targets = predictions(task, 12, 3, seed=1)
    if poison is None:
        outputs, targets = outputs[:0], targets[:0]
    else:
        outputs.flat[5] = poison
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = compute_metrics(task, outputs, targets)
    assert values
    assert np.isnan(list(values.values())).all()


def test_numbers_too_large_to_square_do_not_warn():
    values = compute_metrics("regression", np.array([1e200, 0.0, 1.0]), np.array([1.0, 2.0, 3.0]))
    assert values["r2"] == -np.inf
    assert values["spearman"] == -0.5


def test_probability_zero_for_the_target_gives_a_large_but_finite_loss():
    outputs = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    loss = compute_metrics("classification", outputs, np.array([1, 1]))["loss"]
    assert loss == pytest.approx(-np.log(np.finfo(np.float32).eps) / 2)


@pytest.mark.parametrize("task", TASKS)
def test_names_are_those_of_the_command_line(task):
    assert list(HIGHER_IS_BETTER) == NAMES
    for num_classes in (2, 3):
        values = compute_metrics(task, *predictions(task, 30, num_classes, seed=0))
        assert set(values) <= set(NAMES)
        assert primary_metric(task) in values


def test_lower_is_better_for_errors_alone():
    lower = {name for name, higher in HIGHER_IS_BETTER.items() if not higher}
    assert lower == {"loss", "rmse", "mae", "perplexity"}


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "num_classes"),
    [
        ("ranking", (3, 2), (3,), None),
        ("classification", (3,), (3,), None),
        ("classification", (3, 2), (3,), 4),
        ("multilabel", (3, 2), (3,), 2),
        ("regression", (3, 1), (3,), None),
    ],
)
def test_shapes_that_do_not_fit_the_task_are_refused(task, outputs, targets, num_classes):
    with pytest.raises(ValueError, match=r"expected|expects"):
        compute_metrics(task, np.zeros(outputs), np.zeros(targets, np.int64), num_classes)


@settings(deadline=None, max_examples=40)
@given(num_classes=st.integers(2, 5), seed=seeds, split=st.integers(0, 30))
def test_confusion_counts_of_any_batches_equal_scikit_learn_without_ignored(
    num_classes, seed, split
):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, num_classes, 30)
    targets[:2] = 0, 1
    guesses = rng.integers(0, num_classes, 30)
    ignored = rng.random(30) < 0.3
    ignored[:2] = False
    marked = np.where(ignored, -100, targets)
    counts = ConfusionCounts(num_classes)
    counts.update(guesses[:split], marked[:split])
    counts.update(guesses[split:].reshape(1, -1), marked[split:].reshape(1, -1))
    kept_targets, kept = targets[~ignored], guesses[~ignored]
    labels = np.arange(num_classes)
    assert (counts.matrix == sk.confusion_matrix(kept_targets, kept, labels=labels)).all()
    assert counts.matrix.dtype == np.int64
    assert counts.metrics() == pytest.approx(
        {
            "accuracy": sk.accuracy_score(kept_targets, kept),
            "macro_f1": sk.f1_score(kept_targets, kept, average="macro", zero_division=0),
            "mcc": sk.matthews_corrcoef(kept_targets, kept),
        }
    )


def test_confusion_counts_of_nothing_are_undefined():
    counts = ConfusionCounts(3)
    counts.update(np.array([1, 2]), np.array([-100, -100]))
    assert np.isnan(list(counts.metrics().values())).all()


def test_confusion_metrics_stay_exact_for_billions_of_residues():
    few = np.array([[90, 10], [5, 95]])
    ones = np.ones((1, 1))
    many = confusion_metrics(few[None] * 10**14)(ones)
    for name, value in confusion_metrics(few[None])(ones).items():
        assert many[name] == pytest.approx(value, rel=1e-12)


def test_record_confusions_equal_scikit_learn_record_by_record():
    rng = np.random.default_rng(2)
    offsets = np.array([0, 4, 4, 11, 20])
    targets, guesses = rng.integers(0, 3, 20), rng.integers(0, 3, 20)
    targets[[2, 15]] = -100
    confusions = record_confusions(guesses, targets, offsets, 3)
    assert confusions.shape == (4, 3, 3)
    assert confusions[1].sum() == 0
    for record in (0, 2, 3):
        here = slice(offsets[record], offsets[record + 1])
        kept = targets[here] != -100
        expected = sk.confusion_matrix(
            targets[here][kept], guesses[here][kept], labels=np.arange(3)
        )
        assert (confusions[record] == expected).all()


def test_a_ratio_metric_is_the_ratio_of_sums():
    losses = np.array([[6.0, 3.0], [1.0, 1.0], [0.0, 0.0]])
    counts = np.array([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0], [1.0, 5.0, 1.0]])
    values = ratio_metric("loss", losses)(counts)["loss"]
    assert values == pytest.approx([7 / 4, 1, np.nan], nan_ok=True)


@pytest.mark.parametrize("block", [1, 300, 10**6])
@pytest.mark.parametrize("decimals", [1, 6])
def test_many_classes_at_once_rank_as_each_of_them_alone(monkeypatch, block, decimals):
    monkeypatch.setattr("seqtrain.training.ranking._COMPARISONS_AT_ONCE", block)
    rng = np.random.default_rng(decimals)
    scores = rng.random((90, 40)).round(decimals)
    targets = rng.integers(0, 37, 90)
    counts = rng.integers(0, 3, (90, 7)).astype(np.float64)
    with np.errstate(all="ignore"):
        found = class_areas(scores, targets)(counts)
        wanted = [ranking_areas(scores[:, k], targets == k)(counts) for k in np.unique(targets)]
    np.testing.assert_allclose(found, np.stack(wanted, axis=1), rtol=1e-12)


def test_the_metrics_of_many_classes_equal_scikit_learns():
    rng = np.random.default_rng(0)
    targets = np.arange(120) % 40
    outputs = rng.dirichlet(np.ones(40), 120) + 0.05 * np.eye(40)[targets]
    found = compute_metrics("classification", outputs, targets)
    positive = np.eye(40)[targets]
    rank = [sk.roc_auc_score(positive, outputs), sk.average_precision_score(positive, outputs)]
    np.testing.assert_allclose([found["macro_auroc"], found["macro_auprc"]], rank)
    predicted = outputs.argmax(axis=1)
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(targets, predicted))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(targets, predicted, average="macro"))


def test_a_bootstrap_of_many_classes_takes_neither_long_nor_much_memory():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 600, 600)
    outputs = rng.random((600, 600), dtype=np.float32)
    outputs /= outputs.sum(axis=1, keepdims=True)
    metrics = weighted_metrics("classification", outputs, targets)
    counts = rng.integers(0, 3, (600, 400)).astype(np.float64)
    assert most_memory(lambda: metrics(counts)) < 100e6  # 1.2 GB as full confusion matrices
