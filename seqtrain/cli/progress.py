"""One line on a terminal that says how far a stream of records has come."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from seqtrain.data.fasta import Record, Reject

Row = TypeVar("Row")

SECONDS = 0.5
"""Between two states of the line."""


class Progress:
    """Counts records in and rows out; silent where nobody looks.

    Args:
        paths: The files that are read. How much is left is known if none is compressed or a pipe.
        quiet: Say nothing on a terminal either.
        stream: The text file to write to; standard error if not given.
    """

    def __init__(self, paths: Sequence[str], quiet: bool = False, stream: Any = None):
        from seqtrain.data.files import plain_bytes

        self.stream = stream or sys.stderr
        self.shown = not quiet and self.stream.isatty()
        sizes = [plain_bytes(path) for path in paths]
        self.total = None if None in sizes else sum(size or 0 for size in sizes)
        self.read = 0.0
        self.rows = 0
        self.began = self.told = time.monotonic()

    def watch(self, entries: Iterable["Record | Reject"]) -> Iterator["Record | Reject"]:
        """The entries, counted by what they take in their file, line ends of 60 columns assumed."""
        for entry in entries:
            self.read += len(entry.id) + 2 + 61 / 60 * len(getattr(entry, "sequence", ""))
            self.read += len(getattr(entry, "description", ""))
            yield entry

    def count(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows, with the line brought up to date now and then, and gone at the end."""
        try:
            for row in rows:
                self.rows += 1
                if self.shown and time.monotonic() - self.told > SECONDS:
                    self.told = time.monotonic()
                    print(f"\r\x1b[K{self.line()}", end="", file=self.stream, flush=True)
                yield row
        finally:
            if self.shown:
                print("\r\x1b[K", end="", file=self.stream, flush=True)

    def line(self) -> str:
        """Rows, their rate, and the time left if it is known."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        said = f"{self.rows:,} records  {self.rows / seconds:,.0f}/s"
        if self.total and self.read:
            share = min(1.0, self.read / self.total)
            left = round(seconds * (1 - share) / share)
            said += f"  {share:.0%}  about {left // 60} min {left % 60:02d} s left"
        return said
