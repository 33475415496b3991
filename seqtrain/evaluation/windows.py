"""Long records in pieces: where windows lie, and one result from those of the windows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from seqtrain.errors import ConfigError


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

    def stitch(self, pieces: Sequence[np.ndarray], length: int) -> np.ndarray:
        """Each residue from the window in which it is farthest from an end, ``(length, ...)``.

        Args:
            pieces: What is said of the residues of each window.
            length: Of the record.
        """
        starts = self.starts(length)
        middles = [(start + before + self.size) // 2 for before, start in pairwise(starts)]
        bounds = zip([0, *middles], [*middles, length], starts, pieces, strict=True)
        return np.concatenate(
            [piece[begin - start : end - start] for begin, end, start, piece in bounds]
        )
