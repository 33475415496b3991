"""Opens a run directory, a bundle or its archive, from whomever it comes, within bounds."""

import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seqtrain.errors import CheckpointError
from seqtrain.training.guard import refuse_links
from seqtrain.training.sums import Place

MOST_ENTRIES = 1000
_SLACK = 16 << 20
_RATIO = 100
"""Weights hardly compress, JSON some tenfold; zeros a thousandfold."""


@contextmanager
def opened(path: Path) -> Iterator[Place]:
    """The top folder of a run directory or a bundle, which may be a zip archive.

    Raises:
        CheckpointError: It is a file, but no such archive; or something in it is a link, lies in
            a folder of the archive, is there twice, or would unpack to an unlikely size.
    """
    if not path.is_file():
        if path.is_dir():
            refuse_links(path)
        yield path
        return
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path}: not a bundle: {error}. Name a run directory, or what "
            "`seqtrain export --format bundle` made."
        ) from error
    with archive:
        _check_entries(archive, path)
        yield zipfile.Path(archive)


def _check_entries(archive: zipfile.ZipFile, path: Path) -> None:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(names) > MOST_ENTRIES:
        raise CheckpointError(f"{path}: holds more than {MOST_ENTRIES} files. Not a bundle.")
    for entry in entries:
        mode = entry.external_attr >> 16
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise CheckpointError(f"{path}: {entry.filename!r} is a link or no file. Not a bundle.")
        if "/" in entry.filename or "\\" in entry.filename or entry.filename in ("", ".", ".."):
            raise CheckpointError(
                f"{path}: {entry.filename!r} lies in a folder; a bundle has all files at its top. "
                "Pack it without its folder, or export it anew."
            )
        if names.count(entry.filename) > 1:
            raise CheckpointError(f"{path}: {entry.filename!r} is there more than once.")
        if entry.flag_bits & 1:
            raise CheckpointError(f"{path}: {entry.filename!r} is encrypted. Unpack it first.")
    size = sum(entry.file_size for entry in entries)
    if size > _RATIO * path.stat().st_size + _SLACK:
        raise CheckpointError(
            f"{path}: would unpack to {size:,} bytes, more than {_RATIO} times its size. It is "
            "damaged, or made to fill the memory."
        )
