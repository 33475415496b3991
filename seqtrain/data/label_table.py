"""Labels by record id, read from tables, from headers or from a labels FASTA."""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from seqtrain.data.fasta import Header, Record, Reject, parse_fasta, refuse_repeats, reject_message
from seqtrain.data.files import read_lines, shown
from seqtrain.errors import LabelError

_ID_COLUMNS = ("id", "name", "accession", "identifier", "record", "record_id", "seq_id", "entry")
_LABEL_COLUMNS = ("label", "labels", "target", "targets", "class", "y")
_SPLIT_COLUMNS = ("split", "set", "partition")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "dev", "validation"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Columns(NamedTuple):
    """Names of the columns of a label table, or of the keys in headers."""

    id: str
    label: str
    split: str
    """Empty when there is none."""


class LabelTable(NamedTuple):
    """Label text by record id, as it is written, with its place."""

    values: dict[str, str]
    lines: dict[str, int]
    """Line of each label in its file, from 1."""
    splits: dict[str, str]
    """What the split column says, where it says something."""
    sources: dict[str, str]
    """File of each label."""
    kind: str
    """``table``, ``header`` or ``fasta``."""
    columns: Columns = Columns("", "", "")


class _Row(NamedTuple):
    """One label as read, with what is wrong with its row, if anything."""

    id: str
    value: str
    split: str
    source: str
    line: int
    place: int
    reason: str = ""


def read_labels(
    paths: Sequence[str | Path],
    *,
    id_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
) -> LabelTable:
    """Labels of all files together: all tables, or all labels FASTA, told from the content.

    A labels FASTA holds one letter of label per residue, case kept. Anything else is a table
    with a header line and tabs, commas or semicolons between columns. Columns that are not named
    are found by their usual names, in any case: ids under ``id``, ``name``, ``accession`` ... or
    else in the first other column; labels under ``label``, ``target``, ``class`` or ``y`` or else
    in the only other column; splits under ``split``, ``set`` or ``partition``, if present.

    Raises:
        LabelError: A file cannot be read; a column is missing or cannot be told; or rows have a
            blank or repeated id, no label, or too few or too many cells: all are collected.
    """
    refuse_repeats(paths)
    kinds: set[str] = set()
    columns = Columns("", "", "")
    rows: list[_Row] = []
    wanted = (id_column, label_column, split_column)
    for source in map(str, paths):
        first, lines = _with_first(read_lines(source, LabelError))
        if first.startswith(">"):
            kinds.add("fasta")
            rows += _fasta_rows(lines, source)
        elif first:
            kinds.add("table")
            columns, table_rows = _read_table(lines, source, _delimiter(first, source), wanted)
            if not table_rows:
                raise LabelError(f"{shown(source)}: holds a header and no row, expected labels.")
            rows += table_rows
        else:
            raise LabelError(f"{shown(source)}: is empty, expected labels.")
    if len(kinds) > 1:
        raise LabelError("Labels come as tables or as labels FASTA, not as both at once.")
    return _collect(rows, kinds.pop(), columns)


def header_labels(
    records: Iterable[Header | Record], label_key: str = "label", split_key: str = "split"
) -> LabelTable:
    """Labels from ``label=...`` and ``split=...`` in the headers; records without have none.

    Keys count in any case. ``target=`` and ``set=`` are read too where the usual keys are asked
    for. A value with spaces stands in double quotes.
    """
    label = _attribute("label|target" if label_key == "label" else re.escape(label_key))
    split = _split_attribute(split_key)
    rows = (
        _Row(r.id, found[1].strip('"'), _value(split, r), r.source, r.line, r.index)
        for r in records
        if (found := label.search(r.description))
    )
    return _collect(rows, "header", Columns("", label_key, split_key))


def header_splits(records: Iterable[Header | Record], split_key: str = "split") -> LabelTable:
    """No labels, and the splits that headers name as in :func:`header_labels`."""
    split = _split_attribute(split_key)
    splits = {r.id: found for r in records if (found := _value(split, r))}
    return LabelTable({}, {}, splits, {}, "header", Columns("", "", split_key))


def _split_attribute(key: str) -> re.Pattern[str]:
    return _attribute("split|set" if key == "split" else re.escape(key))


def _attribute(key: str) -> re.Pattern[str]:
    return re.compile(rf'(?:^|[\s;|])(?:{key})=("[^"]*"|\S*)', re.IGNORECASE)


def _value(pattern: re.Pattern[str], record: Header | Record) -> str:
    found = pattern.search(record.description)
    return found[1].strip('"') if found else ""


def _with_first(lines: Iterator[str]) -> tuple[str, Iterator[str]]:
    """The first line that is not blank, and all lines again; empty when there is none."""
    read: list[str] = []
    for line in lines:
        read.append(line)
        if line.strip():
            return line, chain(read, lines)
    return "", iter(read)


def _has_text(cells: Sequence[str]) -> bool:
    return any(map(str.strip, cells))


def _delimiter(header: str, source: str) -> str:
    if "\t" in header:
        return "\t"
    if "," not in header and ";" not in header:
        raise LabelError(
            f"{shown(source)}: expected a header line with tabs or commas between the names of "
            f"the columns, found {header.strip()[:40]!r}."
        )
    return max(",;", key=header.count)


def _read_table(
    lines: Iterable[str], source: str, delimiter: str, wanted: tuple[str | None, ...]
) -> tuple[Columns, list[_Row]]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(filter(_has_text, reader))]
        columns = _choose_columns(names, source, *wanted)
        cell = itemgetter(*(names.index(name) for name in columns if name))
        first = names.index(columns.id)
        rows = []
        for place, cells in enumerate(filter(_has_text, reader)):
            if len(cells) == len(names):
                name, value, split = (*cell(cells), "")[:3]
                row = _Row(
                    name.strip(), value.strip(), split.strip(), source, reader.line_num, place
                )
            else:
                reason = f"expected {len(names)} cells as in the header, found {len(cells)}"
                name = cells[first].strip() if first < len(cells) else ""
                row = _Row(name, "", "", source, reader.line_num, place, reason)
            rows.append(row)
    except csv.Error as problem:
        raise LabelError(
            f"{shown(source)}: line {reader.line_num}: {problem}. Is a quote left open?"
        ) from None
    return columns, rows


def _choose_columns(
    names: Sequence[str],
    source: str,
    id_column: str | None,
    label_column: str | None,
    split_column: str | None,
) -> Columns:
    split = _pick(split_column, _SPLIT_COLUMNS, names, source)
    label = _pick(label_column, _LABEL_COLUMNS, names, source)
    others = [name for name in names if name not in (label, split)]
    record = _pick(id_column, _ID_COLUMNS, names, source) or (others or names)[0]
    others = [name for name in others if name != record]
    if label is None and len(others) != 1:
        raise LabelError(
            f"{shown(source)}: which column holds the label? Columns: {', '.join(names)}. "
            "Name it with --label-column."
        )
    return Columns(record, label or others[0], split or "")


def _pick(
    wanted: str | None, usual: Sequence[str], names: Sequence[str], source: str
) -> str | None:
    if wanted is None:
        return next((name for word in usual for name in names if name.lower() == word), None)
    if wanted not in names:
        near = get_close_matches(wanted, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise LabelError(
            f"{shown(source)}: there is no column {wanted!r}. Columns: {', '.join(names)}.{hint}"
        )
    return wanted


def _fasta_rows(lines: Iterable[str], source: str) -> Iterator[_Row]:
    for place, entry in enumerate(parse_fasta(lines, source, LabelError)):
        name = (*entry.title.split(maxsplit=1), "")[0]
        yield _Row(name, "".join(entry.text.split()), "", source, entry.line, place)


def _collect(rows: Iterable[_Row], kind: str, columns: Columns) -> LabelTable:
    table = LabelTable({}, {}, {}, {}, kind, columns)
    rejects: list[Reject] = []
    for row in rows:
        if reason := _why_not(row, table):
            rejects.append(Reject(row.id, reason, row.source, row.line, row.place))
            continue
        table.values[row.id] = row.value
        table.lines[row.id] = row.line
        table.sources[row.id] = row.source
        if row.split:
            table.splits[row.id] = row.split
    if rejects:
        raise LabelError(reject_message(rejects))
    return table


def _why_not(row: _Row, table: LabelTable) -> str:
    if row.reason:
        return row.reason
    if not row.id:
        return "the id is blank"
    if row.id in table.values:
        source = table.sources[row.id]
        where = "" if source == row.source else f" of {shown(source)}"
        return f"the id was used before, on line {table.lines[row.id]}{where}; one label per id"
    return "" if row.value else "the label is missing; add it or remove the row"


def split_name(text: str) -> str | None:
    """``train``, ``valid`` or ``test`` for the usual ways to write them; None for anything else."""
    return _SPLITS.get(text.strip().lower())
