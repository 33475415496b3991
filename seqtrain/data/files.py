"""Text files as lines: compression detected from the content, damage reported in one sentence."""

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from seqtrain.errors import ConfigError, DataError, FastaError

STDIN = "-"

MAX_LINE = 2**28
"""Characters of a line: enough for the largest human chromosome, 249 million, on one."""

MAX_BLANK_LINES = 1_000_000
"""Empty lines in a row."""

_PIECE = 2**20
"""Characters of a line that are read at a time."""

_T = TypeVar("_T")

_OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_FOREIGN = {
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\xd0\xcf\x11\xe0": "an old Excel or Office file; save the sheet as CSV (UTF-8)",
    b"\x28\xb5\x2f\xfd": "zstd-compressed; unpack it first, or use .gz, .bz2 or .xz",
    b"ARROW1": "an Arrow file. Stores of `data tokenize` are taken by `train`, `compare-norms` and "
    "`data audit`, by name; here give the FASTA files they were made of",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
}
_WORKBOOK_PARTS = (b"[Content_Types].xml", b"xl/")
_HEAD_BYTES = 512
"""Enough for the names of the first files of an archive."""


def shown(path: str | Path) -> str:
    """The name of a file as messages give it."""
    return "standard input" if str(path) == STDIN else str(path)


def read_lines(path: str | Path, error: type[DataError] = DataError) -> Iterator[str]:
    r"""Lines of a UTF-8 text file, each ending in ``\n`` save perhaps the last.

    ``-`` is standard input. Files compressed with gzip, bzip2 or xz are known by their first
    bytes, whatever their name. Line ends of Windows and old Macs and byte order marks are gone.
    Memory holds a line at a time; ``MAX_LINE`` and ``MAX_BLANK_LINES`` bound what a small
    compressed file can turn into.

    Args:
        path: The file, or ``-``.
        error: What to raise.

    Raises:
        DataError: As ``error``, when the file is missing, a directory, unreadable, binary,
            damaged, cut short, or not UTF-8, or has a line too long or too many empty ones.
    """
    number = blank = 0
    try:
        with _text(path, error) as text:
            for number, piece in enumerate(iter(partial(text.readline, _PIECE), ""), 1):
                line = (
                    piece if len(piece) < _PIECE else _long_line(piece, text, path, number, error)
                )
                if "\0" in line:
                    raise error(f"{shown(path)}: line {number} holds binary data, expected text.")
                blank = blank + 1 if line.isspace() else 0
                if blank > MAX_BLANK_LINES:
                    raise error(
                        f"{shown(path)}: more than {MAX_BLANK_LINES:,} empty lines in a row, up to "
                        f"line {number:,}. Expected text; remove them."
                    )
                yield line if line.isascii() else _decoded(line, path, number, error)
    except EOFError:
        raise error(
            f"{shown(path)}: the compressed data stop in the middle, after line {number}. "
            "The file was cut short; copy or download it again."
        ) from None
    except (OSError, zlib.error, lzma.LZMAError) as problem:
        reason = getattr(problem, "strerror", None) or f"damaged after line {number} ({problem})"
        raise error(f"{shown(path)}: cannot be read: {reason}.") from None


def _long_line(
    piece: str, text: io.TextIOWrapper, path: str | Path, number: int, error: type[DataError]
) -> str:
    """The whole of a line that begins with ``piece``; binary data are met before all is read."""
    pieces, length = [piece], len(piece)
    while not piece.endswith("\n") and "\0" not in piece and (piece := text.readline(_PIECE)):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_LINE:
            of_sequences = issubclass(error, FastaError)
            fix = "Divide it into several lines." if of_sequences else "Is it the right file?"
            raise error(
                f"{shown(path)}: line {number} has more than {MAX_LINE:,} characters. {fix}"
            )
    return "".join(pieces)


def _decoded(line: str, path: str | Path, number: int, error: type[DataError]) -> str:
    """The line without a byte order mark; bytes that are not UTF-8 came in as surrogates."""
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        raise error(
            f"{shown(path)}: line {number} holds bytes that are not UTF-8 text. "
            "Convert the file, for instance with: iconv -f latin1 -t utf-8"
        ) from None
    return line.removeprefix("\ufeff")


@contextmanager
def _text(path: str | Path, error: type[DataError]) -> Iterator[io.TextIOWrapper]:
    """The file, decompressed and decoded. Standard input is left open."""
    is_stdin = str(path) == STDIN
    binary = sys.stdin.buffer if is_stdin else _open(Path(path), error)
    buffered = io.BufferedReader(cast(io.RawIOBase, binary))
    try:
        head = buffered.peek(_HEAD_BYTES)
        if kind := _foreign(head):
            raise error(f"{shown(path)}: expected text, found {kind}.")
        opener = _of(head, _OPENERS)
        stream = opener(buffered) if opener else buffered
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape")
        try:
            yield text
        finally:
            text.detach()
    finally:
        buffered.detach() if is_stdin else buffered.close()


def _foreign(head: bytes) -> str | None:
    """The kind of file that is no text, with its fix. A workbook is a zip archive of XML."""
    if head.startswith(b"PK\x03\x04") and any(name in head for name in _WORKBOOK_PARTS):
        return "an Excel workbook (.xlsx); save the sheet as CSV (UTF-8)"
    if head.startswith(b"PK\x03\x04") and b"opendocument.spreadsheet" in head:
        return "a spreadsheet (.ods); save the sheet as CSV (UTF-8)"
    return _of(head, _FOREIGN)


def _of(head: bytes, kinds: Mapping[bytes, _T]) -> _T | None:
    return next((kind for magic, kind in kinds.items() if head.startswith(magic)), None)


def _open(path: Path, error: type[DataError]) -> BinaryIO:
    if path.is_dir():
        raise error(f"{path}: is a folder, expected a file.")
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, beside, n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise error(f"{path}: no such file.{hint}")
    return path.open("rb")


def plain_bytes(path: str | Path) -> int | None:
    """Size of a file of plain text; None for a compressed one, a pipe, and what is no file."""
    if str(path) == STDIN or not Path(path).is_file():
        return None
    with Path(path).open("rb") as stream:
        return None if _of(stream.read(8), _OPENERS) else Path(path).stat().st_size


def file_facts(path: str | Path) -> dict[str, str | int]:
    """``path``, ``bytes`` and ``sha256`` of a file; ``path`` alone for a pipe, read only once."""
    if str(path) == STDIN or not Path(path).is_file():
        return {"path": str(path)}
    with Path(path).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"path": str(path), "bytes": Path(path).stat().st_size, "sha256": digest}


def check_place(path: Path) -> None:
    """Refuse a path where no file can be, before anything is computed for it.

    Raises:
        ConfigError: says what is in the way.
    """
    if not path.absolute().parent.is_dir():
        raise ConfigError(
            f"{path}: the folder {path.absolute().parent} does not exist. Make it first."
        )
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; expected the name of a file.")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: is no ordinary file, and cannot be replaced by one.")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to; that file replaces ``path`` once it is complete and on disk.

    Where writing fails it is deleted, and ``path`` stays as it was. A link stays one.
    """
    path = path.resolve()
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)  # were it a link, what it leads to would be overwritten
        yield partial
        replace_file(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def replace_file(partial: Path, path: Path) -> None:
    """Rename a complete file; after a power cut there is the old content or the new one."""
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)
