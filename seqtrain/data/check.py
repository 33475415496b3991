"""What is in some files, what is wrong with them, and how to divide them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqtrain.data.alphabet import ALPHABETS
from seqtrain.data.fasta import Record, Reject, reject, sort_fasta
from seqtrain.data.join import join_labels
from seqtrain.data.label_table import LabelTable
from seqtrain.data.labels import infer_task, mean_number
from seqtrain.data.splits import random_split, similarity_split, stratified_split
from seqtrain.data.tokenized import Headers, letter_counts, looks_like, tokenize_fasta
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import ConfigError, DataError, FastaError


@dataclass(frozen=True)
class Check:
    """The findings of ``seqtrain data check``."""

    records: list[Record]
    """Those that can be used."""
    rejects: list[Reject]
    """Those that cannot, in input order, with the reason."""
    tokenizer: Tokenizer
    table: LabelTable | None
    """Labels, if there are any."""

    def facts(self) -> dict[str, Any]:
        """What there is, in a user's words."""
        lengths = [len(record.sequence) for record in self.records]
        facts: dict[str, Any] = {
            "usable records": len(self.records),
            "unusable records": len(self.rejects),
            "alphabet": self.tokenizer.alphabet.name,
        }
        if lengths:
            facts["length shortest / median / longest"] = (
                f"{min(lengths):,} / {int(np.median(lengths)):,} / {max(lengths):,}"
            )
            policies = self.tokenizer.count_policies(letter_counts(self.records))
            facts |= {f"letters read as {name}": count for name, count in policies.items() if count}
        if self.table is not None:
            values = [self.table.values[record.id] for record in self.records]
            facts["task"] = infer_task(values, self.table.kind)
            facts |= _label_facts(values, facts["task"])
        return facts

    def to_dict(self) -> dict[str, Any]:
        """The form that ``--json`` writes."""
        return {"facts": self.facts(), "rejects": [reject._asdict() for reject in self.rejects]}


def _label_facts(values: Sequence[str], task: str) -> dict[str, Any]:
    if task != "classification":
        return {}
    return {f"label {name}": count for name, count in Counter(values).most_common(20)}


def tokenizer_for(
    letters: Mapping[str, int], alphabet: str | None = None, **policies: str
) -> Tokenizer:
    """The tokenizer of a named alphabet, or of the one that counted letters tell.

    Raises:
        ConfigError: there is no alphabet of that name, or no such policy.
    """
    name = alphabet or looks_like(letters)
    if name not in ALPHABETS:
        raise ConfigError(f"--alphabet: expected {', '.join(ALPHABETS)}, found {name!r}.")
    return Tokenizer(ALPHABETS[name], **policies)


def check_files(
    fasta: Sequence[str],
    labels: Sequence[str] = (),
    *,
    label_column: str | None = None,
    id_column: str | None = None,
    alphabet: str | None = None,
) -> Check:
    """Read everything and collect what cannot be used.

    Raises:
        FastaError: a file as a whole cannot be read.
        LabelError: the label files cannot be read, or do not belong to these records.
    """
    records, rejects = sort_fasta(fasta)
    tokenizer = tokenizer_for(letter_counts(records), alphabet)
    usable = []
    for record in records:
        reason = tokenizer.problem(record.sequence)
        if reason is None:
            usable.append(record)
        else:
            rejects.append(reject(record, reason))
    table = None
    if labels and usable:
        table = join_labels(usable, list(labels), id_column=id_column, label_column=label_column)
    order = {str(path): number for number, path in enumerate(fasta)}
    rejects.sort(key=lambda reject: (order.get(reject.source, 0), reject.line))
    return Check(usable, rejects, tokenizer, table)


def write_quarantine(found: Check, fasta: Sequence[str]) -> list[Path]:
    """Write the usable records and the places of the others into the current folder.

    Returns:
        The two files, named after the first input.

    Raises:
        FastaError: one of them exists already.
    """
    stem = "stdin" if fasta[0] == "-" else Path(fasta[0]).name.split(".")[0]
    clean, rejected = Path(f"{stem}.clean.fasta"), Path(f"{stem}.rejects.tsv")
    for path in (clean, rejected):
        if path.exists():
            raise FastaError(f"{path}: exists already. Move it away first.")
    with clean.open("w", encoding="utf-8") as file:
        for record in found.records:
            file.write(f">{record.description or record.id}\n{record.sequence}\n")
    rows = ("\t".join((r.id, r.source, str(r.line), r.reason)) for r in found.rejects)
    rejected.write_text("id\tfile\tline\treason\n" + "".join(f"{row}\n" for row in rows))
    return [clean, rejected]


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
