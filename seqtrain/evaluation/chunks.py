"""Entries of the input a few at a time, with the tokens of those that can be read."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from seqtrain.data.fasta import Record, Reject, reject, reject_message
from seqtrain.data.lengths import LEFT_OUT, TRUNCATED, LengthRule
from seqtrain.data.tokenized import letter_counts, looks_like
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import DataError, FastaError

CHUNK_RECORDS = 4096
CHUNK_RESIDUES = 4_000_000

# What one of several processes gets at a time: enough to fill batches, little enough to share well.
SHARED_RECORDS = 1024
SHARED_RESIDUES = 500_000


class Chunk(NamedTuple):
    """Some entries of the input."""

    read: list[Record | Reject]
    tokens: list[np.ndarray]
    """Of those among them that are still records."""
    warnings: list[tuple[str, ...]]
    """Of each entry: whether it was cut or left out for its length."""


def read_chunks(
    entries: Iterator[Record | Reject],
    tokenizer: Tokenizer,
    on_error: str,
    lengths: LengthRule,
    most_residues: int | None = None,
) -> Iterator[Chunk]:
    """Entries a few at a time, with the tokens of the records among them.

    Args:
        entries: From ``scan_fasta``.
        tokenizer: Records that it refuses become rejects.
        on_error: ``fail`` or ``skip``.
        lengths: How over-long records are read.
        most_residues: In a chunk; ``CHUNK_RESIDUES`` if not given.

    Raises:
        FastaError: a chunk holds a bad record and ``on_error`` is ``fail``.
    """
    for some in in_chunks(entries, CHUNK_RECORDS, most_residues or CHUNK_RESIDUES):
        chunk, bad = Chunk([], [], []), []
        for entry in some:
            known, tokens, warned = _read(entry, tokenizer, lengths)
            if isinstance(known, Reject) and LEFT_OUT not in warned:
                bad.append(known)
            chunk.read.append(known)
            chunk.tokens.extend(tokens)
            chunk.warnings.append(warned)
        if bad and on_error == "fail":
            raise FastaError(
                reject_message(bad)
                + _alphabet_hint(some, tokenizer)
                + " Or use --on-error skip to continue without them."
            )
        yield chunk


def _read(
    entry: Record | Reject, tokenizer: Tokenizer, lengths: LengthRule
) -> tuple[Record | Reject, list[np.ndarray], tuple[str, ...]]:
    """The entry, a reject if it cannot be read; its tokens; its warnings."""
    if isinstance(entry, Reject):
        return entry, [], ()
    try:
        tokens = tokenizer.encode(entry.sequence)
    except DataError as error:
        return reject(entry, str(error)), [], ()
    reason = lengths.why_not(len(tokens))
    if reason is not None:
        return reject(entry, reason), [], (LEFT_OUT,) if lengths.overlong == "skip" else ()
    warned: tuple[str, ...] = ()
    if lengths.truncates(len(tokens)):
        tokens, warned = tokens[: lengths.bound], (TRUNCATED,)
    if reason := lengths.no_room(len(tokens)):
        return reject(entry, reason), [], ()
    return entry, [tokens], warned


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


def letters_read(tokenizer: Tokenizer, sequence: str, length: int) -> np.ndarray:
    """Bool, one per letter: whether it is among the first ``length`` that have a token."""
    keep = tokenizer.keep(sequence)
    if length < np.count_nonzero(keep):
        keep = keep & (np.cumsum(keep) <= length)
    return keep
