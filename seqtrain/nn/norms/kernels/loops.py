"""The loops of the CPU kernels, in the part of Python that Numba compiles.

Each goes over ``x`` and its like, ``(N, C)`` and contiguous, at the positions that ``rows`` names
in rising order, and reads no other. The work is cut into chunks of so many entries of ``rows``, by
their number alone: whoever does them, and when, no bit of a result depends on it. Sums run in the
dtype of ``x`` within a tile, which stays in the cache, and in float64 from tile to tile. Four rows
at once, because a sum that is fetched and stored for every row takes twice as long.

They call no function of ours and stand for themselves, since that is what is compiled.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def moments(
    first: int, last: int, chunk: int, tile: int, rows: Array, x: Array, mean: Array, m2: Array
) -> None:
    """Mean and sum of squared deviations of chunks ``first`` to ``last``, into float64 ``(K, C)``.

    Each tile in two passes, the second corrected by the rounding error of the first; tiles are
    merged as in Chan, Golub and LeVeque 1983.
    """
    C = x.shape[1]
    centre, total, squares = np.empty(C, x.dtype), np.empty(C, x.dtype), np.empty(C, x.dtype)
    for k in range(first, last):
        stop = min((k + 1) * chunk, len(rows))
        mean[k] = 0
        m2[k] = 0
        for begin in range(k * chunk, stop, tile):
            end = min(begin + tile, stop)
            size = end - begin
            single = end - size % 4
            total[:] = 0
            squares[:] = 0
            for i in range(begin, single, 4):
                e, f, g, h = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
                for c in range(C):
                    total[c] += (x[e, c] + x[f, c]) + (x[g, c] + x[h, c])
            for i in range(single, end):
                e = rows[i]
                for c in range(C):
                    total[c] += x[e, c]
            for c in range(C):
                centre[c] = total[c] / size
            total[:] = 0
            for i in range(begin, single, 4):
                e, f, g, h = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
                for c in range(C):
                    p, q = x[e, c] - centre[c], x[f, c] - centre[c]
                    r, s = x[g, c] - centre[c], x[h, c] - centre[c]
                    total[c] += (p + q) + (r + s)
                    squares[c] += (p * p + q * q) + (r * r + s * s)
            for i in range(single, end):
                e = rows[i]
                for c in range(C):
                    p = x[e, c] - centre[c]
                    total[c] += p
                    squares[c] += p * p
            before = begin - k * chunk
            for c in range(C):
                error = np.float64(total[c]) / size
                step = centre[c] + error - mean[k, c]
                mean[k, c] += step * size / (before + size)
                within = np.float64(squares[c]) - error * error * size
                m2[k, c] += max(within, 0.0) + step * step * before * size / (before + size)


def transform(
    first: int,
    last: int,
    chunk: int,
    rows: Array,
    x: Array,
    centre: Array,
    scale: Array,
    shift: Array,
    out: Array,
) -> None:
    """``(x - centre) * scale + shift`` at the rows of some chunks, 0 between and around them."""
    N, C = x.shape
    for k in range(first, last):
        stop = min((k + 1) * chunk, len(rows))
        # What lies before the first row is the first chunk's, what follows a row is that row's.
        at = 0 if k == 0 else rows[k * chunk]
        for i in range(k * chunk, stop):
            e = rows[i]
            out[at:e] = 0
            for c in range(C):
                out[e, c] = (x[e, c] - centre[c]) * scale[c] + shift[c]
            at = e + 1
        out[at : N if stop == len(rows) else rows[stop]] = 0


def gradient_sums(
    first: int,
    last: int,
    chunk: int,
    tile: int,
    rows: Array,
    x: Array,
    centre: Array,
    grad: Array,
    plain: Array,
    product: Array,
) -> None:
    """Sums of ``grad`` and of ``grad * (x - centre)`` of some chunks, into float64 ``(K, C)``."""
    C = x.shape[1]
    total, mixed = np.empty(C, x.dtype), np.empty(C, x.dtype)
    for k in range(first, last):
        stop = min((k + 1) * chunk, len(rows))
        plain[k] = 0
        product[k] = 0
        for begin in range(k * chunk, stop, tile):
            end = min(begin + tile, stop)
            single = end - (end - begin) % 4
            total[:] = 0
            mixed[:] = 0
            for i in range(begin, single, 4):
                e, f, g, h = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
                for c in range(C):
                    p, q, r, s = grad[e, c], grad[f, c], grad[g, c], grad[h, c]
                    total[c] += (p + q) + (r + s)
                    mixed[c] += (p * (x[e, c] - centre[c]) + q * (x[f, c] - centre[c])) + (
                        r * (x[g, c] - centre[c]) + s * (x[h, c] - centre[c])
                    )
            for i in range(single, end):
                e = rows[i]
                for c in range(C):
                    p = grad[e, c]
                    total[c] += p
                    mixed[c] += p * (x[e, c] - centre[c])
            for c in range(C):
                plain[k, c] += total[c]
                product[k, c] += mixed[c]


def gradient(
    first: int,
    last: int,
    chunk: int,
    rows: Array,
    x: Array,
    centre: Array,
    grad: Array,
    scale: Array,
    slope: Array,
    shift: Array,
    out: Array,
) -> None:
    """``grad * scale + (x - centre) * slope + shift`` at some chunks' rows, and 0 as above."""
    N, C = x.shape
    for k in range(first, last):
        stop = min((k + 1) * chunk, len(rows))
        at = 0 if k == 0 else rows[k * chunk]
        for i in range(k * chunk, stop):
            e = rows[i]
            out[at:e] = 0
            for c in range(C):
                out[e, c] = grad[e, c] * scale[c] + (x[e, c] - centre[c]) * slope[c] + shift[c]
            at = e + 1
        out[at : N if stop == len(rows) else rows[stop]] = 0
