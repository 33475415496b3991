"""FASTA records, one by one, each usable or with the reason why not. The one door to Biopython."""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from Bio.SeqIO.FastaIO import SimpleFastaParser

from seqtrain.data.files import STDIN, read_lines, shown
from seqtrain.data.places import Places
from seqtrain.errors import DataError, FastaError

MAX_LISTED = 10
"""Number of bad records of a file that a message shows in full."""

MAX_ID = 1000
"""Letters of an id; a header without a blank is no id, and fixed-width tables would be as wide."""

MAX_RESIDUES = 2**30
"""Letters of a record; the largest chromosomes of plants have less."""

_LETTERS_AT_ONCE = 2**16

_NO_RESIDUE = re.compile(r"[^A-Za-z*.-]")


class Record(NamedTuple):
    """One sequence with a name and at least one residue, gap or stop."""

    id: str
    """First word of the header."""
    description: str
    """Rest of the header."""
    sequence: str
    """Upper case, without white space: letters, ``-``, ``.`` and ``*``."""
    source: str
    """File it came from, ``-`` for standard input."""
    line: int
    """Line of its header in that file, from 1."""
    index: int  # type: ignore[assignment]  # hides tuple.index, which no record needs
    """Place among the records of that file, from 0."""


class Header(NamedTuple):
    """What is known of a record beside its sequence, as in ``Record``."""

    id: str
    description: str
    source: str
    line: int
    index: int  # type: ignore[assignment]  # as in Record


class Reject(NamedTuple):
    """One record that cannot be used, and why."""

    id: str
    reason: str
    source: str
    line: int
    index: int  # type: ignore[assignment]


class Entry(NamedTuple):
    """One FASTA entry as it is written, unchecked."""

    title: str
    text: str
    line: int


def parse_fasta(
    lines: Iterable[str], source: str, error: type[DataError] = FastaError
) -> Iterator[Entry]:
    """Entries in file order, with the text between two headers joined up.

    Memory holds about twice the text of one entry.

    Args:
        lines: What ``read_lines`` gives.
        source: The file the lines come from, for messages.
        error: What to raise.

    Raises:
        DataError: As ``error``, when there is no entry, something else before the first, or more
            than ``MAX_RESIDUES`` letters in one.
    """
    header_lines: deque[int] = deque()
    checked = _from_first_header(lines, source, header_lines, error)
    for title, text in SimpleFastaParser(checked):  # type: ignore[no-untyped-call]
        yield Entry(title, text, header_lines.popleft())


def _from_first_header(
    lines: Iterable[str], source: str, header_lines: deque[int], error: type[DataError]
) -> Iterator[str]:
    """The lines that Biopython parses; it neither counts them nor minds what comes first."""
    started, length = False, 0
    short: list[str] = []
    for number, line in enumerate(lines, 1):
        if line.startswith(">"):
            yield from _joined(short)
            header_lines.append(number)
            started, length = True, 0
            yield line
            continue
        if not started:
            if not line.strip():
                continue
            found = "FASTQ" if line.startswith("@") else repr(line.strip()[:40])
            raise error(
                f"{shown(source)}: not FASTA. Expected line {number} to be a header that begins "
                f"with '>', found {found}."
            )
        short.append(line.rstrip())
        length += len(line)
        if length // _LETTERS_AT_ONCE > (length - len(line)) // _LETTERS_AT_ONCE:
            _check_length(length, header_lines[-1], source, error)
            yield from _joined(short)
    yield from _joined(short)
    if not started:
        raise error(f"{shown(source)}: is empty, expected FASTA records.")


def _joined(short: list[str]) -> Iterator[str]:
    """Many lines as one, which takes a third of their memory; leaves none behind."""
    if text := "".join(short):
        yield text
    short.clear()


def _check_length(length: int, header: int, source: str, error: type[DataError]) -> None:
    if length > MAX_RESIDUES:
        raise error(
            f"{shown(source)}: the record on line {header} has more than {MAX_RESIDUES:,} letters. "
            "Cut it into several records."
        )


def scan_fasta(paths: Sequence[str | Path]) -> Iterator[Record | Reject]:
    """Records of all files in order, one at a time; those that cannot be used come as rejects.

    ``-`` is standard input; plain, gzip, bzip2 and xz files are told apart by content. Memory
    holds one record and a bounded number of ids. A record is rejected for a blank id, an id met
    before in any of the files, an empty sequence, or a symbol that is no letter, gap or stop.

    Raises:
        FastaError: A file is given twice, cannot be read, is empty, or is not FASTA.
    """
    sources = [str(path) for path in paths]
    refuse_repeats(sources)
    with closing(Places()) as places:
        for number, source in enumerate(sources):
            lines = read_lines(source, FastaError)
            for index, entry in enumerate(parse_fasta(lines, source)):
                name, description = (*entry.title.split(maxsplit=1), "", "")[:2]
                sequence = entry.text if entry.text.isalpha() else "".join(entry.text.split())
                reason = _why_not(name, sequence)
                before = None
                if len(name) > MAX_ID:
                    name = f"{name[:40]}…"
                elif name:  # line and file as one number
                    before = places.first(name, entry.line * len(sources) + number)
                if before is not None:
                    line, file = divmod(before, len(sources))
                    where = "" if file == number else f" of {shown(sources[file])}"
                    reason = f"the id was used before, on line {line}{where}; ids must be unique"
                if reason is None:
                    yield Record(name, description, sequence.upper(), source, entry.line, index)
                else:
                    yield Reject(name, reason, source, entry.line, index)


def refuse_repeats(paths: Sequence[str | Path]) -> None:
    """Raise ``FastaError`` when two paths are the same file, or both are standard input."""
    seen: set[str | Path] = set()
    for path in paths:
        file = STDIN if str(path) == STDIN else Path(path).resolve()
        if file in seen:
            raise FastaError(f"{shown(path)}: is given twice; each file has one place.")
        seen.add(file)


def _why_not(name: str, sequence: str) -> str | None:
    if not name:
        return "the id is blank; write one after '>'"
    if len(name) > MAX_ID:
        return (
            f"the id has {len(name):,} characters, of at most {MAX_ID:,}; put a blank after the id"
        )
    if not sequence:
        return "the sequence is empty; add it or remove the record"
    if odd := _NO_RESIDUE.search(sequence):
        return f"residue {odd.start() + 1}: {odd[0]!r} is not a letter; remove or replace it"
    return None


def sort_fasta(paths: Sequence[str | Path]) -> tuple[list[Record], list[Reject]]:
    """Records of all files in order, those that can be used and those that cannot.

    Raises:
        FastaError: As for ``scan_fasta``.
    """
    records: list[Record] = []
    rejects: list[Reject] = []
    for item in scan_fasta(paths):
        if isinstance(item, Record):
            records.append(item)
        else:
            rejects.append(item)
    return records, rejects


def read_fasta(paths: Sequence[str | Path]) -> list[Record]:
    """Records of all files in order.

    Raises:
        FastaError: As for ``scan_fasta``, or some records cannot be used: all are collected.
    """
    records, rejects = sort_fasta(paths)
    if rejects:
        raise FastaError(reject_message(rejects))
    return records


def reject(record: Record | Header, reason: str) -> Reject:
    """That this record cannot be used."""
    return Reject(record.id, reason, record.source, record.line, record.index)


def reject_message(rejects: Sequence[Reject]) -> str:
    """One message about records that cannot be used: file by file, the first of each in full."""
    files: dict[str, list[Reject]] = {}
    for reject in rejects:
        files.setdefault(reject.source, []).append(reject)
    return "\n".join(_file_message(source, group) for source, group in files.items())


def _file_message(source: str, rejects: Sequence[Reject]) -> str:
    lines = [
        f"record {r.id!r} ({_place(r)}): {r.reason}."
        for r in sorted(rejects, key=lambda reject: reject.index)[:MAX_LISTED]
    ]
    if len(rejects) == 1:
        return f"{shown(source)}: {lines[0]}"
    if len(rejects) > MAX_LISTED:
        lines.append(f"and {len(rejects) - MAX_LISTED} more.")
    head = f"{shown(source)}: {len(rejects)} records cannot be used:"
    return "\n  ".join([head, *lines])


def _place(reject: Reject) -> str:
    """Among the records, and in the text if the file is one."""
    return _ordinal(reject.index + 1) + (f", line {reject.line}" if reject.line else "")


def _ordinal(number: int) -> str:
    last = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
    return f"{number}{last or 'th'}"
