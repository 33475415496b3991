"""SHA-256 checksums of the files in a folder, as ``sha256sum -c SHA256SUMS`` reads them.

They find damage: bits that flipped, files cut short, pieces of several copies. They do not find
intent, for whoever changes a file can change its checksum.
"""

import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from seqtrain.data.files import whole_file
from seqtrain.data.schema import read_bounded
from seqtrain.errors import CheckpointError

Place = Path | zipfile.Path
Sums = dict[str, list[str]]
"""Digests by file name; two while a file is replaced, of the old content and the new."""

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\\0]+)")
_MOST_BYTES = 1 << 20


def digest(file: Place) -> str:
    """Hexadecimal SHA-256 of a file.

    Raises:
        OSError: It cannot be read.
    """
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def read_sums(folder: Place) -> Sums | None:
    """Contents of the checksum file of a folder; None where there is none.

    Raises:
        CheckpointError: It is damaged.
    """
    file = folder / SUMS
    if not file.exists():
        return None
    found: Sums = {}
    try:
        lines = read_bounded(file, _MOST_BYTES).decode("utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            match = _LINE.fullmatch(line)
            if match is None:
                raise ValueError(f"line {number}: expected a SHA-256 and a file name")
            if match[1] not in found.setdefault(match[2], []):
                found[match[2]].append(match[1])
        if not found:
            raise ValueError("expected at least one line, found none")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: is damaged: {error}. Copy the folder anew.") from error
    return found


def sums_text(sums: Mapping[str, Iterable[str]]) -> str:
    """The content of a checksum file."""
    return "".join(f"{each}  {name}\n" for name in sorted(sums) for each in sums[name])


def write_sums(folder: Path, sums: Mapping[str, Iterable[str]]) -> None:
    """Replace the checksum file of a folder."""
    with whole_file(folder / SUMS) as partial:
        partial.write_text(sums_text(sums), encoding="utf-8")


@contextmanager
def listed_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to; that file replaces ``path``, and its folder's checksums list it.

    While it is replaced both the old and the new content are listed, so that a crash at any
    moment leaves a folder that passes its check.
    """
    with whole_file(path) as partial:
        yield partial
        new = digest(partial)
        sums = read_sums(path.parent) or {}
        before = sums.get(path.name, [])
        if before != [new]:
            write_sums(path.parent, {**sums, path.name: [*before, new]})
    if before != [new]:
        write_sums(path.parent, {**sums, path.name: [new]})


def write_listed(path: Path, text: str) -> None:
    """Write a text whole or not at all, listed in the checksums of its folder."""
    with listed_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_sums(
    folder: Place, sums: Sums, fix: str, names: Iterable[str] | None = None, may_miss: bool = False
) -> None:
    """Refuse a file that is not as it was written.

    Args:
        folder: What the files lie in.
        sums: Of :func:`read_sums`.
        fix: What to do about a damaged file.
        names: Files to look at; all that are listed if not given.
        may_miss: Whether a listed file may be absent.

    Raises:
        CheckpointError: Names the first file that is missing, not listed, or changed.
    """
    for name in sums if names is None else names:
        file = folder / name
        if not file.exists():
            if may_miss:
                continue
            raise CheckpointError(f"{file}: is missing, and {SUMS} lists it. {fix}")
        if name not in sums:
            raise CheckpointError(f"{file}: is not listed in {SUMS}. {fix}")
        try:
            same = digest(file) in sums[name]
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}.") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise CheckpointError(f"{file}: is damaged: {error}. {fix}") from error
        if not same:
            raise CheckpointError(
                f"{file}: is damaged or was edited: its SHA-256 is not the one in {SUMS}. {fix}"
            )
