"""Reads one label cell: as a missing value, as a number, or as a list written by a program."""

import ast
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

_MISSING = frozenset(
    {"", "-", "?", "na", "n/a", "<na>", "nan", "null"}
    | {"#n/a", "#na", "#null!", "#div/0!", "#value!", "#ref!", "#name?", "#num!"}  # a spreadsheet's
)
_MISSING_AS_WRITTEN = frozenset({"None", "NONE"})
"""In small letters it names a class: none of the others."""

_PLAIN = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_LARGEST, _SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)

NUMBER_EXAMPLE = "1234.5"
"""A plain number, for messages: no ``_``, no mark between thousands, a decimal point."""


def is_missing(text: str) -> bool:
    """True if a cell says that there is no value: empty, ``NA``, ``nan``, ``None``, ``?`` or ``-``.

    Letter case counts in ``None`` alone.
    """
    text = text.strip()
    return text.lower() in _MISSING or text in _MISSING_AS_WRITTEN


def missing_marks(values: Iterable[str], names: Collection[str] = ()) -> frozenset[str]:
    """The marks of a missing value among the cells of a column.

    A ``-`` beside a ``+`` is a class, and so is what ``names`` holds.
    """
    distinct = set(values)
    marks = {value for value in distinct if is_missing(value) and value not in names}
    return frozenset(marks - {"-"} if "+" in distinct else marks)


def read_number(text: str) -> float | None:
    """The finite number that a text stands for, or None.

    ASCII digits with a decimal point or an exponent; the minus sign of typesetting counts as one.
    Python's other forms (``1_000``, ``infinity``, digits of other scripts) are names.
    """
    text = text.strip().replace("\N{MINUS SIGN}", "-")
    if not _PLAIN.fullmatch(text):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def fits_float32(number: float) -> bool:
    """True if a float32, which models compute in, holds a number of this size."""
    return number == 0 or _SMALLEST <= abs(number) <= _LARGEST


@dataclass(frozen=True)
class NumberFormat:
    """A way to write numbers, beside the plain one."""

    name: str
    pattern: re.Pattern[str]
    """Cells that fit, plain numbers that read alike included."""
    marked: re.Pattern[str]
    """Tells it from plain numbers: the mark that it has and they lack."""
    decimal: str = "."

    def fits(self, text: str) -> bool:
        """True if a cell can be read so."""
        return self.pattern.fullmatch(text.strip()) is not None

    def plain(self, text: str) -> str:
        """The same number in the plain form."""
        text = text.strip().replace("\N{MINUS SIGN}", "-")
        kept = re.sub(rf"[^\d{re.escape(self.decimal)}eE+-]", "", text)
        return kept.replace(self.decimal, ".")


_SIGN, _EXPONENT = "[+\N{MINUS SIGN}-]?", r"(?:[eE][+-]?\d+)?"
_BLANK = "[ \N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}]"
_APOSTROPHE = "['\N{RIGHT SINGLE QUOTATION MARK}]"


def _grouped(mark: str, decimal: str) -> re.Pattern[str]:
    """Numbers in groups of three digits, and those too small for a group."""
    fraction = rf"(?:{re.escape(decimal)}\d*)?"
    groups = rf"[1-9]\d{{0,2}}(?:{mark}\d{{3}})+|\d{{1,3}}"
    return re.compile(rf"{_SIGN}(?:{groups}){fraction}", re.ASCII)


DECIMAL_COMMA = NumberFormat(
    "decimal comma",
    re.compile(rf"{_SIGN}(?:\d+,?\d*|,\d+){_EXPONENT}", re.ASCII),
    re.compile(","),
    ",",
)
THOUSANDS = (
    NumberFormat("comma between thousands", _grouped(",", "."), re.compile(",")),
    NumberFormat("blank between thousands", _grouped(_BLANK, "."), re.compile(_BLANK)),
    NumberFormat(
        "apostrophe between thousands", _grouped(_APOSTROPHE, "."), re.compile(_APOSTROPHE)
    ),
    NumberFormat(
        "point between thousands, decimal comma",
        _grouped(r"\.", ","),
        re.compile(r"\.\d{3}(?!\d)"),
        ",",
    ),
    NumberFormat(
        "blank between thousands, decimal comma", _grouped(_BLANK, ","), re.compile(_BLANK), ","
    ),
)


def read_list(text: str) -> list[str] | None:
    """The items of a list as Python or JSON writes it, ``['a', 'b']``; None for anything else."""
    text = text.strip()
    if not (text[:1] in "[({" and text[-1:] in "])}") or len(text) < 2:
        return None
    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return _unquoted(text)
    if isinstance(items, dict) or not isinstance(items, list | tuple | set):
        return None
    return [str(item).strip() for item in items]


def _unquoted(text: str) -> list[str] | None:
    """Items without quotes, as numpy prints numbers: ``[0.1 0.2]``."""
    inside = text[1:-1]
    items = inside.replace(",", " ").split()
    return items if text[0] == "[" and items and all(map(is_number, items)) else None


def is_number(text: str) -> bool:
    """True if a text is a plain number."""
    return read_number(text) is not None
