"""Splits of the records of some files, for `seqtrain data split`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from seqtrain.data.check import tokenizer_for
from seqtrain.data.join import join_labels
from seqtrain.data.label_table import LabelTable
from seqtrain.data.labels import infer_task, mean_number
from seqtrain.data.splits import random_split, similarity_split, stratified_split
from seqtrain.data.tokenized import Headers, tokenize_fasta
from seqtrain.errors import DataError


def split_files(
    fasta: Sequence[str],
    labels: Sequence[str],
    *,
    label_column: str | None,
    id_column: str | None,
    method: str,
    fractions: tuple[float, float, float],
    seed: int,
) -> list[tuple[str, str]]:
    """(record id, part) in input order.

    Raises:
        FastaError: records cannot be used.
        LabelError: labels are missing.
        DataError: a stratified split without labels.
    """
    data, _ = tokenize_fasta(fasta, tokenizer_for)
    ids = list(data.sequences.ids)
    if method == "random":
        parts = random_split(len(data), fractions, seed)
    elif method == "similarity":
        parts = similarity_split(data.sequences, fractions, seed)
    else:
        if not labels and not any("label=" in text for text in data.descriptions):
            raise DataError(
                "--method stratified needs labels: give --labels, or use random or similarity."
            )
        headers = Headers([data])
        table = join_labels(headers, labels, label_column=label_column, id_column=id_column)
        values = [table.values[record] for record in ids]
        parts = stratified_split(_strata(values, table), fractions, seed)
    return list(zip(ids, parts.tolist(), strict=True))


def _strata(values: Sequence[str], table: LabelTable) -> Any:
    """Labels in the form that says how to stratify: numbers, sets of names, or names."""
    task = infer_task(values, table.kind)
    if task == "regression":
        return np.array([float(value) for value in values])
    if task == "residue_regression":
        return np.array([mean_number(value) for value in values])
    if task == "residue_classification":
        return [sorted(set(value)) for value in values]
    return list(values)
