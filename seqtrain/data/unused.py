"""Settings of ``data`` that were given and have nothing to do, in words."""

from collections.abc import Collection, Iterator, Sequence

from seqtrain.data.label_table import LabelTable
from seqtrain.data.partition import Partition


def unused_settings(
    asked: Collection[str],
    given: Partition,
    table: LabelTable,
    split_tables: Sequence[str],
    fractions: tuple[float, float],
) -> list[str]:
    """One line for each setting that was given and is not used, with the reason.

    Args:
        asked: Names of the settings of ``data`` that were given.
        given: Splits as files, tables or columns name them, before any is made.
        table: The labels.
        split_tables: Splits tables.
        fractions: ``valid_fraction`` and ``test_fraction``.
    """
    return [
        f"data.{name} is not used: {reason}"
        for name, reason in _unused(given, table, split_tables, fractions)
        if name in asked
    ]


def _unused(
    given: Partition,
    table: LabelTable,
    split_tables: Sequence[str],
    fractions: tuple[float, float],
) -> Iterator[tuple[str, str]]:
    made = []
    for split, fraction in zip(("valid", "test"), fractions, strict=True):
        if (given.parts == split).any():
            yield f"{split}_fraction", f"the {split} split is given {given.how}"
        elif fraction:
            made.append(split)
    if not made:
        yield "split_method", f"no split is left to be made, they are given {given.how}"
    if table.kind != "table" and not split_tables:
        yield "id_column", "there is no table of labels or splits"
    if table.kind == "fasta":
        yield "label_column", "a labels FASTA has no columns"
        yield "decimal", "the labels are letters"
    if not table.values:
        yield from dict.fromkeys(("decimal", "on_error"), "there are no labels").items()
