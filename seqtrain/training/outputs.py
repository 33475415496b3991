"""A model's outputs for a whole dataset, in its order."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seqtrain.data.batching import Batch, collate, plan_batches
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.labels import IGNORE, is_residue
from seqtrain.nn.model import SequenceModel
from seqtrain.training.device import autocast
from seqtrain.training.metrics import (
    ConfusionCounts,
    compute_metrics,
    moment_metrics,
    record_moments,
)
from seqtrain.training.objective import Objective
from seqtrain.training.prefetch import made_ahead


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model says of each record, or of each residue where the task is about residues."""

    values: np.ndarray
    """float32: probabilities ``(N, K)``, or values ``(N,)`` in the target's unit (float64 where
    float32 would lose them), or logits where they were asked for; residue tasks have
    one row per residue, in the order of ``dataset.tokens``."""
    loss: float
    """Mean loss per record, or per counted residue; NaN without targets."""


@torch.inference_mode()
def predict_outputs(
    model: SequenceModel,
    dataset: SequenceDataset,
    objective: Objective,
    *,
    max_tokens: int,
    precision: torch.dtype = torch.float32,
    packed: bool = True,
    as_logits: bool = False,
) -> Outputs:
    """Outputs in evaluation mode; the model's mode is put back after.

    Args:
        model: On the device to compute on.
        dataset: Records of any lengths; targets are used for the loss if there are any.
        objective: Says the task, and counts the loss.
        max_tokens: Positions per batch.
        precision: Of matrix products.
        packed: Without padding, the faster form; or padded, as a comparison of norms wants.
        as_logits: Values are the head's logits, before they are read out.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    values: np.ndarray | None = None
    losses: list[Tensor] = []
    plan = plan_batches(dataset.lengths, "bucketed", max_tokens=max_tokens, shuffle=False)

    def make(index: np.ndarray) -> list[Batch]:
        return [collate(dataset, index, packed=packed)]

    for (made,) in made_ahead(make, plan, device):
        batch = made.to(device, non_blocking=True)
        with autocast(device, precision):
            logits = model(batch.tokens, batch.lengths, batch.packed)
        if batch.targets is not None:
            losses.append(torch.stack(objective(model, batch, logits)))
        read = logits.float() if as_logits else model.head.readout(logits)  # type: ignore[operator]
        rows = _rows(read, batch, objective.task).cpu().numpy()
        records = batch.index.numpy()
        where = dataset.positions(records) if is_residue(objective.task) else records
        if values is None:
            size = len(dataset.tokens) if is_residue(objective.task) else len(dataset)
            values = np.empty((size, *rows.shape[1:]), rows.dtype)
        values[where] = rows
    model.train(was_training)
    assert values is not None, "a dataset holds at least one record"
    return Outputs(values, _mean_loss(losses))


def _mean_loss(losses: list[Tensor]) -> float:
    """Of sums and counts ``(2,)``, added in float64; read from the device once."""
    if not losses:
        return float("nan")
    total, count = torch.stack(losses).cpu().double().sum(dim=0).tolist()
    return total / count if count else float("nan")


def _rows(readout: Tensor, batch: Batch, task: str) -> Tensor:
    """One row per record, or per real residue."""
    return readout[batch.mask] if is_residue(task) else readout


def score_outputs(
    outputs: Outputs, dataset: SequenceDataset, task: str, num_classes: int
) -> dict[str, float]:
    """The metrics of a labelled dataset by name, ``loss`` among them."""
    assert dataset.targets is not None, "only a labelled dataset can be scored"
    if task == "residue_regression":
        ends = np.array([0, len(dataset.targets)])
        moments = record_moments(outputs.values, dataset.targets, ends)
        values = moment_metrics(moments)(np.ones((1, 1)))
        return {"loss": outputs.loss, **{name: float(value[0]) for name, value in values.items()}}
    if task == "residue_classification":
        counts = ConfusionCounts(num_classes)
        counts.update(outputs.values.argmax(axis=1), dataset.targets)
        return {"loss": outputs.loss, **counts.metrics()}
    rows = slice(None) if task != "mlm" else np.flatnonzero(dataset.targets != IGNORE)
    metrics = compute_metrics(task, outputs.values[rows], dataset.targets[rows], num_classes)
    return {"loss": outputs.loss, **metrics}
