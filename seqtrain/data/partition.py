"""Which part each record is for: as files or a column say, and made where they say nothing."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.fasta import reject, reject_message
from seqtrain.data.join import split_source
from seqtrain.data.label_table import LabelTable, split_name
from seqtrain.data.labels import LabelCodec, is_regression, mean_number
from seqtrain.data.splits import random_split, similarity_split, strata, stratified_split
from seqtrain.data.tokenized import Headers, Tokenized, ids_of
from seqtrain.errors import ConfigError, DataError, LabelError


class Partition(NamedTuple):
    """A part for every record, and how it was found."""

    parts: Shaped[np.ndarray, " N"]
    """``train``, ``valid`` or ``test``."""
    how: str


def given_parts(
    pieces: Sequence[Tokenized], table: LabelTable, files: Mapping[str, Sequence[str]]
) -> Partition:
    """What files or, without files for validation and test, the split column say.

    Args:
        pieces: All records.
        table: Their labels, with a split column or without.
        files: Paths by part.

    Raises:
        LabelError: The column holds something else than names of parts, nothing, or no train.
    """
    if files["valid"] or files["test"]:
        return Partition(_parts_by_file(pieces, files), "by file")
    if not table.splits or not any(record in table.splits for record in ids_of(pieces)):
        alone = np.array(["train"] * sum(map(len, pieces)))
        return Partition(alone, "all records are in the train files")
    where = split_source(table)
    texts = [table.splits.get(record, "") for record in ids_of(pieces)]
    if strange := Counter(text for text in texts if text and not split_name(text)):
        found = ", ".join(f"{text!r} ({count} records)" for text, count in strange.most_common(10))
        raise LabelError(f"{where}: expected train, valid or test, found {found}.")
    missing = [
        reject(record, f"has no split in {where}")
        for record, text in zip(Headers(pieces), texts, strict=True)
        if not text
    ]
    if missing:
        raise LabelError(reject_message(missing))
    parts = np.array([split_name(text) for text in texts])
    if not (parts == "train").any():
        raise LabelError(
            f"{where}: no record is for training, all are for validation or test. Name every part "
            "as files (--train, --valid, --test), or take the column out of the table."
        )
    return Partition(parts, f"by {where}")


def _parts_by_file(
    pieces: Sequence[Tokenized], files: Mapping[str, Sequence[str]]
) -> Shaped[np.ndarray, " N"]:
    part_of = {path: part for part, paths in files.items() for path in paths}
    parts = []
    for piece in pieces:
        of_files = np.array([part_of[file] for file in piece.origins.files])
        parts.append(of_files[piece.origins.file])
    return np.concatenate(parts)


def complete_parts(
    given: Partition,
    pieces: Sequence[SequenceDataset],
    labels: Sequence[str],
    codec: LabelCodec,
    *,
    valid_fraction: float,
    test_fraction: float,
    method: str,
    seed: int,
) -> Partition:
    """``given``, with records of train moved to the parts that are empty, by their fractions.

    A record comes back to train when it alone would carry a class that train then lacks.

    Args:
        given: Parts so far.
        pieces: The records, without targets, one piece after the other.
        labels: Label text of each record; empty where the task has none.
        codec: Fitted on all labels of train, as it stands in ``given``.
        valid_fraction: Share of train for validation, if that is empty.
        test_fraction: Share of train for the test, if that is empty.
        method: ``stratified`` (at random where there are no labels), ``random`` or ``similarity``.
        seed: Decides which records move.

    Raises:
        DataError: A part that is wanted stays empty.
    """
    shares = {"valid": valid_fraction, "test": test_fraction}
    shares = {part: 0.0 if (given.parts == part).any() else shares[part] for part in shares}
    train = np.flatnonzero(given.parts == "train")
    parts, how = given.parts.copy(), given.how
    if any(shares.values()):
        texts = [labels[i] for i in train.tolist()]
        moved, rule = _divide(partial(pick, pieces, train), texts, codec, shares, method, seed)
        parts[train] = moved
        taken = " and ".join(f"{share:g} for {part}" for part, share in shares.items() if share)
        how = f"{how}; of train {taken}, {rule}, seed {seed}"
    for part in ("valid", "test"):
        if not (parts == part).any() and (part == "valid" or shares[part]):
            raise DataError(
                f"No record is left for {part}: {shares[part]:g} of {len(train)} training records "
                f"is too little. Raise data.{part}_fraction, or give files with --{part}."
            )
    return Partition(parts, how)


def pick(pieces: Sequence[SequenceDataset], chosen: Int64[np.ndarray, " B"]) -> SequenceDataset:
    """These records, numbered through all pieces, in rising order.

    A piece of which all are taken, and no other, is not copied.
    """
    found, begin = [], 0
    for piece in pieces:
        own = chosen[np.searchsorted(chosen, begin) : np.searchsorted(chosen, begin + len(piece))]
        if len(own):
            found.append(piece if len(own) == len(piece) else piece.subset(own - begin))
        begin += len(piece)
    return SequenceDataset.concatenated(found or [pieces[0].subset([])])


def _divide(
    records: Callable[[], SequenceDataset],
    labels: Sequence[str],
    codec: LabelCodec,
    shares: Mapping[str, float],
    method: str,
    seed: int,
) -> Partition:
    """A part for every record of train, and the rule."""
    fractions = (1 - shares["valid"] - shares["test"], shares["valid"], shares["test"])
    is_labelled = codec.task != "mlm"
    match method:
        case "random":
            parts, rule = random_split(len(labels), fractions, seed), "at random"
        case "stratified" if not is_labelled:
            parts, rule = random_split(len(labels), fractions, seed), "at random, without labels"
        case "stratified":
            groups = _groups(labels, codec)
            parts, rule = stratified_split(groups, fractions, seed), strata(groups).rule
        case "similarity":
            parts, rule = similarity_split(records(), fractions, seed), "similar records together"
        case _:
            expected = "stratified, random or similarity"
            raise ConfigError(f"data.split_method: expected {expected}, found {method!r}.")
    has_classes = is_labelled and not is_regression(codec.task)
    if has_classes and (lone := _lone(parts, labels, codec)):
        parts[lone] = "train"
        rule += f" ({len(lone)} back in train, which lacked their class)"
    return Partition(parts, rule)


def _groups(labels: Sequence[str], codec: LabelCodec) -> list[Any] | Float64[np.ndarray, " N"]:
    """Labels as ``strata`` takes them."""
    match codec.task:
        case "classification":
            return list(labels)
        case "regression":
            return np.array([codec.encode(label) for label in labels], dtype=np.float64)
        case "residue_regression":
            return np.array([mean_number(label) for label in labels])
        case _:
            return [sorted(codec.names(label)) for label in labels]


def _lone(parts: Shaped[np.ndarray, " N"], labels: Sequence[str], codec: LabelCodec) -> list[int]:
    """Records outside train with a class that no record of train has."""
    names = [codec.names(label) for label in labels]
    seen = set().union(*(names[i] for i in np.flatnonzero(parts == "train")))
    lone = []
    for i in np.flatnonzero(parts != "train").tolist():
        if not names[i] <= seen:
            seen |= names[i]
            lone.append(i)
    return lone
