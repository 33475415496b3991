"""Names of splits, and the splits that FASTA headers name: ``SET=train VALIDATION=True``."""

import re
from collections.abc import Callable, Iterable

from seqtrain.data.fasta import Header

SPLIT_COLUMNS = ("split", "set", "partition")
"""Usual names of a column, or of a key in headers, that says which split a record is for."""

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "dev", "validation"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_FLAG = "validation"
_BEFORE = r"(?:^|[\s;|,\[({])"
_VALUE = r"""("[^"]*"|'[^']*'|[^\s;|,\])}]*)"""
_QUOTES = "\"'"


def split_name(text: str) -> str | None:
    """``train``, ``valid`` or ``test`` for the usual ways to write them; None for anything else."""
    return _SPLITS.get(text.strip().lower())


def read_header_splits(
    records: Iterable[Header], key: str | None = None
) -> tuple[dict[str, str], list[str]]:
    """The split that each header names, and the keys that occur; see :func:`split_reader`.

    Returns:
        Text by record id, records without left out; and the keys, as they are spelled.
    """
    split_of = split_reader(key)
    texts: dict[str, str] = {}
    spelled: dict[str, None] = {}
    for record in records:
        text, names = split_of(f"{record.id} {record.description}")
        if text:
            texts[record.id] = text
            spelled |= names
    return texts, list(spelled)


def split_reader(key: str | None = None) -> Callable[[str], tuple[str, dict[str, None]]]:
    """Returns a function: header to the split that it names and the keys that say so.

    The split is as it is written, or empty. Keys count in any case. ``split``, ``set`` and
    ``partition`` are read where no key is asked for, and ``VALIDATION=True`` makes a training
    record one for validation. An attribute stands anywhere in the header, also within its first
    word or in brackets; ``split: test`` and ``split = test`` are read too where they name a split.

    Args:
        key: The key to read alone.
    """
    keys = (key.lower(),) if key else (*SPLIT_COLUMNS, _FLAG)
    names = "|".join(map(re.escape, keys))
    pattern = re.compile(rf"{_BEFORE}({names})(\s*[=:]\s*){_VALUE}", re.IGNORECASE)

    def read(header: str) -> tuple[str, dict[str, None]]:
        lower = header.lower()
        if not any(key in lower for key in keys):  # ten times as fast as the search
            return "", {}
        found = _attributes(pattern, header)
        return _split_of(found, keys), {name: None for name, _ in found.values()}

    return read


def _attributes(pattern: re.Pattern[str], header: str) -> dict[str, tuple[str, str]]:
    """Key as spelled and value of each attribute, by its key in lower case; the first of each."""
    found: dict[str, tuple[str, str]] = {}
    for name, sign, value in pattern.findall(header):
        text = value.strip(_QUOTES).strip()
        if text and (sign == "=" or split_name(text)):  # "data set: human" is no attribute
            found.setdefault(name.lower(), (name, text))
    return found


def _split_of(found: dict[str, tuple[str, str]], keys: tuple[str, ...]) -> str:
    """The split that the attributes of one header name, as it is written; empty without any."""
    flag = found[_FLAG][1].lower() if _FLAG in found and len(keys) > 1 else ""
    texts = [found[key][1] for key in keys if key in found and not (key == _FLAG and flag)]
    text = next(filter(split_name, texts), texts[0] if texts else "")
    if not flag or split_name(text) in ("valid", "test"):
        return text
    if flag not in ("true", "false"):
        return f"VALIDATION={flag}"
    return "valid" if flag == "true" else text or "train"
