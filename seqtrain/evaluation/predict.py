"""Predictions for a stream of records: constant memory, input order and count kept."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from seqtrain.data.fasta import Record, Reject, reject_message
from seqtrain.data.labels import LabelCodec
from seqtrain.data.store import SequenceDataset
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import DataError, FastaError
from seqtrain.nn.model import SequenceModel
from seqtrain.training.objective import Objective
from seqtrain.training.outputs import predict_outputs

CHUNK_RECORDS = 4096
CHUNK_RESIDUES = 4_000_000


@dataclass(frozen=True, eq=False)
class Prediction:
    """What is said of one input record."""

    id: str
    length: int
    """Residues read; 0 where none could be."""
    status: str
    """``ok``, or why there is no prediction."""
    values: np.ndarray | None
    """float32: probabilities ``(K,)``, one value ``()``, or ``(L, K)``; None unless ok."""
    kept: np.ndarray | None
    """Bool, one per letter of the record: False where it was dropped (gaps, stops)."""


def predict_records(
    model: SequenceModel,
    tokenizer: Tokenizer,
    codec: LabelCodec,
    entries: Iterator[Record | Reject],
    *,
    max_tokens: int,
    precision: torch.dtype = torch.float32,
    on_error: str = "fail",
) -> Iterator[Prediction]:
    """One prediction per entry, in order.

    Args:
        model: On the device to compute on.
        tokenizer: Of the training.
        codec: Of the training.
        entries: From ``scan_fasta``.
        max_tokens: Padded positions per batch.
        precision: Of matrix products.
        on_error: ``fail`` raises at the first chunk that holds a bad record; ``skip`` says in its
            ``status`` what is wrong with it.

    Raises:
        FastaError: a record cannot be used and ``on_error`` is ``fail``.
    """
    for read, tokens in read_chunks(entries, tokenizer, on_error):
        yield from _predict_chunk(
            model, tokenizer, codec, read, tokens, max_tokens=max_tokens, precision=precision
        )


def read_chunks(
    entries: Iterator[Record | Reject], tokenizer: Tokenizer, on_error: str
) -> Iterator[tuple[list[Record | Reject], list[np.ndarray]]]:
    """Entries a few at a time, and the tokens of those among them that are still records.

    Args:
        entries: From ``scan_fasta``.
        tokenizer: Records that it refuses become rejects.
        on_error: ``fail`` or ``skip``.

    Raises:
        FastaError: a chunk holds a reject and ``on_error`` is ``fail``.
    """
    for chunk in _chunks(entries):
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
                reject_message(rejects) + " Or use --on-error skip to go on without them."
            )
        yield read, tokens


def _predict_chunk(
    model: SequenceModel,
    tokenizer: Tokenizer,
    codec: LabelCodec,
    read: list[Record | Reject],
    tokens: list[np.ndarray],
    *,
    max_tokens: int,
    precision: torch.dtype,
) -> Iterator[Prediction]:
    values = np.empty(0)
    is_residue = codec.task.startswith("residue")
    ids = [entry.id for entry in read if isinstance(entry, Record)]
    dataset = SequenceDataset.from_lists(ids, tokens)
    if tokens:
        values = predict_outputs(
            model, dataset, Objective(codec.task), max_tokens=max_tokens, precision=precision
        ).values
    number = 0
    for entry in read:
        if isinstance(entry, Reject):
            yield Prediction(entry.id, 0, entry.reason, None, None)
            continue
        begin, end = dataset.offsets[number], dataset.offsets[number + 1]
        of_record = values[begin:end] if is_residue else np.asarray(values[number])
        kept = tokenizer.keep(entry.sequence)
        yield Prediction(entry.id, int(end - begin), "ok", of_record, kept)
        number += 1


def _chunks(entries: Iterator[Record | Reject]) -> Iterator[list[Record | Reject]]:
    """Lists of entries, bounded in records and in residues."""
    chunk: list[Record | Reject] = []
    residues = 0
    for entry in entries:
        chunk.append(entry)
        residues += len(entry.sequence) if isinstance(entry, Record) else 0
        if len(chunk) >= CHUNK_RECORDS or residues >= CHUNK_RESIDUES:
            yield chunk
            chunk, residues = [], 0
    if chunk:
        yield chunk
