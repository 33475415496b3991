"""Attributes in FASTA headers: ``key=value`` among other words."""

import re
from collections.abc import Sequence
from itertools import takewhile

from seqtrain.data.labels import UNMEASURED

_NEXT_KEY = re.compile(r"[;|,]+(?=[\w.-]+=)")
_QUOTES = "\"'"


class Attribute:
    """Reads the values of some keys from headers, in any letter case.

    A value ends at a blank, or where ``;``, ``|`` or ``,`` stands before another ``key=``. One with
    blanks stands in quotes, or in brackets with its key: ``[label=two words]``.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        key = rf"(?:{'|'.join(map(re.escape, keys))})="
        quoted = rf"(?P<quote>[{_QUOTES}])(?P<text>.*?)(?P=quote)(?=[\s;|,\]]|$)"
        bracketed = rf"(?<=\[){key}(?P<inside>[^\]]*)\]"
        free = rf"(?:^|(?<=[\s;|,\[])){key}(?:{quoted}|(?P<bare>\S*))"
        self._pattern = re.compile(f"{bracketed}|{free}", re.IGNORECASE)

    def values(self, description: str) -> list[str]:
        """All values in a header, in order."""
        return [self._text(found) for found in self._pattern.finditer(description)]

    def value(self, description: str) -> str:
        """The first value in a header; empty without one."""
        return next(iter(self.values(description)), "")

    def words_after(self, description: str) -> str:
        """Words between a bare first value and the next ``key=``; empty after one in quotes."""
        found = self._pattern.search(description)
        if found is None or found["bare"] is None or _NEXT_KEY.search(found["bare"]):
            return ""
        words = description[found.end() :].split()
        return " ".join(takewhile(lambda word: "=" not in word, words))

    @staticmethod
    def _text(found: re.Match[str]) -> str:
        if found["inside"] is not None:
            return found["inside"].strip().strip(_QUOTES)
        if found["text"] is not None:
            return found["text"].strip()
        return _NEXT_KEY.split(found["bare"], maxsplit=1)[0].rstrip(";|,")


MASK = Attribute(["mask"])


def masked(value: str, header: str) -> tuple[str, str]:
    """Residue labels, with ``-`` where ``MASK=0110`` in the header has 0; and what is wrong."""
    mask = MASK.value(header)
    if not mask:
        return value, ""
    if len(mask) != len(value) or set(mask) - {"0", "1"}:
        return value, f"MASK={mask[:20]}: expected {len(value)} digits 0 or 1, one for each label"
    unmeasured = (
        UNMEASURED[0] if use == "0" else label for label, use in zip(value, mask, strict=True)
    )
    return "".join(unmeasured), ""
