"""Reads a column of label cells as what they are: the task, and each cell in its plain form."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from seqtrain.data.cells import NumberFormat, is_missing, missing_marks, read_list
from seqtrain.data.evidence import (
    SEPARATORS,
    Verdict,
    are_numbers,
    best_separator,
    examples,
    number_format,
    split_names,
    weigh_names,
    weigh_numbers,
)
from seqtrain.data.labels import is_regression, is_residue, read_numbers
from seqtrain.data.odd_cells import refuse_odd_forms, sentinel_note
from seqtrain.errors import LabelError

_JOINING = "/+&:"
"""Marks that join names in a cell, but belong to names of classes as often."""


@dataclass(frozen=True)
class Reading:
    """A column of labels, understood."""

    task: str
    reason: str
    """The reason for the task, with the override."""
    rewritten: dict[str, str]
    """Cells that are read as another text: numbers written otherwise, lists, trailing marks."""
    separator: str | None = None
    """Between the names of a multi-label cell."""
    notes: tuple[str, ...] = ()
    """Warnings about single cells."""


def interpret(
    values: Sequence[str],
    kind: str,
    *,
    task: str | None = None,
    column: str = "",
    decimal: str | None = None,
    separator: str | None = None,
    names: Collection[str] = (),
    lengths: Sequence[Collection[int]] | None = None,
) -> Reading:
    """The task of a column of labels, inferred from the cells unless given, and how to read them.

    - A labels FASTA, and texts as long as their sequences: ``residue_classification``.
    - Numbers: ``regression``, or ``classification`` where few repeat.
    - Lists of numbers, with fractions or one for each residue: ``residue_regression``.
    - Names: ``multilabel`` where the parts of cells recur in other cells, else ``classification``.

    Args:
        values: One per record; missing ones are left out of account.
        kind: Of the table: ``table``, ``header`` or ``fasta``.
        task: One of ``TASKS``; none: inferred from the cells.
        column: Name of the column.
        decimal: ``point`` or ``comma`` before fractions; none: inferred from the cells.
        separator: Between the names of a multi-label cell; none: inferred from the cells.
        names: Marks of missing values that are names here.
        lengths: Numbers of residue labels that each record can take; none: not known.

    Raises:
        LabelError: The cells can be read in two ways, or are of a form that has no reading.
    """
    if kind == "fasta":
        return Reading(task or "residue_classification", "a labels FASTA", {})
    marks = missing_marks(values, names)
    cells = Counter(value for value in values if value not in marks)
    match = _matches(values, lengths) if lengths is not None else (lambda _: False)
    verdict = (
        _given(cells, task, decimal, separator) if task else _told(cells, column, decimal, match)
    )
    return _apply(verdict, cells)


def infer_task(values: Sequence[str], kind: str, column: str = "") -> str:
    """The task that :func:`interpret` tells from labels alone."""
    return interpret(list(values), kind, column=column).task


def _matches(
    values: Sequence[str], lengths: Sequence[Collection[int]]
) -> Callable[[Callable[[str], int]], bool]:
    """Tells whether a size of the cells is that of their sequences, for two different sizes."""

    def match(size: Callable[[str], int]) -> bool:
        pairs = [
            (size(value), taken)
            for value, taken in zip(values, lengths, strict=True)
            if not is_missing(value)
        ]
        return len({own for own, _ in pairs}) > 1 and all(own in taken for own, taken in pairs)

    return match


def _told(
    cells: Counter[str],
    column: str,
    decimal: str | None,
    match: Callable[[Callable[[str], int]], bool],
) -> Verdict:
    """The verdict where no task is given."""
    if verdict := weigh_numbers(cells, column):
        return verdict
    if lists := _lists(cells):
        return _weigh_lists(lists, match)
    if match(len):
        return Verdict("residue_classification", "each label is as long as its sequence")
    if _are_profiles(cells) and match(lambda cell: len(read_numbers(cell))):
        return Verdict("residue_regression", "one number for each residue")
    if form := number_format(cells, column, decimal):
        return _written(form, cells)
    if _are_profiles(cells, fractions=True):
        return Verdict("residue_regression", "lists of numbers")
    _refuse_vectors(cells, {cell: cell.replace(",", " ").split() for cell in cells})
    refuse_odd_forms(cells)
    return weigh_names(cells, column)


def _given(cells: Counter[str], task: str, decimal: str | None, separator: str | None) -> Verdict:
    """The verdict where the task is given: how its cells are written."""
    found = Verdict(task, "given")
    if task == "regression" and not are_numbers(cells):
        # Codes are out of the question: a column of values, whatever it is called.
        form = number_format(cells, "value", decimal)
        return replace(found, number_format=form) if form else found
    if task == "multilabel":
        return replace(found, separator=separator or best_separator(cells))
    return found


def _written(form: NumberFormat, cells: Counter[str]) -> Verdict:
    reason = f"{_example(form, cells)}; task=classification reads names"
    return Verdict("regression", reason, number_format=form)


def _example(form: NumberFormat, cells: Collection[str]) -> str:
    shown = next(cell for cell in cells if form.fits(cell) and form.marked.search(cell))
    article = "an" if form.name[0] in "aeiou" else "a"
    return f"numbers with {article} {form.name}: {shown!r} is {form.plain(shown)}"


def _lists(cells: Collection[str]) -> dict[str, list[str]]:
    """The items of cells that are lists in brackets; empty where most are none."""
    lists = {cell: items for cell in cells if (items := read_list(cell)) is not None}
    if 2 * len(lists) < len(cells):
        return {}
    if lists and len(lists) < len(cells):
        other = next(cell for cell in cells if cell not in lists)
        raise LabelError(
            f"{examples(lists, 1)} is a list in brackets and {other!r} is none. Write all cells "
            "alike, for instance a;b."
        )
    return lists


def _weigh_lists(
    lists: dict[str, list[str]], match: Callable[[Callable[[str], int]], bool]
) -> Verdict:
    if all(are_numbers(items) for items in lists.values()):
        if match(lambda cell: len(read_list(cell) or ())):
            return Verdict("residue_regression", "one number for each residue, in brackets")
        _refuse_vectors(lists, lists)
    if all(len(items) == 1 for items in lists.values()):
        return Verdict("classification", "lists of one name; task=multilabel reads them as lists")
    separator = _free_separator(lists)
    return Verdict("multilabel", "lists of names in brackets", separator=separator)


def _free_separator(lists: dict[str, list[str]]) -> str:
    """A separator that stands in no name."""
    for mark in SEPARATORS:
        if not any(mark in item for items in lists.values() for item in items):
            return mark
    raise LabelError(
        f"the names in lists such as {examples(lists, 1)} hold each of {' '.join(SEPARATORS)}; "
        "rename them."
    )


def _refuse_vectors(cells: Collection[str], items: dict[str, list[str]]) -> None:
    """Refuse vectors of zeros and ones, and lists of other numbers that are no residues'."""
    sizes = {len(parts) for parts in items.values()}
    numeric = all(are_numbers(parts) for parts in items.values())
    if not numeric or len(sizes) != 1 or sizes == {1}:
        return
    (size,) = sizes
    if {float(part) for parts in items.values() for part in parts} <= {0.0, 1.0}:
        raise LabelError(
            f"cells such as {examples(cells, 1)} are vectors of {size} zeros and ones. Write the "
            "names of the classes instead, separated by ';' where a record has several."
        )
    if any(cell.strip()[:1] in "[({" for cell in cells):
        raise LabelError(
            f"cells such as {examples(cells, 1)} are lists of {size} numbers: neither one number "
            "for a record nor one for each residue. Choose another column with --label-column."
        )


def _are_profiles(cells: Collection[str], *, fractions: bool = False) -> bool:
    """True if every label is a list of numbers, and some number has a fraction if that is asked."""
    try:
        numbers = [read_numbers(cell) for cell in cells]
    except LabelError:
        return False
    flat = [number for one in numbers for number in one.tolist() if number == number]
    return len(flat) > len(numbers) and (not fractions or any(x % 1 != 0 for x in flat))


def _apply(verdict: Verdict, cells: Counter[str]) -> Reading:
    """The cells in the form that the task's codec reads."""
    rewritten: dict[str, str] = {}
    notes: list[str] = []
    task, separator = verdict.task, verdict.separator
    if verdict.number_format is not None:
        plain = verdict.number_format.plain
        rewritten = {cell: plain(cell) for cell in cells if verdict.number_format.fits(cell)}
        if verdict.reason == "given":
            notes = [f"read as {_example(verdict.number_format, cells)}"]
    elif is_regression(task):
        if is_residue(task):
            lists = {cell: items for cell in cells if (items := read_list(cell)) is not None}
            rewritten = {cell: ",".join(items) for cell, items in lists.items()}
        else:
            notes = sentinel_note(cells)
    elif task == "multilabel":
        lists = {cell: items for cell in cells if (items := read_list(cell)) is not None}
        separator = separator or (_free_separator(lists) if lists else SEPARATORS[-1])
        rewritten = {cell: separator.join(items) for cell, items in lists.items()}
        notes = _other_marks([c for c in cells if c not in lists], separator, cells)
    elif task == "classification" and verdict.reason != "given":
        rewritten = plain_names(cells)
        notes = _several_names(cells)
    rewritten = {cell: text for cell, text in rewritten.items() if cell != text}
    return Reading(task, verdict.reason, rewritten, separator, tuple(notes))


def plain_names(cells: Collection[str]) -> dict[str, str]:
    """Names without a separator at either end or brackets around them."""
    plain = {}
    for cell in cells:
        items = read_list(cell)
        plain[cell] = items[0] if items and len(items) == 1 else cell.strip(SEPARATORS + " ")
    return {cell: text for cell, text in plain.items() if text}


def _other_marks(cells: Collection[str], separator: str, counts: Counter[str]) -> list[str]:
    """Warnings of cells that hold another separator too."""
    notes = []
    for mark in SEPARATORS:
        odd = [cell for cell in cells if mark != separator and len(split_names(cell, mark)) > 1]
        if odd:
            number = sum(counts[cell] for cell in odd)
            notes.append(
                f"names of classes stand between {separator!r}; {number} cells hold {mark!r} too, "
                f"which is read as part of a name: {examples(odd)}"
            )
    return notes


def _several_names(cells: Collection[str]) -> list[str]:
    """A warning of names that look like several, with a mark between that is no separator."""
    names = set(cells)
    for mark in _JOINING:
        parts = {cell: split_names(cell, mark) for cell in cells}
        odd = [c for c, found in parts.items() if len(found) > 1 and names.issuperset(found)]
        if odd:
            return [
                f"{examples(odd)} is read as one class, though its parts are classes too; for "
                "several classes in a cell write ';' between them"
            ]
    return []
