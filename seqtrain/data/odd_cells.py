"""Finds label cells that hold a value in a form that no task reads, or that mean none."""

import re
from collections.abc import Collection, Mapping

from seqtrain.data.cells import read_number
from seqtrain.data.evidence import examples
from seqtrain.errors import LabelError

_AMOUNT = r"[+\N{MINUS SIGN}-]?\d+(?:[.,]\d+)*(?:[eE][+-]?\d+)?"
_ADORNED = re.compile(
    rf"[<>~≈≤≥=]+\s*{_AMOUNT}"  # a bound
    rf"|[$€£¥]\s*{_AMOUNT}|{_AMOUNT}\s*[$€£¥%‰]"
    rf"|{_AMOUNT}\s*(?:±|\+/-)\s*{_AMOUNT}"
    rf"|{_AMOUNT}\s*\(\s*(?:±|\+/-)?\s*{_AMOUNT}\s*\)"  # the error in parentheses
    r"|[+-]?\d+[.,]\d+\s*[A-Za-zµμ°Å][\w/·^°-]*"  # a fraction and a unit: 16S is a name
    r"|0x[0-9a-fA-F]+"
)
_FEW = 10
"""Up to so many different cells may be names, such as ``>50%`` and ``<50%``."""

_MOST = 0.9
_SENTINELS = frozenset({-99.0, -999.0, -9999.0, -99999.0, -32768.0})


def refuse_odd_forms(cells: Collection[str]) -> None:
    """Refuse a column of numbers with units or errors around them, and one of dictionaries.

    Args:
        cells: Different cells, none of them missing.

    Raises:
        LabelError: Shows a cell and what to write instead.
    """
    mappings = [cell for cell in cells if re.fullmatch(r"\s*\{.*:.*\}\s*", cell, re.DOTALL)]
    if mappings and 2 * len(mappings) >= len(cells):
        raise LabelError(
            f"cells such as {examples(mappings, 1)} are dictionaries. Write the names of the "
            "classes instead, separated by ';' where a record has several."
        )
    adorned = [cell for cell in cells if _is_adorned(cell)]
    numbers = sum(read_number(cell) is not None for cell in cells)
    if len(cells) > _FEW and adorned and len(adorned) + numbers >= _MOST * len(cells):
        raise LabelError(
            f"cells such as {examples(adorned, 1)} are numbers in a form that is not read. Write "
            "them as in 1234.5, without units or other marks, or set task=classification to read "
            "names of classes."
        )


def _is_adorned(cell: str) -> bool:
    text = cell.strip()
    other_digits = text.isdecimal() and not text.isascii()
    return other_digits or _ADORNED.fullmatch(text) is not None


def sentinel_note(cells: Mapping[str, int]) -> list[str]:
    """A warning of a number such as -999 far below all others, which often means no value."""
    numbers = {cell: value for cell in cells if (value := read_number(cell)) is not None}
    low = min(numbers.values(), default=0.0)
    above = [value for value in numbers.values() if value > low]
    if low not in _SENTINELS or not above or max(map(abs, above)) > -low / 2:
        return []
    found = [cell for cell, value in numbers.items() if value == low]
    count = sum(cells[cell] for cell in found)
    return [
        f"{found[0]!r} ({count:,} times) lies far below all other numbers and is read as one; if "
        "it means that there is no value, leave these cells empty and such records out with "
        "--on-error skip"
    ]
