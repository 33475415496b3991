"""Counts and faults of some files, for `seqtrain data check`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqtrain.data.alphabet import ALPHABETS
from seqtrain.data.fasta import Record, Reject, reject, reject_message, sort_fasta
from seqtrain.data.files import STDIN, read_lines
from seqtrain.data.label_table import header_labels
from seqtrain.data.prepare import PreparedData, prepare_data
from seqtrain.data.tokenized import letter_counts, looks_like, tokenize_records
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import ConfigError, LabelError, SeqtrainError


@dataclass(frozen=True)
class Check:
    """The findings of ``seqtrain data check``."""

    records: list[Record]
    """Those that can be used."""
    rejects: list[Reject]
    """Those that cannot, in input order, with the reason."""
    tokenizer: Tokenizer
    data: PreparedData | None
    """As training would take them, if there are labels and it takes them."""
    fault: str = ""
    """Why training would refuse the labels or the splits; empty if it would not."""

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
        if self.data is not None:
            facts |= _label_facts(self.data)
        return facts

    def to_dict(self) -> dict[str, Any]:
        """The form that ``--json`` writes."""
        report = self.data.report if self.data is not None else {}
        return {
            "facts": self.facts(),
            "labels": report.get("label_columns", []),
            "task": report.get("task"),
            "warnings": report.get("warnings", []),
            "fault": self.fault or None,
            "rejects": [reject._asdict() for reject in self.rejects],
        }

    def refusal(self) -> str:
        """The message of a training that refuses these files; empty if it takes them."""
        parts = [reject_message(self.rejects)] if self.rejects else []
        return "\n".join([*parts, *([self.fault] if self.fault else [])])


def _label_facts(data: PreparedData) -> dict[str, Any]:
    parts = data.report["parts"]
    facts: dict[str, Any] = {
        "task": data.codec.task,
        "records for train / valid / test": " / ".join(
            f"{parts.get(name, {}).get('records', 0):,}" for name in ("train", "valid", "test")
        ),
    }
    if data.codec.task == "classification":
        counts = sum((Counter(part["classes"]) for part in parts.values()), Counter[str]())
        facts |= {f"label {name}": count for name, count in counts.most_common(20)}
    return facts


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
    alphabet: str | None = None,
    task: str | None = None,
    label_column: str | None = None,
    **settings: Any,
) -> Check:
    """Read everything, collect what cannot be used, and prepare the rest as training would.

    Args:
        fasta: FASTA files; ``-`` is standard input.
        labels: Label tables or labels FASTA files; none: labels in the headers, if there are any.
        alphabet: ``protein``, ``dna`` or ``rna``; none: inferred from the letters.
        task: One of ``TASKS``; none: inferred from the labels.
        label_column: Column, or header key, of labels.
        settings: Others of ``prepare_data``.

    Raises:
        FastaError: A file as a whole cannot be read.
        LabelError: Likewise a file of labels.
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
    order = {str(path): number for number, path in enumerate(fasta)}
    rejects.sort(key=lambda reject: (order.get(reject.source, 0), reject.line))
    for path in (path for path in labels if path != STDIN):
        if Path(path).is_file() or not Path(path).exists():  # a pipe is read only once
            next(read_lines(path, LabelError), None)
    data, fault = None, ""
    try:
        if usable and (task or labels or header_labels(usable, label_column).values):
            pieces, _, _ = tokenize_records(usable, fasta, lambda _: tokenizer)
            data = prepare_data(
                train=fasta,
                labels=labels,
                task=task,
                label_column=label_column,
                read=([pieces], tokenizer),
                **settings,
            )
    except SeqtrainError as error:
        fault = str(error)
    return Check(usable, rejects, tokenizer, data, fault)
