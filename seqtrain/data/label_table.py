"""Labels by record id, read from tables, from headers or from a labels FASTA."""

import csv
import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from seqtrain.data.attributes import Attribute, masked
from seqtrain.data.columns import ChosenColumns, Columns, choose_columns
from seqtrain.data.fasta import Header, Record, Reject, parse_fasta, refuse_repeats, reject_message
from seqtrain.data.files import read_lines, shown
from seqtrain.data.header_splits import SPLIT_COLUMNS, split_reader
from seqtrain.errors import LabelError
from seqtrain.words import counted

_NO_COLUMNS = Columns("", "", "")
_LONGEST_CELL = 2**31 - 1
"""Characters that csv takes; its own limit is 131,072, fewer than the numbers of a long record."""
_TRIED_ROWS = 50
"""Rows that are cut up to tell whether commas or semicolons stand between columns."""
_EXCEL_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)


@dataclass(eq=False)
class LabelTable:
    """Label text by record id, as it is written, with its place."""

    kind: str
    """``table``, ``header`` or ``fasta``."""
    columns: Columns
    values: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    """What the split column says, where it says something."""
    files: list[str] = field(default_factory=list)
    """Those that hold labels, in order."""
    notes: list[str] = field(default_factory=list)
    """Notes on how they were read, one line each."""
    chosen: list[ChosenColumns] = field(default_factory=list)
    """The columns of each file of a table, in order."""
    _lines: "array[int]" = field(init=False, default_factory=lambda: array("q"))
    _ends: list[int] = field(init=False, default_factory=list)
    """Number of labels up to the end of each file."""
    _numbers: dict[str, int] = field(init=False, default_factory=dict)
    """Which label of all each is, once somebody asked."""

    def place(self, record: str) -> tuple[str, int]:
        """File and line, from 1, of a label."""
        if len(self._numbers) < len(self.values):  # for messages alone: it takes much memory
            self._numbers = {name: number for number, name in enumerate(self.values)}
        number = self._numbers[record]
        return self.files[bisect_right(self._ends, number)], self._lines[number]

    def rename(self, names: Mapping[str, str]) -> None:
        """Give labels and splits other ids: new ones by old ones."""
        self.values = {names.get(name, name): value for name, value in self.values.items()}
        self.splits = {names.get(name, name): value for name, value in self.splits.items()}
        self._numbers = {}

    def add(self, row: "_Row") -> None:
        """One label more."""
        if not self.files or self.files[-1] != row.source:
            self.files.append(row.source)
            self._ends.append(len(self._lines))
        self.values[row.id] = row.value
        self._lines.append(row.line)
        self._ends[-1] = len(self._lines)
        if row.split:
            self.splits[row.id] = row.split


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
    """Labels of all files together: all tables, or all labels FASTA, recognized by the content.

    A labels FASTA holds one letter of label per residue, case kept. Anything else is a table
    with a header line and tabs, commas or semicolons between columns. Columns that are not named
    are found by their usual names, in any case: ids under ``id``, ``name``, ``accession`` ... or
    else in the first other column; labels under ``label``, ``target``, ``class`` or ``y`` or else
    in the only other column; splits under ``split``, ``set`` or ``partition``, if present.

    Raises:
        LabelError: A file cannot be read; a column is missing or cannot be told; or rows have a
            blank or repeated id, or too few or too many cells: all are collected.
    """
    refuse_repeats(paths)
    table, rejects = LabelTable("", _NO_COLUMNS), []
    wanted = {"id_column": id_column, "label_column": label_column, "split_column": split_column}
    for source in map(str, paths):
        first, lines = _with_first(read_lines(source, LabelError))
        if not first:
            raise LabelError(f"{shown(source)}: is empty, expected labels.")
        kind = "fasta" if first.startswith(">") else "table"
        if table.kind not in ("", kind):
            raise LabelError("Labels come as tables or as labels FASTA, not as both at once.")
        table.kind = kind
        rows = _fasta_rows(lines, source, split_column)
        if kind == "table":
            chosen, rows = _open_table(lines, source, wanted)
            table.columns = chosen.names
            table.chosen.append(chosen)
        first_row = next(rows, None)
        if first_row is None:
            raise LabelError(f"{shown(source)}: holds a header and no row, expected labels.")
        rejects += _fill(table, chain([first_row], rows))
    if rejects:
        raise LabelError(reject_message(rejects))
    return table


def _open_table(
    lines: Iterator[str], source: str, wanted: dict[str, str | None]
) -> tuple[ChosenColumns, Iterator[_Row]]:
    """The columns of a table and its rows; a line ``sep=;``, as Excel writes it, is obeyed."""
    first, lines = _with_first(lines)
    skipped, delimiter = 0, None
    if excel := _EXCEL_LINE.fullmatch(first):
        skipped = next(number for number, line in enumerate(lines, 1) if line == first)
        delimiter = excel[1]
        first, lines = _with_first(lines)
    if delimiter is None or delimiter not in first:
        delimiter, lines = _delimiter(first, lines, source)
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    with _told(reader, source, skipped):
        names = [name.strip() for name in next(filter(_has_text, reader))]
    chosen = choose_columns(names, source, **wanted)
    return chosen, _table_rows(reader, len(names), chosen.places, source, skipped)


def header_labels(
    records: Sequence[Header] | Sequence[Record],
    label_key: str | None = None,
    split_key: str = "split",
) -> LabelTable:
    """Labels from ``label=...`` and ``split=...`` in the headers; records without have none.

    Keys count in any case. ``target=`` and ``set=`` are read too where no other key is asked for.
    A value with spaces stands in quotes; ``;``, ``|`` or ``,`` before another ``key=`` end it.

    Raises:
        LabelError: A header holds different labels.
    """
    label = Attribute(["label", "target"] if label_key is None else [label_key])
    split = Attribute(SPLIT_COLUMNS if split_key == "split" else [split_key])
    table = LabelTable("header", Columns("", label_key or "label", split_key))
    rows = (
        _Row(
            r.id,
            _in_header(found[0], r.description),
            split.value(r.description),
            r.source,
            r.line,
            r.index,
            _several(found),
        )
        for r in records
        if (found := label.values(r.description))
    )
    if rejects := _fill(table, rows):
        raise LabelError(reject_message(rejects))
    table.notes += _cut_labels(records, label)
    return table


def _cut_labels(records: Sequence[Header] | Sequence[Record], label: Attribute) -> list[str]:
    """A warning where a blank probably cut labels of several words.

    A description that follows a label differs from record to record; the rest of a label repeats.
    """
    values = ((label.value(r.description), label.words_after(r.description)) for r in records)
    longer = Counter((value, words) for value, words in values if words)
    if not longer or len(longer) > longer.total() / 3:
        return []
    (value, words), _ = longer.most_common(1)[0]
    return [
        f"the headers (label=...): a label ends at the first blank, so that {value!r} is read of "
        f"{f'{value} {words}'!r}, and {counted(longer.total(), 'record')} in all have words behind "
        f'their label. If they belong to it, put quotes around it: label="{value} {words}"'
    ]


def _in_header(value: str, header: str) -> str:
    """A label in a header; a mask of another length is not one of its residues."""
    text, reason = masked(value, header)
    return value if reason else text


def _several(labels: Sequence[str]) -> str:
    """The fault of a header with different labels; empty where they agree."""
    distinct = list(dict.fromkeys(labels))
    if len(distinct) == 1:
        return ""
    named = " and ".join(map(repr, distinct))
    return (
        f"the header holds several labels, {named}; keep one, or name another key with "
        "--label-column"
    )


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


def _delimiter(header: str, lines: Iterator[str], source: str) -> tuple[str, Iterator[str]]:
    """The delimiter of a table with this header, and its lines again.

    Where the header holds commas and semicolons, it is what cuts more of the rows into as many
    cells as the header.
    """
    if "\t" in header:
        return "\t", lines
    candidates = [mark for mark in ",;" if mark in header]
    if not candidates:
        raise LabelError(
            f"{shown(source)}: expected a header line with tabs or commas between the names of "
            f"the columns, found {header.strip()[:40]!r}."
        )
    if len(candidates) == 1:
        return candidates[0], lines
    tried = list(islice(lines, _TRIED_ROWS))
    best = max(candidates, key=lambda mark: (_fitting_rows(tried, mark), header.count(mark)))
    return best, chain(tried, lines)


def _fitting_rows(lines: Sequence[str], delimiter: str) -> int:
    try:
        rows = list(filter(_has_text, csv.reader(lines, delimiter=delimiter)))
    except csv.Error:
        return 0
    return sum(len(row) == len(rows[0]) for row in rows[1:])


def _table_rows(
    reader: Any, width: int, places: Sequence[int], source: str, skipped: int
) -> Iterator[_Row]:
    """Rows of a table of so many columns, the header already read."""
    first = places[0]
    with _told(reader, source, skipped):
        for place, cells in enumerate(filter(_has_text, reader)):
            line = reader.line_num + skipped
            if len(cells) == width:
                name, value, split = (*(cells[i].strip() for i in places), "")[:3]
                yield _Row(name, value, split, source, line, place)
            else:
                reason = f"expected {width} cells as in the header, found {len(cells)}"
                name = cells[first].strip() if first < len(cells) else ""
                yield _Row(name, "", "", source, line, place, reason)


@contextmanager
def _told(reader: Any, source: str, skipped: int) -> Iterator[None]:
    """Tells where a table is not well formed, behind lines that were skipped."""
    try:
        yield
    except csv.Error as problem:
        raise LabelError(
            f"{shown(source)}: line {reader.line_num + skipped}: {problem}. Is a quote left open?"
        ) from None


def _fasta_rows(lines: Iterable[str], source: str, split_key: str | None) -> Iterator[_Row]:
    split_of = split_reader(split_key)
    for place, entry in enumerate(parse_fasta(lines, source, LabelError)):
        name = (*entry.title.split(maxsplit=1), "")[0]
        split, _ = split_of(entry.title)
        value, reason = masked("".join(entry.text.split()), entry.title)
        yield _Row(name, value, split, source, entry.line, place, reason)


def _fill(table: LabelTable, rows: Iterable[_Row]) -> list[Reject]:
    """Add the labels that can be used; what comes back are the others."""
    bad: list[tuple[_Row, str]] = []
    repeated: list[_Row] = []
    for row in rows:
        if row.reason or not row.id:
            bad.append((row, row.reason or "the id is blank"))
        elif row.id in table.values:
            repeated.append(row)
        else:
            table.add(row)
    bad += [(row, _used_before(row, *table.place(row.id))) for row in repeated]
    return [Reject(row.id, reason, row.source, row.line, row.place) for row, reason in bad]


def _used_before(row: _Row, file: str, line: int) -> str:
    where = "" if file == row.source else f" of {shown(file)}"
    return f"the id was used before, on line {line}{where}; one label per id"
