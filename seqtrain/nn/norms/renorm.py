"""Masked batch renormalization."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seqtrain.nn.norms.batch import MaskedBatchNorm1d
from seqtrain.nn.norms.batch_functional import activate
from seqtrain.nn.norms.checks import check_eps, check_floating
from seqtrain.nn.norms.context import given_or_current
from seqtrain.nn.norms.masks import place_mask
from seqtrain.nn.norms.moments import masked_moments
from seqtrain.nn.norms.rows import Standard, over_real_rows
from seqtrain.nn.norms.running import RunningStatistics, batch_standard, running_standard
from seqtrain.nn.norms.standardize import other_dims
from seqtrain.nn.norms.watching import is_repeated
from seqtrain.nn.norms.whole import whole_in_fx


@torch.library.custom_op("seqtrain::kept", mutates_args=())
def _kept(values: Tensor) -> Tensor:
    """A copy that torch.compile saves for the backward pass.

    Left to itself it computes ``r`` and ``d`` there again, from running statistics that this batch
    has moved by then (https://github.com/pytorch/pytorch/pull/197039).
    """
    return values.clone()


@_kept.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


class MaskedBatchRenorm1d(MaskedBatchNorm1d):
    """Batch renormalization over real positions (Ioffe 2017, arXiv:1702.03275).

    In training the output is ``x̂ * r + d`` with ``r = σ_batch / σ_running`` and
    ``d = (μ_batch - μ_running) / σ_running``, both clipped and constant to the gradient: within
    the clipping it is what evaluation will compute, whatever the batch.

    As in the paper, and in Keras, ``σ_running`` is the moving average of ``σ_batch``, the square
    root of the biased variance plus ``eps``; that of the variance would weigh batches of large
    variance more. The buffer ``running_var`` holds ``σ_running² - eps``, so that evaluation, state
    dict and folding into a convolution are those of :class:`MaskedBatchNorm1d`. A checkpoint from
    when it held an average of variances evaluates as it did, and training continues from there.

    Args:
        num_features: Number of channels C.
        eps: Added to the variances.
        momentum: Weight of a batch in the running statistics; ``None`` for their plain average.
        affine: Learn a scale and a shift for each channel.
        track_running_stats: Has to be True.
        device: Where parameters and buffers are made.
        dtype: Dtype of the parameters; buffers are at least float32.
        r_max: ``r`` is kept within 1/r_max and r_max.
        d_max: ``d`` is kept within -d_max and d_max.
        warmup_batches: Over this many batches the limits open linearly from those of plain batch
            norm, 1 and 0, because running statistics mean little at first.
        options: The keyword arguments of :class:`MaskedBatchNorm`.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup_batches: int = 100,
        **options: Any,
    ) -> None:
        if not track_running_stats:
            raise ValueError("batch renormalization is relative to running statistics: track them")
        super().__init__(num_features, eps, momentum, affine, True, device, dtype, **options)
        self.r_max = r_max
        self.d_max = d_max
        self.warmup_batches = warmup_batches

    @whole_in_fx
    def forward(
        self,
        input: Float[Tensor, "..."],
        mask: Bool[Tensor, "..."] | None = None,
        *,
        relu: bool = False,
        residual: Float[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "..."]:
        """``residual + relu(norm)``: ``input`` renormalized over its real positions, 0 at padding.

        Args:
            input: ``(B, C)``, ``(B, C, L)`` or, with ``channel_dim=-1``, ``(B, L, C)``.
            mask: True where real; without one, that of ``mask_context``; without that too, all are.
            relu: Apply ``torch.relu``.
            residual: Like ``input``, added last.
        """
        if not self.training:
            return super().forward(input, mask, relu=relu, residual=residual)
        self._check_input_dim(input)
        check_floating(input)
        check_eps(self.eps, positive=True)
        if is_repeated():
            raise RuntimeError(
                "batch renormalization cannot be repeated in the backward pass, as by activation "
                "checkpointing: its running statistics have moved since, and gradients would be "
                "those of another function"
            )
        placed = place_mask(given_or_current(mask), input, self.channel_dim)
        out = over_real_rows(self._renormalized, input, placed, self.channel_dim)
        return activate(out, placed, relu, residual)

    def _renormalized(self, input: Tensor, mask: Tensor | None, channel_dim: int) -> Standard:
        """Factors that renormalize ``input``; moves the running statistics."""
        dims = other_dims(input, channel_dim)
        running = RunningStatistics(
            self.running_mean, self.running_var, self.num_batches_tracked, self.running_weight
        )
        with torch.no_grad():
            moments = masked_moments(input.detach(), mask, dims)
            enough = moments.n >= self.min_count
            settled = running_standard(running, input, channel_dim, self.eps)
            batch = batch_standard(moments, enough, settled, self.eps, dims)
            r_max, d_max = self._limits()
            # Both are 1 and 0 in a channel that is normalized by the running statistics anyway.
            r = (settled.invstd / batch.invstd).clamp(1 / r_max, r_max)
            d = ((batch.mean - settled.mean) * settled.invstd).clamp(-d_max, d_max)
            r, d = _kept(torch.stack([r, d])).unbind()
            running.update(moments, enough, self.momentum, root_eps=self.eps)
        scale, shift = r.flatten(), d.flatten()
        if self.weight is not None:
            scale, shift = self.weight * scale, self.weight * shift
        if self.bias is not None:
            shift = shift + self.bias
        return Standard(batch, scale, shift)

    def _limits(self) -> tuple[Tensor, Tensor]:
        """``r_max`` and ``d_max`` as far as they have opened by now."""
        counted, needed = self.num_batches_tracked.float(), self.warmup_batches
        opened = (counted / needed).clamp(max=1) if needed else torch.ones_like(counted)
        return 1 + opened * (self.r_max - 1), opened * self.d_max

    def extra_repr(self) -> str:
        """The settings that the module's repr shows."""
        return (
            f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}, "
            f"warmup_batches={self.warmup_batches}"
        )
