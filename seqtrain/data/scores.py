"""The metrics of predictions that no model of ours made, as scikit-learn defines them.

scikit-learn is imported where it is used: it takes longer to start than the command line may.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int64

Scores = dict[str, float]
"""Metrics by the names of the command line; NaN where one is not defined."""


def score(
    task: str,
    outputs: Float[np.ndarray, "N K"] | Float[np.ndarray, " N"],
    targets: np.ndarray,
) -> Scores:
    """The metrics that a model's evaluation reports, as scikit-learn has them, less the loss.

    Args:
        task: What is predicted.
        outputs: Probabilities ``(N, K)``, or values ``(N,)`` for a regression.
        targets: Class indices ``(N,)``, labels ``(N, K)`` of 0 and 1, or values ``(N,)``.
    """
    match task:
        case "regression":
            return _score_values(outputs, targets.astype(np.float64))
        case "multilabel":
            return _score_labels(outputs, targets > 0.5)
        case _:
            return _score_classes(outputs, targets)


def _score_classes(outputs: Float[np.ndarray, "N K"], targets: Int64[np.ndarray, " N"]) -> Scores:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predicted = outputs.argmax(axis=1)
    several = len(np.unique(targets)) > 1
    scores = {
        "accuracy": float(accuracy_score(targets, predicted)),
        "macro_f1": float(f1_score(targets, predicted, average="macro", zero_division=0)),
        "mcc": float(matthews_corrcoef(targets, predicted)) if several else np.nan,
    }
    positive = targets[:, None] == np.arange(outputs.shape[1])
    if outputs.shape[1] == 2:
        return {**scores, **_rank(outputs[:, 1:], positive[:, 1:], prefix="")}
    return {**scores, **_rank(outputs, positive, prefix="macro_")}


def _score_labels(outputs: Float[np.ndarray, "N K"], targets: Any) -> Scores:
    predicted = outputs > 0.5
    hits = (predicted & targets).sum(axis=0)
    named = predicted.sum(axis=0) + targets.sum(axis=0)
    return {
        "accuracy": float((predicted == targets).all(axis=1).mean()),
        "macro_f1": float(np.mean(2 * hits[named > 0] / named[named > 0])),
        **_rank(outputs, targets, prefix="macro_"),
    }


def _rank(outputs: Float[np.ndarray, "N K"], positive: Any, prefix: str) -> Scores:
    """Mean ranking metrics of the columns that have both positives and negatives."""
    ranked = np.flatnonzero(positive.any(axis=0) & ~positive.all(axis=0))
    areas = np.array([_areas(outputs[:, i], positive[:, i]) for i in ranked]).reshape(-1, 2)
    means = areas.mean(axis=0) if len(ranked) else (np.nan, np.nan)
    return {f"{prefix}auroc": float(means[0]), f"{prefix}auprc": float(means[1])}


def _areas(scores: Float[np.ndarray, " N"], positive: Any) -> tuple[float, float]:
    """AUROC, ties counted half, and average precision, as scikit-learn defines them.

    Its own functions take milliseconds a column for checks, of which there may be thousands.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.nan))  # of each group of tied scores
    true = np.concatenate([[0], positive[order].cumsum()[ends]])
    false = np.concatenate([[0], ends + 1]) - true
    auroc = (np.diff(false) * (true[1:] + true[:-1]) / 2).sum() / (true[-1] * false[-1])
    precision = true[1:] / (ends + 1)
    return float(auroc), float((np.diff(true) * precision).sum() / true[-1])


def _score_values(outputs: Float[np.ndarray, " N"], targets: Float[np.ndarray, " N"]) -> Scores:
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    return {
        "r2": float(r2_score(targets, outputs)) if np.ptp(targets) > 0 else np.nan,
        "pearson": _correlation(targets, outputs),
        "spearman": _correlation(_midranks(targets), _midranks(outputs)),
        "rmse": float(root_mean_squared_error(targets, outputs)),
        "mae": float(mean_absolute_error(targets, outputs)),
    }


def _correlation(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else np.nan


def _midranks(x: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Ranks, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - counts / 2)[inverse]
    return ranks
