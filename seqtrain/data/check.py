"""Counts and faults of some files, for `seqtrain data check`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqtrain.data.alphabet import ALPHABETS
from seqtrain.data.fasta import Record, Reject, reject, sort_fasta
from seqtrain.data.interpret import infer_task
from seqtrain.data.join import join_labels
from seqtrain.data.label_table import LabelTable
from seqtrain.data.tokenized import letter_counts, looks_like
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import ConfigError


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
