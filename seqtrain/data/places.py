"""Finds repeated record ids in bounded memory."""

import sqlite3

from seqtrain.errors import DataError

IN_MEMORY = 2**17
"""Ids that are kept in memory; older ones lie in a temporary file."""

FILTER_BITS = 2**27
"""Of a Bloom filter with one hash, 16 MB: of ten million ids, one in fourteen new ones is looked
up in the file for nothing."""


class Places:
    """Places where each id was seen first.

    The newest ids are in memory. The others are in a file that SQLite makes in the folder for
    temporary files and that is gone with the process, behind a filter (Bloom 1970) that tells most
    new ids from them.
    """

    def __init__(self) -> None:
        self._new: dict[str, int] = {}
        self._file: sqlite3.Connection | None = None
        self._filter = bytearray()

    def first(self, name: str, place: int) -> int | None:
        """Where ``name`` was met before; None keeps this place as its first.

        Raises:
            DataError: There is no room for temporary files.
        """
        known = self._new.get(name)
        if known is None and self._file is not None and self._may_be_in_file(name):
            row = self._file.execute("SELECT place FROM ids WHERE id = ?", (name,)).fetchone()
            known = row and row[0]
        if known is None:
            self._new[name] = place
            if len(self._new) == IN_MEMORY:
                self._move_to_file()
        return known

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()

    def _may_be_in_file(self, name: str) -> bool:
        byte, bit = _slot(name)
        return bool(self._filter[byte] >> bit & 1)

    def _move_to_file(self) -> None:
        try:
            if self._file is None:
                self._file = _make_file()
                self._filter = bytearray(FILTER_BITS // 8)
            with self._file:
                in_order = sorted(self._new.items())
                self._file.executemany("INSERT INTO ids VALUES (?, ?)", in_order)
        except sqlite3.OperationalError as error:
            raise DataError(
                "The folder for temporary files has no room for the ids met so far, which are kept "
                f"there to find repeated ones ({error}). Make room, or set TMPDIR to another one."
            ) from error
        for name in self._new:
            byte, bit = _slot(name)
            self._filter[byte] |= 1 << bit
        self._new.clear()


def _slot(name: str) -> tuple[int, int]:
    """Byte and bit of the filter."""
    return divmod(hash(name) % FILTER_BITS, 8)


def _make_file() -> sqlite3.Connection:
    """An empty table in a file without a name; nothing of it outlives the process."""
    # Records may be read by another thread than the one that opened the files.
    file = sqlite3.connect("", check_same_thread=False)
    file.execute("PRAGMA journal_mode = OFF")
    file.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, place INTEGER) WITHOUT ROWID")
    return file
