"""Files in, training, validation and test parts out, with an account of every choice made."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Shaped

from seqtrain.data.class_names import check_class_names
from seqtrain.data.columns import Columns
from seqtrain.data.corruption import Corruption, count_letters
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.fasta import Reject, refuse_repeats
from seqtrain.data.interpret import Reading
from seqtrain.data.join import check_labels, join_labels, label_source, refuse_labels, to_datasets
from seqtrain.data.label_column import label_notes, leave_out_unlabelled, read_column
from seqtrain.data.label_table import LabelTable
from seqtrain.data.labels import LabelCodec
from seqtrain.data.named_splits import find_splits, is_off
from seqtrain.data.partition import complete_parts, given_parts, pick, refuse_split_twice
from seqtrain.data.ragged import Texts
from seqtrain.data.reading import read_tokenized
from seqtrain.data.report import data_report
from seqtrain.data.split_table import take_split_tables
from seqtrain.data.splits import SPLITS
from seqtrain.data.store import is_store
from seqtrain.data.tokenized import Headers, Tokenized, ids_of
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.data.unseen import UNSEEN_HINT, unseen_classes, unseen_words
from seqtrain.data.unused import unused_settings
from seqtrain.errors import DataError, LabelError

MOST_LONE_CLASSES = 20
"""Up to so many training records may each be a class of their own."""


@dataclass(frozen=True)
class PreparedData:
    """Everything that training needs to know about the data."""

    train: SequenceDataset
    """Of mlm without targets: training hides other residues in each epoch."""
    valid: SequenceDataset
    """Of mlm with some residues hidden, as is ``test``; see :mod:`seqtrain.data.corruption`."""
    test: SequenceDataset | None
    """None when neither files, a column nor a fraction made one."""
    tokenizer: Tokenizer
    codec: LabelCodec
    """Fitted on the training part alone."""
    report: dict[str, Any]
    """What was read and decided, ready for JSON; see :mod:`seqtrain.data.report`."""
    ids: Texts
    """Of all records, in input order."""
    parts: Shaped[np.ndarray, " N"]
    """``train``, ``valid`` or ``test`` for each of these."""

    def splits(self) -> Iterator[tuple[str, str]]:
        """Id and part of each record, in input order."""
        return zip(self.ids, self.parts.tolist(), strict=True)


def prepare_data(
    *,
    train: Sequence[str],
    valid: Sequence[str] = (),
    test: Sequence[str] = (),
    labels: Sequence[str] = (),
    splits: Sequence[str] = (),
    id_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    task: str | None = None,
    alphabet: str | None = None,
    ambiguous: str = "unknown",
    gap: str = "drop",
    stop: str = "drop",
    other: str = "error",
    ignore_labels: Sequence[str] = (),
    decimal: str | None = None,
    on_error: str = "fail",
    unseen: str = "error",
    max_length: int | None = None,
    overlong: str = "error",
    valid_fraction: float = 0.1,
    test_fraction: float = 0.0,
    split_method: str = "stratified",
    seed: int = 0,
    asked: Collection[str] = (),
    settable: bool = True,
    read: tuple[Sequence[Tokenized], Tokenizer] | None = None,
    most: int | None = None,
) -> PreparedData:
    """Records of all files, tokenized, labelled and split.

    Files decide the split when some are given for validation or test; otherwise splits tables, a
    column of the labels or the headers do, the first of these that there is. A part that none of
    them names is then taken from train by its fraction.

    Args:
        train: FASTA files, ``-`` is standard input; or stores (:mod:`seqtrain.data.store`).
        valid: Files of the same kind for validation.
        test: Likewise for the test.
        labels: Label tables or labels FASTA files; none: ``label=...`` in the headers. The task
            mlm has none. A table with an id and a split alone is one of ``splits``.
        splits: Tables of record id and split, as ``seqtrain data split`` writes them.
        id_column: Column of ids; none: found by name, as are the next two.
        label_column: Column, or header key, of labels.
        split_column: Column, or header key, of splits; ``""`` or ``none``: neither is read.
        task: One of ``TASKS``; none: told from the labels, and never mlm.
        alphabet: ``protein``, ``dna`` or ``rna``; none: told from all letters.
        ambiguous: What an ambiguity code becomes; for this and the next three see ``Tokenizer``.
        gap: What a gap becomes.
        stop: What a stop becomes.
        other: What any other letter becomes.
        ignore_labels: Residue labels without target, or names that are no class (multilabel).
        decimal: ``point`` or ``comma`` before the fractions of numbers; none: told from the labels.
        on_error: ``fail`` where labels are missing, or ``skip``: leave these records out.
        unseen: ``error`` where a class occurs outside train alone, or ``miss``: the model gets an
            output for it that training never asks for.
        max_length: Longest sequence in residues; none: no limit.
        overlong: What happens to longer ones: ``error``, ``truncate`` or ``skip``.
        valid_fraction: Share of train for validation.
        test_fraction: Share of train for the test.
        split_method: ``stratified`` (at random where there are no labels), ``random`` or
            ``similarity``.
        seed: Decides which records are taken.
        asked: Names of these settings that are to be told if they have nothing to do.
        settable: Whether messages may propose settings; not where the user cannot give any.
        read: Records of the files and what read their letters, if they were read before.
        most: Residues of the longest record that fits into memory; none: not known.

    Raises:
        FastaError: A file or some of its records cannot be used.
        LabelError: Labels are missing, malformed, or do not fit their records.
        DataError: There are too few records.
        ConfigError: A setting is not known, or does not fit the task.
    """
    if not train:
        raise DataError("There is no training file; name one with --train.")
    labels, more_splits = take_split_tables(labels, label_column, split_column)
    splits = [*splits, *more_splits]
    if task == "mlm":
        refuse_labels(
            " Name files of your own by --train (with -n mlm there are no others); parts are named "
            "by files (--valid, --test), by --splits or by split=... in the headers.",
            labels=labels,
            id_column="" if splits else id_column,
            label_column=label_column,
            ignore_labels=ignore_labels,
        )
    files = {"train": list(train), "valid": list(valid), "test": list(test)}
    paths = [path for part in files.values() for path in part]
    refuse_repeats([*paths, *labels, *splits])
    refuse_split_twice(files, splits, split_column)
    settings = {
        "alphabet": alphabet,
        "ambiguous": ambiguous,
        "gap": gap,
        "stop": stop,
        "other": other,
    }
    form = "set tokenizer.{}=unknown" if settable else ""
    pieces, tokenizer = read or read_tokenized(paths, settings, max_length, overlong, form)
    if most is not None:
        _refuse_over(pieces, most)
    headers = Headers(pieces)
    unlabelled: list[Reject] = []
    if task == "mlm":
        table = LabelTable("header", Columns("", "", ""))
        reading = Reading(task, "given", {})
    else:
        table = join_labels(
            headers,
            labels,
            id_column=id_column,
            label_column=label_column,
            split_column=None if is_off(split_column) else split_column,
            names=ignore_labels,
            on_error=on_error,
            otherwise="; or learn the sequences themselves with task=mlm, which needs none"
            if settable
            else "",
        )
        if on_error == "skip":
            pieces, unlabelled = leave_out_unlabelled(pieces, table, ignore_labels)
            headers = Headers(pieces)
        reading = read_column(pieces, table, task=task, decimal=decimal, names=ignore_labels)
    found = find_splits(headers, table, splits, split_column=split_column, id_column=id_column)
    ids = Texts.of(ids_of(pieces))
    values = [table.values.get(record, "") for record in ids]
    check_labels(headers, table, reading.task)
    given = given_parts(pieces, found, files)
    fit = partial(_fit, reading, values, ignore_labels, table, tokenizer)
    partition = complete_parts(
        given,
        [piece.sequences for piece in pieces],
        values,
        fit(given.parts),
        valid_fraction=valid_fraction,
        test_fraction=test_fraction,
        method=split_method,
        seed=seed,
        settable=settable,
    )
    fractions = (valid_fraction, test_fraction)
    found.warnings.extend(unused_settings(asked, given, table, splits, fractions))
    codec = fit(partition.parts)
    strange = unseen_classes(codec, values, partition.parts)
    if strange and unseen == "miss":
        found.warnings.append(f"{unseen_words(strange)}; their records count as missed")
        codec = codec.with_classes(strange)
    try:
        parts = _divided(pieces, partition.parts, table, codec, tokenizer)
    except LabelError as error:
        raise LabelError(f"{error}{UNSEEN_HINT}" if strange else str(error)) from None
    told = "that of the stores" if is_store(paths[0]) else "inferred from the letters"
    how = {
        "alphabet": "given" if alphabet else told,
        "task": reading.reason,
        "split": partition.how,
    }
    named = {**files, "labels": labels, "splits": splits}
    notes = [*label_notes(table, reading, unlabelled), *found.warnings]
    report = data_report(named, notes, pieces, table, tokenizer, codec, parts, how, unlabelled)
    return PreparedData(
        train=parts["train"],
        valid=parts["valid"],
        test=parts["test"] if len(parts["test"]) else None,
        tokenizer=tokenizer,
        codec=codec,
        report=report,
        ids=ids,
        parts=partition.parts,
    )


def _refuse_over(pieces: Sequence[Tokenized], most: int) -> None:
    """Refuse a record that no model can read, before more memory is taken for it."""
    for piece in pieces:
        lengths = piece.sequences.lengths
        place = int(lengths.argmax()) if len(lengths) else 0
        if len(lengths) and lengths[place] > most:
            raise DataError(
                f"record {piece.sequences.ids[place]!r}: {lengths[place]:,} residues do not fit "
                f"into memory in one piece, about {most:,} do. Cut longer records with "
                f"data.max_length={most} data.overlong=truncate, or leave them out with "
                "data.overlong=skip."
            )


def _divided(
    pieces: Sequence[Tokenized],
    parts: Shaped[np.ndarray, " N"],
    table: LabelTable,
    codec: LabelCodec,
    tokenizer: Tokenizer,
) -> dict[str, SequenceDataset]:
    """The datasets by part, with targets; those of mlm that are scored have letters hidden."""
    datasets = to_datasets(pieces, table, codec)
    divided = {name: pick(datasets, np.flatnonzero(parts == name)) for name in SPLITS}
    if codec.task == "mlm":
        for name, part in divided.items():
            if len(part):
                check_letters(part, tokenizer, f"the {name} part")
        hide = Corruption.for_evaluation(tokenizer)
        divided |= {name: hide(divided[name]) for name in ("valid", "test")}
    return divided


def _fit(
    reading: Reading,
    values: Sequence[str],
    ignore: Sequence[str],
    table: LabelTable,
    tokenizer: Tokenizer,
    parts: Shaped[np.ndarray, " N"],
) -> LabelCodec:
    """The codec of the training labels, or of the letters."""
    task = reading.task
    if task == "mlm":
        return LabelCodec.of_letters(tokenizer.alphabet.letters)
    train = [values[i] for i in np.flatnonzero(parts == "train").tolist()]
    try:
        codec = LabelCodec.fit(task, train, ignore, reading.separator)
    except LabelError as error:
        raise LabelError(f"{label_source(table)}: {error}") from None
    if task == "classification" and len(codec.classes) == len(train) > MOST_LONE_CLASSES:
        raise LabelError(
            f"{label_source(table)}: each of the {len(train)} training records has a label of its "
            "own. Is it the right label column?"
        )
    check_class_names(codec, table)
    return codec


def check_letters(part: SequenceDataset, tokenizer: Tokenizer, what: str) -> None:
    """Refuse records in which mlm finds nothing to hide.

    Raises:
        DataError: They hold none of the alphabet's letters.
    """
    alphabet = tokenizer.alphabet
    if not count_letters(part, len(alphabet.letters)).any():
        raise DataError(
            f"{what} holds no letter to hide: expected some of {alphabet.letters}, found none but "
            f"{alphabet.unknown} and the like."
        )
