"""What labels mean: the task they belong to, and their way to targets and back."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt32

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

_SEPARATORS = "|;,"
_MISSING = frozenset({"", "-", "?", "na", "nan"})
_SEVERAL_NAMES = re.compile(r"[^\s,;|]\s*[,;|]\s*[^\s,;|]")


def read_number(text: str) -> float | None:
    """The finite number that a text stands for, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def is_residue(task: str) -> bool:
    """Whether there is a prediction for each residue, not for each record."""
    return task in ("residue_classification", "residue_regression", "mlm")


def is_regression(task: str) -> bool:
    """Whether numbers are predicted, not classes."""
    return task.endswith("regression")


def read_numbers(text: str) -> Float32[np.ndarray, " L"]:
    """Numbers of one record's residues, separated by commas or blanks.

    Nothing between two commas, ``-``, ``?``, ``NA`` and ``NaN`` are residues that were not
    measured: NaN.

    Raises:
        LabelError: Something else is no finite number.
    """
    cells = text.split(",") if "," in text else text.split()
    numbers = np.full(len(cells), np.nan, dtype=np.float32)
    for place, cell in enumerate(map(str.strip, cells)):
        if cell.lower() in _MISSING:
            continue
        number = read_number(cell)
        if number is None:
            raise LabelError(f"residue {place + 1}: expected a number, found {cell!r}")
        numbers[place] = number
    return numbers


def mean_number(text: str) -> float:
    """The mean of what ``read_numbers`` reads, 0 where nothing was measured."""
    numbers = read_numbers(text)
    numbers = numbers[~np.isnan(numbers)]
    return float(numbers.mean()) if len(numbers) else 0.0


def infer_task(values: Iterable[str], kind: str) -> str:
    """The task that labels most likely belong to.

    - A labels FASTA: ``residue_classification``.
    - Numbers, more than ten different ones or one with a fraction: ``regression``. One in twenty
      of the different labels may be no number, to be told as an error rather than as a class.
    - Lists of numbers and of nothing else, one of them with a fraction: ``residue_regression``.
    - Any other label with ``,``, ``;`` or ``|`` between names: ``multilabel``.
    - Anything else, 0 and 1 included: ``classification``.
    """
    if kind == "fasta":
        return "residue_classification"
    distinct = set(values)
    numbers = [number for value in distinct if (number := read_number(value)) is not None]
    measured = len(numbers) > 10 or not all(map(float.is_integer, numbers))
    if measured and len(numbers) >= 0.95 * len(distinct):
        return "regression"
    if _are_profiles(distinct):
        return "residue_regression"
    return "multilabel" if any(map(_SEVERAL_NAMES.search, distinct)) else "classification"


def _are_profiles(values: Iterable[str]) -> bool:
    """Whether every label is a list of numbers, and some number has a fraction."""
    try:
        numbers = [read_numbers(value) for value in values]
    except LabelError:
        return False
    flat = np.concatenate(numbers)
    flat = flat[~np.isnan(flat)]
    return len(flat) > len(numbers) and bool((flat % 1 != 0).any())


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
    def fit(cls, task: str, values: Iterable[str], ignore: Sequence[str] = ()) -> "LabelCodec":
        """The codec of training labels. Classes are sorted, by value when all are numbers.

        Of any task but ``mlm``, which has no labels: see :meth:`of_letters`.

        Names of a multi-label cell are separated by ``|``, ``;`` or ``,``: by the first of these
        that occurs in any cell.

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
        separator = next((s for s in _SEPARATORS if any(s in value for value in values)), ",")
        names: set[str] = set().union(*(_names(task, value, separator) for value in set(values)))
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

    @property
    def num_outputs(self) -> int:
        """Width of the head: the number of classes, or 1."""
        return len(self.classes) or 1

    def names(self, value: str) -> set[str]:
        """The classes that a label names, ignored ones left out; the label itself if a number."""
        return set(_names(self.task, value, self.separator)).difference(self.ignore)

    @cached_property
    def _index(self) -> dict[str, int]:
        targets = dict.fromkeys(self.ignore, IGNORE)
        return targets | {name: index for index, name in enumerate(self.classes)}

    def encode(
        self, value: str
    ) -> int | float | Float32[np.ndarray, " K"] | Int64[np.ndarray, " L"]:
        """The target of one record.

        Returns:
            For classification the index of the class; for regression the number, not scaled;
            for multilabel 0 or 1 for each class; for residue_classification the index of the
            class of each residue, ``IGNORE`` where the label is ignored, and likewise for mlm of
            each letter; for residue_regression the number of each residue, NaN where there is
            none, float32.

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

        Ignored residues come back as the first ignored label.
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
                names = {IGNORE: self.ignore[0]} if self.ignore else {}
                names |= dict(enumerate(self.classes))
                return "".join(names[index] for index in target.tolist())

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "LabelCodec":
        """The codec that ``to_dict`` described, also after a trip through JSON."""
        lists = {name: tuple(fields[name]) for name in ("classes", "ignore")}
        return cls(**{**fields, **lists})


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
        return lambda name: (float(name), name)
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
        raise LabelError(f"{text!r} is not a finite number, which regression needs")
    return number
