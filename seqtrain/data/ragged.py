"""Lists of unequal lengths end to end: all values in one array, and where each list begins."""

import io
import mmap
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, SupportsIndex, overload
from weakref import finalize

import numpy as np
from jaxtyping import Int, Int64, UInt8

GATHERED = 2**18
"""Values that are looked at together, where each takes eight bytes and more meanwhile."""

ITERATED = 2**13
"""Strings whose places are read at once."""

COUNTED = 2**16
"""Bytes that are counted at once."""


def byte_counts(values: UInt8[np.ndarray, " _"]) -> Int64[np.ndarray, " 256"]:
    """Counts of the 256 bytes."""
    counts = np.zeros(256, np.int64)
    for first in range(0, len(values), COUNTED):  # numpy takes eight bytes for each
        counts += np.bincount(values[first : first + COUNTED], minlength=len(counts))
    return counts


def offsets_of(lengths: Int[np.ndarray, " N"]) -> Int64[np.ndarray, " S"]:
    """Where each list begins, and at last where the last one ends: one more than lists."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def bounds(
    offsets: Int64[np.ndarray, " S"], chosen: Int[np.ndarray, " B"]
) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
    """Begins and lengths of these lists, in time that does not depend on how many others are."""
    begins = offsets[chosen]
    return begins, offsets[chosen + 1] - begins


def positions(
    begins: Int64[np.ndarray, " B"], lengths: Int64[np.ndarray, " B"]
) -> Int64[np.ndarray, " T"]:
    """Where the values of lists lie that begin there and are so long, list after list."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(begins - before, lengths) + np.arange(lengths.sum())


def shares(lengths: Int64[np.ndarray, " N"]) -> Iterator[tuple[int, int]]:
    """First and last list, the latter left out, of shares that cover all lists of these lengths.

    A share holds at most ``GATHERED`` values, unless it is a single list.
    """
    ends = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        room = (ends[first - 1] if first else 0) + GATHERED
        last = max(first + 1, int(np.searchsorted(ends, room, "right")))
        yield first, last
        first = last


def gather(
    values: np.ndarray, begins: Int64[np.ndarray, " B"], lengths: Int64[np.ndarray, " B"]
) -> np.ndarray:
    """A copy of the values of lists that begin there and are so long, list after list."""
    out = np.empty(int(lengths.sum()), values.dtype)
    end = 0
    for first, last in shares(lengths):
        begin, end = end, end + int(lengths[first:last].sum())
        if last == first + 1:  # perhaps a long one
            out[begin:end] = values[begins[first] : begins[first] + lengths[first]]
        else:
            out[begin:end] = values[positions(begins[first:last], lengths[first:last])]
    return out


class Texts(Sequence[str]):
    """A read-only list of strings, kept as UTF-8 end to end and not as an object each."""

    def __init__(self, data: UInt8[np.ndarray, " _"], offsets: Int64[np.ndarray, " S"]) -> None:
        self.data = data
        self.offsets = offsets

    @classmethod
    def of(cls, strings: Iterable[str]) -> "Texts":
        """These strings."""
        column = Column()
        for string in strings:
            column.append(string.encode())
        return cls(*column.arrays())

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, key: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> "Texts": ...
    def __getitem__(self, key: SupportsIndex | slice) -> "str | Texts":
        if isinstance(key, slice):
            return self.take(np.arange(*key.indices(len(self))))
        i = range(len(self))[key]
        return self.data[self.offsets[i] : self.offsets[i + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        data = memoryview(self.data)  # type: ignore[arg-type]  # an array is one
        for first in range(0, len(self), ITERATED):
            ends = self.offsets[first : first + ITERATED + 1].tolist()
            for begin, end in pairwise(ends):
                yield str(data[begin:end], "utf-8")

    def take(self, chosen: Int[np.ndarray, " B"]) -> "Texts":
        """These of them, in this order."""
        begins, lengths = bounds(self.offsets, chosen)
        return Texts(gather(self.data, begins, lengths), offsets_of(lengths))


class Column:
    """Lists of bytes that come one by one, kept in memory or in a temporary file.

    Args:
        folder: Where the file is, which has no name and is gone with the process; none: in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._stream: IO[bytes] = io.BytesIO()
        if folder is not None:
            self._stream = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # by the next line
            finalize(self, _close, self._stream)
        self._ends = array("q", [0])

    def append(self, values: bytes | memoryview) -> None:
        """One list more.

        Raises:
            OSError: The file cannot grow.
        """
        with self._named():
            self._stream.write(values)
        self._ends.append(self._ends[-1] + len(values))

    def arrays(self) -> tuple[UInt8[np.ndarray, " _"], Int64[np.ndarray, " S"]]:
        """All values and where each list begins, without a copy; nothing may follow.

        Raises:
            OSError: The file cannot grow.
        """
        offsets = np.frombuffer(self._ends, np.int64)
        if isinstance(self._stream, io.BytesIO):
            return np.frombuffer(self._stream.getbuffer(), np.uint8), offsets
        with self._named():
            self._stream.flush()
        with self._stream as file:
            if not self._ends[-1]:  # nothing cannot be mapped
                return np.empty(0, np.uint8), offsets
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # outlives the open file
        return np.frombuffer(mapped, np.uint8), offsets

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of a file without a name say which folder it is in."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._folder)) from error


def _close(stream: IO[bytes]) -> None:
    """What a full disk did not take is not wanted any more."""
    with suppress(OSError):
        stream.close()
