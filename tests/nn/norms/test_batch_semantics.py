"""Masked batch norm at its edges: counts, shapes, strides, dtypes, refusals."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from masked_inputs import MaskedInput, masked_inputs, poisoned
from oracles import (
    batch_norm_by_channel,
)
from torch import nn

from seqtrain.nn.norms import (
    MaskedBatchNorm,
    MaskedBatchNorm1d,
    MaskedBatchNorm2d,
    MaskedBatchNorm3d,
    masked_batch_norm,
)

# The fixture ``path`` only sets which implementation runs, for all examples alike.
few = settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
close = {"rtol": 1e-9, "atol": 1e-9}


def randomized(channels: int, **options: object) -> MaskedBatchNorm1d:
    torch.manual_seed(channels)
    norm = MaskedBatchNorm1d(channels, **options).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@few
@given(case=masked_inputs(), seed=st.integers(0, 99), min_count=st.integers(1, 4))
def test_each_channel_may_have_a_mask_of_its_own(
    case: MaskedInput, seed: int, min_count: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = case.clean + 1
    mask = torch.rand(x.shape, generator=generator) < 0.5
    expected, mean, var = batch_norm_by_channel(x, mask, min_count=min_count)
    for buffers in (False, True):
        norm = MaskedBatchNorm1d(
            x.shape[-1],
            momentum=1.0,
            channel_dim=-1,
            min_count=min_count,
            track_running_stats=buffers,
        ).double()
        out = norm(poisoned(x, mask), mask)
        enough = mask.sum((0, 1)) >= min_count
        torch.testing.assert_close(out[..., enough], expected[..., enough])
        settled = torch.where(mask, x / (1 + 1e-5) ** 0.5, 0) if buffers else torch.zeros_like(x)
        torch.testing.assert_close(out[..., ~enough], settled[..., ~enough])
        if buffers:
            torch.testing.assert_close(norm.running_mean, torch.where(enough, mean, 0))
            torch.testing.assert_close(norm.running_var, torch.where(enough, var, 1))
            assert norm.num_batches_tracked == int(enough.any())


@pytest.mark.parametrize("real", [0, 1])
def test_a_batch_with_too_little_is_normalized_as_in_evaluation(path: str, real: int) -> None:
    norm = randomized(2, channel_dim=-1)
    norm(torch.randn(3, 4, 2, dtype=torch.float64), torch.ones(3, 4, dtype=torch.bool))
    before = [b.clone() for b in norm.buffers()]
    x = torch.randn(1, 3, 2, dtype=torch.float64)
    mask = torch.arange(3)[None] < real
    out = norm(x, mask)
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))
    torch.testing.assert_close(out, norm.eval()(x, mask))


def test_a_constant_channel_comes_out_as_the_bias(path: str) -> None:
    norm = MaskedBatchNorm1d(1, channel_dim=-1)
    nn.init.constant_(norm.bias, 2.0)
    x = torch.full((2, 3, 1), 0.1, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    out = norm(x, mask)
    torch.testing.assert_close(out, 2.0 * mask[..., None])
    out.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (MaskedBatchNorm1d, (4, 3)),
        (MaskedBatchNorm1d, (4, 3, 5)),
        (MaskedBatchNorm2d, (2, 3, 4, 5)),
        (MaskedBatchNorm3d, (2, 3, 2, 3, 4)),
        (MaskedBatchNorm, (2, 3, 2, 2, 3, 2)),
    ],
)
def test_every_rank(path: str, kind: type[MaskedBatchNorm], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).double()
    mask = torch.rand(shape[:1] + shape[2:]) < 0.6
    out = kind(3).double()(x, mask)
    rows = x.movedim(1, -1)[mask]
    expected = F.batch_norm(rows, None, None, training=True)
    torch.testing.assert_close(out.movedim(1, -1)[mask], expected)
    assert (out.movedim(1, -1)[~mask] == 0).all()
    with pytest.raises(ValueError, match="expected"):
        kind(3)(torch.zeros(3))


def test_the_input_may_be_strided_anyhow(path: str) -> None:
    torch.manual_seed(0)
    mask = torch.rand(4, 6) < 0.6
    base = torch.randn(4, 6, 3)
    norm = MaskedBatchNorm1d(3, channel_dim=-1)
    expected = norm(base, mask)
    for strided in (
        base.transpose(0, 1).contiguous().transpose(0, 1),
        base.transpose(1, 2).contiguous().transpose(1, 2),
        base.repeat_interleave(2, dim=1)[:, ::2],
        F.pad(base, (1, 1))[..., 1:-1],
    ):
        assert not strided.is_contiguous()
        torch.testing.assert_close(norm(strided, mask), expected)
        torch.testing.assert_close(norm(strided, mask.T.contiguous().T), expected)


def test_autocast_keeps_the_statistics_wide() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv1d(2, 3, 1), MaskedBatchNorm1d(3, momentum=1.0)
    x, mask = torch.randn(4, 2, 5), torch.rand(4, 5) < 0.7
    with torch.autocast("cpu", torch.bfloat16):
        hidden = conv(x)
        out = norm(hidden, mask)
    assert hidden.dtype == out.dtype == torch.bfloat16
    rows = hidden.movedim(1, -1)[mask].double()
    torch.testing.assert_close(norm.running_mean.double(), rows.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), rows.var(0), rtol=1e-6, atol=1e-6)


def test_evaluation_needs_running_statistics() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="needs running_mean and running_var"):
        masked_batch_norm(torch.zeros(2, 4, 3), mask)


def test_half_of_the_running_statistics_is_none() -> None:
    x, mask = torch.randn(2, 4, 3), torch.tensor([[True] * 3, [True, False, False]])
    mean = torch.zeros(4)
    out = masked_batch_norm(x, mask, running_mean=mean, training=True)
    assert torch.equal(out, masked_batch_norm(x, mask, training=True))
    assert not mean.any()
    with pytest.raises(ValueError, match="needs running_mean and running_var"):
        masked_batch_norm(x, mask, running_var=torch.ones(4))


def test_without_mask_and_counter_the_plain_average_stays_as_in_torch() -> None:
    norm = nn.BatchNorm1d(4, momentum=None)
    norm.num_batches_tracked = None
    x, mean, var = torch.randn(2, 4, 3) + 1, torch.zeros(4), torch.ones(4)
    expected = norm(x)
    out = masked_batch_norm(x, None, mean, var, training=True, momentum=None)
    torch.testing.assert_close(out, expected)
    assert torch.equal(mean, norm.running_mean)
    assert torch.equal(var, norm.running_var)


def test_narrow_buffers_are_refused_in_training() -> None:
    buffers = torch.zeros(4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.bfloat16)
    x, mask = torch.zeros(2, 4, 3, dtype=torch.bfloat16), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(TypeError, match="would stall"):
        masked_batch_norm(x, mask, *buffers, training=True)


def test_a_wrong_number_of_channels_is_refused() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    norm = MaskedBatchNorm1d(4, channel_dim=-1, stat_weighting="tokens")
    for channels in (1, 5):
        with pytest.raises(ValueError, match="expected 4 channels at dimension 1"):
            norm(torch.zeros(2, 3, channels), mask)


def test_repr_names_the_settings() -> None:
    text = repr(MaskedBatchNorm1d(4, channel_dim=-1, min_count=3, stat_weighting="tokens"))
    assert "4, eps=1e-05" in text
    assert "channel_dim=-1, min_count=3, stat_weighting='tokens'" in text
