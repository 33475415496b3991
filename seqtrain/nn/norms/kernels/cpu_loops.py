"""Compiled loops of the CPU kernel, and the threads that run them. Importing this needs Numba.

All arrays of features are ``(N, C)`` and contiguous. ``rows`` are the indices of the real ones, in
rising order; no other row is read. They are worked on in tiles of a fixed number of entries, and
the sums of tiles are merged in order in float64, so no bit of a result depends on the number of
threads or on the padding. An array of no rows stands for one that is not wanted.

``factors`` ``(3, C)`` are centre, scale and shift of ``(x - centre) * scale + shift``.
"""

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba import prange
from numpy.typing import NDArray

Array = NDArray[Any]

OPTIONS = {"nogil": True, "error_model": "numpy"}

COMPILING = (
    "seqtrain: compiling the CPU loops of the masked batch norm, which takes some 10 seconds. "
)
KEPT = "They are kept on disk for later runs."
NOT_KEPT = (
    "No folder was found to keep them in: set NUMBA_CACHE_DIR to one that can be written, or every "
    "process compiles them."
)
PATIENCE = 1.0
"""Seconds until a user is told why nothing happens."""

_kept = KEPT


def inner(function: Callable[..., Any]) -> Any:
    """The machine code of a loop that other loops call."""
    return numba.njit(**OPTIONS)(inspect.unwrap(function))


def summing(function: Callable[..., Any]) -> Any:
    """The same of a loop that adds side by side what lies side by side, in another order."""
    return numba.njit(fastmath={"reassoc"}, **OPTIONS)(inspect.unwrap(function))


class Loop:
    """A function over ``prange``, compiled when it is first called, for one thread or for several.

    Callers wait for it. Were it compiled in the background while the plain form does the work, the
    step from which the loops take over, and the last bits of a training, would be left to chance.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._serial = _cached(inspect.unwrap(function), parallel=False)
        self._parallel = _cached(inspect.unwrap(function), parallel=True)
        self._compiled: set[tuple[bool, Any]] = set()

    def __call__(self, num_threads: int, *arguments: Any) -> Any:
        """The result of the function.

        Args:
            num_threads: From ``usable_threads``, or fewer.
            arguments: Those of the function. It is compiled anew for another dtype of the second.
        """
        kind = num_threads > 1, arguments[1].dtype
        if kind in self._compiled:
            return self._run(num_threads, arguments)
        with _patience(self._parallel if num_threads > 1 else self._serial):
            try:
                found = self._run(num_threads, arguments)
            except OSError:  # Nothing has run: a full disk could not keep what was compiled.
                found = self._run(num_threads, arguments)
        self._compiled.add(kind)
        return found

    def _run(self, num_threads: int, arguments: tuple[Any, ...]) -> Any:
        if num_threads == 1:
            return self._serial(*arguments)
        of_caller = numba.get_num_threads()
        numba.set_num_threads(num_threads)
        try:
            return self._parallel(*arguments)
        finally:
            numba.set_num_threads(of_caller)


def _cached(function: FunctionType, parallel: bool) -> Any:
    """A dispatcher that keeps its machine code on disk, if there is any place for it.

    Numba looks code up by name and source, without regard to ``parallel``, so the two forms need
    two names.
    """
    name = f"{function.__name__}_{'parallel' if parallel else 'serial'}"
    copy = FunctionType(function.__code__, function.__globals__, name)
    copy.__qualname__ = name
    try:
        return numba.njit(cache=True, parallel=parallel, **OPTIONS)(copy)
    except RuntimeError:  # no folder that can be written
        global _kept
        _kept = NOT_KEPT
        return numba.njit(parallel=parallel, **OPTIONS)(copy)


@contextmanager
def _patience(form: Any) -> Iterator[None]:
    """Tell the user, once, if what is done within takes long because a form is being compiled."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(PATIENCE):
            if form.stats.cache_misses:
                _tell_user()
                return

    with suppress(RuntimeError):  # no thread can be started, and nothing is said
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


@functools.cache
def _tell_user() -> None:
    print(COMPILING + _kept, file=sys.stderr, flush=True)


def is_disabled() -> bool:
    """True if Numba is told to compile nothing (``NUMBA_DISABLE_JIT``), as for a debugger."""
    return bool(numba.config.DISABLE_JIT)


def usable_threads() -> int:
    """The number of threads that loops can run on; 1 where Numba has none that are safe to use.

    Its own portable pool (``workqueue``) ends the process when two threads enter it at once.
    OpenMP, which shares torch's threads on Linux, and TBB do not.
    """
    try:
        layer = _threading_layer()
    except RuntimeError:  # no thread can be started
        return 1
    return int(numba.config.NUMBA_NUM_THREADS) if layer in ("omp", "tbb") else 1


@functools.cache
def _threading_layer() -> str | None:
    """The name of Numba's pool of threads, which is made when first asked for.

    In a thread of its own: starting OpenMP's sets how many threads torch uses in the thread that
    asks.
    """
    found = [None]

    def ask() -> None:
        with suppress(ValueError):  # Numba is told to use a pool that is not installed
            numba.get_num_threads()
            found[0] = numba.threading_layer()

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    return found[0]


@Loop
def normalize(
    rows: Array,
    x: Array,
    tile: int,
    residual: Array,
    weight: Array,
    bias: Array,
    eps: float,
    relu: bool,
    statistics: Array,
    factors: Array,
    out: Array,
) -> None:
    """Batch norm by the statistics of the real rows, then relu, then plus the residual.

    Args:
        rows: See above, like all that follows.
        x: Features.
        tile: Number of rows in each tile but the last.
        residual: Like ``x``, or of no rows.
        weight: ``(C,)`` in the dtype of ``x``, like ``bias``.
        bias: Likewise.
        eps: Added to the variance.
        relu: Whether to replace negative values by 0.
        statistics: Becomes mean, sum of squared deviations and invstd, float64 ``(3, C)``.
        factors: Becomes the factors.
        out: Becomes the result, 0 at all other rows.
    """
    num_tiles, C = max(1, -(-len(rows) // tile)), x.shape[1]
    tiles, scratch = np.empty((2, num_tiles, C)), np.empty((num_tiles, 3, C), x.dtype)
    sizes = np.empty(num_tiles, np.int64)
    for k in prange(num_tiles):
        these = rows[k * tile : (k + 1) * tile]
        sizes[k] = len(these)
        moments(these, x, tiles[0, k], tiles[1, k], scratch[k])
    merge_moments(sizes, tiles[0], tiles[1], statistics)
    set_factors(len(rows), eps, weight, bias, statistics, factors)
    for k in prange(num_tiles):
        transform(k * tile, tile, rows, x, residual, factors, relu, out)


@Loop
def rescale(
    rows: Array, x: Array, tile: int, residual: Array, factors: Array, relu: bool, out: Array
) -> None:
    """The same by factors that are known before."""
    for k in prange(max(1, -(-len(rows) // tile))):
        transform(k * tile, tile, rows, x, residual, factors, relu, out)


@Loop
def differentiate(
    rows: Array,
    x: Array,
    tile: int,
    grad: Array,
    statistics: Array,
    factors: Array,
    relu: bool,
    of_weight: Array,
    of_bias: Array,
    of_input: Array,
    of_residual: Array,
) -> None:
    """The gradients of what ``normalize`` did.

    Args:
        rows: As there, like all that follows.
        x: Features.
        tile: As there.
        grad: That of the result, like ``x``.
        statistics: From there.
        factors: From there.
        relu: As there.
        of_weight: Becomes that of the weight, ``(C,)`` in the dtype of ``x``.
        of_bias: Likewise.
        of_input: Becomes that of the features, 0 at all other rows, unless it has no rows.
        of_residual: Likewise that of the residual.
    """
    num_tiles, C = max(1, -(-len(rows) // tile)), x.shape[1]
    tiles, scratch = np.empty((2, num_tiles, C)), np.empty((num_tiles, 3, C), x.dtype)
    for k in prange(num_tiles):
        these = rows[k * tile : (k + 1) * tile]
        gradient_sums(these, x, grad, factors, relu, tiles[0, k], tiles[1, k], scratch[k])
    slopes = np.empty((2, C), x.dtype)
    merge_gradient(len(rows), tiles, statistics, factors, of_weight, of_bias, slopes)
    for k in prange(num_tiles):
        if len(of_input) > 0:
            gradient(k * tile, tile, rows, x, grad, factors, slopes, relu, of_input)
        if len(of_residual) > 0:
            pick(k * tile, tile, rows, grad, of_residual)


@inner
def moments(rows: Array, x: Array, mean: Array, m2: Array, scratch: Array) -> None:
    """Mean and sum of squared deviations of these rows, in two passes.

    The second is corrected by the rounding error of the first. Four rows at once: a sum that is
    loaded and stored for each row takes half as long again.
    """
    centre, total, squares = scratch[0], scratch[1], scratch[2]
    n, C = len(rows), x.shape[1]
    fours = n - n % 4
    total[:] = 0
    for i in range(0, fours, 4):
        e, f, g, h = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        for c in range(C):
            total[c] += (x[e, c] + x[f, c]) + (x[g, c] + x[h, c])
    for i in range(fours, n):
        for c in range(C):
            total[c] += x[rows[i], c]
    for c in range(C):
        centre[c] = total[c] / n
    total[:] = 0
    squares[:] = 0
    for i in range(0, fours, 4):
        e, f, g, h = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        for c in range(C):
            p, q = x[e, c] - centre[c], x[f, c] - centre[c]
            r, s = x[g, c] - centre[c], x[h, c] - centre[c]
            total[c] += (p + q) + (r + s)
            squares[c] += (p * p + q * q) + (r * r + s * s)
    for i in range(fours, n):
        for c in range(C):
            p = x[rows[i], c] - centre[c]
            total[c] += p
            squares[c] += p * p
    for c in range(C):
        error = np.float64(total[c]) / n
        mean[c] = centre[c] + error
        m2[c] = max(np.float64(squares[c]) - error * error * n, 0.0)


@inner
def merge_moments(sizes: Array, means: Array, squares: Array, statistics: Array) -> None:
    """The moments of all tiles, as in Chan, Golub and LeVeque 1983."""
    mean, m2 = statistics[0], statistics[1]
    mean[:] = 0
    m2[:] = 0
    before = 0
    for k in range(len(means)):
        n = sizes[k]
        share, weight = n / (before + n), n * before / (before + n)
        before += n
        for c in range(len(mean)):
            step = means[k, c] - mean[c]
            mean[c] += step * share
            m2[c] += squares[k, c] + step * step * weight


@inner
def set_factors(
    size: int, eps: float, weight: Array, bias: Array, statistics: Array, factors: Array
) -> None:
    """``invstd`` and the factors by the moments and the affine parameters."""
    mean, m2, invstd = statistics[0], statistics[1], statistics[2]
    for c in range(len(mean)):
        shifted = m2[c] / size + eps
        invstd[c] = 1 / np.sqrt(shifted) if shifted > 0 else 0.0
        factors[0, c] = mean[c]
        factors[1, c] = invstd[c] * weight[c]
        # With what the mean loses in the dtype of the input, which matters where it is large.
        factors[2, c] = bias[c] - (mean[c] - factors[0, c]) * factors[1, c]


@inner
def transform(
    begin: int,
    tile: int,
    rows: Array,
    x: Array,
    residual: Array,
    factors: Array,
    relu: bool,
    out: Array,
) -> None:
    """``residual + relu((x - centre) * scale + shift)`` at the rows of a tile, 0 around them."""
    centre, scale, shift = factors[0], factors[1], factors[2]
    floor = x.dtype.type(0 if relu else -np.inf)
    clear(begin, tile, rows, out)
    for i in range(begin, min(begin + tile, len(rows))):
        source, target = x[rows[i]], out[rows[i]]
        if len(residual) > 0:
            added = residual[rows[i]]
            for c in range(len(centre)):
                y = (source[c] - centre[c]) * scale[c] + shift[c]
                target[c] = added[c] + (floor if y < floor else y)  # NaN stays
        else:
            for c in range(len(centre)):
                y = (source[c] - centre[c]) * scale[c] + shift[c]
                target[c] = floor if y < floor else y


@inner
def gradient_sums(
    rows: Array,
    x: Array,
    grad: Array,
    factors: Array,
    relu: bool,
    plain: Array,
    product: Array,
    scratch: Array,
) -> None:
    """Sums of the gradient before relu, and of it times ``x - centre``, over these rows."""
    centre, scale, shift = factors[0], factors[1], factors[2]
    total, mixed, zero = scratch[0], scratch[1], x.dtype.type(0)
    floor = x.dtype.type(0 if relu else -np.inf)
    n, C = len(rows), x.shape[1]
    fours = n - n % 4
    total[:] = 0
    mixed[:] = 0
    for i in range(0, fours, 4):
        e, f, g, h = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        for c in range(C):
            p, q = x[e, c] - centre[c], x[f, c] - centre[c]
            r, s = x[g, c] - centre[c], x[h, c] - centre[c]
            dp = before_relu(p, grad[e, c], scale[c], shift[c], zero, floor)
            dq = before_relu(q, grad[f, c], scale[c], shift[c], zero, floor)
            dr = before_relu(r, grad[g, c], scale[c], shift[c], zero, floor)
            ds = before_relu(s, grad[h, c], scale[c], shift[c], zero, floor)
            total[c] += (dp + dq) + (dr + ds)
            mixed[c] += (dp * p + dq * q) + (dr * r + ds * s)
    for i in range(fours, n):
        for c in range(C):
            p = x[rows[i], c] - centre[c]
            dp = before_relu(p, grad[rows[i], c], scale[c], shift[c], zero, floor)
            total[c] += dp
            mixed[c] += dp * p
    plain[:] = total
    product[:] = mixed


@inner
def before_relu(centred: Any, grad: Any, scale: Any, shift: Any, zero: Any, floor: Any) -> Any:
    """The gradient of what relu was given, by that of what came out.

    ``floor`` is 0 with relu and -∞ without: a flag would be compiled as two loops.
    """
    return zero if centred * scale + shift <= floor else grad


@inner
def merge_gradient(
    size: int,
    tiles: Array,
    statistics: Array,
    factors: Array,
    of_weight: Array,
    of_bias: Array,
    slopes: Array,
) -> None:
    """The gradients of weight and bias, and slope and offset of ``gradient``, ``(2, C)``."""
    mean, invstd = statistics[0], statistics[2]
    for c in range(len(mean)):
        plain, product = 0.0, 0.0
        for k in range(tiles.shape[1]):
            plain += tiles[0, k, c]
            product += tiles[1, k, c]
        rounded_off = mean[c] - factors[0, c]
        product = (product - rounded_off * plain) * invstd[c]
        of_weight[c] = product
        of_bias[c] = plain
        scale = np.float64(factors[1, c])
        slope = -scale * invstd[c] * product / size
        slopes[0, c] = slope
        slopes[1, c] = -scale * plain / size - slope * rounded_off


@inner
def gradient(
    begin: int,
    tile: int,
    rows: Array,
    x: Array,
    grad: Array,
    factors: Array,
    slopes: Array,
    relu: bool,
    out: Array,
) -> None:
    """``d * scale + (x - centre) * slope + offset`` at the rows of a tile, 0 around them."""
    centre, scale, shift = factors[0], factors[1], factors[2]
    slope, offset, zero = slopes[0], slopes[1], x.dtype.type(0)
    floor = x.dtype.type(0 if relu else -np.inf)
    clear(begin, tile, rows, out)
    for i in range(begin, min(begin + tile, len(rows))):
        source, upstream, target = x[rows[i]], grad[rows[i]], out[rows[i]]
        for c in range(len(centre)):
            p = source[c] - centre[c]
            d = before_relu(p, upstream[c], scale[c], shift[c], zero, floor)
            target[c] = d * scale[c] + p * slope[c] + offset[c]


@inner
def pick(begin: int, tile: int, rows: Array, source: Array, out: Array) -> None:
    """``source`` at the rows of a tile, 0 around them."""
    clear(begin, tile, rows, out)
    for i in range(begin, min(begin + tile, len(rows))):
        out[rows[i]] = source[rows[i]]


@inner
def clear(begin: int, tile: int, rows: Array, out: Array) -> None:
    """0 around the rows of a tile: before the first of all, and behind each up to the next."""
    if begin == 0:
        out[: rows[0] if len(rows) > 0 else len(out)] = 0
    for i in range(begin, min(begin + tile, len(rows))):
        following = rows[i + 1] if i + 1 < len(rows) else len(out)
        if following > rows[i] + 1:
            out[rows[i] + 1 : following] = 0


@Loop
def find(mask: Array, places: Array) -> int:
    """Write the indices of what is true to ``places``, as long as ``mask``; return their number."""
    n = 0
    for i in range(len(mask)):
        places[n] = i  # to be overwritten where this is not one: faster than to branch
        n += 1 if mask[i] else 0
    return n


@Loop
def move(statistics: Array, mean: Array, var: Array, unbiased: int, momentum: float) -> None:
    """Move running mean and variance towards those of a batch.

    Args:
        statistics: Of ``normalize``.
        mean: Running mean, ``(C,)``.
        var: Running variance.
        unbiased: Number of real positions less one.
        momentum: Weight of the batch.
    """
    for c in range(len(mean)):
        mean[c] += momentum * (statistics[0, c] - mean[c])
        var[c] += momentum * (statistics[1, c] / unbiased - var[c])
