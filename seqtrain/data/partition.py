"""Assigns each record to train, valid or test: by files or named splits, else by a seeded split."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.fasta import reject, reject_message
from seqtrain.data.files import shown
from seqtrain.data.header_splits import split_name
from seqtrain.data.id_matching import listed
from seqtrain.data.labels import LabelCodec, is_regression, mean_number
from seqtrain.data.named_splits import ASIDE, Found, NamedSplits, is_off
from seqtrain.data.splits import random_split, similarity_split, strata, stratified_split
from seqtrain.data.tokenized import Headers, Tokenized, ids_of
from seqtrain.errors import ConfigError, DataError, LabelError
from seqtrain.words import counted

_LARGER = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
"""Fractions that a message proposes."""


class Partition(NamedTuple):
    """A part for every record, and how it was found."""

    parts: Shaped[np.ndarray, " N"]
    """``train``, ``valid`` or ``test``."""
    how: str


def given_parts(
    pieces: Sequence[Tokenized], found: Found, files: Mapping[str, Sequence[str]]
) -> Partition:
    """Splits by file, or, without files for validation and test, as tables and headers name them.

    Args:
        pieces: All records.
        found: Splits named by tables, columns or headers.
        files: Paths by part.

    Raises:
        LabelError: The splits named leave out records, or all of train.
    """
    if files["valid"] or files["test"]:
        parts = _parts_by_file(pieces, files)
        if found.splits is not None:
            found.warnings.extend(_contradictions(pieces, parts, found.splits))
        return Partition(parts, "by file")
    if found.splits is None:
        alone = np.array(["train"] * sum(map(len, pieces)))
        return Partition(alone, "all records are in the train files")
    where, texts = found.splits.where, found.splits.texts
    missing = [
        reject(record, f"has no split in {where}")
        for record in Headers(pieces)
        if record.id not in texts
    ]
    if missing:
        message = reject_message(missing)
        raise LabelError(f"{message}\nAdd them, or leave the splits aside with {ASIDE}.")
    parts = np.array([split_name(texts[record]) for record in ids_of(pieces)])
    if not (parts == "train").any():
        raise LabelError(
            f"{where}: no record is for training, all are for validation or test. Name every part "
            f"as files (--train, --valid, --test), or leave the splits aside with {ASIDE}."
        )
    return Partition(parts, f"by {where}")


def refuse_split_twice(
    files: Mapping[str, Sequence[str]], tables: Sequence[str], split_column: str | None
) -> None:
    """Refuse a split that is asked for in two ways.

    Raises:
        ConfigError: Files for validation or test stand beside a splits table or a split column.
    """
    by_file = " and ".join(f"--{part}" for part in ("valid", "test") if files[part])
    if not by_file:
        return
    if tables:
        raise ConfigError(
            f"{', '.join(map(shown, tables))}: names the split of each record, and {by_file} does "
            "so by file. Give one of them."
        )
    if split_column and not is_off(split_column):
        raise ConfigError(
            f"--split-column {split_column}: {by_file} give the split by file, and no column "
            "is read beside them. Leave one of them out."
        )


def _contradictions(
    pieces: Sequence[Tokenized], parts: Shaped[np.ndarray, " N"], named: NamedSplits
) -> list[str]:
    """Splits of a table or headers that contradict the files, in one line."""
    different = [
        (record, part, other)
        for record, part in zip(ids_of(pieces), parts.tolist(), strict=True)
        if (other := split_name(named.texts.get(record, "")) or part) != part
    ]
    if not different:
        return []
    counts = Counter((part, other) for _, part, other in different)
    said = ", ".join(
        f"{count:,} of the {part} files are {other} there"
        for (part, other), count in counts.items()
    )
    examples = listed([record for record, *_ in different])
    return [
        f"{named.where} contradicts the files for {counted(len(different), 'record')}: {said} "
        f"({examples}). The files are followed"
    ]


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
    settable: bool = True,
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
        settable: Whether the user can set fractions, which messages may then propose.

    Raises:
        DataError: A part that is wanted stays empty.
    """
    shares = {"valid": valid_fraction, "test": test_fraction}
    shares = {part: 0.0 if (given.parts == part).any() else shares[part] for part in shares}
    train = np.flatnonzero(given.parts == "train")
    parts, how = given.parts.copy(), given.how
    texts = [labels[i] for i in train.tolist()]

    def divide(wanted: Mapping[str, float]) -> Partition:
        return _divide(partial(pick, pieces, train), texts, codec, wanted, method, seed)

    if any(shares.values()):
        parts[train], rule = divide(shares)
        taken = " and ".join(f"{share:g} for {part}" for part, share in shares.items() if share)
        how = f"{how}; of train {taken}, {rule}, seed {seed}"
    for part in ("valid", "test"):
        if not (parts == part).any() and (part == "valid" or shares[part]):
            fix = _fix_for(part, shares, divide) if settable else "Add records."
            raise DataError(
                f"No record is left for {part}: {shares[part]:g} of {len(train)} training records "
                f"is too little. {fix}"
            )
    return Partition(parts, how)


def _fix_for(
    part: str, shares: Mapping[str, float], divide: Callable[[Mapping[str, float]], Partition]
) -> str:
    """Ways to fill a part that stays empty: a fraction if there is one, or files."""
    larger = (fraction for fraction in _LARGER if fraction > shares[part])
    enough = next((f for f in larger if _fills(part, {**shares, part: f}, divide)), None)
    first = f"Set data.{part}_fraction={enough:g}" if enough else "Add records"
    return f"{first}, or give files with --{part}."


def _fills(
    part: str, shares: Mapping[str, float], divide: Callable[[Mapping[str, float]], Partition]
) -> bool:
    """True if these shares leave records for the part, and for train."""
    if sum(shares.values()) >= 1:
        return False
    try:
        parts = divide(shares).parts
    except DataError:
        return False
    return bool((parts == part).any() and (parts == "train").any())


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
            groups = label_groups(labels, codec)
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


def label_groups(labels: Sequence[str], codec: LabelCodec) -> list[Any] | Float64[np.ndarray, " N"]:
    """Labels in the form that ``strata`` takes."""
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
