"""Records with the tokens of their letters, column by column: what FASTA files and stores hold."""

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt32

from seqtrain.data.alphabet import PROTEIN, detect_alphabet
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.fasta import Header, Record, Reject, reject, reject_message, scan_fasta
from seqtrain.data.ragged import Column, Texts, bounds, byte_counts, gather, offsets_of, shares
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import ConfigError, DataError, FastaError

OVERLONG = ("error", "truncate", "skip")


class Dropped(NamedTuple):
    """Places of letters without a token; record ``i`` has ``places[offsets[i]:offsets[i + 1]]``."""

    places: UInt32[np.ndarray, " D"]
    """Among the letters of their record, from 0."""
    offsets: Int64[np.ndarray, " S"]


class Origins(NamedTuple):
    """Where records come from."""

    files: tuple[str, ...]
    file: Int64[np.ndarray, " N"]
    """Which of these holds each record."""
    line: Int64[np.ndarray, " N"]
    """Line of its header there, from 1; 0 in a store, which has none."""
    index: Int64[np.ndarray, " N"]  # type: ignore[assignment]  # as in Record
    """Place among the records there, from 0."""


@dataclass(frozen=True, eq=False)
class Tokenized:
    """Records in input order. Nothing is kept as an object each."""

    sequences: SequenceDataset
    """Ids and tokens; no targets."""
    descriptions: Texts
    """The rest of each header."""
    origins: Origins
    """For messages."""
    dropped: Dropped
    """Letters that became no token."""
    letters: Mapping[str, int]
    """Counts of letters and symbols, those of records that are left out included."""
    whole: Int64[np.ndarray, " N"]
    """Tokens of each record before any was cut off."""
    truncated: tuple[str, ...] = ()
    """Ids of over-long records that lost their end, as asked for."""
    skipped: tuple[Reject, ...] = ()
    """Over-long records that were left out, as asked for."""

    def __len__(self) -> int:
        return len(self.sequences)

    def header(self, i: int) -> Header:
        """What is known of record ``i`` beside its sequence."""
        file, line, index = (int(column[i]) for column in self.origins[1:])
        name, text = self.sequences.ids[i], self.descriptions[i]
        return Header(name, text, self.origins.files[file], line, index)

    def headers(self) -> Iterator[Header]:
        """That of every record."""
        files = self.origins.files
        for name, text, file, line, index in zip(
            self.sequences.ids,
            self.descriptions,
            *(column.tolist() for column in self.origins[1:]),
            strict=True,
        ):
            yield Header(name, text, files[file], line, index)

    def kept(self, i: int) -> Bool[np.ndarray, " L"]:
        """Which letters of record ``i`` have a token, those that were cut off included."""
        gone = self.dropped.places[self.dropped.offsets[i] : self.dropped.offsets[i + 1]]
        keep = np.ones(self.whole[i] + len(gone), bool)
        keep[gone] = False
        return keep

    def take(self, chosen: Int[np.ndarray, " B"]) -> "Tokenized":
        """A copy of these records, in this order."""
        begins, lengths = bounds(self.dropped.offsets, chosen)
        places = gather(self.dropped.places, begins, lengths)
        return replace(
            self,
            sequences=self.sequences.subset(chosen),
            descriptions=self.descriptions.take(chosen),
            origins=Origins(self.origins.files, *(c[chosen] for c in self.origins[1:])),
            dropped=Dropped(places, offsets_of(lengths)),
            whole=self.whole[chosen],
        )


class Headers(Sequence[Header]):
    """The headers of all records of some pieces, one piece after the other, made when asked for."""

    def __init__(self, pieces: Sequence[Tokenized]) -> None:
        self._pieces = pieces
        self._ends = list(accumulate(map(len, pieces)))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, key: int) -> Header: ...
    @overload
    def __getitem__(self, key: slice) -> list[Header]: ...
    def __getitem__(self, key: int | slice) -> Header | list[Header]:
        if isinstance(key, slice):
            return [self[i] for i in range(*key.indices(len(self)))]
        i = range(len(self))[key]
        piece = bisect_right(self._ends, i)
        return self._pieces[piece].header(i - (self._ends[piece - 1] if piece else 0))

    def __iter__(self) -> Iterator[Header]:
        for piece in self._pieces:
            yield from piece.headers()


class _Columns:
    """What is read of records before anything is known of their letters."""

    def __init__(self, folder: Path | None) -> None:
        self.letters, self.ids, self.descriptions = (Column(folder) for _ in range(3))
        self.places = (array("q"), array("q"), array("q"))

    def append(self, record: Record, file: int) -> None:
        self.letters.append(record.sequence.encode())
        self.ids.append(record.id.encode())
        self.descriptions.append(record.description.encode())
        for column, value in zip(self.places, (file, record.line, record.index), strict=True):
            column.append(value)


def tokenize_fasta(
    paths: Sequence[str],
    make_tokenizer: Callable[[Mapping[str, int]], Tokenizer],
    max_length: int | None = None,
    overlong: str = "error",
    folder: Path | None = None,
    policy_form: str = "",
) -> tuple[Tokenized, Tokenizer]:
    """All records of some files with their tokens, read once.

    Args:
        paths: FASTA files; ``-`` is standard input.
        make_tokenizer: Takes how often each letter or symbol occurs.
        max_length: Longest sequence in tokens; none: no limit.
        overlong: What happens to longer ones: ``error``, ``truncate`` or ``skip``.
        folder: Where temporary files hold letters, headers and tokens; none: memory does.
        policy_form: How the caller's user sets a policy, with ``{}`` for its name; empty: not.

    Returns:
        The records, and what read their letters.

    Raises:
        FastaError: A file or some of its records cannot be used (all are collected), or none is
            left.
        ConfigError: ``overlong`` is something else.
        OSError: The folder has no room.
    """
    data, tokenizer, rejects = scan_tokens(paths, make_tokenizer, folder)
    hint = alphabet_hint(data.letters, tokenizer)
    if policies := tokenizer.refused(data.letters) if policy_form else []:
        how = " and ".join(map(policy_form.format, policies))
        hint = f"\nOr {how} to read such letters as {tokenizer.alphabet.unknown}.{hint}"
    return limit([data], max_length, overlong, rejects, hint)[0], tokenizer


def scan_tokens(
    paths: Sequence[str],
    make_tokenizer: Callable[[Mapping[str, int]], Tokenizer],
    folder: Path | None = None,
) -> tuple[Tokenized, Tokenizer, list[Reject]]:
    """As :func:`tokenize_fasta`, with the records that cannot be used beside the others.

    Raises:
        FastaError: A file cannot be used.
        OSError: The folder has no room.
    """
    return tokenize_records(scan_fasta(paths), paths, make_tokenizer, folder)


def tokenize_records(
    items: Iterable[Record | Reject],
    paths: Sequence[str],
    make_tokenizer: Callable[[Mapping[str, int]], Tokenizer],
    folder: Path | None = None,
) -> tuple[Tokenized, Tokenizer, list[Reject]]:
    """As :func:`scan_tokens`, of records that were read before.

    Args:
        items: The records of these files, and those that cannot be used.
        paths: The files.
        make_tokenizer: Takes how often each letter or symbol occurs.
        folder: Where temporary files hold letters, headers and tokens; none: memory does.

    Raises:
        OSError: The folder has no room.
    """
    numbers = {str(path): number for number, path in enumerate(paths)}
    columns, rejects = _Columns(folder), []
    for item in items:
        if isinstance(item, Record):
            columns.append(item, numbers[item.source])
        else:
            rejects.append(item)
    text = Texts(*columns.letters.arrays())
    letters = _by_letter(byte_counts(text.data))
    tokenizer = make_tokenizer(letters)
    tokens, dropped, bad = _translate(text, tokenizer, folder)
    found = Tokenized(
        SequenceDataset(Texts(*columns.ids.arrays()), *tokens),
        Texts(*columns.descriptions.arrays()),
        Origins(tuple(numbers), *(np.frombuffer(column, np.int64) for column in columns.places)),
        dropped,
        letters,
        whole=np.diff(tokens[1]),
    )
    rejects += [reject(found.header(i), reason) for i, reason in bad.items()]
    if bad:
        found = found.take(np.setdiff1d(np.arange(len(found)), list(bad)))
    return found, tokenizer, rejects


def _translate(
    text: Texts, tokenizer: Tokenizer, folder: Path | None
) -> tuple[tuple[np.ndarray, np.ndarray], Dropped, dict[int, str]]:
    """Tokens of all sequences, letters without one, and what is wrong with which record."""
    tokens, places, bad = Column(folder), Column(folder), {}
    for i, sequence in enumerate(text):
        try:
            found = tokenizer.encode(sequence)
        except DataError as error:
            bad[i] = str(error)
            found = np.empty(0, np.uint8)
        tokens.append(found.data)
        if len(found) == len(sequence) or i in bad:
            places.append(b"")
        else:
            gone = np.flatnonzero(~tokenizer.keep(sequence))
            places.append(gone.astype(np.uint32).tobytes())
    data, offsets = places.arrays()
    size = np.dtype(np.uint32).itemsize
    return tokens.arrays(), Dropped(data.view(np.uint32), offsets // size), bad


def limit(
    pieces: Sequence[Tokenized],
    max_length: int | None,
    overlong: str,
    rejects: Sequence[Reject] = (),
    hint: str = "",
) -> list[Tokenized]:
    """The records, those of more than ``max_length`` tokens cut or left out where that was asked.

    Args:
        pieces: All records.
        max_length: Longest sequence in tokens; none: no limit.
        overlong: What happens to longer ones: ``error``, ``truncate`` or ``skip``.
        rejects: Records already found to be unusable, told with the others.
        hint: What else the message says of these.

    Raises:
        FastaError: Some records cannot be used, or none is left.
        ConfigError: ``overlong`` is something else.
    """
    if overlong not in OVERLONG:
        expected = ", ".join(OVERLONG)
        raise ConfigError(f"data.overlong: expected one of {expected}, found {overlong!r}.")
    bad = list(rejects)
    if max_length is not None and overlong == "error":
        fix = "; raise it, or set data.overlong to truncate or skip"
        bad += [told for piece in pieces for told in _too_long(piece, max_length, fix)]
    if bad:
        order = {file: i for i, file in enumerate(f for p in pieces for f in p.origins.files)}
        raise FastaError(reject_message(sorted(bad, key=lambda each: order[each.source])) + hint)
    if max_length is None or overlong == "error":
        return list(pieces)
    shorten = truncate if overlong == "truncate" else _leave_out
    limited = [shorten(piece, max_length) for piece in pieces]
    if not any(map(len, limited)):
        skipped = [told for piece in limited for told in piece.skipped]
        raise FastaError(f"{reject_message(skipped)}\nNo record is left.")
    return limited


def _too_long(data: Tokenized, max_length: int, fix: str = "") -> list[Reject]:
    reason = f"residues are more than data.max_length={max_length}{fix}"
    long = np.flatnonzero(data.whole > max_length).tolist()
    return [reject(data.header(i), f"{data.whole[i]} {reason}") for i in long]


def truncate(data: Tokenized, max_length: int) -> Tokenized:
    """The records, those of more than ``max_length`` tokens cut to it and named."""
    long = np.flatnonzero(data.whole > max_length).tolist()
    if not long:
        return data
    names = tuple(data.sequences.ids[i] for i in long)
    return replace(data, sequences=data.sequences.truncated(max_length), truncated=names)


def _leave_out(data: Tokenized, max_length: int) -> Tokenized:
    skipped = _too_long(data, max_length)
    if not skipped:
        return data
    return replace(data.take(np.flatnonzero(data.whole <= max_length)), skipped=tuple(skipped))


def ids_of(pieces: Iterable[Tokenized]) -> Iterator[str]:
    """Those of all records, in order."""
    for piece in pieces:
        yield from piece.sequences.ids


def letters_of(pieces: Iterable[Tokenized]) -> dict[str, int]:
    """Counts of letters and symbols in all of them."""
    return dict(sum((Counter(piece.letters) for piece in pieces), Counter()))


def letter_counts(records: Sequence[Record]) -> dict[str, int]:
    """Counts of letters and symbols in all sequences together."""
    counts = np.zeros(256, np.int64)
    lengths = np.fromiter((len(record.sequence) for record in records), np.int64, len(records))
    for first, last in shares(lengths):
        text = "".join(record.sequence for record in records[first:last])
        counts += byte_counts(np.frombuffer(text.encode(), np.uint8))
    return _by_letter(counts)


def _by_letter(counts: Int64[np.ndarray, " 256"]) -> dict[str, int]:
    return {chr(code): int(counts[code]) for code in np.flatnonzero(counts)}


def looks_like(letters: Mapping[str, int]) -> str:
    """Name of the alphabet that counted letters tell; protein without any."""
    return detect_alphabet(letters).name if any(map(str.isalpha, letters)) else PROTEIN.name


def alphabet_hint(letters: Mapping[str, int], tokenizer: Tokenizer) -> str:
    """A sentence that the letters look like those of another alphabet; empty if they do not."""
    looks, name = looks_like(letters), tokenizer.alphabet.name
    if not letters or "protein" not in (looks, name) or looks == name:
        return ""
    return f"\nThe sequences look like {looks}, but are read as {name}."
