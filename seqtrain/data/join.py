"""Records joined with their labels; whatever does not fit is told all at once."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from seqtrain.data.attributes import MASK, Attribute
from seqtrain.data.cells import missing_marks
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.fasta import Header, Record, Reject, reject, reject_message
from seqtrain.data.files import shown
from seqtrain.data.id_matching import MAX_SHOWN, listed, match_ids
from seqtrain.data.label_table import LabelTable, header_labels, read_labels
from seqtrain.data.labels import LabelCodec, is_regression, is_residue
from seqtrain.data.tokenized import Tokenized
from seqtrain.errors import ConfigError, LabelError


def join_labels(
    records: Sequence[Header] | Sequence[Record],
    labels: Sequence[str],
    *,
    id_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    names: Collection[str] = (),
    on_error: str = "fail",
    otherwise: str = "",
) -> LabelTable:
    """The labels of these records, every one of which has one; others may be in the table too.

    Args:
        records: All records.
        labels: Label files; none: labels are read from the headers of the records.
        id_column: Column of ids; none: found by name.
        label_column: Column, or header key, of labels; none: found by name.
        split_column: Column of splits; none: found by name. Headers are read elsewhere.
        names: Marks of missing values that are names here.
        on_error: ``fail``, or ``skip`` where the caller leaves out the records without a label.
        otherwise: Another way out, told where no record has a label.

    Raises:
        LabelError: A file cannot be used, or records have no label: all are collected.
    """
    if labels:
        table = read_labels(
            labels, id_column=id_column, label_column=label_column, split_column=split_column
        )
        match = match_ids([r.id for r in records], table.values, label_source(table))
        if match.names:
            table.rename({name: record for record, name in match.names.items()})
            table.notes += match.notes
        if any(MASK.value(record.description) for record in records):
            table.notes.append(
                "MASK=... in the headers of the sequences is not read; it belongs into the headers "
                "of the labels FASTA"
            )
        table.notes += _left_in_headers(records, table)
    else:
        table = header_labels(records, label_column)
    missing = find_unlabelled(records, table, names)
    if not any(record.id in table.values for record in records):
        raise LabelError(_nothing_matches(records, table, labels, otherwise))
    if missing and on_error == "fail":
        fix = "Add the labels, or leave these records out with --on-error skip."
        if table.columns.id in {each.id for each in missing}:
            fix = "The first line of a label table is its header; add one with the names."
        raise LabelError(f"{reject_message(missing)}\n{fix}")
    return table


def _left_in_headers(records: Sequence[Header] | Sequence[Record], table: LabelTable) -> list[str]:
    """A warning of labels in the headers that are others than those of the table."""
    label = Attribute(["label", "target"])
    others = [
        record.id
        for record in records
        if (found := label.values(record.description))
        and record.id in table.values
        and table.values[record.id] not in found
    ]
    if not others:
        return []
    return [
        f"{len(others):,} records, such as {others[0]!r}, have another label in their headers, "
        f"which is not read: the labels are those of {label_source(table)}"
    ]


def find_unlabelled(
    records: Iterable[Header | Record], table: LabelTable, names: Collection[str] = ()
) -> list[Reject]:
    """Records without a label, or with a mark of a missing value such as ``NA``, with the reason.

    Args:
        records: All records.
        table: Their labels.
        names: Marks of missing values that are names here.
    """
    marks = (
        frozenset([""]) if table.kind == "fasta" else missing_marks(table.values.values(), names)
    )
    found = []
    for record in records:
        value = table.values.get(record.id)
        if value is None:
            found.append(reject(record, f"has no label in {label_source(table)}"))
        elif value in marks:
            mark = f": {value!r} is a missing value" if value else " is missing"
            found.append(reject(record, f"{_where(record, table)}{mark}"))
    return found


def _nothing_matches(
    records: Sequence[Header] | Sequence[Record],
    table: LabelTable,
    labels: Sequence[str],
    otherwise: str,
) -> str:
    if not labels:
        return (
            f"{shown(records[0].source)}: no labels. Give a table with --labels, or write "
            f"{table.columns.label}=... into the headers{otherwise}."
        )
    wanted = listed([record.id for record in records[: MAX_SHOWN + 1]])
    return (
        f"{label_source(table)}: none of its ids matches a record. The records are called "
        f"{wanted}; the labels are for {listed(list(table.values))}. Choose the id column with "
        "--id-column, or make the ids alike."
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
    """Sources of labels, in words."""
    files, key = ", ".join(map(shown, table.files)), table.columns.label
    if table.kind == "fasta":
        return files
    if not key:
        return "the residues themselves"
    return f"the headers ({key}=...)" if table.kind == "header" else f"{files}, column {key!r}"


def check_labels(records: Iterable[Header | Record], table: LabelTable, task: str) -> None:
    """Raise ``LabelError`` when labels are not of the kind that the task needs."""
    if table.kind == "fasta" and task != "residue_classification":
        raise LabelError(
            f"{label_source(table)}: holds one letter per residue, but {task} needs one label per "
            "record. Give a table with --labels, or set task to residue_classification."
        )
    if not is_regression(task):
        return
    bad = [
        reject(record, f"{_where(record, table)}: {wrong}")
        for record in records
        if (wrong := _no_number(table.values[record.id], task))
    ]
    if bad:
        raise LabelError(reject_message(bad))


def _no_number(value: str, task: str) -> str | None:
    """What keeps a label from being a number, or a list of them."""
    try:
        LabelCodec(task).encode(value)
    except LabelError as error:
        return str(error)
    return None


def _where(record: Header | Record, table: LabelTable) -> str:
    file, line = table.place(record.id)
    return f"label on line {line} of {shown(file)}" if line else f"label in {shown(file)}"


def to_datasets(
    pieces: Sequence[Tokenized], table: LabelTable, codec: LabelCodec
) -> list[SequenceDataset]:
    """The records with their targets; none for mlm, where each residue is its own.

    Raises:
        LabelError: Labels are not among the classes, or of another length than the sequence: all
            are collected.
    """
    if codec.task == "mlm":
        return [piece.sequences for piece in pieces]
    bad: list[Reject] = []
    targets = [_targets(piece, table, codec, bad) for piece in pieces]
    if bad:
        raise LabelError(reject_message(bad))
    per_residue = is_residue(codec.task)
    return [
        piece.sequences.labelled(own, per_residue=per_residue)
        for piece, own in zip(pieces, targets, strict=True)
    ]


def _targets(data: Tokenized, table: LabelTable, codec: LabelCodec, bad: list[Reject]) -> list[Any]:
    """Those of all records but the bad ones, which are added to the list."""
    per_residue = is_residue(codec.task)
    targets: list[Any] = []
    for i, record in enumerate(data.sequences.ids):
        try:
            target = codec.encode(table.values[record])
            targets.append(_tokens_own(target, data, i) if per_residue else target)
        except LabelError as error:
            header = data.header(i)
            bad.append(reject(header, f"{_where(header, table)}: {error}"))
    return targets


def _tokens_own(targets: Any, data: Tokenized, i: int) -> np.ndarray:
    """Targets of the letters that have a token; labels may leave out dropped gaps and stops."""
    keep = data.kept(i)
    if len(targets) not in (len(keep), keep.sum()):
        raise LabelError(f"{len(targets)} residue labels for {len(keep)} residues")
    own: np.ndarray = targets[keep] if len(targets) == len(keep) else targets
    return own[: len(data.sequences.residues(i))]
