"""Labels by record id, read from tables, from headers or from a labels FASTA."""

import csv
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from seqtrain.data.fasta import Header, Record, Reject, parse_fasta, refuse_repeats, reject_message
from seqtrain.data.files import read_lines, shown
from seqtrain.data.header_splits import SPLIT_COLUMNS, split_reader
from seqtrain.errors import LabelError

_ID_COLUMNS = ("id", "name", "accession", "identifier", "record", "record_id", "seq_id", "entry")
_LABEL_COLUMNS = ("label", "labels", "target", "targets", "class", "y")


class Columns(NamedTuple):
    """Names of the columns of a label table, or of the keys in headers."""

    id: str
    label: str
    split: str
    """Empty when there is none."""


_NO_COLUMNS = Columns("", "", "")


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
    """What is to be said of how they were read, one line each."""
    _lines: "array[int]" = field(init=False, default_factory=lambda: array("q"))
    _ends: list[int] = field(init=False, default_factory=list)
    """How many labels there are up to the end of each file."""
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
    table, rejects = LabelTable("", _NO_COLUMNS), []
    wanted = (id_column, label_column, split_column)
    for source in map(str, paths):
        first, lines = _with_first(read_lines(source, LabelError))
        if not first:
            raise LabelError(f"{shown(source)}: is empty, expected labels.")
        kind, columns, rows = _rows(first, lines, source, wanted)
        if table.kind not in ("", kind):
            raise LabelError("Labels come as tables or as labels FASTA, not as both at once.")
        table.kind, table.columns = kind, columns
        first_row = next(rows, None)
        if first_row is None:
            raise LabelError(f"{shown(source)}: holds a header and no row, expected labels.")
        rejects += _fill(table, chain([first_row], rows))
    if rejects:
        raise LabelError(reject_message(rejects))
    return table


def _rows(
    first: str, lines: Iterator[str], source: str, wanted: tuple[str | None, ...]
) -> tuple[str, Columns, Iterator[_Row]]:
    """Kind, columns and labels of a file that begins with this line."""
    if first.startswith(">"):
        return "fasta", _NO_COLUMNS, _fasta_rows(lines, source, wanted[2])
    reader = csv.reader(lines, delimiter=_delimiter(first, source), strict=True)
    with _told(reader, source):
        names = [name.strip() for name in next(filter(_has_text, reader))]
    columns = _choose_columns(names, source, *wanted)
    return "table", columns, _table_rows(reader, names, columns, source)


def header_labels(
    records: Iterable[Header | Record], label_key: str = "label", split_key: str = "split"
) -> LabelTable:
    """Labels from ``label=...`` and ``split=...`` in the headers; records without have none.

    Keys count in any case. ``target=`` and ``set=`` are read too where the usual keys are asked
    for. A value with spaces stands in double quotes.
    """
    label = _attribute("label|target" if label_key == "label" else re.escape(label_key))
    split = _split_attribute(split_key)
    table = LabelTable("header", Columns("", label_key, split_key))
    rows = (
        _Row(r.id, found[1].strip('"'), _value(split, r), r.source, r.line, r.index)
        for r in records
        if (found := label.search(r.description))
    )
    if rejects := _fill(table, rows):
        raise LabelError(reject_message(rejects))
    return table


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


def _table_rows(reader: Any, names: Sequence[str], columns: Columns, source: str) -> Iterator[_Row]:
    cell = itemgetter(*(names.index(name) for name in columns if name))
    first = names.index(columns.id)
    with _told(reader, source):
        for place, cells in enumerate(filter(_has_text, reader)):
            line = reader.line_num
            if len(cells) == len(names):
                name, value, split = (*cell(cells), "")[:3]
                yield _Row(name.strip(), value.strip(), split.strip(), source, line, place)
            else:
                reason = f"expected {len(names)} cells as in the header, found {len(cells)}"
                name = cells[first].strip() if first < len(cells) else ""
                yield _Row(name, "", "", source, line, place, reason)


@contextmanager
def _told(reader: Any, source: str) -> Iterator[None]:
    """What a table is not well formed for, with the line."""
    try:
        yield
    except csv.Error as problem:
        raise LabelError(
            f"{shown(source)}: line {reader.line_num}: {problem}. Is a quote left open?"
        ) from None


def _choose_columns(
    names: Sequence[str],
    source: str,
    id_column: str | None,
    label_column: str | None,
    split_column: str | None,
) -> Columns:
    # One that is asked for may be in another file, or in the headers.
    usual = next((n for word in SPLIT_COLUMNS for n in names if n.lower() == word), None)
    split = split_column if split_column in names else usual
    label = _pick(label_column, _LABEL_COLUMNS, names, source)
    others = [name for name in names if name not in (label, split)]
    record = _pick(id_column, _ID_COLUMNS, names, source) or (others or names)[0]
    others = [name for name in others if name != record]
    if label is None and len(others) != 1:
        raise LabelError(
            f"{shown(source)}: which column holds the label? Columns: {', '.join(names)}. "
            "Name it with --label-column."
        )
    is_read = split_column in (None, split)
    return Columns(record, label or others[0], (split or "") if is_read else "")


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


def _fasta_rows(lines: Iterable[str], source: str, split_key: str | None) -> Iterator[_Row]:
    split_of = split_reader(split_key)
    for place, entry in enumerate(parse_fasta(lines, source, LabelError)):
        name = (*entry.title.split(maxsplit=1), "")[0]
        split, _ = split_of(entry.title)
        yield _Row(name, "".join(entry.text.split()), split, source, entry.line, place)


def _fill(table: LabelTable, rows: Iterable[_Row]) -> list[Reject]:
    """Add the labels that can be used; what comes back are the others."""
    bad: list[tuple[_Row, str]] = []
    repeated: list[_Row] = []
    for row in rows:
        if row.reason or not row.id:
            bad.append((row, row.reason or "the id is blank"))
        elif row.id in table.values:
            repeated.append(row)
        elif not row.value:
            bad.append((row, "the label is missing; add it or remove the row"))
        else:
            table.add(row)
    bad += [(row, _used_before(row, *table.place(row.id))) for row in repeated]
    return [Reject(row.id, reason, row.source, row.line, row.place) for row, reason in bad]


def _used_before(row: _Row, file: str, line: int) -> str:
    where = "" if file == row.source else f" of {shown(file)}"
    return f"the id was used before, on line {line}{where}; one label per id"
