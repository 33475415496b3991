"""Normalization by the statistics of real positions alone."""

from seqtrain.nn.norms.batch import (
    MaskedBatchNorm,
    MaskedBatchNorm1d,
    MaskedBatchNorm2d,
    MaskedBatchNorm3d,
)
from seqtrain.nn.norms.batch_functional import masked_batch_norm
from seqtrain.nn.norms.functional import (
    masked_group_norm,
    masked_layer_norm,
    masked_norm,
    masked_rms_norm,
)
from seqtrain.nn.norms.layers import MaskedGroupNorm, MaskedLayerNorm, MaskedRMSNorm
from seqtrain.nn.norms.masks import mask_context
from seqtrain.nn.norms.moments import Moments, masked_moments

__all__ = [
    "MaskedBatchNorm",
    "MaskedBatchNorm1d",
    "MaskedBatchNorm2d",
    "MaskedBatchNorm3d",
    "MaskedGroupNorm",
    "MaskedLayerNorm",
    "MaskedRMSNorm",
    "Moments",
    "mask_context",
    "masked_batch_norm",
    "masked_group_norm",
    "masked_layer_norm",
    "masked_moments",
    "masked_norm",
    "masked_rms_norm",
]
