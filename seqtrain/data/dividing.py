"""Splits of the records of some files, for `seqtrain data split`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seqtrain.data.attributes import Attribute
from seqtrain.data.fasta import refuse_repeats
from seqtrain.data.files import shown
from seqtrain.data.join import check_labels, join_labels
from seqtrain.data.label_column import label_notes, leave_out_unlabelled, read_column
from seqtrain.data.label_table import header_labels
from seqtrain.data.labels import LabelCodec
from seqtrain.data.named_splits import ASIDE, find_splits
from seqtrain.data.partition import label_groups, pick
from seqtrain.data.reading import read_tokenized
from seqtrain.data.split_table import take_split_tables
from seqtrain.data.splits import random_split, similarity_split, stratified_split
from seqtrain.data.tokenized import Headers, ids_of
from seqtrain.errors import DataError

METHODS = ("random", "stratified", "similarity")
_ANY = dict.fromkeys(("alphabet", "ambiguous", "gap", "stop", "other"))


class Divided(NamedTuple):
    """A split for each record, and what there is to say."""

    rows: list[tuple[str, str]]
    """Record id and split, in input order."""
    warnings: list[str]
    labels: list[str]
    """Label files to train with, splits tables left out."""
    has_splits: bool
    """True if columns or headers name other splits, which training has to leave aside."""
    has_labels: bool
    """True if there are labels, in files or headers: without them only mlm can be trained."""


def split_files(
    fasta: Sequence[str],
    labels: Sequence[str],
    *,
    label_column: str | None,
    id_column: str | None,
    task: str | None = None,
    decimal: str | None = None,
    on_error: str = "fail",
    method: str,
    fractions: tuple[float, float, float],
    seed: int,
) -> Divided:
    """Splits of the records of FASTA files or stores; labels are read as in training.

    Raises:
        FastaError: Records cannot be used.
        LabelError: Labels are missing.
        DataError: A stratified split without labels.
    """
    refuse_repeats([*fasta, *labels])
    pieces, _ = read_tokenized(fasta, _ANY)
    headers, ids = Headers(pieces), list(ids_of(pieces))
    warnings: list[str] = []
    labels, split_tables = take_split_tables(labels, label_column)
    warnings += [f"{shown(path)}: is a splits table and not read here" for path in split_tables]
    if method == "stratified":
        if not labels and not header_labels(headers, label_column).values:
            raise DataError(
                "--method stratified needs labels: give --labels, or use random or similarity."
            )
        table = join_labels(
            headers, labels, label_column=label_column, id_column=id_column, on_error=on_error
        )
        pieces, unlabelled = leave_out_unlabelled(pieces, table)
        headers, ids = Headers(pieces), list(ids_of(pieces))
        reading = read_column(pieces, table, task=task, decimal=decimal)
        check_labels(headers, table, reading.task)
        values = [table.values[record] for record in ids]
        codec = LabelCodec.fit(reading.task, values, separator=reading.separator)
        parts = stratified_split(label_groups(values, codec), fractions, seed)
        found = find_splits(headers, table)
        warnings += [*table.notes, *label_notes(table, reading, unlabelled), *found.warnings]
    else:
        if method == "random":
            parts = random_split(len(ids), fractions, seed)
        else:
            sequences = [piece.sequences for piece in pieces]
            parts = similarity_split(pick(sequences, np.arange(len(ids))), fractions, seed)
        given = {"--labels": labels, "--label-column": label_column, "--id-column": id_column}
        unused = [option for option, value in given.items() if value]
        if unused:
            warnings.append(f"{' and '.join(unused)} not used: --method {method} reads no labels")
        found = find_splits(headers, None)
    has_splits = found.splits is not None
    if found.splits is not None:
        warnings.append(
            f"{found.splits.where} names splits already; they are not read here, and training with "
            f"the new ones needs {ASIDE}"
        )
    rows = list(zip(ids, parts.tolist(), strict=True))
    label = Attribute(["label", "target"] if label_column is None else [label_column])
    has_labels = bool(labels) or any(label.values(header.description) for header in headers)
    return Divided(rows, warnings, labels, has_splits, has_labels)
