"""Attributes in FASTA headers: ``key=value`` among other words."""

import re
from collections.abc import Sequence

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

    @staticmethod
    def _text(found: re.Match[str]) -> str:
        if found["inside"] is not None:
            return found["inside"].strip().strip(_QUOTES)
        if found["text"] is not None:
            return found["text"].strip()
        return _NEXT_KEY.split(found["bare"], maxsplit=1)[0].rstrip(";|,")
