"""Predictions for a stream of records: constant memory, input order and count kept."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.fasta import Record, Reject
from seqtrain.data.files import shown
from seqtrain.data.labels import LabelCodec, is_residue
from seqtrain.data.lengths import LengthRule
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import ConfigError, DataError
from seqtrain.evaluation.applicability import TrainingRange
from seqtrain.evaluation.chunks import Chunk, letters_read, read_chunks
from seqtrain.evaluation.windows import Range, Windows, read_in_windows
from seqtrain.nn.model import SequenceModel
from seqtrain.training.checkpoint import LoadedRun
from seqtrain.training.device import choose_precision
from seqtrain.training.memory import longest_in_one_pass
from seqtrain.training.objective import Objective
from seqtrain.training.outputs import predict_outputs

_WHOLE = LengthRule()

NOT_FINITE = (
    "the model's output is not finite. Its file is damaged (`seqtrain info --verify` tells of a "
    "bundle), or numbers overflow (trainer.precision=float32)"
)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What is said of one input record."""

    id: str
    length: int
    """Residues read; 0 where none could be."""
    status: str
    """``ok``, or why there is no prediction."""
    values: np.ndarray | None
    """float32, or float64 of a wide codec: probabilities ``(K,)``, one value ``()``, or with
    residues in front of these ``(L, K)`` and ``(L,)``; None unless ok."""
    kept: np.ndarray | None
    """Bool, one per letter of the record: False where it was dropped (gaps, stops). Of residue
    tasks alone."""
    members: tuple[np.ndarray, ...] = ()
    """What each model of an ensemble says; ``values`` is their mean. Empty for a single one."""
    warnings: tuple[str, ...] = ()
    """In what the record is unlike those of the training: ``alphabet``, ``length``,
    ``composition``; and ``truncated`` or ``left out`` where it is too long for the model."""

    @property
    def spread(self) -> np.ndarray | None:
        """Standard deviation over the members (n - 1 below); None for a single model."""
        if not self.members:
            return None
        return np.asarray(np.std(self.members, axis=0, ddof=1, dtype=self.members[0].dtype))


@dataclass(frozen=True, eq=False)
class Predictor:
    """One model, or several that are asked together, and how they are asked."""

    models: Sequence[SequenceModel]
    """In evaluation mode, on the device to compute on; several are an ensemble."""
    tokenizer: Tokenizer
    codec: LabelCodec
    max_tokens: int
    """Padded positions per batch."""
    precision: torch.dtype = torch.float32
    """Of matrix products."""
    on_error: str = "fail"
    """``fail`` raises at the first chunk that holds a bad record, and at an output that is not
    finite; ``skip`` says in its ``status`` what is wrong."""
    windows: Windows | None = None
    """How long records are cut; None reads each in one piece."""
    trained_on: TrainingRange | None = None
    """What records are held against for ``Prediction.warnings``; None: there are no warnings."""
    lengths: LengthRule = _WHOLE
    """The rule for over-long records where there are no windows."""

    @classmethod
    def of(
        cls,
        members: Sequence[LoadedRun],
        device: torch.device,
        *,
        max_tokens: int | None = None,
        on_error: str = "fail",
        windows: Windows | None = None,
        overlong: str | None = None,
    ) -> "Predictor":
        """Trained models on a device; ``max_tokens`` and ``overlong`` as in training if not given.

        Raises:
            ConfigError: ``overlong`` is not known, or does not apply.
        """
        first = members[0]
        budget = max_tokens or first.config.batching.max_tokens
        assert budget is not None, "the budget is chosen before training"
        wanted = {choose_precision(each.config.trainer.precision, device) for each in members}
        return cls(
            [each.model.to(device) for each in members],
            first.tokenizer,
            first.codec,
            budget,
            wanted.pop() if len(wanted) == 1 else torch.float32,
            on_error,
            windows,
            TrainingRange.from_report(first.data),
            length_rule(first, overlong, windows, device),
        )

    def __call__(self, entries: Iterator[Record | Reject]) -> Iterator[Prediction]:
        """One prediction per entry, in order, in constant memory.

        Args:
            entries: From ``scan_fasta``.

        Raises:
            FastaError: a record cannot be used and ``on_error`` is ``fail``.
            DataError: an output is not finite, likewise.
        """
        for chunk in read_chunks(entries, self.tokenizer, self.on_error, self.lengths):
            yield from self._chunk(chunk)

    def _chunk(self, chunk: Chunk) -> Iterator[Prediction]:
        tokens = chunk.tokens
        said = [self._values(model, tokens) for model in self.models]
        warnings = self.trained_on.warnings(tokens, self.tokenizer) if self.trained_on else None
        by_letter = is_residue(self.codec.task)
        number = 0
        for entry, warned in zip(chunk.read, chunk.warnings, strict=True):
            if isinstance(entry, Reject):
                yield Prediction(entry.id, 0, entry.reason, None, None, warnings=warned)
                continue
            members = tuple(values[number] for values in said)
            length = len(tokens[number])
            if not all(np.isfinite(values).all() for values in members):
                yield Prediction(entry.id, length, self._refuse(entry), None, None)
                number += 1
                continue
            yield Prediction(
                entry.id,
                length,
                "ok",
                members[0] if len(members) == 1 else _mean(members),
                letters_read(self.tokenizer, entry.sequence, length) if by_letter else None,
                members if len(members) > 1 else (),
                (*(warnings[number] if warnings else ()), *warned),
            )
            number += 1

    def _refuse(self, record: Record) -> str:
        """What is wrong where an output is not finite."""
        if self.on_error == "fail":
            raise DataError(f"{shown(record.source)}, record {record.id!r}: {NOT_FINITE}")
        return NOT_FINITE

    def _values(self, model: SequenceModel, tokens: list[np.ndarray]) -> list[np.ndarray]:
        """What one model says of each record."""
        return record_values(
            model, self.codec.task, tokens, self.windows, self.max_tokens, self.precision
        )


def record_values(
    model: SequenceModel,
    task: str,
    tokens: Sequence[np.ndarray],
    windows: Windows | None,
    max_tokens: int,
    precision: torch.dtype = torch.float32,
) -> list[np.ndarray]:
    """The readout of each record, as in ``Prediction.values``.

    Args:
        model: In evaluation mode.
        task: What is predicted.
        tokens: Of each record.
        windows: How long records are cut; None: each is one piece.
        max_tokens: Padded positions per batch.
        precision: Of matrix products.
    """
    if not tokens:
        return []
    read = partial(_read_pieces, model, task, max_tokens, precision)
    if windows is None:
        return read(list(tokens))
    joined = [_Joined(len(record) if is_residue(task) else None) for record in tokens]
    read_in_windows(tokens, windows, read, lambda number, *said: joined[number].take(*said))
    return [record.values() for record in joined]


def _read_pieces(
    model: SequenceModel,
    task: str,
    max_tokens: int,
    precision: torch.dtype,
    pieces: list[np.ndarray],
) -> list[np.ndarray]:
    dataset = SequenceDataset.from_lists([""] * len(pieces), pieces)
    values = predict_outputs(
        model, dataset, Objective(task), max_tokens=max_tokens, precision=precision
    ).values
    if not is_residue(task):
        return [np.asarray(each) for each in values]
    return [values[begin:end] for begin, end in pairwise(dataset.offsets.tolist())]


class _Joined:
    """One result of a record's windows: stitched residues, or the mean of what all say.

    Args:
        length: Of the record where each residue has a result; None where the record has one.
    """

    def __init__(self, length: int | None):
        self._length, self._count = length, 0
        self._values: np.ndarray | None = None
        self._dtype: np.dtype[Any] = np.dtype(np.float32)

    def take(self, part: Range, values: np.ndarray) -> None:
        """The results of one window."""
        self._count += 1
        self._dtype = values.dtype
        if self._length is not None:
            if self._values is None:
                self._values = np.empty((self._length, *values.shape[1:]), values.dtype)
            self._values[part.begin : part.end] = values[part.within]
        elif self._values is None:
            self._values = values.astype(np.float64)
        else:
            self._values += values

    def values(self) -> np.ndarray:
        """The result, in the dtype of what was said."""
        assert self._values is not None, "a record has a window"
        if self._length is not None:
            return self._values
        return np.asarray(self._values / self._count, self._dtype)


def length_rule(
    loaded: LoadedRun,
    overlong: str | None,
    windows: Windows | None,
    device: torch.device | None = None,
) -> LengthRule:
    """The rule for over-long records: as in training unless the user says otherwise.

    Windows read long records in pieces, so that none is too long. Without them, a record has to
    fit into the memory of the device.

    Raises:
        ConfigError: ``overlong`` is not known, or does not apply.
    """
    data = loaded.config.data
    if windows is not None and overlong is not None:
        raise ConfigError(
            f"--overlong {overlong}: --window {windows.size} reads long records in windows. Leave "
            "one of the two out."
        )
    if windows is not None:
        return LengthRule()
    outputs = loaded.codec.num_outputs if is_residue(loaded.codec.task) else 0
    room = longest_in_one_pass(loaded.config.encoder, outputs, device)
    if overlong is None:
        return replace(LengthRule.of_training(data.max_length, data.overlong), room=room)
    return LengthRule(data.max_length, overlong, room)


def _mean(members: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(np.mean(members, axis=0, dtype=members[0].dtype))


def check_ensemble(members: Mapping[str, LoadedRun]) -> None:
    """Refuse models that do not answer the same question, by the names they were given.

    Raises:
        ConfigError: Says in what they differ.
    """
    asked = {
        name: {
            "task": run.codec.task,
            "classes": run.codec.classes,
            "alphabet": run.tokenizer.to_dict(),
        }
        for name, run in members.items()
    }
    first, *others = asked
    for other in others:
        for what, value in asked[first].items():
            if asked[other][what] != value:
                raise ConfigError(
                    f"{other}: cannot answer together with {first}: expected the {what} {value}, "
                    f"found {asked[other][what]}."
                )


def fingerprint(members: Sequence[LoadedRun]) -> str:
    """Twelve hexadecimal digits of SHA-256 over all weights and temperatures."""
    digest = hashlib.sha256()
    for run in members:
        for name, tensor in sorted(run.model.state_dict().items()):
            array = tensor.detach().cpu().contiguous().numpy()
            digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
            digest.update(array.tobytes())
        digest.update(repr(run.calibration and run.calibration.temperature).encode())
    return digest.hexdigest()[:12]
