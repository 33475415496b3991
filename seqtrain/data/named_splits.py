"""Splits that tables, columns and headers name for records, and which of these counts."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from seqtrain.data.fasta import Header
from seqtrain.data.files import shown
from seqtrain.data.header_splits import read_header_splits, split_name
from seqtrain.data.id_matching import listed, match_ids
from seqtrain.data.label_table import LabelTable, read_labels
from seqtrain.data.split_table import column_names, split_column_of
from seqtrain.errors import LabelError
from seqtrain.words import counted

ASIDE = "--split-column ''"
"""The option that leaves columns and headers aside."""


class NamedSplits(NamedTuple):
    """A split for records, as it is written."""

    where: str
    """Its source, for messages."""
    key: str
    """Name of the column, or key in headers."""
    texts: Mapping[str, str]
    """By record id; records without are left out."""


class Found(NamedTuple):
    """The splits that count, and what there is to say of the others."""

    splits: NamedSplits | None
    warnings: list[str]


def is_off(split_column: str | None) -> bool:
    """True if columns and headers are to be left aside."""
    return split_column is not None and split_column.lower() in ("", "none")


def find_splits(
    records: Sequence[Header],
    table: LabelTable | None,
    tables: Sequence[str] = (),
    *,
    split_column: str | None = None,
    id_column: str | None = None,
) -> Found:
    """The splits named for these records: by splits tables, a column of the labels, or headers.

    The first of these that names any counts. A column or a header key that is found by its usual
    name alone counts only where it holds the names of splits.

    Args:
        records: All records.
        table: Their labels; None: headers alone are read.
        tables: Splits tables.
        split_column: Column, or header key; none: found by its usual names; ``""`` or ``none``:
            neither columns nor headers are read.
        id_column: Column of ids of the splits tables, where they have it.

    Raises:
        LabelError: The column is nowhere, holds something else than names of splits, or says
            otherwise than the splits tables.
    """
    warnings: list[str] = []
    sources = []
    if tables:
        sources.append(_read_tables(records, tables, split_column, id_column, warnings))
        split_column = None if split_column is None or not is_off(split_column) else ""
    is_asked = split_column is not None
    if not is_off(split_column):
        read = [*_of_column(table), *_of_headers(records, split_column)]
        if is_asked and not read:
            raise LabelError(_nowhere(table, str(split_column)))
        sources += [named for named in read if _is_usable(named, records, is_asked, warnings)]
    if not sources:
        return Found(None, warnings)
    first, *others = sources
    for other in others:
        if said := _disagreement(records, first, other):
            if tables:
                raise LabelError(f"{said} Leave one of them out: {ASIDE} reads the table alone.")
            warnings.append(f"{said} {first.where} is used")
    return Found(first, warnings)


def _of_column(table: LabelTable | None) -> list[NamedSplits]:
    if table is None:
        return []
    columns, files = table.columns, ", ".join(map(shown, table.files))
    if table.kind == "header" or (table.kind == "table" and columns.split == columns.label):
        return []
    if not table.splits:
        return []
    if table.kind == "fasta":
        return [NamedSplits(f"{files}, headers", "split", table.splits)]
    return [NamedSplits(f"{files}, column {columns.split!r}", columns.split, table.splits)]


def _of_headers(records: Iterable[Header], key: str | None) -> list[NamedSplits]:
    texts, keys = read_header_splits(records, key)
    where = " or ".join(f"{name}=..." for name in keys)
    return [NamedSplits(f"the headers ({where})", keys[0], texts)] if texts else []


def _is_usable(
    named: NamedSplits, records: Iterable[Header], is_asked: bool, warnings: list[str]
) -> bool:
    """True if all texts of these records are names of splits; of a column asked for they must be.

    A table may say other things of records that are not there.
    """
    texts = [named.texts[record.id] for record in records if record.id in named.texts]
    strange = Counter(text for text in texts if not split_name(text))
    if not strange:
        return True
    found = ", ".join(
        f"{text!r} ({counted(count, 'record')})" for text, count in strange.most_common(10)
    )
    known = sum(split_name(text) is not None for text in texts)
    if is_asked or known:
        raise LabelError(
            f"{named.where}: expected train, valid or test, found {found}. Write these names, "
            f"name another column with --split-column, or leave it aside with {ASIDE}."
        )
    warnings.append(
        f"{named.where}: expected train, valid or test, found {found}; left aside, as it was found "
        f"by its name alone. {ASIDE} silences this; --split-column {named.key} makes it an error"
    )
    return False


def _disagreement(records: Iterable[Header], one: NamedSplits, other: NamedSplits) -> str:
    """Records for which two sources name different splits, in words; empty when there is none."""
    pairs = (
        (record.id, split_name(one.texts[record.id]), split_name(other.texts[record.id]))
        for record in records
        if record.id in one.texts and record.id in other.texts
    )
    different = [pair for pair in pairs if pair[1] != pair[2]]
    if not different:
        return ""
    record, first, second = different[0]
    return (
        f"{other.where} and {one.where} name different splits for "
        f"{counted(len(different), 'record')}, such as {record!r}: {second} and {first}."
    )


def _nowhere(table: LabelTable | None, column: str) -> str:
    if table is None or table.kind != "table":
        return f"--split-column {column}: no header has {column}=... Leave it out, or name another."
    names = [name for file in table.files for name in column_names(file)]
    near = get_close_matches(column, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    files = ", ".join(map(shown, table.files))
    return (
        f"--split-column {column}: {files} has no such column (there are {', '.join(names)}), and "
        f"no header has {column}=...{hint}"
    )


def _read_tables(
    records: Sequence[Header],
    paths: Sequence[str],
    split_column: str | None,
    id_column: str | None,
    warnings: list[str],
) -> NamedSplits:
    """Splits of the records by tables, which have to name each record."""
    where = ", ".join(map(shown, paths))
    texts: dict[str, str] = {}
    wanted = None if is_off(split_column) else split_column
    for path in paths:
        names = column_names(path)
        read = read_labels(
            [path],
            id_column=id_column if id_column in names else None,
            label_column=wanted or split_column_of(names),
        )
        if repeated := next((name for name in read.values if name in texts), None):
            raise LabelError(f"{shown(path)}: record {repeated!r} is in {where} twice.")
        texts |= read.values
    ids = [record.id for record in records]
    match = match_ids(ids, texts, where)
    warnings += match.notes
    old = {name: record for record, name in match.names.items()}
    texts = {old.get(name, name): text for name, text in texts.items()}
    used = set(ids)
    if not used & texts.keys():
        raise LabelError(
            f"{where}: none of its ids matches a record. The records are called {listed(ids)}; the "
            f"table names {listed(list(texts))}."
        )
    if unknown := [name for name in texts if name not in used]:
        warnings.append(f"{len(unknown):,} ids of {where} match no record: {listed(unknown)}")
    named = NamedSplits(where, "split", texts)
    _is_usable(named, records, is_asked=True, warnings=warnings)
    return named
