"""Labelled records as a trained model takes them, and an account of those that it cannot."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from seqtrain.data.corruption import Corruption
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.fasta import Reject, refuse_repeats, reject, reject_message
from seqtrain.data.files import shown
from seqtrain.data.join import check_labels, join_labels, label_source, refuse_labels, to_datasets
from seqtrain.data.label_column import column_words, leave_out_unlabelled, read_column
from seqtrain.data.labels import LabelCodec
from seqtrain.data.lengths import LEFT_OUT, TRUNCATED, LengthRule
from seqtrain.data.prepare import check_letters
from seqtrain.data.split_table import take_split_tables
from seqtrain.data.tokenized import (
    Headers,
    Tokenized,
    alphabet_hint,
    looks_like,
    scan_tokens,
    truncate,
)
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import DataError, FastaError

FEW_LETTERS = 1000
"""Fewer letters than this do not show that sequences are of another alphabet."""


@dataclass(frozen=True, eq=False)
class LabelledRecords:
    """Records that can be scored, and those that are left out."""

    dataset: SequenceDataset
    """With targets, in input order."""
    records: Tokenized
    """The same records, with headers and letters that have no token."""
    rejects: tuple[Reject, ...] = ()
    """Records that are not scored, with the reason."""
    left_out: frozenset[Reject] = frozenset()
    """Those among them that are left out because they are over-long."""
    truncated: frozenset[str] = frozenset()
    """Ids of records of which only the first residues are read."""
    label_columns: tuple[str, ...] = ()
    """Sources of labels, a clause for each file."""
    notes: tuple[str, ...] = ()
    """Warnings of how labels were read."""

    @property
    def total(self) -> int:
        """Records of the input."""
        return len(self.dataset) + len(self.rejects)

    @property
    def counts(self) -> dict[str, int]:
        """Number of records that are cut or left out for their length, by warning."""
        return {TRUNCATED: len(self.truncated), LEFT_OUT: len(self.left_out)}

    def reasons(self) -> dict[str, int]:
        """Numbers of records that are not scored: the over-long and the unusable ones."""
        bad = len(self.rejects) - len(self.left_out)
        counted = {"over-long": len(self.left_out), "unusable": bad}
        return {reason: number for reason, number in counted.items() if number}

    def warnings_of(self, bad: Reject) -> tuple[str, ...]:
        """Warnings in the row of a record that is not scored."""
        return (LEFT_OUT,) * (bad in self.left_out)

    def rows(self) -> Iterator[int | Reject]:
        """For each record of the input, in order: its place in the dataset, or why it has none."""
        files = {name: number for number, name in enumerate(self.records.origins.files)}
        waiting = iter(sorted(self.rejects, key=lambda each: (files[each.source], each.index)))
        bad = next(waiting, None)
        for place, header in enumerate(self.records.headers()):
            here = (files[header.source], header.index)
            while bad is not None and (files[bad.source], bad.index) < here:
                yield bad
                bad = next(waiting, None)
            yield place
        while bad is not None:
            yield bad
            bad = next(waiting, None)

    def kept(self, i: int) -> Bool[np.ndarray, " L"]:
        """Mask of the letters of scored record ``i`` that are read: no gaps, nothing cut off."""
        keep = self.records.kept(i)
        keep[np.flatnonzero(keep)[len(self.dataset.residues(i)) :]] = False
        return keep


def read_for_model(
    paths: Sequence[str],
    tokenizer: Tokenizer,
    codec: LabelCodec,
    *,
    labels: Sequence[str] = (),
    id_column: str | None = None,
    label_column: str | None = None,
    decimal: str | None = None,
    lengths: LengthRule | None = None,
    on_error: str = "fail",
) -> LabelledRecords:
    """Labelled records in input order, as a trained model takes them.

    Those of mlm have no labels, and some of their residues hidden: the same ones for every model.

    Args:
        paths: FASTA files; ``-`` is standard input.
        tokenizer: The model's.
        codec: The model's.
        labels: Label tables or labels FASTA files; none: ``label=...`` in the headers.
        id_column: Column of ids; none: found by name.
        label_column: Column, or header key, of labels; none: found by name.
        decimal: ``point`` or ``comma`` before fractions; none: inferred from the labels.
        lengths: How over-long records are read; none: as they are.
        on_error: ``fail``, or ``skip``: records that cannot be used or have no label are left out.

    Raises:
        FastaError: A file cannot be used; or some of its records, and ``on_error`` is ``fail``;
            or none is left.
        LabelError: Labels are missing, or are none that the model knows.
        DataError: The sequences are of another alphabet than the model's.
        ConfigError: Labels are given where the model's task has none.
    """
    labels, _ = take_split_tables(labels, label_column)  # every record is scored
    if codec.task == "mlm":
        refuse_labels(labels=labels, id_column=id_column, label_column=label_column)
    refuse_repeats([*paths, *labels])
    found = _read(paths, tokenizer, lengths or LengthRule(), on_error)
    data = found.records
    looks, num_letters = looks_like(data.letters), len(data.sequences.tokens)
    if tokenizer.alphabet.name == "protein" != looks and num_letters > FEW_LETTERS:
        raise DataError(
            f"{', '.join(map(shown, paths))}: the sequences look like {looks}; the model was "
            "trained on protein sequences."
        )
    if codec.task == "mlm":
        check_letters(data.sequences, tokenizer, ", ".join(map(shown, paths)))
        return replace(found, dataset=Corruption.for_evaluation(tokenizer)(data.sequences))
    table = join_labels(
        Headers([data]),
        labels,
        id_column=id_column,
        label_column=label_column,
        names=codec.ignore,
        on_error=on_error,
    )
    (data,), unlabelled = leave_out_unlabelled([data], table, codec.ignore)
    reading = read_column([data], table, like=codec, decimal=decimal, names=codec.ignore)
    check_labels(Headers([data]), table, codec.task)
    return replace(
        found,
        dataset=to_datasets([data], table, codec)[0],
        records=data,
        rejects=(*found.rejects, *unlabelled),
        label_columns=tuple(column_words(table)),
        notes=(*table.notes, *(f"{label_source(table)}: {note}" for note in reading.notes)),
    )


def _read(
    paths: Sequence[str], tokenizer: Tokenizer, lengths: LengthRule, on_error: str
) -> LabelledRecords:
    """The records that can be read, not labelled yet, and the others."""
    data, _, rejects = scan_tokens(paths, lambda _: tokenizer)
    long: list[Reject] = []
    bound = lengths.bound
    truncated: tuple[str, ...] = ()
    if bound is not None:
        reasons = [(i, lengths.why_not(int(n))) for i, n in enumerate(data.whole) if n > bound]
        long = [reject(data.header(i), reason) for i, reason in reasons if reason]
        data = data.take(np.flatnonzero(data.whole <= bound)) if long else truncate(data, bound)
        truncated = data.truncated
    if lengths.overlong == "error":
        rejects, long = rejects + long, []
    fits = [lengths.no_room(int(n)) for n in data.sequences.lengths]
    if any(fits):
        rejects += [reject(data.header(i), reason) for i, reason in enumerate(fits) if reason]
        data = data.take(np.flatnonzero([reason is None for reason in fits]))
    if on_error == "fail" and rejects:
        hint = alphabet_hint(data.letters, tokenizer)
        message = reject_message(sorted(rejects, key=lambda each: paths.index(each.source)))
        raise FastaError(f"{message}{hint}\nOr use --on-error skip to continue without them.")
    if not len(data):
        raise FastaError(f"{reject_message([*rejects, *long])}\nNo record is left.")
    return LabelledRecords(
        data.sequences, data, (*rejects, *long), frozenset(long), frozenset(truncated)
    )
