"""Names that come from files, made harmless for the place where they are shown.

Ids, class names, column names and file names may hold anything: escape codes that steer a terminal,
marks that turn the reading direction, HTML, Markdown, formulas. There is one function for each
destination, and :func:`name_problem` says why a name is not taken at all.
"""

import builtins
import html
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

MAX_FIGURE_NAME = 40
"""Characters of a name in a figure; longer ones are cut in the middle."""

_PLAIN_NAME = re.compile(r"[\w .:/+-]*\w")
_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)|^[-+#=]|(?<=^\d)[.)]")
_JOINERS = "\u200c\u200d"
"""Invisible, but some scripts are not spelled right without them."""


def visible(text: str) -> str:
    r"""The text with every character that cannot be seen, or steers the display, as ``\x1b``.

    Control and format characters, unusual spaces and line ends, and halves of surrogate pairs are
    written as escapes; everything else stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def for_terminal(text: str) -> str:
    """The text for a terminal: line ends and tabs are kept, nothing else steers the display."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escape(c) for c in text)


def print(
    *values: object, sep: str = " ", end: str = "\n", file: Any = None, flush: bool = False
) -> None:
    """Print as the builtin does, but safe for a terminal; modules import it under that name."""
    text = for_terminal(sep.join(map(str, values)))
    builtins.print(text, end=end, file=file, flush=flush)


def for_html(text: str) -> str:
    """The text for HTML, between tags or in a quoted attribute."""
    return html.escape(visible(text))


def for_markdown(text: str) -> str:
    """The text for one line of Markdown, in a table cell too: no markup, no HTML, no formula."""
    escaped = _MARKDOWN.sub(lambda match: "\\" + match[0], visible(text))
    return html.escape(escaped, quote=False)


def code_for_markdown(name: str) -> str:
    """The name as code; as escaped text when it holds what could end the code."""
    return f"`{name}`" if _PLAIN_NAME.fullmatch(name) else for_markdown(name)


def for_figure(name: str) -> str:
    """The name for a matplotlib figure: short, on one line, and dollar signs begin no formula."""
    text = visible(name)
    if len(text) > MAX_FIGURE_NAME:
        half = (MAX_FIGURE_NAME - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return text.replace("$", r"\$")


def for_table(cell: str) -> str:
    """The cell for a tab-separated table: tabs and line ends become spaces.

    Nothing else changes, so that ids can be joined. A cell that begins with ``=`` stays, too:
    whoever opens the table in a spreadsheet program should import its columns as text.
    """
    if cell.isprintable():
        return cell
    return "".join(" " if c == "\t" or len(f"{c}.".splitlines()) > 1 else c for c in cell)


def unique_names(names: Iterable[str]) -> list[str]:
    """Column names for a table, each one different from the others: repeated ones get a number."""
    found: dict[str, None] = {}
    for name in map(for_table, names):
        number, candidate = 2, name
        while candidate in found:
            candidate = f"{name}_{number}"
            number += 1
        found[candidate] = None
    return list(found)


def name_problem(name: str) -> str | None:
    """The first character for which a class name is refused, in words; None if there is none.

    Control characters, line ends, and marks that change the reading direction: two names that
    differ in them look alike, and tables, terminals and pages show something else.
    """
    if name.isprintable():
        return None
    for character in name:
        kind = unicodedata.category(character)
        if kind in ("Cc", "Zl", "Zp", "Cs") or (kind == "Cf" and character not in _JOINERS):
            words = unicodedata.name(character, "a control character")
            return f"U+{ord(character):04X} ({words.lower()})"
    return None
