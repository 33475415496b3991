"""Names from files, where they are shown."""

import ast
from io import StringIO
from pathlib import Path

import pytest

import seqtrain
from seqtrain import escaping
from seqtrain.escaping import (
    code_for_markdown,
    for_figure,
    for_html,
    for_markdown,
    for_table,
    for_terminal,
    name_problem,
    unique_names,
    visible,
)
from seqtrain.reporting import _SafeConsole, table

STEERING = ["\x1b[31m", "\x9b31m", "\u202e", "\u2066", "\ufeff", "\u2028", "\r", "\x07", "\ud800"]


@pytest.mark.parametrize("mark", STEERING)
def test_nothing_that_steers_the_display_is_left(mark: str) -> None:
    name = f"a{mark}b"
    shown = [visible(name), for_terminal(name), for_html(name), for_figure(name)]
    for text in [*shown, for_markdown(name), code_for_markdown(name)]:
        assert text.isprintable()
        assert "\\" in text


@pytest.mark.parametrize("name", ["alpha", "Kinase, ATP-binding", "β-strand", "蛋白", "é"])
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    for escape in (visible, for_terminal, for_html, for_figure, for_table):
        assert escape(name) == name
    assert name_problem(name) is None


def test_a_terminal_keeps_lines_and_tabs() -> None:
    assert for_terminal("two\n  lines\tand a tab") == "two\n  lines\tand a tab"


def test_html_and_markdown_hold_no_tag() -> None:
    name = "<img src=x onerror=alert(1)> & [a](b) `c` **d** | $e$"
    for escape in (for_html, for_markdown, code_for_markdown):
        assert "<" not in escape(name)
    assert for_html('"') == "&quot;"
    for character in "[]`*|$":
        assert f"\\{character}" in for_markdown(name)
    assert [for_markdown(text) for text in ("- a", "# a", "_a_", "1. a")] == [
        "\\- a",
        "\\# a",
        "\\_a\\_",
        "1\\. a",
    ]
    assert for_markdown("masked_batch - 2") == "masked_batch - 2"
    assert code_for_markdown("alpha 1") == "`alpha 1`"
    assert "`" not in code_for_markdown("a``b").replace("\\`", "")


def test_a_long_name_is_cut_in_a_figure() -> None:
    short = for_figure("begin" + "x" * 1_000_000 + "end")
    assert len(short) <= escaping.MAX_FIGURE_NAME
    assert short.startswith("begin")
    assert short.endswith("end")


def test_cells_of_a_table_stay_in_their_cell_and_ids_can_be_joined() -> None:
    assert for_table("a\tb\nc\rd\u2028e") == "a b c d e"
    assert for_table("=cmd|' /C calc'!A0") == "=cmd|' /C calc'!A0"


def test_column_names_are_different() -> None:
    names = unique_names(["prob_a\tb", "prob_a b", "id", "id", "id_2"])
    assert names == ["prob_a b", "prob_a b_2", "id", "id_2", "id_2_2"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a\rb", "U+000D"),
        ("a\u2028b", "U+2028 (line separator)"),
        ("a\u200fb", "U+200F (right-to-left mark)"),
        ("\x1b[31mred", "U+001B (a control character)"),
    ],
)
def test_a_class_name_that_shows_as_another_is_refused(name: str, said: str) -> None:
    assert said in (name_problem(name) or "")


def test_joiners_and_unusual_spaces_are_no_reason_to_refuse() -> None:
    assert name_problem("می\u200cخواهم") is None
    assert name_problem("a\xa0b") is None


def test_print_and_tables_show_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    escaping.print("record", "\x1b[2J", sep=": ")
    assert capsys.readouterr().out == "record: \\x1b[2J\n"
    console = _SafeConsole(file=StringIO(), width=80)
    console.print(table("\x1b[1mtitle", ["[bold]x", "\u202ey"], [("\x1b]0;t\x07", 1)]))
    console.print("[red]\x1b[3mplain")
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[bold]x" in shown
    assert "[red]\\x1b[3mplain" in shown


def test_no_verb_prints_past_the_escaping() -> None:
    for path in (Path(seqtrain.__file__).parent / "cli").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prints = any(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            for node in ast.walk(tree)
        )
        safe = any(
            isinstance(node, ast.ImportFrom)
            and node.module == "seqtrain.escaping"
            and "print" in [alias.name for alias in node.names]
            for node in tree.body
        )
        # Its line steers the terminal on purpose, and holds numbers alone.
        assert safe or not prints or path.name == "progress.py", path
