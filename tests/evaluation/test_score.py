"""What ``seqtrain eval`` says, each number against one computed another way."""

import json
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn import metrics as sk
from tiny_models import CODECS
from tiny_training import IGNORED, tiny_dataset

from seqtrain.cli.evaluate import print_evaluation
from seqtrain.data.dataset import SequenceDataset
from seqtrain.errors import CheckpointError
from seqtrain.evaluation.score import (
    Evaluation,
    TrainingPart,
    alarms,
    evaluate,
    residue_losses,
)
from seqtrain.reporting import to_json
from seqtrain.training.outputs import Outputs

TASKS = sorted(CODECS)


def random_outputs(dataset: SequenceDataset, task: str, seed: int = 0) -> Outputs:
    """Answers that are better than chance."""
    rng = np.random.default_rng(seed)
    assert dataset.targets is not None
    if task == "regression":
        values = dataset.targets + rng.normal(size=len(dataset)).astype(np.float32)
        return Outputs(values.astype(np.float32), 0.5)
    if task == "multilabel":
        raw = dataset.targets * 0.4 + rng.random((len(dataset), 3)) * 0.6
        return Outputs(raw.astype(np.float32), 0.5)
    if task == "residue_regression":
        values = np.nan_to_num(dataset.targets) + rng.normal(size=len(dataset.targets))
        return Outputs(values.astype(np.float32), 0.5)
    size = len(CODECS[task].classes)
    raw = rng.random((len(dataset.targets), size)) + np.eye(size)[dataset.targets.clip(min=0)]
    return Outputs((raw / raw.sum(axis=1, keepdims=True)).astype(np.float32), 0.5)


def scored(task: str, num_records: int = 60, **options: Any) -> tuple[Evaluation, Any, Any]:
    dataset = tiny_dataset(task, num_records, seed=5)
    training = TrainingPart.of(tiny_dataset(task, 80, seed=6), CODECS[task].num_outputs)
    outputs = random_outputs(dataset, task)
    names = CODECS[task].classes
    found = evaluate(outputs, dataset, task, names, training, num_draws=200, **options)
    return found, dataset, outputs


@pytest.mark.parametrize("task", TASKS)
def test_the_json_has_the_shape_of_the_contract(task: str) -> None:
    found, dataset, _ = scored(task)
    said = json.loads(to_json(found.to_dict()))
    assert {"n", "task", "metrics", "by_length", "baselines"} <= set(said)
    assert (said["n"], said["task"]) == (len(dataset), task)
    for metric in said["metrics"].values():
        assert set(metric) == {"value", "low", "high"}
        assert metric["low"] <= metric["value"] <= metric["high"]
    assert ("unigram" if task == "mlm" else "majority") in said["baselines"]
    assert said["classes"] == list(CODECS[task].classes)


def test_classification_equals_scikit_learn() -> None:
    found, dataset, outputs = scored("classification")
    said = outputs.values.argmax(axis=1)
    truth = dataset.targets
    wanted = {
        "accuracy": sk.accuracy_score(truth, said),
        "macro_f1": sk.f1_score(truth, said, average="macro"),
        "mcc": sk.matthews_corrcoef(truth, said),
        "loss": -np.log(outputs.values[np.arange(len(truth)), truth]).mean(),
        "macro_auroc": sk.roc_auc_score(
            np.eye(3)[truth], outputs.values, average="macro", multi_class="ovr"
        ),
    }
    for name, value in wanted.items():
        assert found.metrics[name].value == pytest.approx(value, rel=1e-5), name
    assert found.confusion is not None
    np.testing.assert_array_equal(found.confusion, sk.confusion_matrix(truth, said))


def test_regression_equals_scikit_learn_and_its_loss_is_that_given() -> None:
    losses = np.stack([np.linspace(0, 1, 60), np.ones(60)], axis=1)
    found, dataset, outputs = scored("regression", record_losses=losses)
    assert found.metrics["r2"].value == pytest.approx(sk.r2_score(dataset.targets, outputs.values))
    assert found.metrics["loss"].value == pytest.approx(0.5)
    assert found.confusion is None


def test_residues_count_alike_and_records_are_drawn() -> None:
    found, dataset, outputs = scored("residue_classification")
    counted = dataset.targets != IGNORED
    truth, said = dataset.targets[counted], outputs.values.argmax(axis=1)[counted]
    assert found.metrics["accuracy"].value == pytest.approx(sk.accuracy_score(truth, said))
    loss = -np.log(outputs.values[counted, truth]).mean()
    assert found.metrics["loss"].value == pytest.approx(loss, rel=1e-5)
    assert found.confusion is not None
    assert found.confusion.sum() == counted.sum()
    commonest = found.baselines["majority"]["accuracy"]
    training = tiny_dataset("residue_classification", 80, seed=6).targets
    assert training is not None
    majority = np.bincount(training[training >= 0]).argmax()
    assert commonest == pytest.approx((truth == majority).mean())


def test_perplexity_is_that_of_the_letters_asked_for() -> None:
    found, dataset, outputs = scored("mlm")
    asked = [(i, int(t)) for i, t in enumerate(dataset.targets) if t != IGNORED]
    surprise = [-np.log(float(outputs.values[i, t])) for i, t in asked]
    assert 0 < len(asked) < len(dataset.targets)
    assert found.metrics["loss"].value == pytest.approx(np.mean(surprise), rel=1e-5)
    assert found.metrics["perplexity"].value == pytest.approx(np.exp(np.mean(surprise)), rel=1e-5)
    right = np.mean([outputs.values[i].argmax() == t for i, t in asked])
    assert found.metrics["accuracy"].value == pytest.approx(right)
    counts = np.ones(20)
    training = tiny_dataset("mlm", 80, seed=6).targets
    assert training is not None
    for target in training[training >= 0].tolist():
        counts[target] += 1
    by_frequency = [np.log(counts.sum() / counts[t]) for _, t in asked]
    unigram = found.baselines["unigram"]
    assert unigram["perplexity"] == pytest.approx(np.exp(np.mean(by_frequency)), rel=1e-5)
    commonest = np.mean([t == counts.argmax() for _, t in asked])
    assert unigram["accuracy"] == pytest.approx(commonest)


def test_records_in_which_no_letter_is_asked_for_count_for_nothing() -> None:
    dataset = tiny_dataset("mlm", 12, seed=5)
    outputs = random_outputs(dataset, "mlm")
    assert dataset.targets is not None
    spared = np.array([1, 4])
    dataset.targets[dataset.positions(spared)] = IGNORED
    rest = np.setdiff1d(np.arange(12), spared)
    part = Outputs(outputs.values[dataset.positions(rest)], float("nan"))
    classes = CODECS["mlm"].classes
    found = evaluate(outputs, dataset, "mlm", classes, num_draws=20)
    wanted = evaluate(part, dataset.subset(rest), "mlm", classes, num_draws=20)
    for name, interval in wanted.metrics.items():
        assert found.metrics[name].value == pytest.approx(interval.value), name
    dataset.targets[:] = IGNORED
    training = TrainingPart.of(tiny_dataset("mlm", 80, seed=6), 20)
    nothing = evaluate(outputs, dataset, "mlm", classes, training, num_draws=5)
    assert all(np.isnan(interval.value) for interval in nothing.metrics.values())
    json.loads(to_json(nothing.to_dict()))


def test_numbers_of_residues_are_pooled_and_those_without_a_target_left_out() -> None:
    task = "residue_regression"
    found, dataset, outputs = scored(task)
    counted = ~np.isnan(dataset.targets)
    assert 0 < counted.sum() < len(counted)
    truth, said = dataset.targets[counted], outputs.values[counted]
    wanted = {
        "r2": sk.r2_score(truth, said),
        "pearson": np.corrcoef(truth, said)[0, 1],
        "rmse": sk.root_mean_squared_error(truth, said),
        "mae": sk.mean_absolute_error(truth, said),
    }
    assert wanted.keys() == found.metrics.keys()
    for name, value in wanted.items():
        assert found.metrics[name].value == pytest.approx(value, rel=1e-5), name
    training = tiny_dataset(task, 80, seed=6).targets
    assert training is not None
    guess = np.full(len(truth), np.nanmean(training))
    error = sk.mean_absolute_error(truth, guess)
    assert found.baselines["majority"]["mae"] == pytest.approx(error, rel=1e-5)
    text = StringIO()
    print_evaluation(Console(file=text, width=120), found.to_dict(), "x")
    assert "mean" in text.getvalue()
    assert "majority" not in text.getvalue()


@pytest.mark.parametrize("task", TASKS)
def test_bins_of_lengths_partition_the_records_and_score_each_part(task: str) -> None:
    found, dataset, outputs = scored(task)
    rows = found.by_length
    assert sum(row["n"] for row in rows) == len(dataset)
    assert 2 <= len(rows) <= 5
    assert rows[0]["shortest"] == dataset.lengths.min()
    assert rows[-1]["longest"] == dataset.lengths.max()
    for before, after in pairwise(rows):
        assert before["longest"] < after["shortest"]
    for bin_ in rows:
        chosen = np.flatnonzero(
            (dataset.lengths >= bin_["shortest"]) & (dataset.lengths <= bin_["longest"])
        )
        assert len(chosen) == bin_["n"]
        if task in ("residue_classification", "mlm"):
            where = dataset.positions(chosen)
            where = where[dataset.targets[where] >= 0]
            right = outputs.values[where].argmax(axis=1) == dataset.targets[where]
            assert bin_["accuracy"] == pytest.approx(right.mean())
        if task == "classification":
            right = outputs.values[chosen].argmax(axis=1) == dataset.targets[chosen]
            assert bin_["accuracy"] == pytest.approx(right.mean())
        if task == "regression":
            error = np.abs(outputs.values[chosen] - dataset.targets[chosen]).mean()
            assert bin_["mae"] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_one_record_is_evaluated(task: str) -> None:
    dataset = tiny_dataset(task, lengths=[1], seed=2)
    outputs = random_outputs(dataset, task)
    training = TrainingPart.of(tiny_dataset(task, 80, seed=6), CODECS[task].num_outputs)
    found = evaluate(outputs, dataset, task, CODECS[task].classes, training, num_draws=10)
    assert (found.n, len(found.by_length)) == (1, 1)
    json.loads(to_json(found.to_dict()))


def test_equal_lengths_make_one_bin() -> None:
    dataset = tiny_dataset(lengths=[7] * 20)
    outputs = random_outputs(dataset, "classification")
    found = evaluate(outputs, dataset, "classification", ("a", "b", "c"), num_draws=10)
    assert [row["n"] for row in found.by_length] == [20]
    assert found.baselines == {}


def test_losses_of_residues_are_summed_by_record() -> None:
    dataset = tiny_dataset("residue_classification", lengths=[3, 2, 1])
    assert dataset.targets is not None
    dataset.targets[:] = [0, IGNORED, 2, 1, 1, IGNORED]
    probabilities = np.full((6, 3), 0.25, np.float32)
    probabilities[2, 2] = 0.5
    found = residue_losses(probabilities, dataset)
    log4 = np.log(4)
    np.testing.assert_allclose(found, [[log4 + np.log(2), 2], [2 * log4, 2], [0, 0]])


def test_a_probability_of_zero_gives_a_large_loss_and_no_infinity() -> None:
    dataset = tiny_dataset("residue_classification", lengths=[1])
    assert dataset.targets is not None
    dataset.targets[:] = 0
    found = residue_losses(np.array([[0, 1, 0]], np.float32), dataset)
    assert 10 < found[0, 0] < 20


class TestTrainingPart:
    @pytest.mark.parametrize("task", TASKS)
    def test_it_comes_back_from_disk(self, tmp_path: Path, task: str) -> None:
        part = TrainingPart.of(tiny_dataset(task), CODECS[task].num_outputs)
        part.write(tmp_path / "part.npz")
        found = TrainingPart.read(tmp_path / "part.npz")
        np.testing.assert_array_equal(found.lengths, part.lengths)
        np.testing.assert_array_equal(found.targets, part.targets)
        assert found.targets.dtype == part.targets.dtype

    @pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
    def test_one_cut_short_is_told(self, tmp_path: Path, kept: float) -> None:
        path = tmp_path / "part.npz"
        TrainingPart.of(tiny_dataset(), 3).write(path)
        raw = path.read_bytes()
        path.write_bytes(raw[: int(kept if kept >= 1 else len(raw) * kept)])
        with pytest.raises(CheckpointError, match=r"part\.npz.*damaged"):
            TrainingPart.read(path)

    def test_flipped_bytes_never_end_in_another_error(self, tmp_path: Path) -> None:
        path = tmp_path / "part.npz"
        TrainingPart.of(tiny_dataset(num_records=200), 3).write(path)
        raw, rng = path.read_bytes(), np.random.default_rng(0)
        refused = 0
        for _ in range(200):
            spoilt = bytearray(raw)
            for place in rng.integers(len(raw), size=rng.choice([1, 5, 50])):
                spoilt[place] = rng.integers(256)
            path.write_bytes(spoilt)
            try:
                TrainingPart.read(path)
            except CheckpointError:
                refused += 1
        assert refused > 100

    def test_a_pickle_in_it_is_not_executed(self, tmp_path: Path) -> None:
        path = tmp_path / "part.npz"
        strange = np.array([{"a": 1}], dtype=object)
        np.savez(path, lengths=strange, targets=strange)
        with pytest.raises(CheckpointError):
            TrainingPart.read(path)


class TestAlarms:
    def raised(
        self, metric: float, baseline: float, values: np.ndarray, task: str = "classification"
    ) -> list[str]:
        names = {"classification": "mcc", "regression": "r2", "multilabel": "macro_auroc"}
        name = names.get(task, "perplexity")
        baselines = {"length_only": {name: baseline}}
        return alarms({name: metric}, baselines, Outputs(values, 0.0), task)

    varied = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)

    def test_a_good_model_raises_none(self) -> None:
        assert self.raised(0.8, 0.3, self.varied) == []

    @pytest.mark.parametrize("metric", [0.3, 0.1, float("nan")])
    def test_no_better_than_a_baseline(self, metric: float) -> None:
        (found,) = self.raised(metric, 0.3, self.varied)
        assert "length-only" in found
        assert "0.300" in found

    @pytest.mark.parametrize("metric", [19.0, 18.5, float("nan")])
    def test_a_perplexity_is_better_when_it_is_smaller(self, metric: float) -> None:
        assert self.raised(5.0, 18.5, self.varied, "mlm") == []
        (found,) = self.raised(metric, 18.5, self.varied, "mlm")
        assert "18.500" in found

    def test_always_the_same_class(self) -> None:
        values = np.array([[0.9, 0.1], [0.6, 0.4]], np.float32)
        (found,) = self.raised(0.8, 0.3, values)
        assert "every prediction is the same" in found

    def test_always_the_same_value(self) -> None:
        constant = np.full(5, 2.5, np.float32)
        assert "same" in self.raised(0.8, 0.3, constant, "regression")[0]
        assert self.raised(0.8, 0.3, np.array([1.0, 2.0], np.float32), "regression") == []

    def test_labels_are_the_same_only_if_every_probability_is(self) -> None:
        constant = np.tile(np.array([0.2, 0.7], np.float32), (4, 1))
        assert "same" in self.raised(0.8, 0.3, constant, "multilabel")[0]
        assert self.raised(0.8, 0.3, self.varied, "multilabel") == []

    def test_one_record_is_not_called_constant(self) -> None:
        assert self.raised(0.8, 0.3, self.varied[:1]) == []

    def test_metric_that_is_defined_for_nobody_raises_none(self) -> None:
        assert self.raised(float("nan"), float("nan"), self.varied) == []
