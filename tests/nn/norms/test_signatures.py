"""Names, order and defaults of the arguments are torch's, where torch has them."""

import inspect
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seqtrain.nn import norms

# Ours that torch does not have, all by keyword, with what they are when not given.
OWN = {"channel_dim": 1, "min_count": 2, "stat_weighting": "batches"}
PAIRS = [
    (norms.MaskedBatchNorm, nn.BatchNorm1d, OWN | {"bias": True}),
    (norms.MaskedBatchNorm1d, nn.BatchNorm1d, OWN | {"bias": True}),
    (norms.MaskedBatchNorm2d, nn.BatchNorm2d, OWN | {"bias": True}),
    (norms.MaskedBatchNorm3d, nn.BatchNorm3d, OWN | {"bias": True}),
    (norms.LazyMaskedBatchNorm1d, nn.LazyBatchNorm1d, {"bias": True}),
    (norms.MaskedSyncBatchNorm, nn.SyncBatchNorm, {}),
    (
        norms.MaskedBatchRenorm1d,
        nn.BatchNorm1d,
        {"r_max": 3.0, "d_max": 5.0, "warmup_batches": 100},
    ),
    (
        norms.MaskedComplexBatchNorm1d,
        nn.BatchNorm1d,
        {"channel_dim": 1, "min_count": 2},
    ),
    (norms.MaskedInstanceNorm1d, nn.InstanceNorm1d, {"bias": True, "channel_dim": 1}),
    (norms.MaskedGroupNorm, nn.GroupNorm, {"bias": True, "channel_dim": 1}),
    (norms.MaskedLayerNorm, nn.LayerNorm, {"channel_dim": -1, "over": "position"}),
    (norms.MaskedRMSNorm, nn.RMSNorm, {"channel_dim": -1}),
    (norms.masked_instance_norm, F.instance_norm, {"channel_dim": 1}),
    (norms.masked_group_norm, F.group_norm, {"channel_dim": 1}),
    (norms.masked_layer_norm, F.layer_norm, {"channel_dim": -1, "over": "position"}),
    (norms.masked_rms_norm, F.rms_norm, {"channel_dim": -1}),
    (
        norms.masked_batch_norm,
        F.batch_norm,
        {
            "channel_dim": 1,
            "num_batches_tracked": None,
            "min_count": 2,
            "running_weight": None,
            "group": None,
            "relu": False,
            "residual": None,
        },
    ),
]
# Statistics may be left out in training, and complex features have a dtype of their own.
CHANGED = {
    norms.masked_batch_norm: {"running_mean": None, "running_var": None},
    norms.MaskedComplexBatchNorm1d: {"dtype": torch.complex64},
}


def arguments(call: Callable[..., object]) -> tuple[dict[str, object], dict[str, object]]:
    """Positional ones and those by keyword alone, each with its default."""
    found: tuple[dict[str, object], dict[str, object]] = ({}, {})
    for name, parameter in inspect.signature(call).parameters.items():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            found[parameter.kind is inspect.Parameter.KEYWORD_ONLY][name] = parameter.default
    return found


@pytest.mark.parametrize(("ours", "torchs", "own"), PAIRS, ids=lambda x: getattr(x, "__name__", ""))
def test_arguments_are_torchs_and_then_our_own(
    ours: Callable[..., object], torchs: Callable[..., object], own: dict[str, object]
) -> None:
    positional, by_keyword = arguments(ours)
    theirs, _ = arguments(torchs)
    positional.pop("mask", None)
    assert list(positional) == [name for name in theirs if name != "bias" or name in positional]
    changed = {name: value for name, value in positional.items() if value != theirs[name]}
    assert changed == CHANGED.get(ours, {})
    assert by_keyword == own


def test_the_general_form_divides_by_n_and_adds_nothing() -> None:
    assert arguments(norms.masked_norm)[1] == {"eps": 0.0, "correction": 0, "constant": "zero"}
    expected = {"dims": None, "eps": 0.0, "correction": 0, "constant": "zero"}
    assert arguments(norms.MaskedNorm) == ({"batched": False}, expected)
