"""Checks of what a file of JSON or YAML holds, before any of it is used.

A run directory or a bundle may be damaged, or come from a stranger. Each check takes a value and
the name of its place, and raises one ``ValueError`` that says what was expected and what was found.
"""

import json
import math
import reprlib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

Check = Callable[[Any, str], None]

MOST_JSON_BYTES = 64 << 20
"""Largest file of JSON that is read; parsed it takes up to some twenty times as much memory."""

MOST_ITEMS = 10_000_000


def read_json(place: Path | zipfile.Path, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """The value in a file of JSON, of any kind.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is too large, nested too deeply, no UTF-8, or no JSON.
    """
    try:
        return json.loads(read_bounded(place, most_bytes).decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_bounded(place: Path | zipfile.Path, most_bytes: int) -> bytes:
    """The bytes of a file, which may be an entry of an archive.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds more than ``most_bytes``, or its archive is damaged.
    """
    try:
        with place.open("rb") as stream:
            content: bytes = stream.read(most_bytes + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, KeyError) as error:
        raise ValueError(f"cannot be unpacked: {error}") from error
    if len(content) > most_bytes:
        raise ValueError(f"expected at most {most_bytes:,} bytes, found more")
    return content


def refuse(where: str, expected: str, found: Any) -> None:
    """Raise the error of a check.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{where}: expected {expected}, found {reprlib.repr(found)}")


def number(low: float = -math.inf, high: float = math.inf, *, finite: bool = True) -> Check:
    """A number from ``low`` to ``high``; NaN and infinite ones only where ``finite`` is False."""

    def check(value: Any, where: str) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and not finite and not math.isfinite(value):
            return
        if not is_number or not _is_finite(value) or not low <= value <= high:
            refuse(where, f"a number{_span(low, high)}", value)

    return check


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _span(low: float, high: float) -> str:
    least = f" from {low:g}" if low > -math.inf else ""
    return least + (f" to {high:g}" if high < math.inf else "")


def integer(low: int = 0, high: int = 2**63 - 1) -> Check:
    """A whole number from ``low`` to ``high``."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            refuse(where, f"a whole number{_span(low, high)}", value)

    return check


def text(value: Any, where: str) -> None:
    """A text that can be written as UTF-8."""
    if not isinstance(value, str):
        refuse(where, "a text", value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        refuse(where, "a text without single surrogates", value)


def boolean(value: Any, where: str) -> None:
    """True or False."""
    if not isinstance(value, bool):
        refuse(where, "true or false", value)


def anything(value: Any, where: str) -> None:
    """A value that is shown at most, and otherwise not used."""


def optional(check: Check) -> Check:
    """Nothing, or what ``check`` takes."""
    return lambda value, where: None if value is None else check(value, where)


def list_of(check: Check, least: int = 0, most: int = MOST_ITEMS) -> Check:
    """A list whose every item ``check`` takes."""

    def check_list(value: Any, where: str) -> None:
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            refuse(where, "a list" + (f" of {least} or more" if least else ""), value)
        for place, item in enumerate(value):
            check(item, f"{where}[{place}]")

    return check_list


def mapping(check: Check) -> Check:
    """An object with any keys, whose every value ``check`` takes."""

    def check_mapping(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            refuse(where, "an object", value)
        for key, item in value.items():
            text(key, f"a key of {where}")
            check(item, f"{where}.{key}")

    return check_mapping


def record(required: Mapping[str, Check], others: Mapping[str, Check] | None = None) -> Check:
    """An object with these keys, of which ``others`` may be missing; more keys are let through."""
    known = {**(others or {}), **required}

    def check_record(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            refuse(where, "an object", value)
        missing = sorted(required.keys() - value.keys())
        if missing:
            raise ValueError(f"{where}: {missing[0]!r} is missing")
        for key in known.keys() & value.keys():
            known[key](value[key], f"{where}.{key}")

    return check_record


def check_fields(kind: type, values: Any, where: str) -> None:
    """Check values against the types that a dataclass gives its fields of the same names.

    Raises:
        ValueError: ``values`` is no object, has another key, or a value of another type.
    """
    if not isinstance(values, dict):
        refuse(where, "an object", values)
    hints = get_type_hints(kind)
    names = {field.name for field in fields(kind)}
    for key, value in values.items():
        if key not in names:
            raise ValueError(f"{where}: this version does not know {reprlib.repr(key)}")
        _of_type(hints[key])(value, f"{where}.{key}")


def _of_type(hint: Any) -> Check:
    """The check of an annotation; ``None`` is let through where the annotation has it."""
    if isinstance(hint, UnionType):
        (inner,) = (each for each in get_args(hint) if each is not NoneType)
        return optional(_of_type(inner))
    if get_origin(hint) in (list, tuple):
        return list_of(_of_type(get_args(hint)[0]))
    if get_origin(hint) is dict:
        return mapping(_of_type(get_args(hint)[1]))
    checks: dict[Any, Check] = {str: text, bool: boolean, float: number(), int: integer(-(2**63))}
    return checks.get(hint, anything)
