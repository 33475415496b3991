"""Normalization by the statistics of real positions alone."""

from seqtrain.nn.norms.batch import (
    MaskedBatchNorm,
    MaskedBatchNorm1d,
    MaskedBatchNorm2d,
    MaskedBatchNorm3d,
    MaskedSyncBatchNorm,
)
from seqtrain.nn.norms.batch_functional import masked_batch_norm
from seqtrain.nn.norms.calibrate import update_bn_stats
from seqtrain.nn.norms.complex import (
    MaskedComplexBatchNorm1d,
    MaskedComplexBatchNorm2d,
    NaiveMaskedComplexBatchNorm1d,
    NaiveMaskedComplexBatchNorm2d,
)
from seqtrain.nn.norms.context import mask_context
from seqtrain.nn.norms.convert import (
    FoldedConv,
    convert_masked_batchnorm,
    convert_masked_sync_batchnorm,
    fold_masked_conv_bn,
    revert_masked_batchnorm,
)
from seqtrain.nn.norms.functional import masked_group_norm, masked_norm
from seqtrain.nn.norms.general import AffineMaskedNorm, LazyAffineMaskedNorm, MaskedNorm
from seqtrain.nn.norms.instance import MaskedInstanceNorm1d, masked_instance_norm
from seqtrain.nn.norms.layer_functional import masked_layer_norm, masked_rms_norm
from seqtrain.nn.norms.layers import MaskedGroupNorm, MaskedLayerNorm, MaskedRMSNorm
from seqtrain.nn.norms.lazy import (
    LazyMaskedBatchNorm1d,
    LazyMaskedBatchNorm2d,
    LazyMaskedBatchNorm3d,
)
from seqtrain.nn.norms.moments import Moments, masked_moments
from seqtrain.nn.norms.renorm import MaskedBatchRenorm1d

__all__ = [
    "AffineMaskedNorm",
    "FoldedConv",
    "LazyAffineMaskedNorm",
    "LazyMaskedBatchNorm1d",
    "LazyMaskedBatchNorm2d",
    "LazyMaskedBatchNorm3d",
    "MaskedBatchNorm",
    "MaskedBatchNorm1d",
    "MaskedBatchNorm2d",
    "MaskedBatchNorm3d",
    "MaskedBatchRenorm1d",
    "MaskedComplexBatchNorm1d",
    "MaskedComplexBatchNorm2d",
    "MaskedGroupNorm",
    "MaskedInstanceNorm1d",
    "MaskedLayerNorm",
    "MaskedNorm",
    "MaskedRMSNorm",
    "MaskedSyncBatchNorm",
    "Moments",
    "NaiveMaskedComplexBatchNorm1d",
    "NaiveMaskedComplexBatchNorm2d",
    "convert_masked_batchnorm",
    "convert_masked_sync_batchnorm",
    "fold_masked_conv_bn",
    "mask_context",
    "masked_batch_norm",
    "masked_group_norm",
    "masked_instance_norm",
    "masked_layer_norm",
    "masked_moments",
    "masked_norm",
    "masked_rms_norm",
    "revert_masked_batchnorm",
    "update_bn_stats",
]
