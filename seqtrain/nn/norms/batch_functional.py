"""Masked batch norm as a function."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seqtrain.nn.norms.checks import check_eps, check_floating, check_rank
from seqtrain.nn.norms.kernels.call import Call
from seqtrain.nn.norms.kernels.choice import fused_batch_norm
from seqtrain.nn.norms.masks import check_mask, place_mask, select_real
from seqtrain.nn.norms.moments import masked_moments, pool_moments
from seqtrain.nn.norms.rows import Standard, laid_out, over_real_rows
from seqtrain.nn.norms.running import (
    RunningStatistics,
    batch_standard,
    running_standard,
    write,
)
from seqtrain.nn.norms.standardize import Statistics, other_dims


def masked_batch_norm(
    input: Float[Tensor, "..."],
    mask: Bool[Tensor, "..."] | None = None,
    running_mean: Float[Tensor, " C"] | None = None,
    running_var: Float[Tensor, " C"] | None = None,
    weight: Float[Tensor, " C"] | None = None,
    bias: Float[Tensor, " C"] | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    channel_dim: int = 1,
    num_batches_tracked: Int[Tensor, ""] | None = None,
    min_count: int = 2,
    running_weight: Float[Tensor, " C"] | None = None,
    group: dist.ProcessGroup | None = None,
    relu: bool = False,
    residual: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "..."]:
    """Batch norm by the mean and variance of the real positions alone (Ioffe and Szegedy 2015).

    Args:
        input: Features of any rank from 2.
        mask: True where real, without the channel dimension or with 1 or all channels there.
            ``None`` is exactly ``torch.nn.functional.batch_norm``.
        running_mean: Updated in place when ``training``; float32 or wider.
        running_var: Likewise, with the unbiased variance.
        weight: Scale of each channel.
        bias: Shift of each channel.
        training: Normalize by this batch instead of by the running statistics.
        momentum: Weight of this batch in the running statistics; ``None`` gives the plain average
            over batches and needs ``num_batches_tracked``.
        eps: Added to the variance.
        channel_dim: Where the channels are.
        num_batches_tracked: Counter, increased in place by a batch that updates any channel.
        min_count: In training a channel with fewer real positions is normalized as in evaluation
            and leaves the running statistics alone; without these it comes out as ``bias``.
        running_weight: Running number of real positions per channel. Given, a batch moves the
            running statistics in proportion to its real positions, not as one batch among others.
        group: Ranks that share their statistics.
        relu: Apply ``torch.relu`` to what is normalized, in the same pass where a kernel runs.
        residual: Like ``input``, added last, likewise.

    Returns:
        ``residual + relu(norm)``, a tensor like ``input``, 0 at padding; in the residual's dtype if
        that is the wider.

    Raises:
        NotImplementedError: The features are no real floating-point numbers, as in torch.
        TypeError: The mask is not boolean, or buffers to be updated are narrower than float32.
        ValueError: The mask or the residual does not fit, statistics are wanted that were not
            given, or ``eps`` is not positive in training, as in torch.
    """
    if residual is not None and residual.shape != input.shape:
        raise ValueError(
            f"expected a residual of the input's shape {tuple(input.shape)}, found one of "
            f"{tuple(residual.shape)}"
        )
    running = None
    if running_mean is not None and running_var is not None:
        running = RunningStatistics(running_mean, running_var, num_batches_tracked, running_weight)
    if mask is None and group is None:
        out = _plain_batch_norm(input, running, weight, bias, training, momentum, eps, channel_dim)
        return activate(out, None, relu, residual)
    if running is None and not training:
        raise ValueError("training=False needs running_mean and running_var")
    check_floating(input)
    check_rank(input, 2)
    check_eps(eps, positive=training)
    if mask is not None and group is None:
        check_mask(mask, input, channel_dim)
        options = (training, momentum, eps, channel_dim, min_count, relu, residual)
        fused = fused_batch_norm(Call(input, mask, running, weight, bias, *options))
        if fused is not None:
            return fused
    mask = place_mask(mask, input, channel_dim)

    def standard(input: Tensor, mask: Tensor | None, channel_dim: int) -> Standard:
        statistics = _statistics(
            input, mask, running, training, momentum, eps, channel_dim, min_count, group
        )
        return Standard(statistics, weight, bias)

    return activate(over_real_rows(standard, input, mask, channel_dim), mask, relu, residual)


def activate(
    normal: Float[Tensor, "..."],
    mask: Bool[Tensor, "..."] | None,
    relu: bool,
    residual: Float[Tensor, "..."] | None,
) -> Float[Tensor, "..."]:
    """``residual + relu(normal)``, 0 at padding.

    Args:
        normal: 0 at padding.
        mask: Of its rank; ``None`` for all.
        relu: Whether to.
        residual: Like ``normal``, if there is any.
    """
    normal = F.relu(normal) if relu else normal
    return normal if residual is None else select_real(residual + normal, mask)


@torch.no_grad()
def _statistics(
    input: Tensor,
    mask: Tensor | None,
    running: RunningStatistics | None,
    training: bool,
    momentum: float | None,
    eps: float,
    channel_dim: int,
    min_count: int,
    group: dist.ProcessGroup | None,
) -> Statistics:
    """What to normalize by; in training the running statistics are updated."""
    settled = None if running is None else running_standard(running, input, channel_dim, eps)
    if settled is not None and not training:
        return settled
    dims = other_dims(input, channel_dim)
    moments = masked_moments(input.detach(), mask, dims)
    if group is not None:
        moments = pool_moments(moments, group)
    enough = moments.n >= min_count
    statistics = batch_standard(moments, enough, settled, eps, dims, group)
    if running is not None:
        running.update(moments, enough, momentum)
    return statistics


def _plain_batch_norm(
    input: Tensor,
    running: RunningStatistics | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    channel_dim: int,
) -> Tensor:
    """torch's own batch norm, with the channels anywhere and the batches counted."""
    gain = 0.0 if momentum is None else momentum
    if training and running is not None and running.num_batches is not None:
        write(running.num_batches, running.num_batches + 1)
        gain = 1.0 / float(running.num_batches) if momentum is None else momentum
    mean, var = (None, None) if running is None else (running.mean, running.var)
    if mean is not None:
        # A half-precision model's parameters beside its statistics, which stay wide.
        weight, bias = (None if p is None else p.to(mean.dtype) for p in (weight, bias))
    if channel_dim % input.ndim == 1:
        return F.batch_norm(input, mean, var, weight, bias, training, gain, eps)
    moved = input.movedim(channel_dim, -1)
    rows = moved.reshape(-1, moved.shape[-1])
    out = F.batch_norm(rows, mean, var, weight, bias, training, gain, eps)
    return laid_out(out.view(moved.shape).movedim(-1, channel_dim), input)
