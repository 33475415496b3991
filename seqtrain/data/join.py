"""Records joined with their tokens and labels; whatever does not fit is told all at once."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from seqtrain.data.alphabet import PROTEIN, detect_alphabet
from seqtrain.data.dataset import GATHERED, SequenceDataset
from seqtrain.data.fasta import Record, Reject, reject_message, scan_fasta
from seqtrain.data.files import shown
from seqtrain.data.label_table import LabelTable, header_labels, read_labels
from seqtrain.data.labels import LabelCodec, is_regression, is_residue, read_number, read_numbers
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import ConfigError, DataError, FastaError, LabelError

OVERLONG = ("error", "truncate", "skip")


class Tokenized(NamedTuple):
    """Records in input order, each with the token ids of its letters."""

    records: list[Record]
    tokens: list[np.ndarray]
    skipped: list[Reject]
    """Over-long records that were left out, as asked for."""
    truncated: list[Record]
    """Over-long records that lost their end, as asked for."""


def letter_counts(records: Sequence[Record]) -> dict[str, int]:
    """How often each letter or symbol occurs in all sequences together."""
    counts = np.zeros(128, np.int64)
    for first in range(0, len(records), GATHERED):
        text = "".join(record.sequence for record in records[first : first + GATHERED])
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
        counts += np.bincount(codes, minlength=len(counts))
    return {chr(code): int(counts[code]) for code in np.flatnonzero(counts)}


def looks_like(records: Sequence[Record]) -> str:
    """Name of the alphabet that the letters of all records tell; protein without any letter."""
    letters = letter_counts(records)
    return detect_alphabet(letters).name if any(map(str.isalpha, letters)) else PROTEIN.name


def read_records(paths: Sequence[str]) -> tuple[list[Record], list[Reject]]:
    """Records that can be used and those that cannot, for ``tokenize`` to tell together."""
    records: list[Record] = []
    rejects: list[Reject] = []
    for item in scan_fasta(paths):
        if isinstance(item, Record):
            records.append(item)
        else:
            rejects.append(item)
    return records, rejects


def tokenize(
    records: Sequence[Record],
    rejects: Sequence[Reject],
    tokenizer: Tokenizer,
    *,
    max_length: int | None = None,
    overlong: str = "error",
) -> Tokenized:
    """Token ids of all records.

    Args:
        records: Records to tokenize.
        rejects: Records already found to be unusable, told with the others.
        tokenizer: What each letter becomes.
        max_length: Longest sequence in tokens; none: no limit.
        overlong: What happens to longer ones: ``error``, ``truncate`` or ``skip``.

    Raises:
        FastaError: Some records cannot be used (all are collected), or none is left.
        ConfigError: ``overlong`` is something else.
    """
    if overlong not in OVERLONG:
        expected = ", ".join(OVERLONG)
        raise ConfigError(f"data.overlong: expected one of {expected}, found {overlong!r}.")
    out = Tokenized([], [], [], [])
    bad = list(rejects)
    for record in records:
        try:
            tokens = tokenizer.encode(record.sequence)
        except DataError as error:
            bad.append(_reject(record, str(error)))
            continue
        if max_length is not None and len(tokens) > max_length:
            reason = f"{len(tokens)} residues are more than data.max_length={max_length}"
            if overlong == "error":
                fix = "raise it, or set data.overlong to truncate or skip"
                bad.append(_reject(record, f"{reason}; {fix}"))
                continue
            if overlong == "skip":
                out.skipped.append(_reject(record, reason))
                continue
            out.truncated.append(record)
            tokens = tokens[:max_length]
        out.records.append(record)
        out.tokens.append(tokens)
    if bad:
        raise FastaError(reject_message(bad) + _alphabet_hint(records, tokenizer))
    if not out.records:
        raise FastaError(f"{reject_message(out.skipped)}\nNo record is left.")
    return out


def _alphabet_hint(records: Sequence[Record], tokenizer: Tokenizer) -> str:
    looks, name = looks_like(records), tokenizer.alphabet.name
    if not records or "protein" not in (looks, name) or looks == name:
        return ""
    return f"\nThe sequences look like {looks}, but are read as {name} (tokenizer.alphabet)."


def _reject(record: Record, reason: str) -> Reject:
    return Reject(record.id, reason, record.source, record.line, record.index)


def join_labels(
    records: Sequence[Record],
    labels: Sequence[str],
    *,
    id_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
) -> LabelTable:
    """The labels of these records, every one of which has one; others may be in the table too.

    Args:
        records: All records.
        labels: Label files; none: labels are read from the headers of the records.
        id_column: Column of ids; none: found by name.
        label_column: Column, or header key, of labels; none: found by name.
        split_column: Column, or header key, of splits; none: found by name.

    Raises:
        LabelError: A file cannot be used, or records have no label: all are collected.
    """
    if labels:
        table = read_labels(
            labels, id_column=id_column, label_column=label_column, split_column=split_column
        )
    else:
        table = header_labels(records, label_column or "label", split_column or "split")
    missing = [record for record in records if record.id not in table.values]
    if len(missing) == len(records):
        raise LabelError(_nothing_matches(records, table, labels))
    if missing:
        reason = f"has no label in {label_source(table)}; add it or remove the record"
        message = reject_message([_reject(record, reason) for record in missing])
        if table.columns.id in {record.id for record in missing}:
            message += "\nThe first line of a label table is its header; add one with the names."
        raise LabelError(message)
    return table


def _nothing_matches(records: Sequence[Record], table: LabelTable, labels: Sequence[str]) -> str:
    if not labels:
        return (
            f"{shown(records[0].source)}: no labels. Give a table with --labels, or write "
            f"{table.columns.label}=... into the headers; or learn the sequences themselves with "
            "task=mlm, which needs none."
        )
    wanted = ", ".join(repr(record.id) for record in records[:3])
    found = ", ".join(map(repr, list(table.values)[:3]))
    return (
        f"{label_source(table)}: no id is that of a record. The records are called {wanted}; the "
        f"labels are for {found}. Choose the id column with --id-column, or make the ids alike."
    )


def refuse_labels(hint: str = "", **given: object) -> None:
    """Refuse what says where labels are or how they are read, for a task that has none.

    Args:
        hint: What else the message says.
        given: Settings of ``data``, by name.

    Raises:
        ConfigError: One of them is not empty.
    """
    for name, value in given.items():
        if value:
            text = ", ".join(map(shown, value)) if isinstance(value, list | tuple) else value
            raise ConfigError(
                f"data.{name}={text}: the task mlm takes no labels. Leave it out.{hint}"
            )


def label_source(table: LabelTable) -> str:
    """Where labels came from, in words."""
    if not table.columns.label:
        return "the residues themselves"
    return _source(table, table.columns.label)


def split_source(table: LabelTable) -> str:
    """Where splits came from, in words."""
    return _source(table, table.columns.split)


def _source(table: LabelTable, key: str) -> str:
    if table.kind == "header":
        return f"the headers ({key}=...)"
    files = ", ".join(map(shown, dict.fromkeys(table.sources.values())))
    return files if table.kind == "fasta" else f"{files}, column {key!r}"


def check_labels(records: Iterable[Record], table: LabelTable, task: str) -> None:
    """Raise ``LabelError`` when labels are not of the kind that the task needs."""
    if table.kind == "fasta" and task != "residue_classification":
        raise LabelError(
            f"{label_source(table)}: holds one letter per residue, but {task} needs one label per "
            "record. Give a table with --labels, or set task to residue_classification."
        )
    if not is_regression(task):
        return
    bad = [
        _reject(record, f"{_where(record, table)}: {wrong}")
        for record in records
        if (wrong := _no_number(table.values[record.id], task))
    ]
    if bad:
        raise LabelError(reject_message(bad))


def _no_number(value: str, task: str) -> str | None:
    """What keeps a label from being a number, or a list of them."""
    if not is_residue(task):
        return f"expected a number, found {value!r}" if read_number(value) is None else None
    try:
        read_numbers(value)
    except LabelError as error:
        return str(error)
    return None


def _where(record: Record, table: LabelTable) -> str:
    return f"label on line {table.lines[record.id]} of {shown(table.sources[record.id])}"


def to_dataset(
    data: Tokenized,
    table: LabelTable,
    codec: LabelCodec,
    tokenizer: Tokenizer,
) -> SequenceDataset:
    """The records with their targets; none for mlm, where each residue is its own.

    Raises:
        LabelError: Labels are not among the classes, or of another length than the sequence: all
            are collected.
    """
    ids = [record.id for record in data.records]
    if codec.task == "mlm":
        return SequenceDataset.from_lists(ids, data.tokens)
    per_residue = is_residue(codec.task)
    targets: list[Any] = []
    bad: list[Reject] = []
    for record, tokens in zip(data.records, data.tokens, strict=True):
        value = table.values[record.id]
        try:
            if per_residue:
                targets.append(_residue_targets(record, value, codec, tokenizer)[: len(tokens)])
            else:
                targets.append(codec.encode(value))
        except LabelError as error:
            bad.append(_reject(record, f"{_where(record, table)}: {error}"))
    if bad:
        raise LabelError(reject_message(bad))
    return SequenceDataset.from_lists(ids, data.tokens, targets, per_residue=per_residue)


def _residue_targets(
    record: Record, labels: str, codec: LabelCodec, tokenizer: Tokenizer
) -> Int64[np.ndarray, " L"] | Float32[np.ndarray, " L"]:
    """Targets of the letters that get a token; labels may leave out dropped gaps and stops."""
    keep = tokenizer.keep(record.sequence)
    targets = codec.encode(labels)
    assert isinstance(targets, np.ndarray)
    if len(targets) not in (len(keep), keep.sum()):
        raise LabelError(f"{len(targets)} residue labels for {len(keep)} residues")
    return targets[keep] if len(targets) == len(keep) else targets
