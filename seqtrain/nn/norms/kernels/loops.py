"""The loops of the CPU kernels, in the part of Python that Numba compiles.

Each goes over ``x`` and its like, ``(N, C)`` and contiguous, at the positions that ``rows`` names
in rising order, and reads no other. The work is cut into chunks of so many entries of ``rows``, by
their number alone: whoever does them, and when, no bit of a result depends on it. Sums run in the
dtype of ``x`` within a tile, which stays in the cache, and in float64 from tile to tile. Four rows
at once where the tile is near, because there a sum that is fetched and stored for every row takes
twice as long.

Factors are indexed where they are used: unpacked, the compiler would not see that they lie apart.

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


def settle(
    size: int,
    chunk: int,
    eps: float,
    means: Array,
    squares: Array,
    weight: Array,
    bias: Array,
    statistics: Array,
    factors: Array,
) -> None:
    """Merge the ``moments`` of all chunks, and make of them the factors of ``transform``.

    Args:
        size: Number of rows.
        chunk: Rows in each chunk but the last.
        eps: Added to the variance.
        means: ``(K, C)``, like the next.
        squares: Sums of squared deviations.
        weight: ``(C,)``.
        bias: ``(C,)``.
        statistics: Becomes mean, sum of squared deviations and invstd, float64 ``(3, C)``.
        factors: Becomes centre, scale and shift, ``(3, C)``.
    """
    mean, m2, invstd = statistics
    mean[:] = 0
    m2[:] = 0
    for k in range(len(means)):
        before = k * chunk
        total = min(before + chunk, size)
        for c in range(len(mean)):
            step = means[k, c] - mean[c]
            mean[c] += step * (total - before) / total
            m2[c] += squares[k, c] + step * step * before * (total - before) / total
    for c in range(len(mean)):
        shifted = m2[c] / size + eps
        invstd[c] = 1 / np.sqrt(shifted) if shifted > 0 else 0.0
        factors[0, c] = mean[c]
        factors[1, c] = invstd[c] * weight[c]
        # With what the mean loses in the dtype of the input, which matters where it is large.
        factors[2, c] = bias[c] - (mean[c] - factors[0, c]) * factors[1, c]


def transform(
    first: int,
    last: int,
    chunk: int,
    rows: Array,
    x: Array,
    factors: Array,
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
            for gap in range(at, e):
                out[gap] = 0
            for c in range(C):
                out[e, c] = (x[e, c] - factors[0, c]) * factors[1, c] + factors[2, c]
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
            total[:] = 0
            mixed[:] = 0
            for i in range(begin, end):
                e = rows[i]
                for c in range(C):
                    p = grad[e, c]
                    total[c] += p
                    mixed[c] += p * (x[e, c] - centre[c])
            for c in range(C):
                plain[k, c] += total[c]
                product[k, c] += mixed[c]


def settle_gradient(
    size: int,
    plains: Array,
    products: Array,
    statistics: Array,
    weight: Array,
    sums: Array,
    factors: Array,
) -> None:
    """Add up the ``gradient_sums`` of all chunks, and make of them the factors of ``gradient``.

    Args:
        size: Number of rows.
        plains: Sums of the gradient, ``(K, C)``, like the next.
        products: Sums of the gradient times the centred input.
        statistics: As ``settle`` left them.
        weight: ``(C,)``.
        sums: Becomes the gradients of weight and bias, ``(2, C)``.
        factors: Holds the centre and becomes centre, scale, slope and shift, ``(4, C)``.
    """
    mean, _, invstd = statistics
    for c in range(len(mean)):
        plain = 0.0
        product = 0.0
        for k in range(len(plains)):
            plain += plains[k, c]
            product += products[k, c]
        left = mean[c] - factors[0, c]
        product = (product - left * plain) * invstd[c]
        sums[0, c] = product
        sums[1, c] = plain
        scale = invstd[c] * weight[c]
        slope = -scale * invstd[c] * product / size
        factors[1, c] = scale
        factors[2, c] = slope
        factors[3, c] = -scale * plain / size - slope * left


def gradient(
    first: int,
    last: int,
    chunk: int,
    rows: Array,
    x: Array,
    grad: Array,
    factors: Array,
    out: Array,
) -> None:
    """``grad * scale + (x - centre) * slope + shift`` at some chunks' rows, and 0 as above."""
    N, C = x.shape
    for k in range(first, last):
        stop = min((k + 1) * chunk, len(rows))
        at = 0 if k == 0 else rows[k * chunk]
        for i in range(k * chunk, stop):
            e = rows[i]
            for gap in range(at, e):
                out[gap] = 0
            for c in range(C):
                centred = x[e, c] - factors[0, c]
                out[e, c] = grad[e, c] * factors[1, c] + centred * factors[2, c] + factors[3, c]
            at = e + 1
        out[at : N if stop == len(rows) else rows[stop]] = 0
