"""Scores a trained model on labelled records: outputs, calibration, scores, tables."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqtrain.data.corruption import restored
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.fasta import Reject
from seqtrain.data.labels import is_regression, is_residue
from seqtrain.errors import DataError
from seqtrain.evaluation.copies import Copies, find_copies
from seqtrain.evaluation.predict import NOT_FINITE, Prediction, record_values
from seqtrain.evaluation.score import Evaluation, TrainingPart, evaluate
from seqtrain.evaluation.tables import Table
from seqtrain.evaluation.windows import Windows
from seqtrain.evaluation.writing import write_rows
from seqtrain.training.calibration import (
    Calibration,
    as_trained,
    calibration_error,
    calibration_words,
    fit_temperature,
    readout,
)
from seqtrain.training.checkpoint import LoadedRun
from seqtrain.training.device import choose_precision
from seqtrain.training.objective import Objective
from seqtrain.training.outputs import Outputs, predict_outputs


def calibrate(loaded: LoadedRun, valid: SequenceDataset) -> Calibration | None:
    """The temperatures of a model that is read out as trained; None where nothing is a probability.

    Args:
        loaded: Model, settings, labels; on the device to compute on.
        valid: The labelled part to fit them to: not the one that the model was trained on.
    """
    task = loaded.codec.task
    if is_regression(task):
        return None
    assert valid.targets is not None
    logits = _outputs(loaded, valid, as_logits=True).values
    temperature = fit_temperature(task, logits, valid.targets)
    scaled = (logits / np.array(temperature)).astype(np.float32)
    before, after = (
        calibration_error(task, readout(task, z), valid.targets) for z in (logits, scaled)
    )
    return Calibration(temperature, "valid", len(valid), before, after)


def calibration_errors(
    loaded: LoadedRun, part: SequenceDataset, outputs: Outputs
) -> dict[str, float]:
    """Expected calibration error of a part as trained, and calibrated."""
    assert loaded.calibration is not None
    assert part.targets is not None
    task = loaded.codec.task
    before = as_trained(task, outputs.values, loaded.calibration)
    return {
        "as_trained": calibration_error(task, before, part.targets),
        "calibrated": calibration_error(task, outputs.values, part.targets),
    }


def evaluate_run(
    loaded: LoadedRun,
    dataset: SequenceDataset,
    training: TrainingPart | None,
    *,
    max_tokens: int | None = None,
    windows: Windows | None = None,
) -> tuple[Evaluation, Outputs]:
    """Score a loaded model, on the device it is on, against a labelled dataset.

    Args:
        loaded: Model, settings, tokenizer, labels.
        dataset: Labelled records under the same tokenizer and labels.
        training: For the baselines, and to know what was trained on.
        max_tokens: Padded positions per batch; as in training when not given.
        windows: How long records are cut; None: each is read in one piece.

    Raises:
        DataError: An output is not finite.
    """
    task = loaded.codec.task
    if windows is None:
        outputs = _outputs(loaded, dataset, max_tokens)
    else:
        outputs = _windowed_outputs(loaded, dataset, max_tokens, windows)
    _check_finite(outputs.values, dataset, task)
    losses = _regression_losses(loaded, dataset, outputs) if is_regression(task) else None
    scored = evaluate(outputs, dataset, task, loaded.codec.classes, training, record_losses=losses)
    return replace(scored, copies=_copies(loaded, dataset, training, outputs)), outputs


def _copies(
    loaded: LoadedRun, dataset: SequenceDataset, training: TrainingPart | None, outputs: Outputs
) -> Copies | None:
    """Records that the model was trained on."""
    known = restored(dataset, loaded.tokenizer.vocab_size)
    is_copy = None if training is None else training.copied(known)
    if training is None or is_copy is None:
        return None
    codec = loaded.codec
    classes = max(1, len(codec.classes))
    return find_copies(is_copy, training.is_sample, outputs, dataset, codec.task, classes)


def _check_finite(values: np.ndarray, dataset: SequenceDataset, task: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if len(bad):
        where = np.searchsorted(dataset.offsets, bad, "right") - 1 if is_residue(task) else bad
        raise DataError(f"record {dataset.ids[where[0]]!r}: {NOT_FINITE}")


def _outputs(
    loaded: LoadedRun,
    dataset: SequenceDataset,
    max_tokens: int | None = None,
    *,
    as_logits: bool = False,
) -> Outputs:
    device = next(loaded.model.parameters()).device
    budget = max_tokens or loaded.config.batching.max_tokens
    assert budget is not None
    return predict_outputs(
        loaded.model,
        dataset,
        Objective(loaded.codec.task, regression_loss=loaded.config.task.loss),
        max_tokens=budget,
        precision=choose_precision(loaded.config.trainer.precision, device),
        packed=loaded.config.batching.kind == "packed",
        as_logits=as_logits,
    )


def _windowed_outputs(
    loaded: LoadedRun, dataset: SequenceDataset, max_tokens: int | None, windows: Windows
) -> Outputs:
    """The outputs of records read in windows, joined as those of `predict`."""
    task, device = loaded.codec.task, next(loaded.model.parameters()).device
    budget = max_tokens or loaded.config.batching.max_tokens
    assert budget is not None
    values = record_values(
        loaded.model,
        task,
        [dataset.residues(i) for i in range(len(dataset))],
        windows,
        budget,
        choose_precision(loaded.config.trainer.precision, device),
    )
    join = np.concatenate if is_residue(task) else np.stack
    return Outputs(join(values), float("nan"))


def _regression_losses(loaded: LoadedRun, dataset: SequenceDataset, outputs: Outputs) -> np.ndarray:
    """Training loss of each record on scaled targets, and how many targets it is over, (N, 2)."""
    assert dataset.targets is not None
    kept = ~np.isnan(dataset.targets)
    apart = np.where(kept, outputs.values - dataset.targets, 0) / loaded.codec.std
    error = torch.from_numpy(apart).double()
    zero = torch.zeros_like(error)
    if loaded.config.task.loss == "huber":
        losses = torch.nn.functional.huber_loss(error, zero, reduction="none")
    else:
        losses = torch.nn.functional.mse_loss(error, zero, reduction="none")
    each = np.stack([losses.numpy(), kept], axis=1)
    if not dataset.per_residue:
        return each
    sums = np.concatenate([np.zeros((1, 2)), each.cumsum(axis=0)])
    by_record: np.ndarray = np.diff(sums[dataset.offsets], axis=0)
    return by_record


def write_outputs(
    path: Path,
    outputs: Outputs,
    dataset: SequenceDataset,
    loaded: LoadedRun,
    *,
    rows: Iterable[int | Reject] | None = None,
    kept: Callable[[int], np.ndarray] | None = None,
    warnings: Callable[[int | Reject], tuple[str, ...]] | None = None,
    **form: Any,
) -> None:
    """Write the outputs for a labelled dataset as a table, the truth in the last column.

    Args:
        path: Of the table.
        outputs: What the model says of ``dataset``.
        dataset: Labelled records.
        loaded: The model.
        rows: A record of the dataset, or one that is not in it, for each row; none: the dataset.
        kept: Which letters of a record were read, for residue tasks; none: all of them.
        warnings: What to warn of in a row; none: there is no such column.
        form: Further fields of the ``Table``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    bounds = dataset.offsets if dataset.per_residue else np.arange(len(dataset) + 1)
    table = Table(
        loaded.codec,
        calibration_words([loaded.calibration]),
        extra=("target",),
        with_warnings=warnings is not None,
        **form,
    )

    def one(row: int | Reject) -> list[Any]:
        warned = () if warnings is None else warnings(row)
        if isinstance(row, Reject):
            told = Prediction(row.id, 0, row.reason, None, None, warnings=warned)
            return table.row(told, (None,))
        values = outputs.values[bounds[row] : bounds[row + 1]]
        values = values if dataset.per_residue else np.asarray(values[0])
        length = int(dataset.offsets[row + 1] - dataset.offsets[row])
        letters = np.ones(length, dtype=bool) if kept is None else kept(row)
        told = Prediction(dataset.ids[row], length, "ok", values, letters, warnings=warned)
        truth = loaded.codec.decode(dataset.target(row))
        if dataset.per_residue and isinstance(truth, str):
            truth = _by_letter(truth, letters, is_regression(table.codec.task))
        return table.row(told, (truth,))

    write_rows(path, map(one, range(len(dataset)) if rows is None else rows), table)


def _by_letter(labels: str, letters: np.ndarray, are_numbers: bool) -> str:
    """Labels of the residues read, with ``-`` for the letters that were not."""
    given = iter(labels.split(",") if are_numbers else labels)
    found = [next(given) if read else "-" for read in letters.tolist()]
    return ("," if are_numbers else "").join(found)
