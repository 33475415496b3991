"""Layer, RMS, group and instance norm against torch's on every sequence alone."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_inputs import MaskedInput, masked_inputs, poisoned
from oracles import each_sequence_alone
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from seqtrain.nn.norms import (
    MaskedGroupNorm,
    MaskedInstanceNorm1d,
    MaskedLayerNorm,
    MaskedRMSNorm,
    masked_group_norm,
    masked_instance_norm,
    masked_layer_norm,
    masked_rms_norm,
)

few = settings(max_examples=25, deadline=None)


def transposed(layer: nn.Module) -> nn.Module:
    """A layer over ``(B, L, C)`` as one over ``(B, C, L)``."""
    module = nn.Module()
    module.forward = lambda x: layer(x.transpose(1, 2)).transpose(1, 2)
    return module


def pairs(channels: int, channel_dim: int) -> list[tuple[nn.Module, nn.Module]]:
    """Masked norms, and what they are of ``(1, C, n)`` without padding."""
    layer, rms = nn.LayerNorm(channels).double(), nn.RMSNorm(channels).double()
    instance = nn.InstanceNorm1d(channels, affine=True).double()
    groups = 2 if channels % 2 == 0 else 1
    group, one = nn.GroupNorm(groups, channels).double(), nn.GroupNorm(1, channels).double()
    where = {"channel_dim": channel_dim}
    found = [
        (MaskedLayerNorm(channels, **where), layer),
        (MaskedRMSNorm(channels, **where), rms),
        (MaskedLayerNorm(channels, over="sequence", **where), one),
        (MaskedGroupNorm(groups, channels, **where), group),
        (MaskedInstanceNorm1d(channels, affine=True, **where), instance),
    ]
    for masked, plain in found:
        for parameter in plain.parameters():
            nn.init.normal_(parameter)
        masked.double().load_state_dict(plain.state_dict())
    shown = [transposed(layer), transposed(rms), one, group, instance]
    return [(masked, plain) for (masked, _), plain in zip(found, shown, strict=True)]


@few
@given(case=masked_inputs(), channel_dim=st.sampled_from([1, -1]))
def test_each_sequence_comes_out_as_alone(case: MaskedInput, channel_dim: int) -> None:
    x, mask, grad = case
    torch.manual_seed(0)
    for masked, plain in pairs(x.shape[-1], channel_dim):
        clean = case.clean.requires_grad_()
        expected = each_sequence_alone(plain, clean, mask)
        given_x = x.movedim(-1, channel_dim).detach().requires_grad_()
        out = masked(given_x, mask)
        assert (out.movedim(channel_dim, -1)[~mask] == 0).all()
        torch.testing.assert_close(out.movedim(channel_dim, -1), expected)
        out.backward(grad.movedim(-1, channel_dim))
        found = given_x.grad.movedim(channel_dim, -1)
        assert (found[~mask] == 0).all()
        if mask.any():
            expected.backward(grad.masked_fill(~mask[..., None], 0))
            torch.testing.assert_close(found, clean.grad)
        assert all(p.grad.isfinite().all() for p in masked.parameters())


@pytest.mark.parametrize("channel_dim", [1, -1])
def test_without_a_mask_they_are_torchs(channel_dim: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    for masked, plain in pairs(4, channel_dim):
        torch.testing.assert_close(
            masked(x.movedim(1, channel_dim)).movedim(channel_dim, 1), plain(x)
        )


def test_state_dicts_are_torchs() -> None:
    for masked, plain in (
        (MaskedLayerNorm(4), nn.LayerNorm(4)),
        (MaskedRMSNorm([4]), nn.RMSNorm(4)),
        (MaskedGroupNorm(2, 4), nn.GroupNorm(2, 4)),
        (
            MaskedInstanceNorm1d(4, affine=True, track_running_stats=True),
            nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
        ),
    ):
        assert isinstance(masked, type(plain))
        assert list(masked.state_dict()) == list(plain.state_dict())
        plain.load_state_dict(masked.state_dict())


@pytest.mark.parametrize(
    "norm",
    [
        lambda x, m, w, b: masked_layer_norm(x, m, [2], w, b, over="sequence"),
        lambda x, m, w, b: masked_layer_norm(x, m, [2], w, b),
        lambda x, m, w, b: masked_group_norm(x, m, 1, w, b, channel_dim=-1),
        lambda x, m, w, b: masked_group_norm(x, m, 2, w, b, channel_dim=-1),
        lambda x, m, w, b: masked_instance_norm(x, m, weight=w, bias=b, channel_dim=-1),
        lambda x, m, w, b: masked_rms_norm(x, m, [2], w) + 0 * b.sum(),
    ],
)
def test_first_and_second_derivatives(norm: object) -> None:
    torch.manual_seed(0)
    x, w, b = (torch.randn(s, dtype=torch.float64) for s in ((2, 3, 2), (2,), (2,)))
    mask = torch.tensor([[True, False, True], [False, False, False]])
    inputs = [t.requires_grad_() for t in (x, w, b)]
    assert gradcheck(lambda x, w, b: norm(x, mask, w, b), inputs)
    assert gradgradcheck(lambda x, w, b: norm(x, mask, w, b), inputs)


@few
@given(case=masked_inputs(), seed=st.integers(0, 99))
def test_channels_may_be_masked_one_by_one(case: MaskedInput, seed: int) -> None:
    """Against selections taken out one after the other."""
    x = case.clean + 1
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    channels = x.shape[-1]
    halves = 2 if channels % 2 == 0 else 1
    norms = {
        "position": lambda x: masked_layer_norm(x, mask, [channels]),
        "sequence": lambda x: masked_layer_norm(x, mask, [channels], over="sequence"),
        "group": lambda x: masked_group_norm(x, mask, halves, channel_dim=-1),
        "instance": lambda x: masked_instance_norm(x, mask, channel_dim=-1),
    }
    batch, length = x.shape[:2]
    selections = {
        "position": [(b, i) for b in range(batch) for i in range(length)],
        "sequence": [(b,) for b in range(batch)],
        "instance": [(b, slice(None), c) for b in range(batch) for c in range(channels)],
        "group": [
            (b, slice(None), slice(g * channels // halves, (g + 1) * channels // halves))
            for b in range(batch)
            for g in range(halves)
        ],
    }
    for name, norm in norms.items():
        out = norm(poisoned(x, mask))
        assert (out[~mask] == 0).all()
        for at in selections[name]:
            values = x[at][mask[at]]
            if not len(values):
                continue
            expected = (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()
            torch.testing.assert_close(out[at][mask[at]], expected)
    out = masked_rms_norm(poisoned(x, mask), mask, [channels])
    assert (out[~mask] == 0).all()
    for at in selections["position"]:
        values = x[at][mask[at]]
        if len(values):
            torch.testing.assert_close(out[at][mask[at]], F.rms_norm(values, [len(values)]))


def test_instance_norm_keeps_running_statistics_as_torch_does() -> None:
    torch.manual_seed(0)
    ours = MaskedInstanceNorm1d(3, affine=True, track_running_stats=True, channel_dim=-1)
    theirs = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
    for _ in range(3):
        x = torch.randn(4, 6, 3) + 2
        full = torch.ones(4, 6, dtype=torch.bool)
        torch.testing.assert_close(ours(x, full), theirs(x.transpose(1, 2)).transpose(1, 2))
    for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other)
    out = ours.eval()(x, full)
    torch.testing.assert_close(out, theirs.eval()(x.transpose(1, 2)).transpose(1, 2))


def test_instance_norm_averages_statistics_over_sequences_that_have_them() -> None:
    torch.manual_seed(0)
    norm = MaskedInstanceNorm1d(2, momentum=1.0, track_running_stats=True, channel_dim=-1)
    x = torch.randn(4, 5, 2)
    mask = torch.arange(5) < torch.tensor([[5], [2], [1], [0]])
    norm(poisoned(x, mask[..., None]), mask)
    alone = [x[b, mask[b]] for b in (0, 1)]
    torch.testing.assert_close(norm.running_mean, torch.stack([a.mean(0) for a in alone]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([a.var(0) for a in alone]).mean(0))
    norm(x, mask & (torch.arange(4) == 1)[:, None])
    torch.testing.assert_close(norm.running_mean, alone[1].mean(0))
    torch.testing.assert_close(norm.running_var, alone[1].var(0))
    before = [b.clone() for b in norm.buffers()]
    norm(x, mask & (torch.arange(4) >= 2)[:, None])
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))
    normalized = (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
    torch.testing.assert_close(norm.eval()(x, mask), normalized.masked_fill(~mask[..., None], 0))


def test_instance_norm_takes_one_sequence_without_a_batch() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(3, 6), torch.rand(6) < 0.6
    for channel_dim, sequence in ((1, x), (-1, x.T)):
        norm = MaskedInstanceNorm1d(3, channel_dim=channel_dim)
        out = norm(sequence, mask)
        assert out.shape == sequence.shape
        assert torch.equal(out, norm(sequence[None], mask[None])[0])
        torch.testing.assert_close(norm(sequence), norm(sequence[None])[0])
    with pytest.raises(ValueError, match="2D or 3D"):
        norm(torch.zeros(3))


def test_instance_norm_needs_some_statistics() -> None:
    x, mask = torch.zeros(2, 3, 4), torch.ones(2, 4, dtype=torch.bool)
    mean = torch.zeros(3)
    masked_instance_norm(x + 1, mask, running_mean=mean)
    assert not mean.any()  # half of them is none
    with pytest.raises(ValueError, match="running_mean and running_var are needed"):
        masked_instance_norm(x, mask, running_var=mean, use_input_stats=False)
    with pytest.raises(ValueError, match="running_mean and running_var are needed"):
        masked_instance_norm(x, mask, use_input_stats=False)


def test_momentum_none_freezes_instance_statistics_as_in_torch() -> None:
    norm = MaskedInstanceNorm1d(2, momentum=None, track_running_stats=True)
    norm(torch.randn(2, 2, 4), torch.ones(2, 4, dtype=torch.bool))
    assert (norm.running_mean == 0).all()


def test_rms_norm_has_torchs_default_eps() -> None:
    x = torch.full((1, 1, 4), 1e-5, dtype=torch.float64)
    mask = torch.ones(1, 1, dtype=torch.bool)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        values = x.to(dtype)
        torch.testing.assert_close(
            masked_rms_norm(values, mask, [4]), F.rms_norm(values, [4]), rtol=0, atol=0
        )


def test_wrong_channels_are_refused() -> None:
    x, mask = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    for norm in (MaskedLayerNorm(5), MaskedRMSNorm(5)):
        with pytest.raises(ValueError, match="channels at dimension -1"):
            norm(x, mask)
        with pytest.raises(ValueError, match="expected the last dimensions"):
            type(norm)([2, 4])(x, mask)
        with pytest.raises(ValueError, match="channel_dim=1"):
            type(norm)([3, 4], channel_dim=1)(x)
    with pytest.raises(ValueError, match="4 channels cannot be cut into 3"):
        masked_group_norm(x, mask, 3, channel_dim=-1)
    for norm in (MaskedGroupNorm(5, 5, channel_dim=-1), MaskedInstanceNorm1d(5, affine=True)):
        with pytest.raises(ValueError, match=r"expected 5 channels|cut into 5"):
            norm(x, mask if norm.channel_dim == -1 else torch.ones(2, 4, dtype=torch.bool))


def test_reprs_name_the_settings() -> None:
    assert "channel_dim=-1, over='sequence'" in repr(MaskedLayerNorm(4, over="sequence"))
    for norm in (MaskedRMSNorm(4), MaskedGroupNorm(2, 4), MaskedInstanceNorm1d(4)):
        assert f"channel_dim={norm.channel_dim})" in repr(norm)


def test_large_means_keep_their_variance() -> None:
    x = torch.randn(2, 300, 4) + 1e4
    mask = torch.ones(2, 300, dtype=torch.bool)
    for norm in (MaskedGroupNorm(2, 4, channel_dim=-1), MaskedLayerNorm(4, over="sequence")):
        exact: Tensor = norm.double()(x.double(), mask)
        found = norm.float()(x, mask)
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=4e-3)
