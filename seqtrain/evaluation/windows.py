"""Long records in pieces: where windows lie, and one result from those of the windows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from seqtrain.errors import ConfigError

RESIDUES_AT_ONCE = 1_000_000
"""Of windows that are read together."""


@dataclass(frozen=True)
class Windows:
    """Records longer than ``size`` are read in windows of exactly that length."""

    size: int
    """Residues of a window."""
    overlap: int
    """Residues that a window shares with the one before, at least; the last ends with the record.

    Raises:
        ConfigError: Windows would not move on.
    """

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.overlap < self.size:
            raise ConfigError(
                f"--window {self.size} --overlap {self.overlap}: expected an overlap from 0 to "
                "less than the window."
            )

    @classmethod
    def of(cls, size: int | None, overlap: int | None) -> "Windows | None":
        """Windows as a user asked for them: none without a size, a quarter of it for an overlap.

        Raises:
            ConfigError: An overlap of nothing, or as above.
        """
        if size is None and overlap is not None:
            raise ConfigError(f"--overlap {overlap}: there is no --window to overlap.")
        return None if size is None else cls(size, size // 4 if overlap is None else overlap)

    def starts(self, length: int) -> list[int]:
        """Where the windows of a record begin; one at 0 where it fits into one."""
        last = max(0, length - self.size)
        return [*range(0, last, self.size - self.overlap), last]

    def cut(self, tokens: np.ndarray) -> Iterator[np.ndarray]:
        """The windows of a record."""
        for start in self.starts(len(tokens)):
            yield tokens[start : start + self.size]

    def ranges(self, length: int) -> Iterator["Range"]:
        """The windows of a record; a residue belongs to the one whose ends are farthest from it.

        Args:
            length: Of the record.
        """
        begin = 0
        starts = self.starts(length)
        for start, after in zip_longest(starts, starts[1:]):
            end = length if after is None else (start + after + self.size) // 2
            yield Range(start, begin, end)
            begin = end

    def stitch(self, pieces: Sequence[np.ndarray], length: int) -> np.ndarray:
        """Each residue from the window that it belongs to, ``(length, ...)``.

        Args:
            pieces: What is said of the residues of each window.
            length: Of the record.
        """
        ranges = zip(self.ranges(length), pieces, strict=True)
        return np.concatenate([piece[part.within] for part, piece in ranges])


class Range(NamedTuple):
    """A window of a record, and the residues that belong to it."""

    start: int
    """Of the window."""
    begin: int
    end: int

    @property
    def within(self) -> slice:
        """The residues, counted from the start of the window."""
        return slice(self.begin - self.start, self.end - self.start)


def read_in_windows(
    tokens: Sequence[np.ndarray],
    windows: Windows,
    read: Callable[[list[np.ndarray]], Sequence[np.ndarray]],
    take: Callable[[int, Range, np.ndarray], None],
) -> None:
    """Read records window by window, in memory that does not grow with their length.

    Args:
        tokens: Of each record.
        windows: How they are cut.
        read: What is said of each of some windows.
        take: Gets the number of the record, the window, and what was said of it; in order.
    """
    bunch: list[tuple[int, Range, np.ndarray]] = []
    residues = 0
    for number, record in enumerate(tokens):
        for part in windows.ranges(len(record)):
            bunch.append((number, part, record[part.start : part.start + windows.size]))
            residues += len(bunch[-1][2])
            if residues >= RESIDUES_AT_ONCE:
                _read_bunch(bunch, read, take)
                bunch, residues = [], 0
    _read_bunch(bunch, read, take)


def _read_bunch(
    bunch: Sequence[tuple[int, Range, np.ndarray]],
    read: Callable[[list[np.ndarray]], Sequence[np.ndarray]],
    take: Callable[[int, Range, np.ndarray], None],
) -> None:
    if not bunch:
        return
    said = read([piece for _, _, piece in bunch])
    for (number, part, _), values in zip(bunch, said, strict=True):
        take(number, part, values)
