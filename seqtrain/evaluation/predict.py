"""Predictions for a stream of records: constant memory, input order and count kept."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.fasta import Record, Reject, reject_message
from seqtrain.data.files import shown
from seqtrain.data.labels import LabelCodec, is_residue
from seqtrain.data.tokenized import letter_counts, looks_like
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import ConfigError, DataError, FastaError
from seqtrain.evaluation.applicability import TrainingRange
from seqtrain.evaluation.windows import Windows
from seqtrain.nn.model import SequenceModel
from seqtrain.training.checkpoint import LoadedRun
from seqtrain.training.device import choose_precision
from seqtrain.training.objective import Objective
from seqtrain.training.outputs import predict_outputs

CHUNK_RECORDS = 4096
CHUNK_RESIDUES = 4_000_000

# What one of several processes gets at a time: enough to fill batches, little enough to share well.
SHARED_RECORDS = 1024
SHARED_RESIDUES = 500_000

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
    """float32: probabilities ``(K,)``, one value ``()``, or with residues in front
    of these ``(L, K)`` and ``(L,)``; None unless ok."""
    kept: np.ndarray | None
    """Bool, one per letter of the record: False where it was dropped (gaps, stops). Of residue
    tasks alone."""
    members: tuple[np.ndarray, ...] = ()
    """What each model of an ensemble says; ``values`` is their mean. Empty for a single one."""
    warnings: tuple[str, ...] = ()
    """In what the record is unlike those of the training: ``alphabet``, ``length``,
    ``composition``."""

    @property
    def spread(self) -> np.ndarray | None:
        """Standard deviation over the members (n - 1 below), float32; None for a single model."""
        if not self.members:
            return None
        return np.asarray(np.std(self.members, axis=0, ddof=1, dtype=np.float32))


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

    @classmethod
    def of(
        cls,
        members: Sequence[LoadedRun],
        device: torch.device,
        *,
        max_tokens: int | None = None,
        on_error: str = "fail",
        windows: Windows | None = None,
    ) -> "Predictor":
        """Trained models on a device; ``max_tokens`` as in training when not given."""
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
        )

    def __call__(self, entries: Iterator[Record | Reject]) -> Iterator[Prediction]:
        """One prediction per entry, in order, in constant memory.

        Args:
            entries: From ``scan_fasta``.

        Raises:
            FastaError: a record cannot be used and ``on_error`` is ``fail``.
            DataError: an output is not finite, likewise.
        """
        for read, tokens in read_chunks(entries, self.tokenizer, self.on_error):
            yield from self._chunk(read, tokens)

    def _chunk(self, read: list[Record | Reject], tokens: list[np.ndarray]) -> Iterator[Prediction]:
        said = [self._values(model, tokens) for model in self.models]
        warnings = self.trained_on.warnings(tokens, self.tokenizer) if self.trained_on else None
        by_letter = is_residue(self.codec.task)
        number = 0
        for entry in read:
            if isinstance(entry, Reject):
                yield Prediction(entry.id, 0, entry.reason, None, None)
                continue
            members = tuple(values[number] for values in said)
            if not all(np.isfinite(values).all() for values in members):
                yield Prediction(entry.id, len(tokens[number]), self._refuse(entry), None, None)
                number += 1
                continue
            yield Prediction(
                entry.id,
                len(tokens[number]),
                "ok",
                members[0] if len(members) == 1 else _mean(members),
                self.tokenizer.keep(entry.sequence) if by_letter else None,
                members if len(members) > 1 else (),
                warnings[number] if warnings else (),
            )
            number += 1

    def _refuse(self, record: Record) -> str:
        """What is wrong where an output is not finite."""
        if self.on_error == "fail":
            raise DataError(f"{shown(record.source)}, record {record.id!r}: {NOT_FINITE}")
        return NOT_FINITE

    def _values(self, model: SequenceModel, tokens: list[np.ndarray]) -> list[np.ndarray]:
        """What one model says of each record."""
        if not tokens:
            return []
        pieces = tokens
        counts = [1] * len(tokens)
        if self.windows is not None:
            counts = [len(self.windows.starts(len(record))) for record in tokens]
            pieces = [piece for record in tokens for piece in self.windows.cut(record)]
        dataset = SequenceDataset.from_lists([""] * len(pieces), pieces)
        values = predict_outputs(
            model,
            dataset,
            Objective(self.codec.task),
            max_tokens=self.max_tokens,
            precision=self.precision,
        ).values
        whole = np.arange(len(pieces) + 1)
        bounds = dataset.offsets if is_residue(self.codec.task) else whole
        ends = np.cumsum([0, *counts])
        return [
            self._join([values[bounds[i] : bounds[i + 1]] for i in range(begin, end)], len(record))
            for begin, end, record in zip(ends[:-1], ends[1:], tokens, strict=True)
        ]

    def _join(self, parts: list[np.ndarray], length: int) -> np.ndarray:
        """One result of a record's windows, which are all equally long."""
        if is_residue(self.codec.task):
            assert self.windows is not None or len(parts) == 1
            return self.windows.stitch(parts, length) if self.windows else parts[0]
        if len(parts) == 1:
            return np.asarray(parts[0][0])
        return np.asarray(np.concatenate(parts).mean(axis=0, dtype=np.float32))


def _mean(members: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(np.mean(members, axis=0, dtype=np.float32))


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


def read_chunks(
    entries: Iterator[Record | Reject],
    tokenizer: Tokenizer,
    on_error: str,
    most_residues: int | None = None,
) -> Iterator[tuple[list[Record | Reject], list[np.ndarray]]]:
    """Entries a few at a time, and the tokens of those among them that are still records.

    Args:
        entries: From ``scan_fasta``.
        tokenizer: Records that it refuses become rejects.
        on_error: ``fail`` or ``skip``.
        most_residues: In a chunk; ``CHUNK_RESIDUES`` if not given.

    Raises:
        FastaError: a chunk holds a reject and ``on_error`` is ``fail``.
    """
    for chunk in in_chunks(entries, CHUNK_RECORDS, most_residues or CHUNK_RESIDUES):
        tokens: list[np.ndarray] = []
        rejects: list[Reject] = []
        read: list[Record | Reject] = []
        for entry in chunk:
            if isinstance(entry, Record):
                try:
                    tokens.append(tokenizer.encode(entry.sequence))
                except DataError as error:
                    reason = str(error)
                    entry = Reject(entry.id, reason, entry.source, entry.line, entry.index)
            if isinstance(entry, Reject):
                rejects.append(entry)
            read.append(entry)
        if rejects and on_error == "fail":
            raise FastaError(
                reject_message(rejects)
                + _alphabet_hint(chunk, tokenizer)
                + " Or use --on-error skip to go on without them."
            )
        yield read, tokens


def _alphabet_hint(chunk: list[Record | Reject], tokenizer: Tokenizer) -> str:
    records = [entry for entry in chunk if isinstance(entry, Record)]
    looks, name = looks_like(letter_counts(records)), tokenizer.alphabet.name
    is_other = records and "protein" in (looks, name) and looks != name
    return f" The sequences look like {looks}; the model reads {name}." if is_other else ""


def in_chunks(
    entries: Iterator[Record | Reject], most_records: int, most_residues: int
) -> Iterator[list[Record | Reject]]:
    """Lists of entries, bounded in records and in residues."""
    chunk: list[Record | Reject] = []
    residues = 0
    for entry in entries:
        chunk.append(entry)
        residues += len(entry.sequence) if isinstance(entry, Record) else 0
        if len(chunk) >= most_records or residues >= most_residues:
            yield chunk
            chunk, residues = [], 0
    if chunk:
        yield chunk
