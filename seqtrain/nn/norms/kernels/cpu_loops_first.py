"""Compiled loops like those of ``cpu_loops``, for ``(B, C, L)``: channels first, and contiguous.

``pieces`` ``(K, 4)`` say which sequence, from which position to which, and how many of these are
real. They begin and end with a real position and are short, so that one channel of a piece stays in
the nearest cache. ``real`` ``(B, L)`` is the mask; within a piece padding is read and dropped.
"""

import numpy as np
from numba import prange

from seqtrain.nn.norms.kernels.cpu_loops import (
    Array,
    Loop,
    before_relu,
    inner,
    merge_gradient,
    merge_moments,
    set_factors,
    summing,
)


@Loop
def cut(real: Array, pieces: Array, length: int) -> int:
    """Write the pieces of at most so many positions to the first rows; return their number."""
    k = 0
    for b in range(real.shape[0]):
        for first in range(0, real.shape[1], length):
            begin, end, n = first, first, 0
            for i in range(first, min(first + length, real.shape[1])):
                if real[b, i]:
                    begin = i if n == 0 else begin
                    end = i + 1
                    n += 1
            if n > 0:
                pieces[k, 0], pieces[k, 1], pieces[k, 2], pieces[k, 3] = b, begin, end, n
                k += 1
    return k


@Loop
def normalize(
    pieces: Array,
    x: Array,
    real: Array,
    residual: Array,
    weight: Array,
    bias: Array,
    eps: float,
    relu: bool,
    statistics: Array,
    factors: Array,
    out: Array,
) -> None:
    """As ``normalize``; ``out`` has to be 0 before."""
    K, C = len(pieces), x.shape[1]
    means, squares = np.empty((K, C)), np.empty((K, C))
    for k in prange(K):
        moments(pieces[k], x, real, means[k], squares[k])
    merge_moments(pieces[:, 3], means, squares, statistics)
    set_factors(np.sum(pieces[:, 3]), eps, weight, bias, statistics, factors)
    for k in prange(K):
        transform(pieces[k], x, real, residual, factors, relu, out)


@Loop
def rescale(
    pieces: Array, x: Array, real: Array, residual: Array, factors: Array, relu: bool, out: Array
) -> None:
    """As ``rescale``; ``out`` has to be 0 before."""
    for k in prange(len(pieces)):
        transform(pieces[k], x, real, residual, factors, relu, out)


@Loop
def differentiate(
    pieces: Array,
    x: Array,
    real: Array,
    grad: Array,
    statistics: Array,
    factors: Array,
    relu: bool,
    of_weight: Array,
    of_bias: Array,
    of_input: Array,
    of_residual: Array,
) -> None:
    """As ``differentiate``; ``of_input`` and ``of_residual`` have to be 0 before."""
    K, C = len(pieces), x.shape[1]
    sums, slopes = np.empty((2, K, C)), np.empty((2, C), x.dtype)
    for k in prange(K):
        gradient_sums(pieces[k], x, real, grad, factors, relu, sums[0, k], sums[1, k])
    size = np.sum(pieces[:, 3])
    merge_gradient(size, sums, statistics, factors, of_weight, of_bias, slopes)
    for k in prange(K):
        if len(of_input) > 0:
            gradient(pieces[k], x, real, grad, factors, slopes, relu, of_input)
        if len(of_residual) > 0:
            pick(pieces[k], grad, real, of_residual)


@summing
def moments(piece: Array, x: Array, real: Array, mean: Array, m2: Array) -> None:
    """Mean and sum of squared deviations of a piece, in two passes."""
    b, begin, end, n = piece
    here, zero = real[b, begin:end], x.dtype.type(0)
    for c in range(x.shape[1]):
        source = x[b, c, begin:end]
        total, squares = zero, zero
        for i in range(len(here)):
            total += source[i] if here[i] else zero
        centre = x.dtype.type(total / n)
        total = zero
        for i in range(len(here)):
            p = source[i] - centre if here[i] else zero
            total += p
            squares += p * p
        error = np.float64(total) / n
        mean[c] = centre + error
        m2[c] = max(np.float64(squares) - error * error * n, 0.0)


@inner
def transform(
    piece: Array, x: Array, real: Array, residual: Array, factors: Array, relu: bool, out: Array
) -> None:
    """As ``transform``, for a piece."""
    b, begin, end, _ = piece
    here, zero = real[b, begin:end], x.dtype.type(0)
    floor = x.dtype.type(0 if relu else -np.inf)
    for c in range(x.shape[1]):
        source, target = x[b, c, begin:end], out[b, c, begin:end]
        centre, scale, shift = factors[0, c], factors[1, c], factors[2, c]
        if len(residual) > 0:
            added = residual[b, c, begin:end]
            for i in range(len(here)):
                y = (source[i] - centre) * scale + shift
                y = added[i] + (floor if y < floor else y)  # NaN stays
                target[i] = y if here[i] else zero
        else:
            for i in range(len(here)):
                y = (source[i] - centre) * scale + shift
                y = floor if y < floor else y
                target[i] = y if here[i] else zero


@summing
def gradient_sums(
    piece: Array,
    x: Array,
    real: Array,
    grad: Array,
    factors: Array,
    relu: bool,
    plain: Array,
    product: Array,
) -> None:
    """As ``gradient_sums``, for a piece."""
    b, begin, end, _ = piece
    here, zero = real[b, begin:end], x.dtype.type(0)
    floor = x.dtype.type(0 if relu else -np.inf)
    for c in range(x.shape[1]):
        source, upstream = x[b, c, begin:end], grad[b, c, begin:end]
        centre, scale, shift = factors[0, c], factors[1, c], factors[2, c]
        total, mixed = zero, zero
        for i in range(len(here)):
            p = source[i] - centre if here[i] else zero
            d = before_relu(p, upstream[i], scale, shift, zero, floor) if here[i] else zero
            total += d
            mixed += d * p
        plain[c] = total
        product[c] = mixed


@inner
def gradient(
    piece: Array,
    x: Array,
    real: Array,
    grad: Array,
    factors: Array,
    slopes: Array,
    relu: bool,
    out: Array,
) -> None:
    """As ``gradient``, for a piece."""
    b, begin, end, _ = piece
    here, zero = real[b, begin:end], x.dtype.type(0)
    floor = x.dtype.type(0 if relu else -np.inf)
    for c in range(x.shape[1]):
        source, upstream = x[b, c, begin:end], grad[b, c, begin:end]
        target, centre = out[b, c, begin:end], factors[0, c]
        scale, shift, slope, offset = factors[1, c], factors[2, c], slopes[0, c], slopes[1, c]
        for i in range(len(here)):
            p = source[i] - centre
            d = before_relu(p, upstream[i], scale, shift, zero, floor)
            target[i] = d * scale + p * slope + offset if here[i] else zero


@inner
def pick(piece: Array, values: Array, real: Array, out: Array) -> None:
    """As ``pick``, for a piece."""
    b, begin, end, _ = piece
    here, zero = real[b, begin:end], values.dtype.type(0)
    for c in range(values.shape[1]):
        for i in range(len(here)):
            out[b, c, begin + i] = values[b, c, begin + i] if here[i] else zero
