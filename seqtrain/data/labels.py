"""Turns labels into the targets of a task, and back."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64, UInt32

from seqtrain.data import schema
from seqtrain.data.cells import NUMBER_EXAMPLE, fits_float32, is_missing, read_number
from seqtrain.data.evidence import best_separator
from seqtrain.errors import ConfigError, LabelError

TASKS = (
    "classification",
    "multilabel",
    "regression",
    "residue_classification",
    "residue_regression",
    "mlm",
)

IGNORE: int = -100
"""Target of a residue that counts neither in the loss nor in a metric, as in torch."""

_WIDEST_IN_FLOAT32 = 1000
"""Standard deviations from zero up to which a float32 holds four digits of the spread."""

UNMEASURED = "-?"
"""Residue labels that stand for no class, unless a trained model has them as classes."""


def is_residue(task: str) -> bool:
    """True if there is a prediction for each residue, not for each record."""
    return task in ("residue_classification", "residue_regression", "mlm")


def is_regression(task: str) -> bool:
    """True if numbers are predicted, not classes."""
    return task.endswith("regression")


def read_numbers(text: str) -> Float64[np.ndarray, " L"]:
    """Numbers of one record's residues, separated by commas or blanks, in brackets or not.

    Nothing between two commas, ``-``, ``?``, ``NA`` and other marks of missing values are residues
    that were not measured: NaN.

    Raises:
        LabelError: Something else is no number, or none that a float32 can hold.
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    cells = text.split(",") if "," in text else text.split()
    numbers = np.full(len(cells), np.nan)
    for place, cell in enumerate(map(str.strip, cells)):
        if is_missing(cell):
            continue
        try:
            numbers[place] = _number(cell)
        except LabelError as error:
            raise LabelError(f"residue {place + 1}: {error}") from None
    return numbers


def mean_number(text: str) -> float:
    """The mean of what ``read_numbers`` reads, 0 where nothing was measured."""
    numbers = read_numbers(text)
    numbers = numbers[~np.isnan(numbers)]
    return float(numbers.mean()) if len(numbers) else 0.0


@dataclass(frozen=True)
class LabelCodec:
    """What turns label text into targets and back; travels with a model."""

    task: str
    """One of ``TASKS``."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of the model's outputs; none for regressions."""
    ignore: tuple[str, ...] = ()
    """Residue labels that get no target, or names that are no class of a multi-label task."""
    mean: float = 0.0
    """Mean of the training targets of a regression, in their own unit."""
    std: float = 1.0
    """Standard deviation of the training targets of a regression, in their own unit."""
    separator: str = ","
    """What stands between the names of a multi-label cell."""

    @classmethod
    def fit(
        cls,
        task: str,
        values: Iterable[str],
        ignore: Sequence[str] = (),
        separator: str | None = None,
    ) -> "LabelCodec":
        """The codec of training labels. Classes are sorted, by value when all are numbers.

        Of any task but ``mlm``, which has no labels: see :meth:`of_letters`. Residue labels ``-``
        and ``?`` are residues that were not measured.

        Args:
            task: One of ``TASKS``.
            values: Labels of the training records.
            ignore: Residue labels, or names of a multi-label task, that are no classes.
            separator: Between the names of a multi-label cell; none: the one of ``|``, ``;`` and
                ``,`` that explains most cells.

        Raises:
            ConfigError: The task is not known, or has no use for ``ignore``.
            LabelError: There is only one class or one target value, or a target is no number.
        """
        values = list(values)
        _check_task(task, ignore)
        if is_regression(task):
            targets = _targets(task, values)
            if len(np.unique(targets)) < 2:
                found = f"is {targets[0]:g}" if len(targets) else "is missing"
                raise LabelError(f"Every training target {found}; there is nothing to fit.")
            return cls(task, mean=float(targets.mean()), std=float(targets.std()))
        if separator is None:
            separator = best_separator(Counter(values)) if task == "multilabel" else None
        separator = separator or ","
        names: set[str] = set().union(*(_names(task, value, separator) for value in set(values)))
        if task == "residue_classification":
            names.difference_update(UNMEASURED)
        classes = sorted(names.difference(ignore), key=_by_value(names))
        if len(classes) < (1 if task == "multilabel" else 2):
            raise LabelError(
                f"Training needs two classes or more, found {', '.join(classes) or 'none'}. "
                "Is it the right label column?"
            )
        return cls(task, tuple(classes), tuple(ignore), separator=separator)

    @classmethod
    def of_letters(cls, letters: str) -> "LabelCodec":
        """The codec of masked language modelling: the classes are the letters themselves."""
        return cls("mlm", tuple(letters), ignore=("-",))

    def with_classes(self, names: Iterable[str]) -> "LabelCodec":
        """The same codec with more classes, which training has not seen."""
        classes = {*self.classes, *names}
        return replace(self, classes=tuple(sorted(classes, key=_by_value(classes))))

    @property
    def is_wide(self) -> bool:
        """True if float32 would lose the spread of the targets beside their mean, as of 1e8 ± 1."""
        return abs(self.mean) > _WIDEST_IN_FLOAT32 * self.std

    @property
    def num_outputs(self) -> int:
        """Width of the head: the number of classes, or 1."""
        return len(self.classes) or 1

    def names(self, value: str) -> set[str]:
        """The classes that a label names, ignored ones left out; the label itself if a number."""
        return set(_names(self.task, value, self.separator)).difference(self.ignore)

    @cached_property
    def _index(self) -> dict[str, int]:
        unmeasured = UNMEASURED if self.task == "residue_classification" else ""
        targets = dict.fromkeys((*unmeasured, *self.ignore), IGNORE)
        return targets | {name: index for index, name in enumerate(self.classes)}

    def encode(self, value: str) -> int | float | Float[np.ndarray, " _"] | Int64[np.ndarray, " L"]:
        """The target of one record.

        Returns:
            For classification the index of the class; for regression the number, not scaled;
            for multilabel 0 or 1 for each class; for residue_classification the index of the
            class of each residue, ``IGNORE`` where the label is ignored, and likewise for mlm of
            each letter; for residue_regression the number of each residue, NaN where there is
            none, float64.

        Raises:
            LabelError: A label is none of the classes, or no number.
        """
        match self.task:
            case "regression":
                return _number(value)
            case "residue_regression":
                return read_numbers(value)
            case "classification":
                return self._class(value)
            case "multilabel":
                target = np.zeros(len(self.classes), dtype=np.float32)
                indices = [self._class(name) for name in _names(self.task, value, self.separator)]
                target[[index for index in indices if index != IGNORE]] = 1
                return target
            case _:
                return self._residues(value)

    def _class(self, name: str) -> int:
        index = self._index.get(name)
        if index is None:
            raise LabelError(self._unknown(name))
        return index

    def _unknown(self, name: str) -> str:
        classes = ", ".join(self.classes[:12]) + (", ..." if len(self.classes) > 12 else "")
        return f"{name!r} is not among the classes seen in training ({classes})"

    @cached_property
    def _letters(self) -> tuple[UInt32[np.ndarray, " K"], Int64[np.ndarray, " K"]]:
        """Code points of the known labels, ascending, and the target of each."""
        letters = sorted(self._index)
        targets = np.array([self._index[letter] for letter in letters], dtype=np.int64)
        return np.array([ord(letter) for letter in letters], dtype=np.uint32), targets

    def _residues(self, value: str) -> Int64[np.ndarray, " L"]:
        known, targets = self._letters
        letters = np.frombuffer(value.encode("utf-32-le"), dtype=np.uint32)
        nearest = np.searchsorted(known, letters).clip(max=len(known) - 1)
        strange = np.flatnonzero(known[nearest] != letters)
        if len(strange):
            raise LabelError(f"residue {strange[0] + 1}: {self._unknown(value[strange[0]])}")
        encoded: Int64[np.ndarray, " L"] = targets[nearest]
        return encoded

    def decode(self, target: Any) -> str | float:
        """The label of a target as ``SequenceDataset.target`` gives it; a number for regression.

        Ignored residues come back as the first ignored label, or ``-``.
        """
        match self.task:
            case "regression":
                return float(target)
            case "residue_regression":
                return ",".join(f"{number:.6g}" for number in target.tolist())
            case "classification":
                return self.classes[int(target)]
            case "multilabel":
                return self.separator.join(self.classes[i] for i in np.flatnonzero(target))
            case _:
                names = {IGNORE: self.ignore[0] if self.ignore else UNMEASURED[0]}
                names |= dict(enumerate(self.classes))
                return "".join(names[index] for index in target.tolist())

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Any) -> "LabelCodec":
        """The codec that ``to_dict`` described, also after a trip through JSON.

        Raises:
            ValueError: A field is missing, not known, of the wrong type or out of range.
            ConfigError: The task is not known.
        """
        schema.check_fields(cls, fields, "labels")
        lists = ("classes", "ignore")
        schema.record(dict.fromkeys(("task", *lists), schema.anything))(fields, "labels")
        codec = cls(**{**fields, **{name: tuple(fields[name]) for name in lists}})
        codec._check()
        return codec

    def _check(self) -> None:
        """Refuse classes that no training makes."""
        _check_task(self.task, () if self.task == "mlm" else self.ignore)
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name, n in Counter(self.classes).items() if n > 1)
            raise ValueError(f"labels.classes: {twice!r} is there more than once")
        if bool(self.classes) == is_regression(self.task):
            raise ValueError(f"labels.classes: found {len(self.classes)} in a {self.task}")
        by_letter = is_residue(self.task) and not is_regression(self.task)
        if by_letter and any(len(name) != 1 for name in (*self.classes, *self.ignore)):
            raise ValueError("labels.classes: expected one letter each")
        if not self.std > 0:
            raise ValueError(f"labels.std: expected a number above 0, found {self.std}")
        if not self.separator:
            raise ValueError("labels.separator: expected a character, found none")


def _check_task(task: str, ignore: Sequence[str]) -> None:
    if task not in TASKS:
        raise ConfigError(f"task: expected one of {', '.join(TASKS)}, found {task!r}.")
    if ignore and (task in ("classification", "mlm") or is_regression(task)):
        raise ConfigError(f"data.ignore_labels has no use in {task}; leave it empty.")
    if task == "residue_classification" and (long := [x for x in ignore if len(x) != 1]):
        raise ConfigError(f"data.ignore_labels: residue labels are one letter, found {long[0]!r}.")


def _names(task: str, value: str, separator: str) -> Iterable[str]:
    """Names of the classes in one label: cells of a multi-label task hold several."""
    if task == "multilabel":
        return [name for part in value.split(separator) if (name := part.strip())]
    return value if task == "residue_classification" else [value]


def _by_value(names: Iterable[str]) -> Callable[[str], Any]:
    """Sort key: by number when all are numbers, else by text."""
    if all(read_number(name) is not None for name in names):
        return lambda name: (read_number(name), name)
    return str


def _targets(task: str, values: Iterable[str]) -> Float64[np.ndarray, " R"]:
    """The numbers in all labels, those that are missing left out."""
    if not is_residue(task):
        return np.array([_number(value) for value in values], dtype=np.float64)
    numbers: np.ndarray = np.concatenate([np.empty(0), *map(read_numbers, values)])
    return np.asarray(numbers[~np.isnan(numbers)])


def _number(text: str) -> float:
    number = read_number(text)
    if number is None:
        raise LabelError(f"expected a number such as {NUMBER_EXAMPLE}, found {text!r}")
    if not fits_float32(number):
        size = "large" if abs(number) > 1 else "small"
        raise LabelError(
            f"{text!r} is too {size} for float32, which holds 1.2e-38 to 3.4e38; use another unit, "
            "or the logarithm"
        )
    return number
