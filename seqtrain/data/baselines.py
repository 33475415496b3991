"""What can be predicted without a sequence model, for a result to be held against.

scikit-learn is imported where it is used: it takes longer to start than the command line may.
"""

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.labels import IGNORE, is_residue

Scores = dict[str, float]
"""Metrics by the names of the command line; NaN where one is not defined."""

# Composition is fitted to at most this many records, drawn at random, and to so many k-mers.
MAX_RECORDS = 50_000
MAX_KMERS = 1500


def baselines(train: SequenceDataset, test: SequenceDataset, task: str) -> dict[str, Scores]:
    """Every baseline that ``task`` has, by name: majority, length_only, composition.

    Residue tasks have the majority alone.
    """
    wanted, found = _targets(train), _targets(test)
    scores = {"majority": majority_baseline(wanted, found, task)}
    if not is_residue(task):
        scores["length_only"] = length_only_baseline(
            train.lengths, wanted, test.lengths, found, task
        )
        scores["composition"] = composition_baseline(train, test, task)
    return scores


def majority_baseline(train_targets: np.ndarray, test_targets: np.ndarray, task: str) -> Scores:
    """Scores of the commonest class, the frequency of each label, or the mean target.

    Residue targets are flat; those that are ignored are left out.
    """
    if task == "residue_regression":
        train_targets = train_targets[~np.isnan(train_targets)]
        test_targets = test_targets[~np.isnan(test_targets)]
        task = "regression"
    if is_residue(task):
        train_targets = train_targets[train_targets != IGNORE]
        test_targets = test_targets[test_targets != IGNORE]
    match task:
        case "regression" | "multilabel":
            outputs = np.broadcast_to(train_targets.mean(axis=0), test_targets.shape)
        case _:
            counts = np.bincount(train_targets, minlength=_num_classes(train_targets, test_targets))
            outputs = np.broadcast_to(counts / counts.sum(), (len(test_targets), len(counts)))
    return score(task, outputs.astype(np.float64), test_targets)


def length_only_baseline(
    train_lengths: Int64[np.ndarray, " N"],
    train_targets: np.ndarray,
    test_lengths: Int64[np.ndarray, " M"],
    test_targets: np.ndarray,
    task: str,
) -> Scores:
    """Scores of gradient-boosted trees that see nothing but the number of residues.

    Raises:
        ValueError: ``task`` is about residues, which have no length.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    _check_records(task)
    model = (
        HistGradientBoostingRegressor(random_state=0)
        if task == "regression"
        else HistGradientBoostingClassifier(random_state=0)
    )
    train, test = (x[:, None].astype(np.float64) for x in (train_lengths, test_lengths))
    outputs = _fit_predict(model, train, train_targets, test, test_targets, task)
    return score(task, outputs, test_targets)


def composition_baseline(train: SequenceDataset, test: SequenceDataset, task: str) -> Scores:
    """Scores of a linear model of length and k-mer frequencies: logistic, or ridge for regression.

    Its features are the residue counts, the square roots of the k-mer frequencies, the length and
    its logarithm, all standardized. ``k`` goes as far as there are few possible k-mers: to 5 in
    nucleotides, to 2 in proteins.

    Raises:
        ValueError: ``task`` is about residues.
    """
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _check_records(task)
    if len(train) > MAX_RECORDS:
        rng = np.random.default_rng(0)
        train = train.subset(np.sort(rng.choice(len(train), MAX_RECORDS, replace=False)))
    counts = train.token_counts()
    letters = np.flatnonzero(counts >= len(train.tokens) / 100)
    model = make_pipeline(
        StandardScaler(),
        RidgeCV(alphas=np.logspace(0, 4, 5))
        if task == "regression"
        else LogisticRegression(C=0.1, max_iter=200),
    )
    features = composition(train, letters), composition(test, letters)
    wanted, found = _targets(train), _targets(test)
    outputs = _fit_predict(model, features[0], wanted, features[1], found, task)
    return score(task, outputs, found)


def composition(
    dataset: SequenceDataset, letters: Int64[np.ndarray, " A"]
) -> Float32[np.ndarray, "N F"]:
    """Length, its logarithm, residue counts, and square roots of k-mer frequencies, k from 1.

    Args:
        dataset: The records.
        letters: Token ids that count; k-mers with any other token are left out.
    """
    code_of = np.full(256, -1)
    code_of[letters] = np.arange(len(letters))
    residues = code_of[dataset.tokens]
    owners = np.repeat(np.arange(len(dataset)), dataset.lengths)
    columns = [dataset.lengths[:, None], np.log(np.maximum(1, dataset.lengths))[:, None]]
    k, used = 1, 0
    while k == 1 or used + len(letters) ** k <= MAX_KMERS:
        counts = _kmer_counts(residues, owners, dataset.offsets, k, len(letters))
        columns += [counts] if k == 1 else []
        columns.append(np.sqrt(counts / np.maximum(1, dataset.lengths)[:, None]))
        used += len(letters) ** k
        k += 1
    return np.concatenate(columns, axis=1, dtype=np.float32)


def _kmer_counts(
    residues: Int64[np.ndarray, " R"],
    owners: Int64[np.ndarray, " R"],
    offsets: Int64[np.ndarray, " S"],
    k: int,
    num_letters: int,
) -> Int64[np.ndarray, "N W"]:
    """How often each k-mer occurs in each record."""
    count = max(0, len(residues) - k + 1)
    codes = np.zeros(count, np.int64)
    known = np.arange(count) + k <= offsets[owners[:count] + 1]
    for step in range(k):
        letters = residues[step : step + count]
        codes = codes * num_letters + letters
        known &= letters >= 0
    num_words, num_records = num_letters**k, len(offsets) - 1
    cells = owners[:count][known] * num_words + codes[known]
    counts = np.bincount(cells, minlength=num_records * num_words)
    return counts.reshape(num_records, num_words)


def _fit_predict(
    model: Any,
    train: Float[np.ndarray, "N F"],
    train_targets: np.ndarray,
    test: Float[np.ndarray, "M F"],
    test_targets: np.ndarray,
    task: str,
) -> Float[np.ndarray, "M K"] | Float[np.ndarray, " M"]:
    """Probabilities of every class or label, or predicted values, for the test records."""
    if task == "regression":
        return np.asarray(model.fit(train, train_targets).predict(test), np.float64)
    if task == "multilabel":
        labels = train_targets.astype(np.int64).T
        columns = [_probabilities(model, train, label, test, 2)[:, 1] for label in labels]
        return np.stack(columns, axis=1)
    num_classes = _num_classes(train_targets, test_targets)
    return _probabilities(model, train, train_targets, test, num_classes)


def _probabilities(
    model: Any,
    train: Float[np.ndarray, "N F"],
    classes: Int64[np.ndarray, " N"],
    test: Float[np.ndarray, "M F"],
    num_classes: int,
) -> Float[np.ndarray, "M K"]:
    """One column per class, 0 for a class that was not in training."""
    from sklearn.exceptions import ConvergenceWarning

    seen = np.unique(classes)
    outputs = np.zeros((len(test), num_classes))
    outputs[:, seen] = 1
    if len(seen) > 1:
        with warnings.catch_warnings():
            # A baseline that was stopped early is a baseline still.
            warnings.simplefilter("ignore", ConvergenceWarning)
            outputs[:, seen] = model.fit(train, classes).predict_proba(test)
    return outputs


def score(
    task: str,
    outputs: Float[np.ndarray, "N K"] | Float[np.ndarray, " N"],
    targets: np.ndarray,
) -> Scores:
    """The metrics that a model's evaluation reports, by scikit-learn, less the loss.

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
    from sklearn.metrics import average_precision_score, roc_auc_score

    ranked = np.flatnonzero(positive.any(axis=0) & ~positive.all(axis=0))
    means = {}
    for name, metric in {"auroc": roc_auc_score, "auprc": average_precision_score}.items():
        values = [metric(positive[:, i], outputs[:, i]) for i in ranked]
        means[prefix + name] = float(np.mean(values)) if values else np.nan
    return means


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


def _num_classes(*targets: np.ndarray) -> int:
    return max(2, *(int(part.max(initial=0)) + 1 for part in targets))


def _check_records(task: str) -> None:
    if task not in ("classification", "multilabel", "regression"):
        raise ValueError(f"{task} has no such baseline: it does not predict whole records")


def _targets(dataset: SequenceDataset) -> np.ndarray:
    if dataset.targets is None:
        raise ValueError("baselines need targets")
    return dataset.targets
