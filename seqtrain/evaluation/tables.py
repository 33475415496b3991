"""The table of predictions: its columns, their meaning, and the cells of a row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from seqtrain.data.labels import LabelCodec, is_regression, is_residue
from seqtrain.data.lengths import LengthRule
from seqtrain.errors import ConfigError
from seqtrain.escaping import unique_names
from seqtrain.evaluation.predict import Prediction
from seqtrain.evaluation.windows import Windows

NUMBER, WIDE, INTEGER, TEXT = "number", "wide number", "integer", "text"
RESIDUE_PROBABILITIES = "prediction_prob"
"""Column of the probabilities of the predicted classes of residues."""


@dataclass(frozen=True)
class Table:
    """The form of a table of predictions, one row per input record.

    Raises:
        ConfigError: ``top_k`` where there are no probabilities to order.
    """

    codec: LabelCodec
    calibration: str = "uncalibrated"
    """How probabilities are calibrated, in words."""
    num_members: int = 1
    """Number of models that answered; each gets columns of its own if there are several."""
    top_k: int | None = None
    """Only so many classes, the most probable first, in place of one column per class."""
    windows: Windows | None = None
    with_warnings: bool = False
    """A last column says in what a record is unlike those of the training."""
    extra: tuple[str, ...] = ()
    """Names of further columns, whose cells come beside the predictions."""
    model: str = ""
    """Fingerprint of what predicted."""
    lengths: LengthRule | None = None
    """The rule for over-long records; None: they are read as they are."""

    def __post_init__(self) -> None:
        if self.top_k is not None and not self.has_probabilities:
            raise ConfigError(
                f"--top-k {self.top_k}: a {self.codec.task} gives no probabilities of classes to a "
                "record. Leave it out."
            )

    @property
    def has_probabilities(self) -> bool:
        """True if each record gets a probability for each class."""
        return self.codec.task in ("classification", "multilabel")

    @property
    def names_residues(self) -> bool:
        """True if each residue gets a class, and so a probability of it."""
        return is_residue(self.codec.task) and not is_regression(self.codec.task)

    @cached_property
    def kinds(self) -> dict[str, str]:
        """The columns in order, and whether each one is a number, an integer or text."""
        number = WIDE if self.codec.is_wide else NUMBER
        answer = number if self.codec.task == "regression" else TEXT
        kinds = {"id": TEXT, "length": INTEGER, "status": TEXT, "prediction": answer}
        kinds |= {RESIDUE_PROBABILITIES: TEXT} if self.names_residues else {}
        members = range(1, self.num_members + 1) if self.num_members > 1 else ()
        if self.top_k is not None:
            for place in range(1, min(self.top_k, len(self.codec.classes)) + 1):
                kinds |= {f"top_{place}": TEXT, f"top_{place}_prob": NUMBER}
                kinds |= {f"top_{place}_std": NUMBER} if members else {}
        elif self.has_probabilities:
            classes = unique_names(self.codec.classes)
            kinds |= {f"prob_{name}": NUMBER for name in classes}
            if members:
                kinds |= {f"std_{name}": NUMBER for name in classes}
            kinds |= {f"member{i}_prob_{name}": NUMBER for i in members for name in classes}
        elif members:
            kinds |= {"std": NUMBER, **{f"member{i}": answer for i in members}}
        kinds |= {"warning": TEXT} if self.with_warnings else {}
        return kinds | dict.fromkeys(self.extra, answer)

    @cached_property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.kinds)

    def row(self, prediction: Prediction, extra: Sequence[Any] = ()) -> list[Any]:
        """The cells of one record; None where there is no prediction."""
        head = [prediction.id, prediction.length, prediction.status]
        warning = [",".join(prediction.warnings)] if self.with_warnings else []
        if prediction.values is None:
            empty = len(self.kinds) - len(head) - len(warning) - len(self.extra)
            return [*head, *([None] * empty), *(text or None for text in warning), *extra]
        return [*head, *self._answers(prediction), *warning, *extra]

    def _answers(self, prediction: Prediction) -> Iterator[Any]:
        values, spread, members = prediction.values, prediction.spread, prediction.members
        assert values is not None
        yield self.answer(values, prediction.kept)
        if self.names_residues:
            yield _joined(values.max(axis=1), prediction.kept, ".4g")
        if self.top_k is not None:
            # Stable, so that equal probabilities keep the order of the classes.
            for index in np.argsort(-values, kind="stable")[: self.top_k].tolist():
                yield self.codec.classes[index]
                yield float(values[index])
                if spread is not None:
                    yield float(spread[index])
        elif self.has_probabilities:
            for numbers in (values, spread, *members):
                if numbers is not None:
                    yield from map(float, numbers)
        elif spread is not None:
            yield self._spread(values, spread)
            for member in members:
                yield self.answer(member, prediction.kept)

    def _spread(self, values: np.ndarray, spread: np.ndarray) -> float:
        """Of a value; of residues the mean, where there are classes that of the predicted ones."""
        if is_regression(self.codec.task):
            return float(spread.mean())
        return float(np.take_along_axis(spread, values.argmax(axis=1)[:, None], axis=1).mean())

    def answer(self, values: np.ndarray, kept: np.ndarray | None) -> str | float:
        """What the cell ``prediction`` holds.

        Args:
            values: Of one record.
            kept: Which letters of the record were read; residue tasks put ``-`` for the others.
        """
        codec = self.codec
        match codec.task:
            case "regression":
                return float(values)
            case "classification":
                return codec.classes[int(values.argmax())]
            case "multilabel":
                named = [name for name, p in zip(codec.classes, values, strict=True) if p > 0.5]
                return codec.separator.join(named)
        assert kept is not None
        if is_regression(codec.task):
            return _joined(values, kept, ".12g" if codec.is_wide else ".6g")
        names = iter(values.argmax(axis=1).tolist())
        per_letter = [codec.classes[next(names)] if keep else "-" for keep in kept.tolist()]
        return ("" if all(len(name) == 1 for name in codec.classes) else ",").join(per_letter)

    @property
    def description(self) -> str:
        """What the numbers are, in one line."""
        return "; ".join(self._sentences())

    def _sentences(self) -> Iterator[str]:
        name = "top_*: the most probable classes; *_prob" if self.top_k else "prob_*"
        match self.codec.task:
            case "regression":
                yield "prediction: value in the target's unit"
            case "classification":
                yield f"prediction: most probable class; {name}: probabilities, {self.calibration}"
            case "multilabel":
                yield "prediction: classes with probability above 0.5"
                yield f"{name}: probabilities, {self.calibration}"
            case "residue_regression":
                yield "prediction: value of each residue in the target's unit"
            case "mlm" if self.extra:
                yield "prediction: most probable letter of each residue"
                yield "those in target were hidden"
            case "mlm":
                yield "prediction: most probable letter of each residue, with none hidden"
            case _:
                yield "prediction: most probable class of each residue"
        if self.names_residues:
            yield f"{RESIDUE_PROBABILITIES}: its probability at each residue, {self.calibration}"
        if self.num_members > 1:
            yield (
                f"mean of {self.num_members} models, of which std is the standard deviation"
                + (", mean over residues" if is_residue(self.codec.task) else "")
                + ("" if self.top_k else " and member* the answers")
            )
        if self.windows is not None:
            joined = "stitched half-way" if is_residue(self.codec.task) else "mean of all"
            size, overlap = self.windows.size, self.windows.overlap
            yield f"longer records in windows of {size}, overlapping by {overlap}, {joined}"
        if self.lengths is not None and self.lengths.description:
            yield self.lengths.description
        if self.with_warnings:
            yield "warning: in what the record is unlike those of the training"
        if self.model:
            yield f"model {self.model}"


def _joined(values: np.ndarray, kept: np.ndarray | None, digits: str) -> str:
    """A number for each letter of the record, ``-`` for those that were not read."""
    assert kept is not None
    numbers = iter(values.tolist())
    return ",".join(f"{next(numbers):{digits}}" if keep else "-" for keep in kept.tolist())
