"""What is measured of one trained model beside its score."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seqtrain.data.batching import Batch, collate, plan_batches
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.labels import is_regression
from seqtrain.evaluation.score import residue_counts
from seqtrain.evaluation.statistics import bootstrap_intervals
from seqtrain.nn.model import SequenceModel
from seqtrain.nn.norms import update_bn_stats
from seqtrain.training import calibration
from seqtrain.training.objective import Objective
from seqtrain.training.outputs import Outputs, score_outputs

SHIFT_RECORDS = 48
NUM_NEIGHBOURS = 7
NUM_BINS = 4
GAP_BATCHES = 16
INTERVAL_DRAWS = 400
"""Of the scores within quarters: there are eight of them in every arm."""


@torch.inference_mode()
def padding_shift(
    model: SequenceModel, dataset: SequenceDataset, seed: int = 0
) -> dict[str, Float[np.ndarray, " M"]]:
    """How far each of the first records' logits move from where they are when computed alone.

    Args:
        model: Put into evaluation mode.
        dataset: Its first 48 records are taken.
        seed: Chooses the neighbours.

    Returns:
        Largest change of a logit of each record: padded to twice (``padded_2x``) and four times
        (``padded_4x``) its length, and in one padded batch with seven others (``neighbours``).
    """
    model.eval()
    rng = np.random.default_rng(seed)
    ways: dict[str, list[float]] = {"padded_2x": [], "padded_4x": [], "neighbours": []}
    for i in range(min(SHIFT_RECORDS, len(dataset))):
        length = len(dataset.residues(i))
        alone = _logits(model, collate(dataset, np.array([i])))[0]
        others = rng.integers(len(dataset), size=NUM_NEIGHBOURS)
        batches = {
            "padded_2x": collate(dataset, np.array([i]), pad_to=2 * length),
            "padded_4x": collate(dataset, np.array([i]), pad_to=4 * length),
            "neighbours": collate(dataset, np.concatenate([[i], others])),
        }
        for name, batch in batches.items():
            moved = _logits(model, batch)[0]
            moved = moved[:length] if dataset.per_residue else moved
            ways[name].append(float((moved - alone).abs().max()))
    return {name: np.array(values) for name, values in ways.items()}


def _logits(model: SequenceModel, batch: Batch) -> Tensor:
    device = next(model.parameters()).device
    logits: Tensor = model(batch.tokens.to(device), batch.lengths)
    return logits.float().cpu()


def running_statistics_error(
    model: SequenceModel, dataset: SequenceDataset, max_tokens: int
) -> list[dict[str, Any]]:
    """How far each batch norm's running statistics lie from the exact pooled ones.

    The exact ones are those of every real residue of ``dataset`` and of no padding: what
    ``update_bn_stats`` finds on packed batches, each norm behind norms that are exact already.

    Returns:
        One row per norm, in the order of the model: ``layer``; ``mean``, the distance of the means
        in exact standard deviations; ``log_var``, the absolute log ratio of the variances; both
        averaged over channels. Empty without running statistics.
    """
    exact = copy.deepcopy(model)
    device = next(model.parameters()).device
    if not list(_running_norms(exact)):
        return []
    plan = plan_batches(dataset.lengths, "packed", max_tokens=max_tokens, shuffle=False)
    batches = [collate(dataset, index, packed=True).to(device) for index in plan]
    update_bn_stats(exact, batches, lambda m, b: m(b.tokens, b.lengths, True))
    rows = []
    for (layer, norm), (_, other) in zip(_running_norms(model), _running_norms(exact), strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert other.running_mean is not None
        assert other.running_var is not None
        scale = (other.running_var + other.eps).sqrt()
        ratio = (norm.running_var + norm.eps) / (other.running_var + other.eps)
        mean = ((norm.running_mean - other.running_mean) / scale).abs().mean()
        rows.append(
            {"layer": layer, "mean": float(mean), "log_var": float(ratio.log().abs().mean())}
        )
    return rows


def _running_norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            yield name, module


@torch.no_grad()
def train_eval_losses(
    model: SequenceModel,
    dataset: SequenceDataset,
    objective: Objective,
    *,
    batching: str,
    max_tokens: int,
    max_sequences: int | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Mean loss on the same training batches, normalized as in training and as in evaluation.

    Dropout is off in both, so that the two differ by what the norms do alone. The model given
    stays as it is, running statistics too.
    """
    tried = copy.deepcopy(model)
    device = next(model.parameters()).device
    plan = plan_batches(
        dataset.lengths, batching, max_tokens=max_tokens, max_sequences=max_sequences, seed=seed
    )[:GAP_BATCHES]
    batches = [collate(dataset, index, packed=batching == "packed").to(device) for index in plan]

    def mean_loss() -> float:
        total = count = 0.0
        for batch in batches:
            logits = tried(batch.tokens, batch.lengths, batch.packed)
            loss, counted = objective(tried, batch, logits)
            total, count = total + float(loss), count + float(counted)
        return total / max(count, 1e-12)

    tried.eval()
    in_evaluation = mean_loss()
    tried.train()
    for module in tried.modules():
        if type(module).__name__.endswith("Dropout"):
            module.eval()
    return mean_loss(), in_evaluation


def calibration_error(outputs: Outputs, dataset: SequenceDataset, task: str) -> float:
    """Expected calibration error of a model read out as trained; NaN without probabilities."""
    assert dataset.targets is not None
    if is_regression(task):
        return float("nan")
    return calibration.calibration_error(task, outputs.values, dataset.targets)


def metric_by(
    shares: Float[np.ndarray, " N"] | Int64[np.ndarray, " N"],
    outputs: Outputs,
    dataset: SequenceDataset,
    task: str,
    num_classes: int,
    metric: str,
) -> list[dict[str, Any]]:
    """``metric`` within quarters of the records, ordered by ``shares`` (lengths, padding shares).

    Returns:
        One row per quarter that holds records: ``low``, ``median`` and ``high`` of what it is
        ordered by, ``n``, ``value``, and ``from`` and ``to``, the value's 95 % bootstrap interval.
    """
    edges = np.unique(np.quantile(shares, np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, shares, side="left")
    rows = []
    for number in np.unique(bins):
        chosen = np.flatnonzero(bins == number)
        where = dataset.positions(chosen) if dataset.per_residue else chosen
        part = Outputs(outputs.values[where], float("nan"))
        records = dataset.subset(chosen)
        value = score_outputs(part, records, task, num_classes)[metric]
        start, end = _interval(part.values, records, task, num_classes, metric)
        places = np.quantile(shares[chosen], [0, 0.5, 1]).tolist()
        row = dict(zip(("low", "median", "high"), places, strict=True))
        rows.append({**row, "n": len(chosen), "value": float(value), "from": start, "to": end})
    return rows


def _interval(
    values: Float[np.ndarray, "R ..."],
    records: SequenceDataset,
    task: str,
    num_classes: int,
    metric: str,
) -> tuple[float, float]:
    """The ends of the 95 % bootstrap interval of a metric."""
    outputs, targets = values, records.targets
    if records.per_residue:
        outputs, targets = residue_counts(values, records, task, num_classes), None
    drawn = bootstrap_intervals(task, outputs, targets, num_draws=INTERVAL_DRAWS)[metric]
    return drawn.low, drawn.high


@torch.inference_mode()
def padded_outputs(
    model: SequenceModel,
    dataset: SequenceDataset,
    max_tokens: int,
    max_sequences: int | None = None,
    seed: int = 0,
) -> tuple[Outputs, Float[np.ndarray, " N"]]:
    """Outputs when chance alone decides who is padded with whom, and each record's padding share.

    Every model sees the same batches: the share of a record is one less its length over that of
    the longest in its batch.
    """
    model.eval()
    device = next(model.parameters()).device
    shares = np.empty(len(dataset))
    pieces: dict[int, np.ndarray] = {}
    plan = plan_batches(
        dataset.lengths, "random", max_tokens=max_tokens, max_sequences=max_sequences, seed=seed
    )
    for index in plan:
        batch = collate(dataset, index).to(device)
        rows = model.head.readout(model(batch.tokens, batch.lengths)).cpu().numpy()  # type: ignore[operator]
        lengths = dataset.lengths_of(index)
        shares[index] = 1 - lengths / lengths.max()
        for record, row, length in zip(index.tolist(), rows, lengths.tolist(), strict=True):
            pieces[record] = row[:length] if dataset.per_residue else row[None]
    values = np.concatenate([pieces[i] for i in range(len(dataset))])
    return Outputs(values, float("nan")), shares


def steps_to(level: float, curve: Sequence[dict[str, Any]], *, higher: bool) -> int | None:
    """Steps until validation first reached ``level``; None where it never did."""
    for point in curve:
        value = point["value"]
        if value is not None and (value >= level if higher else value <= level):
            return int(point["step"])
    return None
