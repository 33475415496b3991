"""Evaluates a model on labelled records: intervals, lengths, baselines, confusion."""

import functools
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt64

from seqtrain.data.audit import length_only_baseline, majority_baseline
from seqtrain.data.corruption import count_letters
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.labels import is_regression
from seqtrain.data.leaks import record_hashes
from seqtrain.data.schema import read_bounded
from seqtrain.errors import CheckpointError
from seqtrain.evaluation.copies import Copies
from seqtrain.evaluation.statistics import Interval, bootstrap_intervals
from seqtrain.training.metrics import (
    HIGHER_IS_BETTER,
    ConfusionCounts,
    primary_metric,
    record_confusions,
    record_moments,
)
from seqtrain.training.outputs import Outputs, score_outputs

NUM_LENGTH_BINS = 5
MAX_HASHES = 2_000_000
_MOST_PART_BYTES = 1 << 30
"""Largest file of lengths and targets that is unpacked: some 60 million records."""

MAX_MATRIX = 200
"""Classes up to which the confusion matrix is written in full."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything that ``seqtrain eval`` says."""

    n: int
    """Records."""
    task: str
    metrics: dict[str, Interval]
    by_length: list[dict[str, Any]]
    """One row per bin: shortest, longest, n, and the metrics in it."""
    baselines: dict[str, dict[str, float]]
    """Metrics by baseline: what can be reached without reading the sequence."""
    confusion: np.ndarray | None
    """int64 ``(K, K)``, rows are the truth; None without classes."""
    class_names: tuple[str, ...]
    copies: Copies | None = None
    """Of training records; None where these are not known."""

    def to_dict(self) -> dict[str, Any]:
        """The form that ``--json`` writes."""
        return {
            "n": self.n,
            "task": self.task,
            "metrics": {name: interval._asdict() for name, interval in self.metrics.items()},
            "by_length": self.by_length,
            "baselines": self.baselines,
            "classes": list(self.class_names),
            "copies_of_training": self.copies and self.copies._asdict(),
            **_confusion_fields(self.confusion),
        }


def _confusion_fields(counts: np.ndarray | None) -> dict[str, Any]:
    """The matrix as lists; of many classes its cells that are not zero, as it is mostly empty."""
    if counts is None or len(counts) <= MAX_MATRIX:
        return {"confusion": None if counts is None else counts.tolist()}
    true, predicted = np.nonzero(counts)
    cells = np.column_stack([true, predicted, counts[true, predicted]])
    return {"confusion": None, "confusion_cells": cells.tolist()}


def confusion_counts(scored: Mapping[str, Any]) -> np.ndarray | None:
    """The confusion matrix of ``Evaluation.to_dict()``; None where there is none."""
    if "confusion_cells" in scored:
        size = len(scored["classes"])
        counts = np.zeros((size, size), np.int64)
        true, predicted, number = np.array(scored["confusion_cells"], np.int64).reshape(-1, 3).T
        counts[true, predicted] = number
        return counts
    return None if scored["confusion"] is None else np.array(scored["confusion"], np.int64)


@dataclass(frozen=True, eq=False)
class TrainingPart:
    """A summary of the training part: lengths, targets and hashes, no residues."""

    lengths: Int64[np.ndarray, " N"]
    targets: np.ndarray
    """As in the dataset; residue tasks keep one count per class instead, or the mean of all."""
    hashes: UInt64[np.ndarray, " H"] | None = None
    """Of the sequences, ascending, each once; of more than ``MAX_HASHES`` the smallest. None in
    runs of before."""

    @classmethod
    def of(cls, train: SequenceDataset, num_classes: int) -> "TrainingPart":
        """The summary of a labelled dataset, or of one whose residues are their own labels."""
        targets = train.targets
        if targets is None:
            targets = count_letters(train, num_classes)
        elif train.per_residue and np.issubdtype(targets.dtype, np.floating):
            targets = np.nanmean(targets, keepdims=True)
        elif train.per_residue:
            targets = np.bincount(targets[targets >= 0], minlength=num_classes)
        return cls(train.lengths, targets, np.unique(record_hashes(train))[:MAX_HASHES])

    @property
    def is_sample(self) -> bool:
        """True if more sequences were trained on than there are hashes."""
        return self.hashes is not None and len(self.hashes) >= MAX_HASHES

    def copied(self, dataset: SequenceDataset) -> Bool[np.ndarray, " N"] | None:
        """True if each record is known to have been trained on; None where nothing is known."""
        return None if self.hashes is None else np.isin(record_hashes(dataset), self.hashes)

    def write(self, path: Path) -> None:
        """Write the arrays, nothing pickled."""
        known: dict[str, Any] = {} if self.hashes is None else {"hashes": self.hashes}
        with path.open("wb") as file:  # to a path without the ending numpy would add it
            np.savez_compressed(file, lengths=self.lengths, targets=self.targets, **known)

    @classmethod
    def read(cls, path: Path | zipfile.Path) -> "TrainingPart":
        """Read what :meth:`write` wrote.

        Raises:
            CheckpointError: missing or damaged.
        """
        try:
            content = io.BytesIO(read_bounded(path, _MOST_PART_BYTES))
            with zipfile.ZipFile(content) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > _MOST_PART_BYTES:
                    raise ValueError(f"expected at most {_MOST_PART_BYTES:,} bytes, found more")
            with np.load(content, allow_pickle=False) as arrays:
                part = cls(arrays["lengths"], arrays["targets"], arrays.get("hashes"))
            part._check()
        except PermissionError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
        except Exception as error:  # whatever a damaged archive makes zipfile or zlib raise
            raise CheckpointError(f"{path}: the run directory is damaged: {error!r}.") from error
        return part

    def _check(self) -> None:
        for name, array in (("lengths", self.lengths), ("targets", self.targets)):
            kinds = "iu" if name == "lengths" else "iuf"
            if array.dtype.kind not in kinds or array.ndim not in (1, 2) or not len(array):
                raise ValueError(f"{name}: expected numbers, found {array.dtype} {array.shape}")
        if self.lengths.ndim != 1 or self.lengths.min() < 0:
            raise ValueError("lengths: expected whole numbers from 0 on")
        if self.hashes is not None and (self.hashes.dtype != np.uint64 or self.hashes.ndim != 1):
            raise ValueError(f"hashes: expected uint64, found {self.hashes.dtype}")


def evaluate(
    outputs: Outputs,
    dataset: SequenceDataset,
    task: str,
    class_names: Sequence[str],
    training: TrainingPart | None = None,
    *,
    record_losses: Float[np.ndarray, "N 2"] | None = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Metrics of ``outputs`` with 95 % bootstrap intervals, over lengths, and beside baselines.

    Args:
        outputs: What the model says of ``dataset``.
        dataset: Labelled records.
        task: What is predicted.
        class_names: Names of the classes, in order; empty for a regression.
        training: Lengths and targets of the training part; without it there are no baselines.
        record_losses: Sum of the losses of each record and what it is over, where the metrics
            alone do not give it (regressions).
        num_draws: Bootstrap draws.
        seed: Of the bootstrap.
    """
    assert dataset.targets is not None
    num_classes = max(1, len(class_names))
    confusion = None
    if task.endswith("classification"):
        counts = ConfusionCounts(num_classes)
        counts.update(outputs.values.argmax(axis=1), dataset.targets)
        confusion = counts.matrix
    return Evaluation(
        n=len(dataset),
        task=task,
        metrics=_intervals(outputs, dataset, task, num_classes, record_losses, num_draws, seed),
        by_length=_by_length(outputs, dataset, task, num_classes),
        baselines=_baselines(training, dataset, task) if training is not None else {},
        confusion=confusion,
        class_names=tuple(class_names),
    )


def _intervals(
    outputs: Outputs,
    dataset: SequenceDataset,
    task: str,
    num_classes: int,
    record_losses: np.ndarray | None,
    num_draws: int,
    seed: int,
) -> dict[str, Interval]:
    assert dataset.targets is not None
    intervals = functools.partial(bootstrap_intervals, num_draws=num_draws, seed=seed)
    if not dataset.per_residue:
        found = intervals(task, outputs.values, dataset.targets)
    else:
        counts = residue_counts(outputs.values, dataset, task, num_classes)
        found = intervals(task, counts, None)
    if task == "mlm":
        confusions = _confusions(outputs.values, dataset, num_classes)
        found |= intervals("residue_classification", confusions, None)
    if task == "residue_classification":
        record_losses = residue_losses(outputs.values, dataset)
    losses = {} if record_losses is None else intervals("loss", record_losses, None)
    return {**losses, **found}


def residue_counts(
    values: Float[np.ndarray, "R ..."], dataset: SequenceDataset, task: str, num_classes: int
) -> Float[np.ndarray, "N 2"] | Float[np.ndarray, "N 8"] | Int64[np.ndarray, "N K K"]:
    """What the residues of each record add to the metrics, as the statistics take it.

    Confusion counts, sums of errors, or for mlm log-likelihoods, which its primary metric needs.
    """
    assert dataset.targets is not None
    if task == "residue_regression":
        return record_moments(values, dataset.targets, dataset.offsets)
    if task == "mlm":
        return residue_losses(values, dataset)
    return _confusions(values, dataset, num_classes)


def _confusions(
    values: Float[np.ndarray, "R K"], dataset: SequenceDataset, num_classes: int
) -> Int64[np.ndarray, "N K K"]:
    assert dataset.targets is not None
    predictions = values.argmax(axis=1)
    return record_confusions(predictions, dataset.targets, dataset.offsets, num_classes)


def residue_losses(
    probabilities: Float[np.ndarray, "R K"], dataset: SequenceDataset
) -> Float[np.ndarray, "N 2"]:
    """Sum of negative log-likelihoods of each record, and the residues that count in it."""
    assert dataset.targets is not None
    counted = dataset.targets >= 0
    rows = np.flatnonzero(counted)
    chosen = probabilities[rows, dataset.targets[rows]].astype(np.float64)
    record = np.repeat(np.arange(len(dataset)), dataset.lengths)[rows]
    losses = -np.log(np.maximum(chosen, np.finfo(np.float32).eps))
    sums = np.bincount(record, weights=losses, minlength=len(dataset))
    counts = np.bincount(record, minlength=len(dataset))
    return np.stack([sums, counts], axis=1).astype(np.float64)  # sums of nothing are integers


def _by_length(
    outputs: Outputs, dataset: SequenceDataset, task: str, num_classes: int
) -> list[dict[str, Any]]:
    """Metrics within bins of about equally many records."""
    edges = np.unique(np.quantile(dataset.lengths, np.linspace(0, 1, NUM_LENGTH_BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, dataset.lengths, side="left")
    rows = []
    for number in np.unique(bins):
        chosen = np.flatnonzero(bins == number)
        part = dataset.subset(chosen)
        where = dataset.positions(chosen) if dataset.per_residue else chosen
        part_outputs = Outputs(outputs.values[where], float("nan"))
        metrics = score_outputs(part_outputs, part, task, num_classes)
        rows.append(
            {
                "shortest": int(part.lengths.min()),
                "longest": int(part.lengths.max()),
                "n": len(part),
                **{k: v for k, v in metrics.items() if k != "loss"},
            }
        )
    return rows


def _baselines(
    training: TrainingPart, dataset: SequenceDataset, task: str
) -> dict[str, dict[str, float]]:
    assert dataset.targets is not None
    if task == "residue_regression":
        mean = Outputs(np.full(len(dataset.tokens), training.targets[0]), float("nan"))
        scores = score_outputs(mean, dataset, task, 1)
        return {"majority": {name: value for name, value in scores.items() if name != "loss"}}
    if task == "mlm":
        # As if each letter had been seen once more, so that none is impossible.
        frequencies = (training.targets + 1) / (training.targets + 1).sum()
        shape = (len(dataset.tokens), len(frequencies))
        unigram = Outputs(np.broadcast_to(frequencies.astype(np.float32), shape), float("nan"))
        return {"unigram": score_outputs(unigram, dataset, task, len(frequencies))}
    if dataset.per_residue:
        counts = ConfusionCounts(len(training.targets))
        commonest = np.full(len(dataset.tokens), int(training.targets.argmax()))
        counts.update(commonest, dataset.targets)
        return {"majority": counts.metrics()}
    return {
        "majority": majority_baseline(training.targets, dataset.targets, task),
        "length_only": length_only_baseline(
            training.lengths, training.targets, dataset.lengths, dataset.targets, task
        ),
    }


def alarms(
    metrics: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    outputs: Outputs,
    task: str,
) -> list[str]:
    """Sentences on what makes a result worthless, however good it looks; none if all is well.

    Constant predictions; and a primary metric no better than that of a baseline that does not
    read the sequence. One that is not defined, as where nothing was asked for, is no better.
    """
    found = []
    values = outputs.values
    answers = values.argmax(axis=1) if values.ndim == 2 and task != "multilabel" else values
    if len(answers) > 1 and (answers == answers[0]).all():
        found.append(
            "every prediction is the same: the model has learnt nothing from the sequences"
        )
    name = primary_metric(task)
    sign = 1 if HIGHER_IS_BETTER[name] else -1
    for baseline, scores in baselines.items():
        if name in scores and np.isnan([metrics[name], scores[name]]).all():
            continue  # not defined on these records, for the baseline as for the model
        if name in scores and not sign * metrics[name] > sign * scores[name]:
            known = "mean" if is_regression(task) and baseline == "majority" else baseline
            found.append(
                f"{name} {metrics[name]:.3f} is no better than the {known.replace('_', '-')} "
                f"baseline's {scores[name]:.3f}"
            )
    return found
