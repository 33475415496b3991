"""Masked layer, RMS and group norm as modules: torch's own with a mask."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqtrain.nn.norms.context import given_or_current
from seqtrain.nn.norms.functional import masked_group_norm
from seqtrain.nn.norms.layer_functional import masked_layer_norm, masked_rms_norm
from seqtrain.nn.norms.whole import Whole, whole_in_fx


def _as_torch_takes(shape: int | Sequence[int]) -> int | list[int]:
    return shape if isinstance(shape, int) else list(shape)


class MaskedLayerNorm(Whole, nn.LayerNorm):
    """Layer norm of real positions, 0 at padding; same state dict as ``torch.nn.LayerNorm``.

    Args:
        normalized_shape: Number of channels C, or the sizes of several last dimensions.
        eps: Added to the variance.
        elementwise_affine: Learn a scale and a shift for each channel.
        bias: Learn the shift, if ``elementwise_affine``.
        device: Where the parameters are made.
        dtype: Dtype of the parameters.
        channel_dim: Where the channels are.
        over: ``"position"`` takes mean and variance over the channels of each position;
            ``"sequence"`` over the channels of all real positions of a sequence.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        channel_dim: int = -1,
        over: Literal["position", "sequence"] = "position",
    ) -> None:
        super().__init__(
            _as_torch_takes(normalized_shape), eps, elementwise_affine, bias, device, dtype
        )
        self.channel_dim = channel_dim
        self.over = over

    @whole_in_fx
    def forward(
        self, input: Float[Tensor, "..."], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "..."]:
        """``input`` normalized, 0 where ``mask``, or else that of ``mask_context``, is False."""
        return masked_layer_norm(
            input,
            given_or_current(mask),
            self.normalized_shape,
            self.weight,
            self.bias,
            self.eps,
            channel_dim=self.channel_dim,
            over=self.over,
        )

    def extra_repr(self) -> str:
        """The settings that the module's repr shows."""
        return f"{super().extra_repr()}, channel_dim={self.channel_dim}, over={self.over!r}"


class MaskedRMSNorm(Whole, nn.RMSNorm):
    """RMS norm of real positions, 0 at padding; same state dict as ``torch.nn.RMSNorm``.

    Args:
        normalized_shape: Number of channels C, or the sizes of several last dimensions.
        eps: Added to the mean square; when not given, the step at 1 of the dtype it is taken in.
        elementwise_affine: Learn a scale for each channel.
        device: Where the parameters are made.
        dtype: Dtype of the parameters.
        channel_dim: Where the channels are.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        channel_dim: int = -1,
    ) -> None:
        super().__init__(_as_torch_takes(normalized_shape), eps, elementwise_affine, device, dtype)
        self.channel_dim = channel_dim

    @whole_in_fx
    def forward(
        self, input: Float[Tensor, "..."], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "..."]:
        """``input`` normalized, 0 where ``mask``, or else that of ``mask_context``, is False."""
        return masked_rms_norm(
            input,
            given_or_current(mask),
            self.normalized_shape,
            self.weight,
            self.eps,
            channel_dim=self.channel_dim,
        )

    def extra_repr(self) -> str:
        """The settings that the module's repr shows."""
        return f"{super().extra_repr()}, channel_dim={self.channel_dim}"


class MaskedGroupNorm(Whole, nn.GroupNorm):
    """Group norm over real positions, 0 at padding; same state dict as ``torch.nn.GroupNorm``.

    Args:
        num_groups: Number of groups of channels.
        num_channels: Number of channels C.
        eps: Added to the variance.
        affine: Learn a scale and a shift for each channel.
        device: Where the parameters are made.
        dtype: Dtype of the parameters.
        bias: Learn the shift, if ``affine``.
        channel_dim: Where the channels are: 1 for ``(B, C, L)``, -1 for ``(B, L, C)``.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        if not bias:
            self.register_parameter("bias", None)
        self.channel_dim = channel_dim

    @whole_in_fx
    def forward(
        self, input: Float[Tensor, "..."], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "..."]:
        """``input`` normalized, 0 where ``mask``, or else that of ``mask_context``, is False."""
        return masked_group_norm(
            input,
            given_or_current(mask),
            self.num_groups,
            self.weight,
            self.bias,
            self.eps,
            channel_dim=self.channel_dim,
        )

    def extra_repr(self) -> str:
        """The settings that the module's repr shows."""
        return f"{super().extra_repr()}, channel_dim={self.channel_dim}"
