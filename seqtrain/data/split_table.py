"""Tables that hold a split for each record and nothing else, as `seqtrain data split` writes."""

import csv
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from seqtrain.data.files import read_lines
from seqtrain.data.header_splits import SPLIT_COLUMNS, split_name
from seqtrain.errors import LabelError

_LOOK = 20
"""So many lines show whether a column holds splits."""


def column_names(path: str) -> list[str]:
    """Names of the columns of a table; none of a labels FASTA, and of what is read only once."""
    rows = _rows(path)
    return [name.strip() for name in rows[0]] if rows else []


def split_column_of(names: Sequence[str]) -> str:
    """The column that holds the split: by its usual name, else the last one."""
    usual = (name for word in SPLIT_COLUMNS for name in names if name.lower() == word)
    return next(usual, names[-1] if names else SPLIT_COLUMNS[0])


def take_split_tables(
    labels: Sequence[str], label_column: str | None = None, split_column: str | None = None
) -> tuple[list[str], list[str]]:
    """Label files that hold labels, and those that hold an id and a split alone."""
    is_split = {path: _is_split_table(path, label_column, split_column) for path in labels}
    return (
        [path for path in labels if not is_split[path]],
        [path for path in labels if is_split[path]],
    )


def _is_split_table(path: str, label_column: str | None, split_column: str | None) -> bool:
    rows = _rows(path)
    if not rows or len(rows[0]) != 2:
        return False
    names = [name.strip() for name in rows[0]]
    usual = [name for name in names if name.lower() in SPLIT_COLUMNS or name == split_column]
    if len(usual) != 1 or usual[0] == label_column:
        return False
    place = names.index(usual[0])
    return any(split_name(row[place]) for row in rows[1:] if len(row) == 2)


def _rows(path: str) -> list[list[str]]:
    """The first rows of a table; none of what is no table, or is read only once."""
    if not Path(path).is_file():
        return []
    lines = [line for line in islice(read_lines(path, LabelError), _LOOK) if line.strip()]
    if lines and re.fullmatch(r"sep=.\s*", lines[0], re.IGNORECASE):
        del lines[0]
    if not lines or lines[0].startswith(">"):
        return []
    first = lines[0]
    delimiter = "\t" if "\t" in first else max(",;", key=first.count)
    try:
        return list(csv.reader(lines, delimiter=delimiter))
    except csv.Error:  # whoever reads it as labels tells what is wrong
        return []
