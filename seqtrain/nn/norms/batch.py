"""Masked batch norms as modules: ``torch.nn.BatchNorm*d`` with one more argument to ``forward``."""

from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seqtrain.nn.norms.batch_functional import masked_batch_norm
from seqtrain.nn.norms.context import given_or_current
from seqtrain.nn.norms.whole import Whole, whole_in_fx
from seqtrain.nn.norms.wide import WideBuffers


class MaskedBatchNorm(Whole, WideBuffers, _BatchNorm):
    """Batch norm over real positions, for input of any rank from 2.

    The state dict is that of ``torch.nn.BatchNorm1d``; ``stat_weighting="tokens"`` adds the buffer
    ``running_weight``. Running statistics stay in float32 or wider when the model is cast.

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
            does; ``"tokens"`` counts it by its real positions: EMA(n·mean) / EMA(n).
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
        counted = self.running_mean if stat_weighting == "tokens" else None
        self.register_buffer("running_weight", None if counted is None else counted.clone())
        self.widen_buffers()

    @whole_in_fx
    def forward(
        self,
        input: Float[Tensor, "..."],
        mask: Bool[Tensor, "..."] | None = None,
        *,
        relu: bool = False,
        residual: Float[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "..."]:
        """``residual + relu(norm)``: ``input`` normalized over its real positions, 0 at padding.

        Args:
            input: Features with C channels at ``channel_dim``.
            mask: True where real, ``(B, L)`` for ``(B, C, L)`` or ``(B, L, C)``; or of the input's
                rank with 1 or C channels. Without one, that of ``mask_context``; without that too,
                all positions count, by torch's own batch norm.
            relu: Apply ``torch.relu``, in the same pass where a kernel runs.
            residual: Like ``input``, added last, likewise.
        """
        self._check_input_dim(input)
        tracked = self.track_running_stats or not self.training
        mean, var = (self.running_mean, self.running_var) if tracked else (None, None)
        return masked_batch_norm(
            input,
            given_or_current(mask),
            mean,
            var,
            self.weight,
            self.bias,
            self.training or mean is None,
            self.momentum,
            self.eps,
            channel_dim=self.channel_dim,
            num_batches_tracked=self.num_batches_tracked,
            min_count=self.min_count,
            running_weight=self.running_weight,
            group=self.ranks() if self.training else None,
            relu=relu,
            residual=residual,
        )

    def ranks(self) -> dist.ProcessGroup | None:
        """The ranks that share their statistics in training, if there are several."""
        return None

    @property
    def qconfig(self) -> NoReturn:
        """Refused: who asks is about to build another norm in place of this one.

        Raises:
            RuntimeError: Always. ``torch.nn.SyncBatchNorm.convert_sync_batchnorm``, also as called
                by Lightning and timm, would put a norm there that knows of no mask; quantization
                likewise. An ``AttributeError`` would let them go on.
        """
        raise RuntimeError(
            f"{type(self).__name__} would lose its mask in torch's conversion to SyncBatchNorm, or "
            "in quantization: use seqtrain.nn.norms.convert_masked_sync_batchnorm, or "
            "revert_masked_batchnorm first"
        )

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least 2D input (got {input.ndim}D input)")

    def reset_running_stats(self) -> None:
        """Forget all batches."""
        super().reset_running_stats()
        # torch's constructor calls this before there is such a buffer.
        running_weight: Tensor | None = getattr(self, "running_weight", None)
        if running_weight is not None:
            running_weight.zero_()

    def extra_repr(self) -> str:
        """The settings that the module's repr shows."""
        torchs = super().extra_repr()  # type: ignore[no-untyped-call]
        return (
            f"{torchs}, channel_dim={self.channel_dim}, min_count={self.min_count}, "
            f"stat_weighting={self.stat_weighting!r}"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.running_weight is not None:
            # A checkpoint of a plain batch norm does not say how much data is behind it: NaN makes
            # it count as much as the first batch that follows.
            unknown = torch.full_like(self.running_weight, torch.nan)
            state_dict.setdefault(f"{prefix}running_weight", unknown)
        super()._load_from_state_dict(state_dict, prefix, *args)


class MaskedBatchNorm1d(MaskedBatchNorm, nn.BatchNorm1d):
    """Masked batch norm of ``(B, C)``, ``(B, C, L)`` or, with ``channel_dim=-1``, ``(B, L, C)``."""

    _check_input_dim = nn.BatchNorm1d._check_input_dim


class MaskedBatchNorm2d(MaskedBatchNorm, nn.BatchNorm2d):
    """Masked batch norm of 4-D input."""

    _check_input_dim = nn.BatchNorm2d._check_input_dim


class MaskedBatchNorm3d(MaskedBatchNorm, nn.BatchNorm3d):
    """Masked batch norm of 5-D input."""

    _check_input_dim = nn.BatchNorm3d._check_input_dim


class MaskedSyncBatchNorm(MaskedBatchNorm):
    """Batch norm over the real positions of all ranks, on any backend that sums over ranks.

    Each rank gives count, mean and squared deviations; ranks with no real position, or an empty
    batch, take part. Gradients of ``weight`` and ``bias`` are this rank's own, for
    DistributedDataParallel to combine. It is no ``torch.nn.SyncBatchNorm``, which
    DistributedDataParallel refuses on the CPU. Without a process group, or with one rank, it is
    :class:`MaskedBatchNorm`. There is no second derivative through several ranks.

    Args:
        num_features: Number of channels C.
        eps: As in :class:`MaskedBatchNorm`, like all but the next.
        momentum: Weight of a batch in the running statistics.
        affine: Learn a scale and a shift for each channel.
        track_running_stats: Keep running statistics.
        process_group: The ranks that share statistics; all of them when not given.
        device: Where parameters and buffers are made.
        dtype: Dtype of the parameters.
        options: The keyword arguments of :class:`MaskedBatchNorm`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **options
        )
        self.process_group = process_group

    def ranks(self) -> dist.ProcessGroup | None:
        """The ranks of the process group, if there are several."""
        if not (dist.is_available() and dist.is_initialized()):
            return None
        group = self.process_group or dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None
