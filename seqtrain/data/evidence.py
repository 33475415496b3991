"""Weighs whether cells hold numbers or names, one name or several."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from seqtrain.data.cells import (
    DECIMAL_COMMA,
    THOUSANDS,
    NumberFormat,
    is_number,
    read_number,
)
from seqtrain.errors import LabelError

SEPARATORS = "|;,"
"""Between the names of a multi-label cell."""

FEW_NUMBERS = 20
"""Up to so many different numbers, each of them repeated, may be codes of classes."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CLASS_WORDS = _words(
    "class classes category categories type types family subfamily superfamily group cluster ec "
    "location localization localisation compartment species taxon kingdom phenotype"
)
_NUMBER_WORDS = _words(
    "target targets y value values score scores activity affinity fitness solubility stability "
    "ic50 ec50 kd ki pic50 pec50 pkd pki mic tm ph temperature intensity concentration rate yield "
    "measurement measured response log log2 log10 logp dg ddg rt retention expression abundance "
    "count counts"
)
_LIST_WORDS = _words("labels classes targets tags terms go keywords locations")
_EC_CLASS = re.compile(r"[1-7]\.\d{1,3}")
_DIGITS_AND_MARKS = re.compile(r"[\d.,;\s'+-]*")
_MOSTLY, _MOST, _NEARLY_ALL = 0.5, 0.9, 0.95


@dataclass(frozen=True)
class Verdict:
    """The verdict of the evidence on a column."""

    task: str
    reason: str
    number_format: NumberFormat | None = None
    """The form of the numbers, if it is not the plain one."""
    separator: str | None = None
    """Between the names of a cell, if it holds several."""


def ask(found: str, *readings: str) -> LabelError:
    """The error of a column that can be read in two ways."""
    return LabelError(f"{found} can be read in two ways. Set {', or '.join(readings)}.")


def examples(cells: Collection[str], most: int = 3) -> str:
    """The first few cells, quoted."""
    shown = [repr(cell if len(cell) <= 40 else f"{cell[:37]}...") for cell in list(cells)[:most]]
    return ", ".join(shown) + (", ..." if len(cells) > most else "")


def name_hint(column: str) -> str:
    """``classes``, ``numbers``, or nothing: what the name of a column promises."""
    words = set(re.split(r"[^a-z0-9]+", column.lower()))
    if words & _CLASS_WORDS:
        return "classes"
    return "numbers" if words & _NUMBER_WORDS else ""


def weigh_numbers(cells: Mapping[str, int], column: str) -> Verdict | None:
    """True if cells that are numbers are measurements or codes of classes; None for names.

    A few cells among many numbers may be none; they are refused later, one by one.

    Raises:
        LabelError: The numbers may as well be codes.
    """
    numbers = {cell: value for cell in cells if (value := read_number(cell)) is not None}
    total, numeric = sum(cells.values()), sum(cells[cell] for cell in numbers)
    different = len(set(numbers.values()))
    nearly_all = len(numbers) >= _NEARLY_ALL * len(cells)
    mostly = different > 10 and numeric >= _MOSTLY * total
    if not numbers or not (nearly_all or mostly):
        return None
    values = list(numbers.values())
    hint, counted = name_hint(column), f"{numeric:,} numbers, {different:,} different"
    as_numbers = Verdict("regression", f"{counted}; task=classification reads them as names")
    as_classes = Verdict("classification", f"{counted}; task=regression reads them as numbers")
    whole = all(map(float.is_integer, values))
    if len(numbers) == numeric and not whole:
        return as_numbers  # each stands once
    if different == 1 and not whole:
        return as_numbers
    if different <= 2 or (whole and different <= 10 and hint != "numbers"):
        return as_classes if len(numbers) == len(cells) else None
    if not (whole and different <= 10) and not _may_be_codes(numbers, numeric, different, whole):
        return as_numbers
    if hint:
        chosen = as_classes if hint == "classes" else as_numbers
        return Verdict(chosen.task, f"the column is called {column!r}; {chosen.reason}")
    raise ask(
        f"{numeric:,} cells with {different:,} different numbers ({examples(numbers)})",
        "task=classification to read them as names of classes",
        "task=regression to read them as numbers",
    )


def _may_be_codes(numbers: Mapping[str, float], numeric: int, different: int, whole: bool) -> bool:
    """True if numbers look as codes do: 0 to K, few that repeat, or EC classes as 2.7."""
    low, high = min(numbers.values()), max(numbers.values())
    in_a_row = whole and low in (0, 1) and high - low + 1 == different
    if in_a_row and numeric >= 2 * different:
        return True
    if all(map(_EC_CLASS.fullmatch, numbers)) and numeric >= 1.5 * different:
        return True
    short = all(len(cell.partition(".")[2]) <= 2 for cell in numbers)
    return short and different <= FEW_NUMBERS and numeric >= 3 * different


def number_format(
    cells: Collection[str], column: str = "", decimal: str | None = None
) -> NumberFormat | None:
    """The one way, other than the plain one, in which all cells are numbers; None without one.

    Args:
        cells: Different cells, none of them missing.
        column: Its name counts where the cells do not decide.
        decimal: ``point`` or ``comma``; none: inferred from the cells.

    Raises:
        LabelError: The cells fit two ways of writing numbers, or numbers and lists of codes.
    """
    mark = {"point": ".", "comma": ",", None: None}[decimal]
    fitting = [
        form
        for form in (DECIMAL_COMMA, *THOUSANDS)
        if mark in (None, form.decimal) and _fits(form, cells)
    ]
    if not fitting:
        _refuse_mixture(cells)
        return None
    first = fitting[0]
    marked = [cell for cell in cells if first.fits(cell) and first.marked.search(cell)]
    for other in fitting[1:]:
        if differs := next((c for c in marked if first.plain(c) != other.plain(c)), None):
            raise ask(
                f"{differs!r} ({first.plain(differs)} by a {first.name}, {other.plain(differs)} by "
                f"a {other.name})",
                "data.decimal=comma",
                "data.decimal=point",
            )
    if first is DECIMAL_COMMA and decimal is None and not _is_decimal(marked, column):
        raise ask(
            examples(marked),
            "data.decimal=comma to read numbers with a decimal comma",
            "task=multilabel to read several classes in a cell",
        )
    return first


def _fits(form: NumberFormat, cells: Collection[str]) -> bool:
    """True if all cells fit, or most do and the others are no lists of numbers either."""
    others = [cell for cell in cells if not form.fits(cell)]
    if not any(form.marked.search(cell) for cell in cells if form.fits(cell)):
        return False
    return not others or (
        len(others) <= (1 - _MOST) * len(cells)
        and not any(map(_DIGITS_AND_MARKS.fullmatch, others))
    )


def _refuse_mixture(cells: Collection[str]) -> None:
    """Refuse decimal points beside decimal commas."""
    plain = [cell for cell in cells if is_number(cell)]
    commas = [cell for cell in cells if not is_number(cell)]
    if plain and any("." in cell for cell in plain) and all(map(DECIMAL_COMMA.fits, commas)):
        raise LabelError(
            f"numbers stand with decimal points ({examples(plain, 1)}) and with decimal commas "
            f"({examples(commas, 1)}). Write all alike."
        )


def _is_decimal(cells: Sequence[str], column: str) -> bool:
    """True if ``62,17`` is a number rather than two codes: no set of codes would be so written."""
    pairs = [cell.strip().split(",") for cell in cells]
    if all(set(pair) <= {"0", "1"} for pair in pairs):
        return False
    if any(not a.isdigit() or not b.isdigit() for a, b in pairs):
        return True  # a sign, an exponent, nothing before or after the comma
    if any(int(a) == int(b) or (len(b) > 1 and b[0] == "0") for a, b in pairs):
        return True
    falling = sum(int(a) > int(b) for a, b in pairs)
    names = {part for pair in pairs for part in pair}
    many = len(names) > FEW_NUMBERS and falling >= 0.1 * len(pairs)
    return many or name_hint(column) == "numbers"


@dataclass(frozen=True)
class _Split:
    """Share of the cells with a separator that it explains."""

    separator: str
    cells: list[str]
    """Different cells with two names or more."""
    explained: float
    """Share of these in which each name stands in another cell too."""
    touched: float
    """Share of these in which some name does."""


def split_names(cell: str, separator: str) -> list[str]:
    """The names in a cell, blank ones left out."""
    return [name for part in cell.split(separator) if (name := part.strip())]


def _split(cells: Collection[str], separator: str) -> _Split | None:
    names = {cell: set(split_names(cell, separator)) for cell in cells}
    several = [cell for cell, parts in names.items() if len(parts) > 1]
    if not several:
        return None
    spread = Counter(name for parts in names.values() for name in parts)
    known = [[spread[name] > 1 for name in names[cell]] for cell in several]
    share = 1 / len(several)
    return _Split(separator, several, share * sum(map(all, known)), share * sum(map(any, known)))


def best_separator(cells: Mapping[str, int]) -> str | None:
    """The separator that explains most cells, then that of most cells; None if none splits any."""
    found = _best_split(cells)
    return found.separator if found else None


def _best_split(cells: Mapping[str, int]) -> _Split | None:
    splits = [found for mark in SEPARATORS if (found := _split(cells, mark))]
    rank = {id(s): (s.explained * len(s.cells), sum(cells[c] for c in s.cells)) for s in splits}
    return max(splits, key=lambda split: rank[id(split)], default=None)


def weigh_names(cells: Mapping[str, int], column: str) -> Verdict:
    """True if cells hold one name each, or several: those whose names recur in other cells.

    Raises:
        LabelError: Some recur and some do not.
    """
    split = _best_split(cells)
    total = sum(cells.values())
    if split is None:
        return Verdict("classification", f"{total:,} cells, {len(cells):,} different names")
    mark, shown = split.separator, examples(split.cells, 1)
    rare = len(split.cells) == 1 and cells[split.cells[0]] < 0.1 * total
    words = set(re.split(r"[^a-z0-9]+", column.lower()))
    if split.touched == 0:
        reason = f"no part of {shown} stands in another cell; task=multilabel splits at {mark!r}"
        return Verdict("classification", reason)
    if (split.explained >= _MOSTLY and not rare) or words & _LIST_WORDS:
        reason = f"names between {mark!r} recur in other cells; task=classification keeps {shown}"
        return Verdict("multilabel", f"{reason} as one class", separator=mark)
    raise ask(
        shown,
        f"task=multilabel to read several classes, between {mark!r}",
        "task=classification to read one class in each cell",
    )


def are_numbers(items: Collection[str]) -> bool:
    """True if all items are plain numbers."""
    return bool(items) and all(map(is_number, items))
