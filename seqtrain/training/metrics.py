"""Metrics of collected predictions, every one a function of how often each record counts.

A metric is written once, for a matrix of counts with one column per draw. One column of ones is
the metric itself; bootstrap counts are its resampled values, without resampling a record. What
depends only on the predictions, such as sorting them, is done once, before any counts are seen.

Definitions, each after scikit-learn where it has one:
    loss: Mean negative log-likelihood of the targets under the predicted probabilities (clipped
        at the machine epsilon of their dtype): no class weights, no label smoothing. Multi-label:
        mean over records and labels. Regression has none here, it needs the training scale.
    accuracy: Share of records whose most probable class is the target. Multi-label: share of
        records with every label right at probability 0.5.
    macro_f1: Unweighted mean of F1 over the classes that occur in the targets or among the
        predictions; a class never predicted rightly has F1 0. Multi-label: the same over labels.
    mcc: Matthews correlation, for K classes as Gorodkin (2004),
        doi:10.1016/j.compbiolchem.2004.09.006. 0 when all predictions are one class.
    auroc, auprc: Of class 1 in a binary task; ties count half, auprc is average precision.
    macro_auroc, macro_auprc: Unweighted mean, one against the rest, over the classes or labels
        that have both positives and negatives.
    r2, pearson, spearman, rmse, mae: In the target's unit; spearman with mid-ranks for ties.
        Residues: over all that have a target, without spearman, whose ranks do not add up.
    perplexity: exp(loss); guessing among so many equally likely letters does as well.

A metric that is not defined is NaN, without a warning: mcc, auroc and auprc when the targets hold
one class only, r2 when they are constant, a correlation when either side is constant, everything
when there are no records or a prediction is not finite.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer

from seqtrain.data.labels import IGNORE
from seqtrain.training.ranking import (
    Counts,
    Groups,
    PerDraw,
    class_areas,
    rank_correlation,
    ranking_areas,
)

HIGHER_IS_BETTER: Mapping[str, bool] = MappingProxyType(
    {
        "loss": False,
        "accuracy": True,
        "macro_f1": True,
        "mcc": True,
        "auroc": True,
        "auprc": True,
        "macro_auroc": True,
        "macro_auprc": True,
        "r2": True,
        "pearson": True,
        "spearman": True,
        "rmse": False,
        "mae": False,
        "perplexity": False,
    }
)

MANY_CLASSES = 16
"""More classes, of fewer records each than this, are ranked all at once."""

_PRIMARY = {
    # Unlike accuracy it does not reward always answering with the commonest class.
    "classification": "mcc",
    "multilabel": "macro_auroc",
    "regression": "r2",
    "residue_classification": "macro_f1",
    "residue_regression": "r2",
    "mlm": "perplexity",
}

WeightedMetrics: TypeAlias = Callable[[Counts], dict[str, PerDraw]]
"""Float64 counts ``(N, D)``, how often each record is in each draw, to ``(D,)`` values by name."""


def primary_metric(task: str) -> str:
    """The metric that stops training early and picks the best checkpoint of ``task``.

    Raises:
        ValueError: The task is not known.
    """
    if task not in _PRIMARY:
        raise ValueError(f"no metrics for task {task!r}; expected one of {', '.join(_PRIMARY)}")
    return _PRIMARY[task]


def compute_metrics(
    task: str,
    outputs: Float[np.ndarray, "N K"] | Float[np.ndarray, " N"],
    targets: Integer[np.ndarray, " N"] | Float[np.ndarray, " N"] | Float[np.ndarray, "N K"],
    num_classes: int | None = None,
) -> dict[str, float]:
    """Every metric of ``task`` by its name; NaN where it is not defined.

    Args:
        task: ``classification``, ``multilabel``, ``regression``, ``residue_classification`` (the
            rows are residues, ignored ones left out) or ``mlm`` (the rows are masked positions).
        outputs: Probabilities ``(N, K)``, also for two classes; for regression values ``(N,)`` in
            the target's unit.
        targets: Class indices ``(N,)``, for multi-label 0 or 1 ``(N, K)``, for regression values
            ``(N,)``.
        num_classes: K, checked when given.

    Raises:
        ValueError: The task is not known, or the shapes do not fit it.
    """
    metrics = weighted_metrics(task, outputs, targets, num_classes)
    values = metrics(np.ones((len(outputs), 1)))
    return {name: float(value[0]) for name, value in values.items()}


def weighted_metrics(
    task: str,
    outputs: Float[np.ndarray, "N K"] | Float[np.ndarray, " N"],
    targets: Integer[np.ndarray, " N"] | Float[np.ndarray, " N"] | Float[np.ndarray, "N K"],
    num_classes: int | None = None,
) -> WeightedMetrics:
    """The metrics of ``compute_metrics`` as a function of how often each record counts.

    Arguments and errors are those of ``compute_metrics``.
    """
    _check_shapes(task, outputs, targets, num_classes)
    with np.errstate(all="ignore"):
        parts = _parts(task, np.nan_to_num(outputs), targets)
    return _join(parts, undefined=not np.isfinite(outputs).all())


def confusion_metrics(confusions: Integer[np.ndarray, "N K K"]) -> WeightedMetrics:
    """``accuracy``, ``macro_f1`` and ``mcc`` of residues, as a function of how often records count.

    Args:
        confusions: Residues of each record by target (rows) and prediction (columns).
    """
    num_classes = confusions.shape[1]
    flat = confusions.reshape(len(confusions), num_classes**2).astype(np.float64)

    def metrics(counts: Counts) -> dict[str, PerDraw]:
        return _from_confusion((flat.T @ counts).reshape(num_classes, num_classes, -1))

    return _join([metrics])


def moment_metrics(moments: Float[np.ndarray, "N 8"]) -> WeightedMetrics:
    """``r2``, ``pearson``, ``rmse`` and ``mae`` as a function of how often records count.

    Args:
        moments: Of each record, as :func:`record_moments` gives them.
    """

    def metrics(counts: Counts) -> dict[str, PerDraw]:
        sums = moments.T @ counts
        mean_x, mean_y, xx, yy, xy, squared, absolute = sums[1:] / sums[0]
        var_x, var_y = _variance(xx, mean_x), _variance(yy, mean_y)
        return {
            "r2": 1 - squared / var_y,
            "pearson": np.clip((xy - mean_x * mean_y) / np.sqrt(var_x * var_y), -1, 1),
            "rmse": np.sqrt(squared),
            "mae": absolute,
        }

    return _join([metrics])


def record_moments(
    predictions: Float[np.ndarray, " T"],
    targets: Float[np.ndarray, " T"],
    offsets: Integer[np.ndarray, " N_plus_1"],
) -> Float[np.ndarray, "N 8"]:
    """Sums over the residues of each record, float64, which errors and correlations follow from.

    The number of residues with a target (not NaN), and the sums of x, y, x², y², xy, (x - y)² and
    |x - y|, x the prediction and y the target, both less their mean over all.

    Args:
        predictions: Values of all residues, record after record.
        targets: Likewise, NaN where there is none.
        offsets: Where each record starts, and the end of the last.
    """
    kept = ~np.isnan(targets)
    record = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[kept]
    predicted, wanted = predictions[kept].astype(np.float64), targets[kept].astype(np.float64)
    # Centred first, so that the variances do not cancel when the mean is large.
    x = predicted - predicted.sum() / max(len(predicted), 1)
    y = wanted - wanted.sum() / max(len(wanted), 1)
    error = predicted - wanted
    columns = (np.ones_like(x), x, y, x * x, y * y, x * y, error**2, np.abs(error))
    sums = [np.bincount(record, weights=column, minlength=len(offsets) - 1) for column in columns]
    return np.stack(sums, axis=1).astype(np.float64)  # bincount of nothing has integers


def ratio_metric(name: str, sums_and_counts: Float[np.ndarray, "N 2"]) -> WeightedMetrics:
    """Metric ``name``, the ratio of two sums over records, for instance losses by residues."""

    def metrics(counts: Counts) -> dict[str, PerDraw]:
        total, count = sums_and_counts.T.astype(np.float64) @ counts
        return {name: total / count}

    return _join([metrics])


def perplexity_metrics(sums_and_counts: Float[np.ndarray, "N 2"]) -> WeightedMetrics:
    """``loss`` and ``perplexity`` as a function of how often records count.

    Args:
        sums_and_counts: Negative log-likelihood of each record's residues, and their number.
    """
    loss = ratio_metric("loss", sums_and_counts)

    def metrics(counts: Counts) -> dict[str, PerDraw]:
        values = loss(counts)
        return values | {"perplexity": np.exp(values["loss"])}

    return metrics


def record_confusions(
    predictions: Integer[np.ndarray, " T"],
    targets: Integer[np.ndarray, " T"],
    offsets: Integer[np.ndarray, " N_plus_1"],
    num_classes: int,
) -> Int64[np.ndarray, "N K K"]:
    """Residues of each record by target (rows) and prediction (columns).

    Args:
        predictions: Class indices of all residues, record after record.
        targets: Likewise; residues with -100 are left out.
        offsets: Where each record starts, and the end of the last.
        num_classes: K.
    """
    num_records = len(offsets) - 1
    record = np.repeat(np.arange(num_records), np.diff(offsets))
    kept = targets != IGNORE
    cell = (record[kept] * num_classes + targets[kept]) * num_classes + predictions[kept]
    counts = np.bincount(cell, minlength=num_records * num_classes**2)
    return counts.reshape(num_records, num_classes, num_classes).astype(np.int64)


class ConfusionCounts:
    """Predictions counted by target and prediction: metrics of any number of residues.

    Attributes:
        matrix: int64 ``(K, K)``, rows are targets, columns predictions. Adds over ranks.
    """

    def __init__(self, num_classes: int) -> None:
        self.matrix: Int64[np.ndarray, "K K"] = np.zeros((num_classes, num_classes), np.int64)

    def update(
        self, prediction: Integer[np.ndarray, " *S"], target: Integer[np.ndarray, " *S"]
    ) -> None:
        """Count class indices of any shape; positions whose target is -100 are left out."""
        flat = target.reshape(-1)
        ends = np.array([0, flat.size])
        self.matrix += record_confusions(prediction.reshape(-1), flat, ends, len(self.matrix))[0]

    def metrics(self) -> dict[str, float]:
        """``accuracy``, ``macro_f1`` and ``mcc``; NaN where not defined."""
        values = confusion_metrics(self.matrix[None])(np.ones((1, 1)))
        return {name: float(value[0]) for name, value in values.items()}


def _check_shapes(
    task: str, outputs: np.ndarray, targets: np.ndarray, num_classes: int | None
) -> None:
    primary_metric(task)
    wanted_outputs = 1 if task == "regression" else 2
    wanted_targets = 2 if task == "multilabel" else 1
    if outputs.ndim != wanted_outputs or targets.ndim != wanted_targets:
        raise ValueError(
            f"{task} expects outputs of {wanted_outputs} and targets of {wanted_targets} "
            f"dimensions, received {outputs.shape} and {targets.shape}"
        )
    if len(outputs) != len(targets):
        raise ValueError(f"{len(outputs)} outputs for {len(targets)} targets")
    if num_classes is not None and task != "regression" and outputs.shape[1] != num_classes:
        raise ValueError(f"expected {num_classes} columns of outputs, received {outputs.shape[1]}")


def _parts(task: str, outputs: np.ndarray, targets: np.ndarray) -> list[WeightedMetrics]:
    match task:
        case "multilabel":
            return [_multilabel_sums(outputs, targets), _macro_ranking(outputs, targets > 0.5)]
        case "regression":
            values, wanted = outputs.astype(np.float64), targets.astype(np.float64)
            each = record_moments(values, wanted, np.arange(len(values) + 1))
            return [moment_metrics(each), _spearman(values, wanted)]
        case "mlm":
            return [_likelihood(outputs, targets, perplexity=True), _class_counts(outputs, targets)]
        case _:
            shared = [_likelihood(outputs, targets), _class_counts(outputs, targets)]
            return [*shared, _class_rankings(outputs, targets)]


def _join(parts: list[WeightedMetrics], undefined: bool = False) -> WeightedMetrics:
    """All parts as one; divisions by zero are the undefined metrics and give NaN in silence."""

    def metrics(counts: Counts) -> dict[str, PerDraw]:
        with np.errstate(all="ignore"):
            values = {name: value for part in parts for name, value in part(counts).items()}
        if undefined:
            return {name: np.full_like(value, np.nan) for name, value in values.items()}
        return values

    return metrics


def _likelihood(
    probabilities: np.ndarray, targets: np.ndarray, perplexity: bool = False
) -> WeightedMetrics:
    of_target = np.take_along_axis(probabilities, targets[:, None].astype(np.int64), axis=1)[:, 0]
    eps = np.finfo(probabilities.dtype).eps
    surprise = -np.log(np.clip(of_target, eps, 1).astype(np.float64))

    def metrics(counts: Counts) -> dict[str, PerDraw]:
        loss = surprise @ counts / counts.sum(axis=0)
        return {"loss": loss, "perplexity": np.exp(loss)} if perplexity else {"loss": loss}

    return metrics


def _class_counts(probabilities: np.ndarray, targets: np.ndarray) -> WeightedMetrics:
    num_classes = probabilities.shape[1]
    targets, predicted = targets.astype(np.int64), probabilities.argmax(axis=1)
    right = np.flatnonzero(targets == predicted)
    # Margins of the confusion matrix alone: of many classes it is large, for each of the draws.
    actual, named = Groups.of(targets), Groups.of(predicted)
    hit = Groups.of(targets[right])

    def metrics(counts: Counts) -> dict[str, PerDraw]:
        hits, actuals, predictions = np.zeros((3, num_classes, counts.shape[1]))
        actuals[actual.keys] = actual.sums(counts)
        predictions[named.keys] = named.sums(counts)
        if len(right):
            hits[hit.keys] = hit.sums(counts[right])
        return _from_margins(hits, actuals, predictions)

    return metrics


def _from_confusion(confusion: Float[np.ndarray, "K K D"]) -> dict[str, PerDraw]:
    hits = np.einsum("kkd->kd", confusion)
    return _from_margins(hits, confusion.sum(axis=1), confusion.sum(axis=0))


def _from_margins(
    hits: Float[np.ndarray, "K D"],
    actual: Float[np.ndarray, "K D"],
    predicted: Float[np.ndarray, "K D"],
) -> dict[str, PerDraw]:
    total = actual.sum(axis=0)
    # Shares, not counts: squares of counts of residues leave the exact range of float64.
    p, q = actual / total, predicted / total
    accuracy = hits.sum(axis=0) / total
    spread = np.sqrt((1 - (p**2).sum(axis=0)) * (1 - (q**2).sum(axis=0)))
    mcc = (accuracy - (p * q).sum(axis=0)) / spread
    mcc = np.where((predicted > 0).sum(axis=0) == 1, 0.0, mcc)
    mcc = np.where((actual > 0).sum(axis=0) <= 1, np.nan, mcc)
    return {"accuracy": accuracy, "macro_f1": _macro_f1(hits, actual + predicted), "mcc": mcc}


def _macro_f1(
    hits: Float[np.ndarray, "K D"], actual_plus_predicted: Float[np.ndarray, "K D"]
) -> PerDraw:
    return _mean_of_defined(2 * hits / actual_plus_predicted)


def _mean_of_defined(values: Float[np.ndarray, "K D"]) -> PerDraw:
    """Mean over classes, those with NaN left out; NaN when none is left."""
    defined = ~np.isnan(values)
    mean: PerDraw = np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)
    return mean


def _multilabel_sums(probabilities: np.ndarray, targets: np.ndarray) -> WeightedMetrics:
    num_labels = targets.shape[1]
    predicted, actual = probabilities > 0.5, targets > 0.5
    eps = np.finfo(probabilities.dtype).eps
    of_target = np.clip(np.where(actual, probabilities, 1 - probabilities), eps, 1)
    surprise = -np.log(of_target.astype(np.float64)).mean(axis=1)
    right = (predicted == actual).all(axis=1)
    per_record = np.column_stack([predicted & actual, predicted, actual, surprise, right])

    def metrics(counts: Counts) -> dict[str, PerDraw]:
        sums = per_record.T @ counts
        hits, predictions, positives = sums[:-2].reshape(3, num_labels, -1)
        loss, accuracy = sums[-2:] / counts.sum(axis=0)
        macro_f1 = _macro_f1(hits, predictions + positives)
        return {"loss": loss, "accuracy": accuracy, "macro_f1": macro_f1}

    return metrics


def _class_rankings(probabilities: np.ndarray, targets: np.ndarray) -> WeightedMetrics:
    num_classes = probabilities.shape[1]
    if num_classes > MANY_CLASSES and 0 < len(targets) < MANY_CLASSES * num_classes:
        return _macro_means(class_areas(probabilities, targets.astype(np.int64)))
    if num_classes != 2:
        return _macro_ranking(probabilities, targets[:, None] == np.arange(num_classes))
    ranking = ranking_areas(probabilities[:, 1], targets == 1)

    def metrics(counts: Counts) -> dict[str, PerDraw]:
        auroc, auprc = ranking(counts)
        return {"auroc": auroc, "auprc": auprc}

    return metrics


def _macro_ranking(
    scores: Float[np.ndarray, "N K"], positive: Bool[np.ndarray, "N K"]
) -> WeightedMetrics:
    rankings = [ranking_areas(*column) for column in zip(scores.T, positive.T, strict=True)]
    return _macro_means(lambda counts: np.stack([each(counts) for each in rankings], axis=1))


def _macro_means(ranking: Callable[[Counts], Float[np.ndarray, "2 K D"]]) -> WeightedMetrics:
    def metrics(counts: Counts) -> dict[str, PerDraw]:
        areas = ranking(counts)
        return {
            "macro_auroc": _mean_of_defined(areas[0]),
            "macro_auprc": _mean_of_defined(areas[1]),
        }

    return metrics


def _variance(mean_square: PerDraw, mean: PerDraw) -> PerDraw:
    """Variance; NaN when it is no more than the rounding of a constant."""
    variance = mean_square - mean**2
    return np.where(variance > 1e-12 * mean_square, variance, np.nan)


def _spearman(
    predictions: Float[np.ndarray, " N"], targets: Float[np.ndarray, " N"]
) -> WeightedMetrics:
    correlation = rank_correlation(predictions, targets)
    return lambda counts: {"spearman": correlation(counts)}
