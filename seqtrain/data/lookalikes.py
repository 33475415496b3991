"""Warnings of classes that are probably one, or none."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from seqtrain.data.cells import is_missing, read_number
from seqtrain.data.labels import UNMEASURED, LabelCodec

MOST_SHOWN = 5
"""Groups of names that a warning shows."""

_NO_VALUES = frozenset(
    {"none", "n.a.", "n.d.", "n/d", "nd", "nil", "missing", "not available", "not determined"}
    | {"undefined", "unknown", "unspecified", "unassigned", "tbd", ".", "..", "--", "---"}
    | {"-99", "-999", "-9999"}
)
_OFTEN_UNKNOWN = "X.*"
_LATIN = str.maketrans(
    "АВЕКМНОРСТХаеорсухіΑΒΕΖΗΙΚΜΝΟΡΤΥΧο",
    "ABEKMHOPCTXaeopcyxiABEZHIKMNOPTYXo",
)
"""Cyrillic and Greek letters that look like Latin ones."""


def class_warnings(codec: LabelCodec, labels: Iterable[str]) -> list[str]:
    """Warnings of classes whose names look alike or mean no value, and of unmeasured residues.

    Args:
        codec: Holds the classes.
        labels: All labels, for counts of residues.
    """
    warnings = []
    if groups := lookalikes(codec.classes):
        shown = "; ".join(", ".join(map(_visible, group)) for group in groups[:MOST_SHOWN])
        more = f"; and {len(groups) - MOST_SHOWN} more" if len(groups) > MOST_SHOWN else ""
        warnings.append(
            "classes differ only in letter case, blanks, hyphens, quotes, hidden characters or the "
            f"way to write a character or number: {shown}{more}. Write them alike if they are one "
            "class"
        )
    if codec.task == "residue_classification":
        return warnings + _residue_warnings(codec, labels)
    if empty := [name for name in codec.classes if _means_no_value(name, codec.classes)]:
        names = ", ".join(map(repr, empty))
        warnings.append(
            f"{names} is read as a class; if it means that there is no value, leave these cells "
            "empty and such records out with --on-error skip"
        )
    return warnings


def _means_no_value(name: str, names: Collection[str]) -> bool:
    """True if a class is called as missing values often are; ``-`` beside ``+`` is a name."""
    marked = name.lower() in _NO_VALUES or is_missing(name)
    return marked and not (name == "-" and "+" in names)


def lookalikes(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that a reader would take for one, in order."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_looks(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _looks(name: str) -> str:
    """A form that names share when they differ in nothing that a reader sees or means."""
    number = read_number(name)
    if number is not None:
        return repr(number)
    text = "".join(
        char if char.isspace() or unicodedata.category(char) not in ("Cc", "Cf") else ""
        for char in unicodedata.normalize("NFKC", name)
    )
    text = text.translate(_LATIN).strip("'\"` ")
    text = "".join("-" if unicodedata.category(char) == "Pd" else char for char in text)
    text = re.sub(r"(?<=\w)[-_](?=\w)", " ", text)
    return unicodedata.normalize("NFKC", " ".join(text.split()).casefold())


def _visible(name: str) -> str:
    """The name in quotes, with escapes for what is not seen: combined and foreign characters."""
    is_plain = name == unicodedata.normalize("NFC", name).translate(_LATIN)
    return repr(name) if is_plain else ascii(name)


def _residue_warnings(codec: LabelCodec, labels: Iterable[str]) -> list[str]:
    warnings = []
    counts: Counter[str] = Counter()
    for label in labels:
        counts.update({mark: label.count(mark) for mark in UNMEASURED})
    marks = [mark for mark in UNMEASURED if counts[mark] and mark not in codec.ignore]
    if marks:
        named = " and ".join(f"{counts[mark]:,} residue labels {mark!r}" for mark in marks)
        warnings.append(
            f"{named} are read as residues that were not measured; if they are a class, write "
            "another letter for it"
        )
    if unknown := [name for name in codec.classes if name in _OFTEN_UNKNOWN]:
        warnings.append(
            f"the residue label {_listed(unknown)} is a class; data.ignore_labels="
            f"[{','.join(unknown)}] leaves these residues out"
        )
    return warnings


def _listed(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))
