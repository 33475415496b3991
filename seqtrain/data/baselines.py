"""Baselines: predictions without a sequence model, for a result to be held against.

scikit-learn is imported where it is used: it takes longer to start than the command line may.
"""

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.labels import IGNORE, is_residue
from seqtrain.data.scores import Scores, score

# Composition is fitted to at most this many records, drawn at random, and to so many k-mers.
MAX_RECORDS = 50_000
MAX_KMERS = 1500

MANY_CLASSES = 20
"""Of more classes or labels, lengths are judged by neighbours: trees are fitted for each of them,
a hundred at a time, and took longer than the training of the model that they are held against."""

NEIGHBOURS = 50
"""Training records of nearly the same length whose classes are counted."""


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
    """Scores of a model that sees nothing but the number of residues.

    Gradient-boosted trees; of more than ``MANY_CLASSES`` classes or labels, their frequencies
    among the ``NEIGHBOURS`` training records of the nearest length.

    Raises:
        ValueError: ``task`` is about residues, which have no length.
    """
    _check_records(task)
    train, test = (x[:, None].astype(np.float64) for x in (train_lengths, test_lengths))
    model = _length_model(task, len(train), _num_outputs(task, train_targets, test_targets))
    outputs = _fit_predict(model, train, train_targets, test, test_targets, task)
    return score(task, outputs, test_targets)


def _length_model(task: str, num_records: int, num_outputs: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    neighbours = min(NEIGHBOURS, num_records)
    if task == "regression":
        return HistGradientBoostingRegressor(random_state=0)
    if num_outputs <= MANY_CLASSES:
        return HistGradientBoostingClassifier(random_state=0)
    if task == "multilabel":
        return KNeighborsRegressor(neighbours)  # of all labels at once
    return KNeighborsClassifier(neighbours)


def _num_outputs(task: str, train_targets: np.ndarray, test_targets: np.ndarray) -> int:
    if task == "multilabel":
        return int(train_targets.shape[1])
    return 1 if task == "regression" else _num_classes(train_targets, test_targets)


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
    num_outputs = _num_outputs(task, _targets(train), _targets(test))
    model = make_pipeline(
        StandardScaler(),
        RidgeCV(alphas=np.logspace(0, 4, 5))
        if task == "regression"
        else LogisticRegression(C=0.1, max_iter=_most_iterations(num_outputs)),
    )
    features = composition(train, letters), composition(test, letters)
    wanted, found = _targets(train), _targets(test)
    outputs = _fit_predict(model, features[0], wanted, features[1], found, task)
    return score(task, outputs, found)


def _most_iterations(num_outputs: int) -> int:
    """Of an optimizer whose steps take as much longer as there are classes."""
    return int(np.clip(200 * MANY_CLASSES / num_outputs, 20, 200))


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
    """Counts of each k-mer in each record."""
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
    if task == "multilabel" and _num_outputs(task, train_targets, test_targets) > MANY_CLASSES:
        return _many_labels(model, train, train_targets, test)
    if task == "multilabel":
        labels = train_targets.astype(np.int64).T
        columns = [_probabilities(model, train, label, test, 2)[:, 1] for label in labels]
        return np.stack(columns, axis=1)
    num_classes = _num_classes(train_targets, test_targets)
    return _probabilities(model, train, train_targets, test, num_classes)


def _many_labels(
    model: Any,
    train: Float[np.ndarray, "N F"],
    train_targets: Float[np.ndarray, "N K"],
    test: Float[np.ndarray, "M F"],
) -> Float[np.ndarray, "M K"]:
    """Probabilities of many labels at once, by a model that takes them so or a ridge instead."""
    from sklearn.neighbors import KNeighborsRegressor

    if not isinstance(model, KNeighborsRegressor):
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        model = make_pipeline(StandardScaler(), Ridge(alpha=100.0))
    return np.asarray(model.fit(train, train_targets).predict(test), np.float64).clip(0, 1)


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


def _num_classes(*targets: np.ndarray) -> int:
    return max(2, *(int(part.max(initial=0)) + 1 for part in targets))


def _check_records(task: str) -> None:
    if task not in ("classification", "multilabel", "regression"):
        raise ValueError(f"{task} has no such baseline: it does not predict whole records")


def _targets(dataset: SequenceDataset) -> np.ndarray:
    if dataset.targets is None:
        raise ValueError("baselines need targets")
    return dataset.targets
