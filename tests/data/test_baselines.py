"""Baselines find what they may find and nothing else; their metrics are those of the models."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtrain.data import baselines as module
from seqtrain.data.baselines import (
    baselines,
    composition,
    composition_baseline,
    length_only_baseline,
    majority_baseline,
)
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.scores import score
from seqtrain.training.metrics import compute_metrics

NAMES = {
    "classification": {"accuracy", "macro_f1", "mcc", "auroc", "auprc"},
    "multilabel": {"accuracy", "macro_f1", "macro_auroc", "macro_auprc"},
    "regression": {"r2", "pearson", "spearman", "rmse", "mae"},
}


def make(rng, lengths, targets, shares=None, per_residue=False):
    """Random records of four letters (tokens 1 to 4), ``shares[i]`` of record i being a 1."""
    arrays = []
    for i, length in enumerate(lengths):
        one = 0.25 if shares is None else shares[i]
        arrays.append(rng.choice([1, 2, 3, 4], length, p=[one, *[(1 - one) / 3] * 3]))
    ids = [str(i) for i in range(len(arrays))]
    arrays = [array.astype(np.uint8) for array in arrays]
    return SequenceDataset.from_lists(ids, arrays, targets, per_residue=per_residue)


def probabilities(rng, rows, columns):
    """Coarsely rounded, so that there are ties."""
    drawn = rng.dirichlet(np.ones(columns), rows).round(1) + 0.01
    return drawn / drawn.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("task", ["binary", "classes", "multilabel", "regression"])
@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_those_that_models_are_given(task, seed):
    rng = np.random.default_rng(seed)
    match task:
        case "binary":
            outputs, targets = probabilities(rng, 60, 2), rng.integers(0, 2, 60)
        case "classes":
            outputs, targets = probabilities(rng, 60, 5), rng.integers(0, 4, 60)
        case "multilabel":
            outputs = rng.random((60, 4)).round(1)
            outputs[:, 3] = 0.1
            targets = (rng.random((60, 4)) < [0.5, 0.2, 1.0, 0.0]).astype(np.float32)
        case _:
            outputs, targets = rng.normal(size=60).round(1), rng.normal(size=60).round(1)
    task = "classification" if task in ("binary", "classes") else task
    expected = compute_metrics(task, outputs, targets)
    expected.pop("loss", None)
    assert score(task, outputs, targets) == pytest.approx(expected, abs=1e-9)


def test_scores_that_are_not_defined_are_nan():
    one_class = score("classification", np.array([[0.9, 0.1]] * 3), np.array([0, 0, 0]))
    assert one_class["accuracy"] == 1
    assert np.isnan([one_class[name] for name in ("mcc", "auroc", "auprc")]).all()
    constant = score("regression", np.array([1.0, 2.0]), np.array([3.0, 3.0]))
    assert np.isnan([constant[name] for name in ("r2", "pearson", "spearman")]).all()


def test_majority_answers_the_commonest_training_class():
    train, test = np.array([1, 1, 1, 0, 2]), np.array([0, 1, 1, 1])
    scores = majority_baseline(train, test, "classification")
    assert scores["accuracy"] == 0.75
    assert scores["mcc"] == 0
    assert scores["macro_auroc"] == 0.5


def test_majority_of_a_regression_is_the_training_mean_also_of_targets_of_minus_100():
    scores = majority_baseline(np.array([-100.0, 100.0]), np.array([-100.0, 50.0]), "regression")
    assert scores["mae"] == 75
    assert scores["rmse"] == pytest.approx(np.sqrt((100**2 + 50**2) / 2))


def test_majority_of_several_labels_is_each_labels_own():
    train = np.array([[1, 0], [1, 0], [1, 1]], np.float32)
    test = np.array([[1, 0], [0, 0], [1, 1]], np.float32)
    scores = majority_baseline(train, test, "multilabel")
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["macro_auroc"] == 0.5


def test_majority_of_residues_leaves_ignored_ones_out():
    train, test = np.array([0, 1, 1, -100, -100]), np.array([1, -100, 0, 1])
    scores = majority_baseline(train, test, "residue_classification")
    assert scores["accuracy"] == pytest.approx(2 / 3)


def split_in_two(dataset):
    half = len(dataset) // 2
    return dataset.subset(range(half)), dataset.subset(range(half, len(dataset)))


def labelled(task, told_by, count=600):
    """Train and test in which length, composition or nothing tells the target."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 120, count)
    shares = rng.uniform(0.1, 0.6, count)
    cause = {"length": lengths / 120, "composition": shares, "nothing": rng.random(count)}[told_by]
    high = cause > np.median(cause)
    targets = {
        "classification": high.astype(np.int64),
        "multilabel": np.stack([high, ~high, np.zeros(count)], axis=1).astype(np.float32),
        "regression": cause.astype(np.float32),
    }[task]
    return split_in_two(make(rng, lengths, targets, shares))


PRIMARY = {"classification": "auroc", "multilabel": "macro_auroc", "regression": "pearson"}


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_length_only_sees_length_and_composition_sees_both(task):
    found = {
        cause: baselines(*labelled(task, cause), task)
        for cause in ("length", "composition", "nothing")
    }
    name = PRIMARY[task]
    chance = 0 if task == "regression" else 0.5
    assert found["length"]["length_only"][name] > 0.97
    assert found["length"]["composition"][name] > 0.95
    assert found["composition"]["composition"][name] > 0.8
    for cause, baseline in [
        ("composition", "length_only"),
        ("nothing", "length_only"),
        ("nothing", "composition"),
    ]:
        assert found[cause][baseline][name] == pytest.approx(chance, abs=0.15)
    for scores in found["length"].values():
        assert set(scores) == NAMES[task]


def test_composition_counts_words_not_only_residues():
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, 400)
    arrays = [
        np.array([1, 2, 3, 4] if target else [4, 3, 2, 1], np.uint8)[
            np.arange(rng.integers(4, 9)) % 4
        ]
        for target in targets
    ]
    dataset = SequenceDataset.from_lists([str(i) for i in range(400)], arrays, targets)
    train, test = split_in_two(dataset)
    assert composition_baseline(train, test, "classification")["accuracy"] == 1


def test_residue_tasks_have_a_majority_and_no_baseline_of_whole_records():
    rng = np.random.default_rng(0)
    lengths = [5, 8, 6, 9]
    dataset = make(rng, lengths, [rng.integers(0, 3, n) for n in lengths], per_residue=True)
    assert list(baselines(dataset, dataset, "residue_classification")) == ["majority"]
    with pytest.raises(ValueError, match="whole records"):
        length_only_baseline(
            dataset.lengths, dataset.targets, dataset.lengths, dataset.targets, "residue_regression"
        )
    with pytest.raises(ValueError, match="need targets"):
        baselines(make(rng, lengths, None), dataset, "classification")


def test_a_class_or_label_absent_from_training_gets_probability_zero():
    lengths = np.arange(20, 60)
    train, test = np.repeat([0, 2], 20), np.repeat([1, 2], 20)
    scores = length_only_baseline(lengths, train, lengths, test, "classification")
    assert scores["accuracy"] == 0.5
    ones = np.ones(40, np.int64)
    assert length_only_baseline(lengths, ones, lengths, ones, "classification")["accuracy"] == 1


def test_a_large_training_part_is_sampled(monkeypatch):
    monkeypatch.setattr(module, "MAX_RECORDS", 100)
    train, test = labelled("classification", "composition")
    sampled = composition_baseline(train, test, "classification")
    assert sampled == composition_baseline(train, test, "classification")
    monkeypatch.undo()
    assert sampled != composition_baseline(train, test, "classification")
    assert sampled["auroc"] > 0.75


@settings(deadline=None)
@given(st.lists(st.text("ACGTN", min_size=1, max_size=25), min_size=1, max_size=6))
def test_composition_features_match_counting_by_hand(sequences):
    arrays = [np.frombuffer(s.encode(), np.uint8) for s in sequences]
    dataset = SequenceDataset.from_lists([str(i) for i in range(len(arrays))], arrays)
    features = composition(dataset, np.array([ord(letter) for letter in "ACGT"]))
    words = [[a] for a in "ACGT"]
    while len(words[-1]) < 5:
        words += [[*word, a] for word in words if len(word) == len(words[-1]) for a in "ACGT"]
    words = ["".join(word) for word in words]
    assert len(words) == 4 + 16 + 64 + 256 + 1024
    for row, sequence in zip(features, sequences, strict=True):
        counts = Counter(
            sequence[i : i + k] for k in range(1, 6) for i in range(len(sequence) - k + 1)
        )
        expected = [len(sequence), np.log(len(sequence)), *(counts[a] for a in "ACGT")]
        expected += [np.sqrt(counts[word] / len(sequence)) for word in words]
        np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_composition_stops_at_pairs_in_proteins():
    tokens = np.arange(1, 21, dtype=np.uint8)
    dataset = SequenceDataset.from_lists(["a"], [tokens])
    assert composition(dataset, np.arange(1, 21)).shape == (1, 2 + 20 + 20 + 400)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_of_many_classes_lengths_are_judged_by_neighbours(task):
    rng = np.random.default_rng(0)
    classes = np.arange(3600) % 300
    lengths = 50 + classes + rng.integers(0, 3, 3600)
    targets = classes if task == "classification" else np.eye(300, dtype=np.float32)[classes]
    began = time.perf_counter()
    found = length_only_baseline(
        lengths[:1800], targets[:1800], lengths[1800:], targets[1800:], task
    )
    assert time.perf_counter() - began < 15  # as trees it took minutes
    assert found["macro_auroc"] > 0.9
    blind = length_only_baseline(
        np.full(1800, 9), targets[:1800], np.full(1800, 9), targets[1800:], task
    )
    assert blind["macro_auroc"] == pytest.approx(0.5)
