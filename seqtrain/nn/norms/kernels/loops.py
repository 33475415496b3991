"""The loops of the CPU kernels, in the part of Python that Numba compiles.

Each goes over ``x`` and its like, ``(N, C)`` and contiguous, at the positions that ``rows`` names
in rising order, and reads no other. The work is cut into chunks of so many entries of ``rows``, by
their number alone: whoever does them, and when, no bit of a result depends on it. Sums run in the
dtype of ``x`` within a tile, which stays in the cache, and in float64 from tile to tile. Four rows
at once where the tile is near, because there a sum that is fetched and stored for every row takes
twice as long. Rows that lie end to end are written as one long one, beside factors repeated as
often: a loop over one row's channels takes longer to begin than to run.

``normalize``, ``rescale`` and ``differentiate`` make what is called, by several threads at once
with one ``Job``. They take chunks from common counters until none are left, and wait for those that
others have taken. One of them leads: it returns when all is done, and fills what comes back.

``factors`` are centre, scale and shift of ``(x - centre) * scale + shift``, ``(3, C)``, ``slopes``
slope and offset of a gradient, ``(2, C)``; what is called long is ``repeat`` of them. They are
indexed where they are used: unpacked, the compiler would not see that they lie apart, nor, by
``a, b = vectors``, that each is contiguous. ``floor`` is
0 in the dtype of ``x`` for a rectifier and ``None`` for none, which is compiled apart.
"""

import struct
from collections.abc import Callable
from ctypes import c_char
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Loop = Callable[[Any, Any], None]

LONG_ROW = 2**10
"""Elements of rows that are written as one: at most so many, or one row."""

CACHE_LINE = 64
"""Bytes. A vector that lies across two is fetched twice."""

COUNTERS = 4
"""Of a job: chunks taken and done, in the pass over sums and in the one that writes."""


class Job(NamedTuple):
    """What a loop is told; where it is not a number, the address of contiguous memory.

    Packed as bytes any thread can read it without the interpreter, whose lock and whose arrays cost
    a call as much as a thousand rows.

    ``N`` rows of ``C`` channels, of which ``n`` are real, in ``K`` chunks. Features and what is
    like them are ``(N, C)``, all in one dtype, which weight and factors share.
    """

    counters: int
    """int64 zeros, ``(COUNTERS,)``, that all threads of the call share."""
    table: int
    """For what the chunks find, float64 ``(2, K, C)``."""
    K: int
    chunk: int
    """Entries of ``rows`` in each chunk but the last."""
    tile: int
    """Entries of a chunk that are summed up in the dtype of ``x``."""
    rows: int
    """int64 ``(n,)``, rising."""
    n: int
    N: int
    C: int
    x: int
    """Features."""
    factors: int
    """``(3, C)``: centre, scale and shift of ``(x - centre) * scale + shift``."""
    out: int
    """Like ``x``: becomes the result or the gradient of ``x``."""
    statistics: int = 0
    """Mean, sum of squared deviations and invstd, float64 ``(3, C)``."""
    residual: int = 0
    """Like ``x``, added at the end."""
    weight: int = 0
    """``(C,)``, like the next."""
    bias: int = 0
    running_mean: int = 0
    """float32 ``(C,)``, moves towards the mean of the batch; 0 for none, nor any of the next."""
    running_var: int = 0
    """Likewise, towards its unbiased variance."""
    num_batches: int = 0
    """int64 ``(1,)``, becomes one more; 0 for none."""
    grad: int = 0
    """The upstream gradient, like ``x``."""
    of_weight: int = 0
    """Becomes the gradient of the weight, ``(C,)``, like the next."""
    of_bias: int = 0
    of_residual: int = 0
    """Becomes that of the residual, like ``x``."""
    eps: float = 0.0
    """Added to the variance."""
    momentum: float = 0.0
    """By which share of the way the running statistics move."""


_kinds = {name: "d" if kind is float else "q" for name, kind in Job.__annotations__.items()}
_layout = struct.Struct("".join(_kinds.values()))

RECORD = np.dtype(list(_kinds.items()))
"""Of the packed bytes: eight for each field."""

_lock = Lock()


def packed(job: Job) -> bytes:
    """The job as one ``RECORD``."""
    return _layout.pack(*job)


def job_at(place: Any) -> Any:
    """The job that packed bytes hold. Compiled, it takes their address."""
    return Job(*_layout.unpack(place))


def array_at(address: int, shape: Any, dtype: Any) -> Array:
    """The contiguous memory at an address, as an array."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((c_char * size).from_address(address), dtype).reshape(shape)


def add(counters: Array, which: int) -> int:
    """Add 1 to a counter, and what it was before. Atomic, as is the next; see ``compiled``."""
    with _lock:
        before = int(counters[which])
        counters[which] = before + 1
    return before


def read(counters: Array, which: int) -> int:
    """A counter, and all that was written before it was last added to."""
    return int(counters[which])


def find(mask: int, size: int, rows: int) -> int:
    """Write the places of what is true to ``rows``, int64, and return how many there are.

    Args:
        mask: Where the booleans are.
        size: How many there are, and how many places there is room for.
        rows: Where the places go.
    """
    values, out = array_at(mask, size, np.uint8), array_at(rows, size, np.int64)
    n = 0
    for i in range(size):
        out[n] = i  # to be written over, where this is not one: faster than to branch
        n += 1 if values[i] else 0
    return n


def normalize(dtype: Any, residual: bool, relu: bool) -> Loop:
    """Batch norm by the statistics of the real rows, then what ``transform`` does.

    Args:
        dtype: Of the features.
        residual: Whether there is one.
        relu: Whether to cut off what is negative.
    """
    floor = dtype(0) if relu else None

    def loop(place: Any, leads: Any) -> None:
        job = job_at(place)
        counters, C, K = array_at(job.counters, COUNTERS, np.int64), job.C, job.K
        rows, x = array_at(job.rows, job.n, np.int64), array_at(job.x, (job.N, C), dtype)
        table = array_at(job.table, (2, K, C), np.float64)
        means, squares = table[0], table[1]
        k = add(counters, 0)
        while k < K:
            moments(k, job.chunk, job.tile, rows, x, means[k], squares[k])
            add(counters, 1)
            k = add(counters, 0)
        while read(counters, 1) < K:
            pass
        # By each for itself: it takes less time than to wait for another.
        weight, bias = array_at(job.weight, C, dtype), array_at(job.bias, C, dtype)
        statistics, factors = np.empty((3, C)), np.empty((3, C), dtype)
        settle(len(rows), job.chunk, job.eps, means, squares, weight, bias, statistics, factors)
        if leads:
            array_at(job.statistics, (3, C), np.float64)[:] = statistics
            array_at(job.factors, (3, C), dtype)[:] = factors
            move(job, statistics)
        added = array_at(job.residual, (job.N, C), dtype) if residual else None
        out = array_at(job.out, (job.N, C), dtype)
        share_transform(counters, leads, K, job.chunk, rows, x, added, factors, floor, out)

    return loop


def move(job: Any, statistics: Array) -> None:
    """Move the running statistics of a job, if it has any, and count the batch."""
    if job.running_mean:
        mean = array_at(job.running_mean, job.C, np.float32)
        var = array_at(job.running_var, job.C, np.float32)
        for c in range(job.C):
            mean[c] += job.momentum * (statistics[0, c] - mean[c])
            var[c] += job.momentum * (statistics[1, c] / max(job.n - 1, 1) - var[c])
        if job.num_batches:
            array_at(job.num_batches, 1, np.int64)[0] += 1


def rescale(dtype: Any, residual: bool, relu: bool) -> Loop:
    """What ``transform`` does, by factors that were settled before; arguments as above."""
    floor = dtype(0) if relu else None

    def loop(place: Any, leads: Any) -> None:
        job = job_at(place)
        counters, shape = array_at(job.counters, COUNTERS, np.int64), (job.N, job.C)
        rows, x = array_at(job.rows, job.n, np.int64), array_at(job.x, shape, dtype)
        added = array_at(job.residual, shape, dtype) if residual else None
        factors, out = array_at(job.factors, (3, job.C), dtype), array_at(job.out, shape, dtype)
        share_transform(counters, leads, job.K, job.chunk, rows, x, added, factors, floor, out)

    return loop


def share_transform(
    counters: Array,
    leads: Any,
    num_chunks: int,
    chunk: int,
    rows: Array,
    x: Array,
    residual: Array | None,
    factors: Array,
    floor: Any,
    out: Array,
) -> None:
    """``transform`` of all chunks, by all threads."""
    long_factors = repeat(factors)
    k = add(counters, 2)
    while k < num_chunks:
        transform(k, chunk, rows, x, residual, long_factors, floor, out)
        add(counters, 3)
        k = add(counters, 2)
    while leads and read(counters, 3) < num_chunks:
        pass


def differentiate(dtype: Any, relu: bool, of_input: bool, of_residual: bool) -> Loop:
    """The gradients of what ``normalize`` did.

    Args:
        dtype: As there.
        relu: As there.
        of_input: Whether that of the features is wanted; those of weight and bias always are.
        of_residual: Whether that of the residual is.
    """
    floor = dtype(0) if relu else None

    def loop(place: Any, leads: Any) -> None:
        job = job_at(place)
        counters, C, K = array_at(job.counters, COUNTERS, np.int64), job.C, job.K
        rows, x = array_at(job.rows, job.n, np.int64), array_at(job.x, (job.N, C), dtype)
        grad, factors = array_at(job.grad, (job.N, C), dtype), array_at(job.factors, (3, C), dtype)
        table = array_at(job.table, (2, K, C), np.float64)
        plains, products = table[0], table[1]
        k = add(counters, 0)
        while k < K:
            found = plains[k], products[k]
            gradient_sums(k, job.chunk, job.tile, rows, x, grad, factors, floor, *found)
            add(counters, 1)
            k = add(counters, 0)
        while read(counters, 1) < K:
            pass
        statistics = array_at(job.statistics, (3, C), np.float64)
        sums, slopes = np.empty((2, C), dtype), np.empty((2, C), dtype)
        settle_gradient(len(rows), plains, products, statistics, factors, sums, slopes)
        if leads:
            array_at(job.of_weight, C, dtype)[:] = sums[0]
            array_at(job.of_bias, C, dtype)[:] = sums[1]
        long_factors, long_slopes = repeat(factors), repeat(slopes)
        k = add(counters, 2)
        while k < K:
            if of_input:
                out = array_at(job.out, (job.N, C), dtype)
                gradient(k, job.chunk, rows, x, grad, long_factors, floor, long_slopes, out)
            if of_residual:
                pick(k, job.chunk, rows, grad, array_at(job.of_residual, (job.N, C), dtype))
            add(counters, 3)
            k = add(counters, 2)
        while leads and read(counters, 3) < K:
            pass

    return loop


def moments(k: int, chunk: int, tile: int, rows: Array, x: Array, mean: Array, m2: Array) -> None:
    """Mean and sum of squared deviations of chunk ``k``, into float64 ``(C,)``.

    Each tile in two passes, the second corrected by the rounding error of the first; tiles are
    merged as in Chan, Golub and LeVeque 1983.
    """
    C = x.shape[1]
    centre, total, squares = aligned(C, x), aligned(C, x), aligned(C, x)
    stop = min((k + 1) * chunk, len(rows))
    mean[:] = 0
    m2[:] = 0
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
            step = centre[c] + error - mean[c]
            mean[c] += step * size / (before + size)
            within = np.float64(squares[c]) - error * error * size
            m2[c] += max(within, 0.0) + step * step * before * size / (before + size)


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
    """Merge the ``moments`` of all chunks into ``statistics`` and ``factors``."""
    mean, m2, invstd = statistics[0], statistics[1], statistics[2]
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
    k: int,
    chunk: int,
    rows: Array,
    x: Array,
    residual: Array | None,
    long_factors: Array,
    floor: Any,
    out: Array,
) -> None:
    """``residual + max((x - centre) * scale + shift, floor)`` at the rows of chunk ``k``, 0 around.

    NaN stays NaN.
    """
    clear(k, chunk, rows, out)
    C = x.shape[1]
    most, sources, targets = rows_at_once(C), x.reshape(-1), out.reshape(-1)
    i, stop = k * chunk, min((k + 1) * chunk, len(rows))
    while i < stop:
        n = stretch(rows, i, min(i + most, stop))
        these = slice(rows[i] * C, (rows[i] + n) * C)
        source, target = sources[these], targets[these]
        if residual is not None:
            added = residual.reshape(-1)[these]
        for j in range(n * C):
            y = (source[j] - long_factors[0, j]) * long_factors[1, j] + long_factors[2, j]
            if floor is not None:
                y = floor if y < floor else y
            if residual is not None:
                y += added[j]
            target[j] = y
        i += n


def gradient_sums(
    k: int,
    chunk: int,
    tile: int,
    rows: Array,
    x: Array,
    grad: Array,
    factors: Array,
    floor: Any,
    plain: Array,
    product: Array,
) -> None:
    """Sums of ``passed`` and of it times ``x - centre`` over chunk ``k``, into float64 ``(C,)``."""
    C = x.shape[1]
    total, mixed = aligned(C, x), aligned(C, x)
    stop = min((k + 1) * chunk, len(rows))
    plain[:] = 0
    product[:] = 0
    for begin in range(k * chunk, stop, tile):
        end = min(begin + tile, stop)
        single = end - (end - begin) % 4
        total[:] = 0
        mixed[:] = 0
        for i in range(begin, single, 4):
            e, f, g, h = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
            for c in range(C):
                p, q = x[e, c] - factors[0, c], x[f, c] - factors[0, c]
                r, s = x[g, c] - factors[0, c], x[h, c] - factors[0, c]
                dp, dq = (
                    passed(p, grad[e, c], c, factors, floor),
                    passed(q, grad[f, c], c, factors, floor),
                )
                dr, ds = (
                    passed(r, grad[g, c], c, factors, floor),
                    passed(s, grad[h, c], c, factors, floor),
                )
                total[c] += (dp + dq) + (dr + ds)
                mixed[c] += (dp * p + dq * q) + (dr * r + ds * s)
        for i in range(single, end):
            e = rows[i]
            for c in range(C):
                p = x[e, c] - factors[0, c]
                dp = passed(p, grad[e, c], c, factors, floor)
                total[c] += dp
                mixed[c] += dp * p
        for c in range(C):
            plain[c] += total[c]
            product[c] += mixed[c]


def passed(centred: Any, grad: Any, c: int, factors: Array, floor: Any) -> Any:
    """What of a gradient gets past the floor."""
    if floor is None:
        return grad
    return floor if centred * factors[1, c] + factors[2, c] <= floor else grad


def settle_gradient(
    size: int,
    plains: Array,
    products: Array,
    statistics: Array,
    factors: Array,
    sums: Array,
    slopes: Array,
) -> None:
    """Add up the ``gradient_sums`` of all chunks, and make of them the slopes of ``gradient``."""
    mean, invstd = statistics[0], statistics[2]
    totals = np.zeros((2, len(mean)))
    for k in range(len(plains)):
        for c in range(len(mean)):
            totals[0, c] += plains[k, c]
            totals[1, c] += products[k, c]
    for c in range(len(mean)):
        plain = totals[0, c]
        left = mean[c] - factors[0, c]
        product = (totals[1, c] - left * plain) * invstd[c]
        sums[0, c] = product
        sums[1, c] = plain
        scale = np.float64(factors[1, c])
        slope = -scale * invstd[c] * product / size
        slopes[0, c] = slope
        slopes[1, c] = -scale * plain / size - slope * left


def gradient(
    k: int,
    chunk: int,
    rows: Array,
    x: Array,
    grad: Array,
    long_factors: Array,
    floor: Any,
    long_slopes: Array,
    out: Array,
) -> None:
    """``passed * scale + (x - centre) * slope + offset`` at the rows of chunk ``k``, 0 around."""
    clear(k, chunk, rows, out)
    C = x.shape[1]
    most = rows_at_once(C)
    sources, above, targets = x.reshape(-1), grad.reshape(-1), out.reshape(-1)
    i, stop = k * chunk, min((k + 1) * chunk, len(rows))
    while i < stop:
        n = stretch(rows, i, min(i + most, stop))
        these = slice(rows[i] * C, (rows[i] + n) * C)
        source, upstream, target = sources[these], above[these], targets[these]
        for j in range(n * C):
            p = source[j] - long_factors[0, j]
            dp = passed(p, upstream[j], j, long_factors, floor)
            target[j] = dp * long_factors[1, j] + p * long_slopes[0, j] + long_slopes[1, j]
        i += n


def pick(k: int, chunk: int, rows: Array, source: Array, out: Array) -> None:
    """``source`` at the rows of chunk ``k``, 0 around."""
    clear(k, chunk, rows, out)
    i, stop = k * chunk, min((k + 1) * chunk, len(rows))
    while i < stop:
        n = stretch(rows, i, stop)
        out[rows[i] : rows[i] + n] = source[rows[i] : rows[i] + n]
        i += n


def clear(k: int, chunk: int, rows: Array, out: Array) -> None:
    """0 around the rows of chunk ``k``: before the first one of all, and behind each."""
    i, stop = k * chunk, min((k + 1) * chunk, len(rows))
    at = 0 if k == 0 else rows[i]
    while i < stop:
        out[at : rows[i]] = 0
        n = stretch(rows, i, stop)
        at = rows[i] + n
        i += n
    out[at : len(out) if stop == len(rows) else rows[stop]] = 0


def stretch(rows: Array, begin: int, stop: int) -> int:
    """How many of these entries, from the first on, name rows that lie end to end."""
    n = stop - begin
    if rows[stop - 1] - rows[begin] < n:
        return n
    n = 1
    while rows[begin + n] == rows[begin] + n:
        n += 1
    return n


def rows_at_once(channels: int) -> int:
    """How many rows that lie end to end are written as one."""
    return max(1, LONG_ROW // channels)


def repeat(vectors: Array) -> Array:
    """``(n, C)`` as often as rows are written at once, ``(n, W)`` with some columns to spare."""
    n, C = vectors.shape
    spare = CACHE_LINE // vectors.itemsize
    width = (rows_at_once(C) * C + spare - 1) // spare * spare
    out = aligned(n * width, vectors).reshape(n, width)
    for i in range(n):
        for r in range(rows_at_once(C)):
            out[i, r * C : (r + 1) * C] = vectors[i]
    return out


def aligned(size: int, like: Array) -> Array:
    """A new vector in the dtype of another, which begins where a line of the cache does."""
    spare = CACHE_LINE // like.itemsize
    out = np.empty(size + spare, like.dtype)
    first = -(out.ctypes.data // like.itemsize) % spare
    return out[first : first + size]
