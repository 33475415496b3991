"""Chooses the columns of a label table that hold ids, labels and splits, and says why."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from seqtrain.data.files import shown
from seqtrain.data.header_splits import SPLIT_COLUMNS
from seqtrain.errors import LabelError

_ID_COLUMNS = ("id", "name", "accession", "identifier", "record", "record_id", "seq_id", "entry")
_LABEL_COLUMNS = ("label", "labels", "target", "targets", "class", "y")


class Columns(NamedTuple):
    """Names of the columns of a label table, or of the keys in headers."""

    id: str
    label: str
    split: str
    """Empty when there is none."""


class ChosenColumns(NamedTuple):
    """The columns of one table, by name and by place."""

    names: Columns
    places: tuple[int, ...]
    """Of ids, labels and, if there are any, splits among the columns, from 0."""
    why: Mapping[str, str]
    """The rule that found each, by ``id``, ``label`` and ``split``."""

    def words(self) -> str:
        """One clause that names the columns and how they were found."""
        return ", ".join(
            f"{role} column {_quoted(getattr(self.names, role))} ({self.why[role]})"
            for role in ("label", "id", "split")
            if role in self.why
        )


def choose_columns(
    names: Sequence[str],
    source: str,
    *,
    id_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
) -> ChosenColumns:
    """The columns that were asked for, and the others by their usual names.

    Labels are otherwise those of the only column that is left, ids those of the first one left. A
    first column without a name, as data frames write their index, holds ids where no other can.
    A split column that is asked for may be elsewhere; the usual one is then neither read nor taken
    for another.

    Raises:
        LabelError: A column is missing, occurs twice, or cannot be told.
    """
    label = _pick("label", label_column, _LABEL_COLUMNS, names, source)
    asked = split_column if split_column in names else None
    split = _pick("split", asked, SPLIT_COLUMNS, names, source)
    is_read = split is not None and split_column in (None, names[split])
    record = _pick("id", id_column, _ID_COLUMNS, names, source)
    rest = [i for i in range(len(names)) if i not in (label, split, record)]
    if record is None:
        record = _first_left(names, rest, label, source)
        rest = [i for i in rest if i != record]
    if label is None:
        if len(rest) != 1:
            raise LabelError(
                f"{shown(source)}: which column holds the label? Columns: {_listed(names)}. "
                "Name it with --label-column."
            )
        label = rest[0]
    if not is_read:
        split = None
    given = {"id": id_column, "label": label_column, "split": split_column}
    usual = {"id": _ID_COLUMNS, "label": _LABEL_COLUMNS, "split": SPLIT_COLUMNS}
    found = {"id": record, "label": label, "split": split}
    why = {
        role: _reason(role, names[place], given[role] is not None, usual[role])
        for role, place in found.items()
        if place is not None
    }
    places = (record, label) if split is None else (record, label, split)
    picked = Columns(names[record], names[label], "" if split is None else names[split])
    return ChosenColumns(picked, places, why)


def _first_left(names: Sequence[str], rest: Sequence[int], label: int | None, source: str) -> int:
    """The first column left, unless it is a nameless index and another may hold the ids."""
    needed = 1 if label is not None else 2
    if rest and (names[rest[0]] or len(rest) == needed):
        return rest[0]
    raise LabelError(
        f"{shown(source)}: which column holds the record ids? Columns: {_listed(names)}. "
        "Name it with --id-column."
    )


def _reason(role: str, name: str, is_given: bool, usual: Sequence[str]) -> str:
    if is_given:
        return f"--{role}-column"
    if name.lower() in usual:
        return "by its name"
    return "the only other column" if role == "label" else "the first column left"


def _pick(
    role: str, wanted: str | None, usual: Sequence[str], names: Sequence[str], source: str
) -> int | None:
    """Place of the column that is asked for, or that has a usual name."""
    if wanted is not None:
        places = [i for i, name in enumerate(names) if name == wanted]
        if not places:
            near = get_close_matches(wanted, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise LabelError(
                f"{shown(source)}: there is no column {wanted!r}. Columns: {_listed(names)}.{hint}"
            )
        _refuse_several(role, places, names, source)
        return places[0]
    places = [i for i, name in enumerate(names) if name.lower() in usual]
    if not places:
        return None
    if role != "label":  # an id beside a name is usual; of labels only one can be meant
        best = min(places, key=lambda i: usual.index(names[i].lower()))
        places = [i for i in places if names[i].lower() == names[best].lower()]
    _refuse_several(role, places, names, source)
    return places[0]


def _refuse_several(role: str, places: Sequence[int], names: Sequence[str], source: str) -> None:
    """Refuse a choice between columns, with a fix that can tell them apart."""
    if len(places) == 1:
        return
    listed = " and ".join(f"{_quoted(names[i])} (column {i + 1})" for i in places)
    alike = len({names[i] for i in places}) < len(places)
    fix = "Rename or remove all but one." if alike else f"Name it with --{role}-column."
    what = "record ids" if role == "id" else f"{role}s"
    raise LabelError(f"{shown(source)}: {listed} could both hold the {what}. {fix}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name or "(one without a name)" for name in names)


def _quoted(name: str) -> str:
    return repr(name) if name else "without a name"
