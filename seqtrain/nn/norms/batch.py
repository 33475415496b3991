"""Masked batch norms as modules: ``torch.nn.BatchNorm*d`` with one more argument to ``forward``."""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seqtrain.nn.norms.batch_functional import masked_batch_norm
from seqtrain.nn.norms.masks import current_mask
from seqtrain.nn.norms.wide import WideBuffers


class MaskedBatchNorm(WideBuffers, _BatchNorm):
    """Batch norm over real positions, for input of any rank from 2.

    The state dict is that of ``torch.nn.BatchNorm1d`` (with ``stat_weighting="tokens"`` one more
    buffer, ``running_weight``). Running statistics stay in float32 or wider when the model is cast.

    Args:
        num_features: Number of channels C.
        eps: Added to the variance.
        momentum: Weight of a batch in the running statistics; ``None`` for their plain average.
        affine: Learn a scale and a shift for each channel.
        track_running_stats: Keep running statistics; without them evaluation uses the batch's own.
        device: Where parameters and buffers are made.
        dtype: Dtype of the parameters; buffers are at least float32.
        bias: Learn the shift, if ``affine``.
        channel_dim: Where the channels are: 1 for ``(B, C, L)``, -1 for ``(B, L, C)``.
        min_count: In training a channel with fewer real positions is normalized as in evaluation
            and leaves the running statistics alone.
        stat_weighting: ``"batches"`` counts every batch alike in the running statistics, as torch
            does; ``"tokens"`` counts it by its real positions.
    """

    running_weight: Tensor | None

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
        bias: bool = True,
        channel_dim: int = 1,
        min_count: int = 2,
        stat_weighting: Literal["batches", "tokens"] = "batches",
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:
            self.register_parameter("bias", None)
        self.channel_dim = channel_dim
        self.min_count = min_count
        self.stat_weighting = stat_weighting

    def forward(
        self, input: Float[Tensor, "..."], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "..."]:
        """``input`` normalized over its real positions, with zeros at padding.

        Args:
            input: Features with C channels at ``channel_dim``.
            mask: True where real, ``(B, L)`` for ``(B, C, L)`` or ``(B, L, C)``; or of the input's
                rank with 1 or C channels. Without one, that of ``mask_context``; without that too,
                all positions count, by torch's own batch norm.
        """
        self._check_input_dim(input)
        use_batch = self.training or self.running_mean is None
        return masked_batch_norm(
            input,
            current_mask() if mask is None else mask,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            use_batch,
            self.momentum,
            self.eps,
            channel_dim=self.channel_dim,
            num_batches_tracked=self.num_batches_tracked,
            min_count=self.min_count,
        )

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least 2D input (got {input.ndim}D input)")


class MaskedBatchNorm1d(MaskedBatchNorm, nn.BatchNorm1d):
    """Masked batch norm of ``(B, C)``, ``(B, C, L)`` or, with ``channel_dim=-1``, ``(B, L, C)``."""

    _check_input_dim = nn.BatchNorm1d._check_input_dim


class MaskedBatchNorm2d(MaskedBatchNorm, nn.BatchNorm2d):
    """Masked batch norm of 4-D input."""

    _check_input_dim = nn.BatchNorm2d._check_input_dim


class MaskedBatchNorm3d(MaskedBatchNorm, nn.BatchNorm3d):
    """Masked batch norm of 5-D input."""

    _check_input_dim = nn.BatchNorm3d._check_input_dim
