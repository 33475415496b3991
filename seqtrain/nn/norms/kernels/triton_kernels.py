"""What a GPU runs for a masked batch norm: five kernels over tiles of positions times channels.

Every pass over the features has one shape. A program owns a block of channels and visits every so
many tiles of positions. It reads the mask of a tile first and the features of its real positions
only, none at all where nothing is real. Sums stay in registers, one for each place in a tile, until
the program's last tile; then they go to the program's own row of a table, and the rows are merged
in a fixed order. So the same input gives the same bits, and nothing is atomic. Arithmetic is in the
dtype of the statistics: float32, or float64 for float64.

Experimental: tested in Triton's interpreter and compiled, never yet run on a GPU.

``features`` stands for tensors ``(B, L, C)`` of one layout: the same three strides for all of them.
``T`` is the number of positions in a tile, ``K`` that of channels in a block.
"""

from typing import no_type_check

import triton
import triton.language as tl

# `no_type_check`: a kernel is in a language of its own, which neither mypy nor beartype can read.
# `pragma: no branch`: the interpreter runs a rewritten kernel, whose return coverage cannot place.


@triton.jit
@no_type_check
def _visit(mask, step, splits, tiles, tiles_per_sequence, length, T: tl.constexpr):
    """Where this program's tile of the round at ``step`` lies, and which of its positions are real.

    Each round is shifted by one. In rounds that are not, a program would meet the same part of all
    sequences, only their beginnings or only their ends, wherever that many tiles divide a round.
    """
    tile = step + (tl.program_id(1) + step // splits) % splits
    sequence = (tile // tiles_per_sequence).to(tl.int64)
    start = (tile % tiles_per_sequence).to(tl.int64) * T
    exists = start + tl.arange(0, T) < tl.where(tile < tiles, length, 0)
    real = tl.load(mask + sequence * length + start + tl.arange(0, T), mask=exists, other=0) != 0
    return sequence, start, exists, real


@triton.jit
@no_type_check
def _within(stride_l, stride_c, T: tl.constexpr, K: tl.constexpr):
    """Offsets ``(T, K)`` of the places of a tile from its first one."""
    return tl.arange(0, T)[:, None] * stride_l + tl.arange(0, K)[None, :] * stride_c


@triton.jit
@no_type_check
def _channels(channels, K: tl.constexpr):
    """The channels of this program's block, and which of them exist."""
    block = tl.program_id(0) * K + tl.arange(0, K)
    return block, block < channels


@triton.jit
@no_type_check
def _per_channel(values, block, known, wide, absent: tl.constexpr):
    """A row ``(1, K)`` of values per channel; ``absent`` where there are none."""
    if values is None:
        row = tl.full((block.shape[0],), absent, wide)
    else:
        row = tl.load(values + block, mask=known, other=absent).to(wide)
    return row[None, :]


@triton.jit
@no_type_check
def _absorb(n, mean, m2, more_n, more_mean, more_m2):
    """Moments of two sets of positions as one (Chan et al. 1983); either may be empty."""
    total = n + more_n
    share = more_n / tl.maximum(total, 1.0)
    apart = more_mean - mean
    return total, mean + apart * share, m2 + more_m2 + apart * apart * (n * share)


@triton.jit
@no_type_check
def _join(n, mean, m2):
    """Moments ``(1, K)`` of all rows; the mean is corrected by the rounding of the first."""
    total = tl.maximum(tl.sum(n, 0, keep_dims=True), 1.0)
    first = tl.sum(n * mean, 0, keep_dims=True) / total
    apart = mean - first
    rounding = tl.sum(n * apart, 0, keep_dims=True) / total
    spread = tl.sum(m2 + n * apart * apart, 0, keep_dims=True) - total * rounding * rounding
    return first + rounding, tl.maximum(spread, 0.0)


@triton.jit
@no_type_check
def moments_of_tiles(
    features,
    mask,
    counts,
    table,
    length,
    channels,
    tiles,
    tiles_per_sequence,
    stride_b,
    stride_l,
    stride_c,
    T: tl.constexpr,
    K: tl.constexpr,
):
    """Row ``split`` of ``counts (S,)`` and of ``table (3, S, C)``: pivot, mean − pivot and M2.

    The pivot is the mean of the program's first real tile. What is subtracted from the features is
    so near to them that the difference is exact, and what is left is small: a large mean costs no
    digit of the variance. Were the pivot far off, Welford's update would still be stable.
    """
    wide = table.dtype.element_ty
    splits = tl.num_programs(1)
    block, known = _channels(channels, K)
    features += tl.program_id(0).to(tl.int64) * K * stride_c
    within = _within(stride_l, stride_c, T, K)
    count = 0
    pivot = tl.zeros((1, K), wide)
    n = tl.zeros((T, 1), wide)
    mean = tl.zeros((T, K), wide)
    m2 = tl.zeros((T, K), wide)
    for step in range(0, tiles, splits):
        sequence, start, _, real = _visit(mask, step, splits, tiles, tiles_per_sequence, length, T)
        found = tl.sum(real.to(tl.int32), 0)
        if found > 0:
            chosen = real[:, None] & known[None, :]
            at = features + (sequence * stride_b + start * stride_l) + within
            x = tl.load(at, mask=chosen, other=0).to(wide)
            if count == 0:
                pivot = tl.sum(x, 0, keep_dims=True) / found
            y = tl.where(chosen, x - pivot, 0.0)
            n, mean, m2 = _absorb(n, mean, m2, real[:, None].to(wide), y, 0.0)
            count += found
    mean, m2 = _join(n, mean, m2)
    split = tl.program_id(1)
    tl.store(counts + split, count)
    row = table + (split * channels + block)[None, :]
    size = splits * channels
    tl.store(row, pivot, mask=known[None, :])
    tl.store(row + size, mean, mask=known[None, :])
    tl.store(row + 2 * size, m2, mask=known[None, :])


@triton.jit
@no_type_check
def _merge(counts, table, channels, splits, block, known, S: tl.constexpr, K: tl.constexpr):
    """Count ``(1, 1)``, mean and M2 ``(1, K)`` from what :func:`moments_of_tiles` left, S rows at
    a time.
    """
    wide = table.dtype.element_ty
    size = splits * channels
    total = tl.zeros((1, 1), tl.int64)
    base = tl.zeros((1, K), wide)
    for start in range(0, splits, S):
        split = start + tl.arange(0, S)
        n = tl.load(counts + split, mask=split < splits, other=0)[:, None]
        row = table + split[:, None] * channels + block[None, :]
        chosen = (split < splits)[:, None] & known[None, :]
        near = tl.load(row, mask=chosen, other=0) + tl.load(row + size, mask=chosen, other=0)
        base += tl.sum(n.to(wide) * near, 0, keep_dims=True)
        total += tl.sum(n, 0, keep_dims=True)
    base /= tl.maximum(total.to(wide), 1.0)
    # The base is near to every pivot: their differences keep the digits that means would round.
    all_n = tl.zeros((S, 1), wide)
    mean = tl.zeros((S, K), wide)
    m2 = tl.zeros((S, K), wide)
    for start in range(0, splits, S):
        split = start + tl.arange(0, S)
        n = tl.load(counts + split, mask=split < splits, other=0)[:, None].to(wide)
        row = table + split[:, None] * channels + block[None, :]
        chosen = (split < splits)[:, None] & known[None, :]
        pivot = tl.load(row, mask=chosen, other=0)
        apart = (pivot - base) + tl.load(row + size, mask=chosen, other=0)
        more = tl.load(row + 2 * size, mask=chosen, other=0)
        all_n, mean, m2 = _absorb(all_n, mean, m2, n, tl.where(n > 0, apart, 0.0), more)
    mean, m2 = _join(all_n, mean, m2)
    return total, base + mean, m2


@triton.jit
@no_type_check
def _inverse_root(variance, eps):
    """``1 / sqrt(variance + eps)``, and 0 instead of infinity."""
    shifted = variance + eps
    return tl.where(shifted > 0, tl.rsqrt(tl.where(shifted > 0, shifted, 1.0)), 0.0)


@triton.jit
@no_type_check
def settle(
    counts,
    table,
    running_mean,
    running_var,
    running_weight,
    num_batches,
    mean,
    invstd,
    share,
    counted,
    momentum,
    eps,
    min_count,
    channels,
    splits,
    S: tl.constexpr,
    K: tl.constexpr,
):
    """What to normalize by, and the running statistics moved: all that is done once per channel.

    The same as ``running.batch_standard`` and ``RunningStatistics.update``, in one launch instead
    of forty. ``momentum`` is a number or ``None``, for the average over batches. ``counted`` is 1
    if this batch moves the running statistics, else 0: the counter is left to the caller, because
    every program reads it.
    """
    wide = table.dtype.element_ty
    block, known = _channels(channels, K)
    n, own_mean, m2 = _merge(counts, table, channels, splits, block, known, S, K)
    enough = n >= min_count
    real = n.to(wide)
    own_invstd = _inverse_root(m2 / tl.maximum(real, 1.0), eps)
    former_mean = own_mean
    former_invstd = tl.zeros((1, K), wide)
    if running_mean is not None:
        former_mean = _per_channel(running_mean, block, known, wide, 0.0)
        former_var = _per_channel(running_var, block, known, wide, 0.0)
        former_invstd = _inverse_root(former_var, eps)
        if momentum is None:
            batches = tl.load(num_batches + tl.zeros((1, 1), tl.int32)) + enough.to(tl.int64)
            gain = 1.0 / tl.maximum(batches, 1).to(wide)
        else:
            gain = tl.zeros((1, 1), wide) + momentum
        move = enough & known[None, :]
        if running_weight is not None:
            weight = _per_channel(running_weight, block, known, wide, 0.0)
            # NaN stands for unknown, as after loading a checkpoint that has no such buffer.
            weight = tl.where(weight != weight, real, weight)
            weight += gain * (real - weight)
            gain = gain * real / tl.where(weight > 0, weight, 1.0)
            tl.store(running_weight + block[None, :], weight, mask=move)
        moved = (1.0 - gain) * former_mean + gain * own_mean
        tl.store(running_mean + block[None, :], moved, mask=move)
        moved = (1.0 - gain) * former_var + gain * (m2 / tl.maximum(real - 1.0, 1.0))
        tl.store(running_var + block[None, :], moved, mask=move)
    tl.store(mean + block[None, :], tl.where(enough, own_mean, former_mean), mask=known[None, :])
    tl.store(
        invstd + block[None, :], tl.where(enough, own_invstd, former_invstd), mask=known[None, :]
    )
    first = tl.zeros((1, 1), tl.int32)
    tl.store(share + first, tl.where(enough, 1.0 / tl.maximum(real, 1.0), 0.0))
    tl.store(counted + first, enough.to(tl.int64))


@triton.jit
@no_type_check
def write_normal(
    features,
    mask,
    mean,
    invstd,
    weight,
    bias,
    residual,
    out,
    length,
    channels,
    tiles,
    tiles_per_sequence,
    stride_b,
    stride_l,
    stride_c,
    RELU: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
):
    """``out = residual + relu((x - mean) * invstd * weight + bias)``, zeros at padding."""
    wide = mean.dtype.element_ty
    splits = tl.num_programs(1)
    block, known = _channels(channels, K)
    centre = _per_channel(mean, block, known, wide, 0.0)
    scale = _per_channel(invstd, block, known, wide, 0.0)
    scale *= _per_channel(weight, block, known, wide, 1.0)
    shift = _per_channel(bias, block, known, wide, 0.0)
    base = tl.program_id(0).to(tl.int64) * K * stride_c
    within = _within(stride_l, stride_c, T, K)
    for step in range(0, tiles, splits):  # pragma: no branch
        sequence, start, exists, real = _visit(
            mask, step, splits, tiles, tiles_per_sequence, length, T
        )
        at = base + (sequence * stride_b + start * stride_l) + within
        value = tl.zeros((T, K), wide)
        if tl.sum(real.to(tl.int32), 0) > 0:
            chosen = real[:, None] & known[None, :]
            x = tl.load(features + at, mask=chosen, other=0).to(wide)
            # Subtract first: x * scale - mean * scale would cancel at a large mean.
            value = (x - centre) * scale + shift
            if RELU:
                # A comparison, which lets NaN through as torch does; a maximum need not.
                value = tl.where(value < 0, 0.0, value)
            if residual is not None:
                value += tl.load(residual + at, mask=chosen, other=0).to(wide)
            value = tl.where(chosen, value, 0.0)
        tl.store(out + at, value, mask=exists[:, None] & known[None, :])


@triton.jit
@no_type_check
def gradient_sums_of_tiles(
    features,
    grad,
    mask,
    mean,
    invstd,
    weight,
    bias,
    table,
    length,
    channels,
    tiles,
    tiles_per_sequence,
    stride_b,
    stride_l,
    stride_c,
    RELU: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
):
    """Row ``split`` of ``table (2, S, C)``: sums of the upstream gradient, and of it times x̂."""
    wide = table.dtype.element_ty
    splits = tl.num_programs(1)
    block, known = _channels(channels, K)
    centre = _per_channel(mean, block, known, wide, 0.0)
    invstd = _per_channel(invstd, block, known, wide, 0.0)
    scale = invstd * _per_channel(weight, block, known, wide, 1.0)
    shift = _per_channel(bias, block, known, wide, 0.0)
    base = tl.program_id(0).to(tl.int64) * K * stride_c
    within = _within(stride_l, stride_c, T, K)
    sums = tl.zeros((T, K), wide)
    products = tl.zeros((T, K), wide)
    for step in range(0, tiles, splits):
        sequence, start, _, real = _visit(mask, step, splits, tiles, tiles_per_sequence, length, T)
        if tl.sum(real.to(tl.int32), 0) > 0:
            chosen = real[:, None] & known[None, :]
            at = base + (sequence * stride_b + start * stride_l) + within
            x = tl.load(features + at, mask=chosen, other=0).to(wide)
            g = tl.load(grad + at, mask=chosen, other=0).to(wide)
            apart = tl.where(chosen, x - centre, 0.0)
            if RELU:
                g = tl.where(apart * scale + shift <= 0, 0.0, g)
            sums += g
            products += g * apart
    row = table + (tl.program_id(1) * channels + block)[None, :]
    tl.store(row, tl.sum(sums, 0, keep_dims=True), mask=known[None, :])
    products = tl.sum(products, 0, keep_dims=True) * invstd
    tl.store(row + splits * channels, products, mask=known[None, :])


@triton.jit
@no_type_check
def write_gradient(
    features,
    grad,
    mask,
    mean,
    invstd,
    share,
    weight,
    bias,
    sums,
    out,
    length,
    channels,
    tiles,
    tiles_per_sequence,
    stride_b,
    stride_l,
    stride_c,
    RELU: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
):
    """``γ·invstd · (dy - share · Σdy - x̂ · share · Σ(dy·x̂))``, zeros at padding.

    ``share (1,)`` is 1/n; with ``None``, or 0, the statistics are constants and the last two terms
    are not there. ``sums (2, C)`` are the two sums.
    """
    wide = mean.dtype.element_ty
    splits = tl.num_programs(1)
    block, known = _channels(channels, K)
    centre = _per_channel(mean, block, known, wide, 0.0)
    invstd = _per_channel(invstd, block, known, wide, 0.0)
    scale = invstd * _per_channel(weight, block, known, wide, 1.0)
    shift = _per_channel(bias, block, known, wide, 0.0)
    drift = tl.zeros((1, K), wide)
    spread = tl.zeros((1, K), wide)
    if share is not None:
        of_mean = tl.load(share).to(wide)
        drift = _per_channel(sums, block, known, wide, 0.0) * of_mean
        spread = _per_channel(sums + channels, block, known, wide, 0.0) * of_mean * invstd
    base = tl.program_id(0).to(tl.int64) * K * stride_c
    within = _within(stride_l, stride_c, T, K)
    for step in range(0, tiles, splits):  # pragma: no branch
        sequence, start, exists, real = _visit(
            mask, step, splits, tiles, tiles_per_sequence, length, T
        )
        at = base + (sequence * stride_b + start * stride_l) + within
        value = tl.zeros((T, K), wide)
        if tl.sum(real.to(tl.int32), 0) > 0:
            chosen = real[:, None] & known[None, :]
            x = tl.load(features + at, mask=chosen, other=0).to(wide)
            g = tl.load(grad + at, mask=chosen, other=0).to(wide)
            apart = x - centre
            if RELU:
                g = tl.where(apart * scale + shift <= 0, 0.0, g)
            value = tl.where(chosen, (g - drift - apart * spread) * scale, 0.0)
        tl.store(out + at, value, mask=exists[:, None] & known[None, :])
