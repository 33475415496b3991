"""A run directory belongs to one process, holds no links, and stays in its place."""

import errno
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from seqtrain.errors import CheckpointError, SeqtrainWarning

_MOST_ENTRIES = 1_000_000


def refuse_links(folder: Path) -> None:
    """Refuse a folder in which something is a link, or neither a file nor a folder.

    Whoever made it could have anything read or overwritten that way. The folder itself may be
    reached through a link.

    Raises:
        CheckpointError: Names the first such entry.
    """
    for number, entry in enumerate(_entries(folder)):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            raise CheckpointError(
                f"{entry.path}: is a link, and nothing in a run directory or bundle may be one. "
                "Put the file itself there, or remove the link."
            )
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise CheckpointError(f"{entry.path}: is neither a file nor a folder. Remove it.")
        if number >= _MOST_ENTRIES:
            raise CheckpointError(f"{folder}: holds more than {_MOST_ENTRIES:,} files.")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder; links are not followed."""
    waiting = [os.fspath(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    yield entry
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except FileNotFoundError:  # removed meanwhile, or nothing there yet
            continue
        except OSError as error:
            raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}.") from error


class RunLock:
    """Keeps a second process out of a run directory; the system lets go when a process dies."""

    def __init__(self, folder: Path):
        self.path = folder / ".lock"

    def __enter__(self) -> "RunLock":
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.is_symlink():
                refuse_links(folder)
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            self._file = os.fdopen(os.open(self.path, flags, 0o666), "r+b")
        except OSError as error:
            raise CheckpointError(
                f"{folder}: cannot be written: {error.strerror}. Choose another --run-dir."
            ) from error
        try:
            _lock(self._file.fileno(), folder)
        except CheckpointError:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _lock(descriptor: int, folder: Path) -> None:
    with suppress(ImportError):  # no fcntl on Windows: there is no lock then
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise CheckpointError(
                    f"{folder}: another process is training in this run directory. "
                    "Wait for it, or choose another --run-dir."
                ) from error
            warnings.warn(
                f"{folder}: this file system has no locks ({error.strerror}), so that nothing "
                "keeps a second process out of the run. Do not start one.",
                SeqtrainWarning,
                stacklevel=3,
            )


class Place:
    """Notices that a folder is no longer where it was.

    Args:
        folder: Made if it does not exist.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._was = self._now()

    def _now(self) -> tuple[int, int] | None:
        try:
            found = self.folder.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def check(self) -> None:
        """Raise where another folder, or none, has taken the place of the one of before.

        Raises:
            CheckpointError: Says how to continue.
        """
        if self._now() != self._was:
            raise CheckpointError(
                f"{self.folder}: this run directory was deleted, renamed or replaced while "
                "training, so that nothing more can be saved. If it was renamed, continue with "
                "--resume and its new name as --run-dir; else begin again."
            )
