"""The labels of some records, read as what they are, and what is said of it."""

from collections.abc import Collection, Sequence

import numpy as np

from seqtrain.data.fasta import Reject
from seqtrain.data.files import shown
from seqtrain.data.interpret import Reading, interpret, plain_names
from seqtrain.data.join import find_unlabelled, label_source
from seqtrain.data.label_table import LabelTable
from seqtrain.data.labels import LabelCodec
from seqtrain.data.tokenized import Headers, Tokenized, ids_of
from seqtrain.errors import LabelError
from seqtrain.words import counted


def read_column(
    pieces: Sequence[Tokenized],
    table: LabelTable,
    *,
    task: str | None = None,
    like: LabelCodec | None = None,
    decimal: str | None = None,
    names: Collection[str] = (),
) -> Reading:
    """The reading of the labels of these records; the table then holds them in their plain form.

    Args:
        pieces: The records, each of which has a label.
        table: Their labels.
        task: One of ``TASKS``; none: inferred from the cells.
        like: Of a model, in whose form the labels are wanted.
        decimal: ``point`` or ``comma`` before fractions; none: inferred from the cells.
        names: Marks of missing values that are names here.

    Raises:
        LabelError: The labels can be read in two ways, or in none.
    """
    ids = list(ids_of(pieces))
    values = [table.values[record] for record in ids]
    lengths = [taken for piece in pieces for taken in _label_lengths(piece)]
    try:
        reading = interpret(
            values,
            table.kind,
            task=like.task if like else task,
            separator=like.separator if like else None,
            column=table.columns.label,
            decimal=decimal,
            names=names,
            lengths=lengths,
        )
    except LabelError as error:
        raise LabelError(f"{label_source(table)}: {error}") from None
    rewritten = reading.rewritten
    if like is not None and like.task == "classification":
        strange = set(values).difference(like.classes)  # written as training may have rewritten
        rewritten = {k: v for k, v in plain_names(strange).items() if v in like.classes}
    if rewritten:
        for record, value in zip(ids, values, strict=True):
            table.values[record] = rewritten.get(value, value)
    return reading


def _label_lengths(piece: Tokenized) -> list[tuple[int, int]]:
    """Letters and tokens of each record: either may be the number of its residue labels."""
    tokens = piece.whole
    letters = tokens + np.diff(piece.dropped.offsets)
    return list(zip(letters.tolist(), tokens.tolist(), strict=True))


def leave_out_unlabelled(
    pieces: Sequence[Tokenized], table: LabelTable, names: Collection[str] = ()
) -> tuple[list[Tokenized], list[Reject]]:
    """The records with a label, and what is said of the others.

    Args:
        pieces: All records.
        table: Their labels.
        names: Marks of missing values that are names here.

    Raises:
        LabelError: No record has a label.
    """
    gone = find_unlabelled(Headers(pieces), table, names)
    if not gone:
        return list(pieces), []
    missing = {each.id for each in gone}
    kept = [
        piece.take(
            np.array(
                [i for i, name in enumerate(piece.sequences.ids) if name not in missing], np.int64
            )
        )
        for piece in pieces
    ]
    if not any(map(len, kept)):
        raise LabelError(f"{label_source(table)}: every label is missing; no record is left.")
    return kept, gone


def column_words(table: LabelTable) -> list[str]:
    """A clause for each label file: its columns and how they were found."""
    if table.kind == "header":
        return [label_source(table)]
    if table.kind == "fasta":
        return [f"{shown(file)}, one letter for each residue" for file in table.files]
    files = table.files if len(table.files) == len(table.chosen) else [label_source(table)]
    return [
        f"{shown(file)}, {chosen.words()}"
        for file, chosen in zip(files, table.chosen, strict=False)
    ]


def label_notes(table: LabelTable, reading: Reading, unlabelled: Sequence[Reject]) -> list[str]:
    """Warnings of how labels were read and of records left out for want of one."""
    notes = [f"{label_source(table)}: {note}" for note in reading.notes]
    if unlabelled:
        few = ", ".join(repr(each.id) for each in unlabelled[:3])
        more = ", ..." if len(unlabelled) > 3 else ""
        said = counted(
            len(unlabelled),
            "record without a label is left out",
            "records without a label are left out",
        )
        notes.append(f"{said} (data.on_error=skip): {few}{more}")
    return notes
