"""Masked instance norm, with the optional running statistics of torch's."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqtrain.nn.norms.checks import check_eps, check_floating, check_rank
from seqtrain.nn.norms.context import given_or_current
from seqtrain.nn.norms.functional import own_statistics
from seqtrain.nn.norms.masks import place_mask
from seqtrain.nn.norms.moments import Moments, masked_moments
from seqtrain.nn.norms.rows import laid_out
from seqtrain.nn.norms.running import RunningStatistics, move, running_standard
from seqtrain.nn.norms.standardize import other_dims, standardize
from seqtrain.nn.norms.whole import Whole, whole_in_fx
from seqtrain.nn.norms.wide import WideBuffers


def masked_instance_norm(
    input: Float[Tensor, "..."],
    mask: Bool[Tensor, "..."] | None = None,
    running_mean: Float[Tensor, " C"] | None = None,
    running_var: Float[Tensor, " C"] | None = None,
    weight: Float[Tensor, " C"] | None = None,
    bias: Float[Tensor, " C"] | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    channel_dim: int = 1,
) -> Float[Tensor, "..."]:
    """Instance norm: each channel of each sequence over its real positions (Ulyanov et al. 2016).

    Args:
        input: Features, with the sequences at dimension 0.
        mask: True where real, without the channel dimension or with 1 or all channels there.
            ``None`` is ``torch.nn.functional.instance_norm``.
        running_mean: Updated in place, if given, with the average over the sequences of at least
            two real positions.
        running_var: Likewise, with the unbiased variance.
        weight: Scale of each channel.
        bias: Shift of each channel.
        use_input_stats: Normalize by the input's own statistics instead of the running ones.
        momentum: Weight of this batch in the running statistics.
        eps: Added to the variance.
        channel_dim: Where the channels are.

    Returns:
        A tensor like ``input``, 0 at padding.

    Raises:
        NotImplementedError: The features are no real floating-point numbers.
        ValueError: The mask does not fit, or statistics are wanted that were not given.
    """
    if mask is None:
        moved = input.movedim(channel_dim, 1)
        out = F.instance_norm(
            moved, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
        return laid_out(out.movedim(1, channel_dim), input)
    check_floating(input)
    check_rank(input, 3)
    check_eps(eps)
    placed = place_mask(mask, input, channel_dim)
    dims = other_dims(input, channel_dim)[1:]
    running = None
    if running_mean is not None and running_var is not None:
        running = RunningStatistics(running_mean, running_var)
    with torch.no_grad():
        if use_input_stats:
            moments = masked_moments(input.detach(), placed, dims)
            statistics = own_statistics(moments, eps, dims)
            if running is not None:
                _move_by_sequences(running, moments, momentum)
        elif running is not None:
            statistics = running_standard(running, input, channel_dim, eps)
        else:
            raise ValueError("without use_input_stats, running_mean and running_var are needed")
    return standardize(input, placed, statistics, weight, bias, channel_dim)


def _move_by_sequences(running: RunningStatistics, moments: Moments, momentum: float) -> None:
    """Move running statistics towards the average over the sequences that have a variance."""
    counted = moments.n >= 2
    sequences = counted.sum(0)
    for buffer, values in (
        (running.mean, moments.mean),
        (running.var, moments.variance(correction=1)),
    ):
        average = values.masked_fill(~counted, 0).sum(0) / sequences.clamp(min=1)
        move(buffer, average, momentum, sequences > 0)


class MaskedInstanceNorm1d(Whole, WideBuffers, nn.InstanceNorm1d):
    """Instance norm over real positions, 0 at padding; state dict of ``torch.nn.InstanceNorm1d``.

    Args:
        num_features: Number of channels C.
        eps: Added to the variance.
        momentum: Weight of a batch in the running statistics, if tracked; ``None`` for 0.
        affine: Learn a scale and a shift for each channel.
        track_running_stats: Keep running statistics and use them in evaluation.
        device: Where parameters and buffers are made.
        dtype: Dtype of the parameters; buffers are at least float32.
        bias: Learn the shift, if ``affine``.
        channel_dim: Where the channels are: 1 for ``(B, C, L)``, -1 for ``(B, L, C)``.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,  # type: ignore[arg-type]  # torch takes None for 0
            affine,
            track_running_stats,
            device,
            dtype,
        )
        if not bias:
            self.register_parameter("bias", None)
        self.channel_dim = channel_dim
        self.widen_buffers()

    @whole_in_fx
    def forward(
        self, input: Float[Tensor, "..."], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "..."]:
        """``input`` normalized, 0 where ``mask``, or else that of ``mask_context``, is False.

        Args:
            input: ``(B, C, L)`` or ``(C, L)``; with ``channel_dim=-1`` ``(B, L, C)`` or ``(L, C)``.
            mask: True where real, ``(B, L)`` or ``(L,)``.
        """
        self._check_input_dim(input)
        mask = given_or_current(mask)
        if input.ndim == 2:
            batched = None if mask is None else mask.unsqueeze(0)
            return self._normalize(input.unsqueeze(0), batched).squeeze(0)
        return self._normalize(input, mask)

    def _normalize(self, input: Tensor, mask: Tensor | None) -> Tensor:
        return masked_instance_norm(
            input,
            mask,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
            channel_dim=self.channel_dim,
        )

    def extra_repr(self) -> str:
        """The settings that the module's repr shows."""
        torchs = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{torchs}, channel_dim={self.channel_dim}"
