"""Large means, narrow dtypes and what casting a model does to its statistics."""

import copy

import pytest
import torch
from torch import nn

from seqtrain.nn.norms import (
    MaskedBatchNorm1d,
    MaskedBatchRenorm1d,
    MaskedComplexBatchNorm1d,
    MaskedGroupNorm,
    MaskedInstanceNorm1d,
    MaskedLayerNorm,
    MaskedNorm,
    MaskedRMSNorm,
    masked_moments,
)

NARROW = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("mean", [1e2, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
def test_large_means_against_float64(
    path: str, device: str, mean: float, dtype: torch.dtype
) -> None:
    """Oracle 12. The reference sees the same rounded values, so only the arithmetic differs."""
    if mean > torch.finfo(dtype).max:
        pytest.skip("not a number of this dtype")
    torch.manual_seed(0)
    mask = torch.arange(300, device=device) < torch.tensor([[300], [20], [170]], device=device)
    # Wide enough for the dtype to tell the values apart.
    spread = max(1.0, 4 * torch.finfo(dtype).eps * mean)
    x = (torch.randn(3, 300, 4, device=device) * spread + mean).to(dtype)
    x[~mask] = torch.nan
    norm = MaskedBatchNorm1d(4, momentum=1.0, channel_dim=-1, device=device)
    exact = nn.BatchNorm1d(4, momentum=1.0).double()
    a, b = x.clone().requires_grad_(), x.cpu()[mask.cpu()].double().requires_grad_()
    grad = torch.randn(3, 300, 4, device=device).to(dtype)
    out, expected = norm(a, mask), exact(b)
    out.backward(grad)
    expected.backward(grad[mask].cpu().double())
    torch.testing.assert_close(
        norm.running_mean.cpu().double(), exact.running_mean, rtol=2e-7, atol=0
    )
    torch.testing.assert_close(
        norm.running_var.cpu().double(), exact.running_var, rtol=1e-4, atol=0
    )
    # The mean itself is known to half a step of float32, which every x̂ shares.
    std = exact.running_var.min().sqrt().item()
    shift = torch.finfo(torch.float32).eps * mean / std
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(out[mask].cpu().double(), expected, rtol=step, atol=4 * shift + 1e-6)
    scale = b.grad.abs().max().item()
    torch.testing.assert_close(
        a.grad[mask].cpu().double(), b.grad, rtol=2 * step, atol=(8 * shift + 2e-6) * scale
    )
    assert (out[~mask] == 0).all()


def test_moments_at_a_large_mean_where_the_difference_of_squares_fails() -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 1) + 1e4
    everything = torch.ones(2000, 1, dtype=torch.bool)
    exact = x.double().var(0, correction=0)
    difference = (x * x).mean(0) - x.mean(0) ** 2
    assert ((difference - exact).abs() > 0.1).all()
    moments = masked_moments(x, everything, [0])
    torch.testing.assert_close(moments.variance()[0].double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(moments.mean[0].double(), x.double().mean(0), rtol=6e-8, atol=0)


def test_a_rough_first_mean_is_corrected_by_the_second_pass() -> None:
    """The mean of 1e8 and 1e8 + 8 and ... is no number of float32: the deviation from it is."""
    x = torch.tensor([1e8, 1e8 + 8, 1e8 + 16, 1e8 + 16])[:, None]
    moments = masked_moments(x, torch.ones(4, 1, dtype=torch.bool), [0])
    exact = x.double().sub(x.double().mean()).square().sum()
    torch.testing.assert_close(moments.m2.double().squeeze(), exact, rtol=1e-6, atol=0)


def test_moments_of_nothing_are_zeros() -> None:
    moments = masked_moments(torch.ones(3, 2), torch.zeros(3, 1, dtype=torch.bool), [0])
    for part in (*moments, moments.variance(), moments.variance(correction=1)):
        assert not part.any()


def test_counts_beyond_the_range_of_float16() -> None:
    x = torch.ones(70_000, 1, dtype=torch.float16)
    moments = masked_moments(x, torch.ones(70_000, 1, dtype=torch.bool), [0])
    assert moments.n.item() == 70_000
    assert moments.n.dtype == torch.int64
    assert moments.mean.item() == 1
    assert moments.mean.dtype == moments.m2.dtype == torch.float32


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("made", ["cast", "constructed", "assigned"])
def test_statistics_stay_wide_in_a_narrow_model(dtype: torch.dtype, made: str) -> None:
    options = {"channel_dim": -1, "stat_weighting": "tokens"}
    norm = MaskedBatchNorm1d(2, dtype=dtype if made == "constructed" else None, **options)
    if made == "cast":
        norm = nn.Sequential(norm).to(dtype)[0]
    if made == "assigned":
        checkpoint = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in norm.state_dict().items()
        }
        norm.load_state_dict(checkpoint, assign=True)
    assert norm.weight.dtype == norm.bias.dtype == dtype
    statistics = norm.running_mean, norm.running_var, norm.running_weight
    assert {s.dtype for s in statistics} == {torch.float32}
    assert norm.num_batches_tracked.dtype == torch.int64
    x, mask = torch.randn(3, 5, 2).to(dtype), torch.rand(3, 5) < 0.7
    assert norm(x, mask).dtype == dtype
    assert norm(x).dtype == dtype


def test_casting_keeps_the_digits_of_the_statistics() -> None:
    norm = MaskedBatchNorm1d(1)
    norm.running_mean.fill_(1.002)
    assert norm.bfloat16().running_mean.item() == pytest.approx(1.002, abs=1e-6)
    assert norm.double().running_mean.dtype == torch.float64
    assert norm.half().running_mean.dtype == torch.float32
    moved = copy.deepcopy(norm).to("meta")
    assert moved.running_mean.is_meta
    assert moved.half().running_mean.dtype == torch.float32


def test_small_steps_are_not_lost_where_bfloat16_would_stall() -> None:
    norm = MaskedBatchNorm1d(1, momentum=0.002, channel_dim=-1).bfloat16()
    norm.running_mean.fill_(1.0)
    x, mask = torch.full((2, 3, 1), 2.0, dtype=torch.bfloat16), torch.ones(2, 3, dtype=torch.bool)
    norm(x, mask)
    assert norm.running_mean.item() == pytest.approx(1.002, abs=1e-6)
    stalled = torch.ones((), dtype=torch.bfloat16)
    assert stalled.lerp(torch.tensor(2.0, dtype=torch.bfloat16), 0.002) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *NARROW])
@pytest.mark.parametrize(
    "norm",
    [
        MaskedBatchNorm1d(4, channel_dim=-1),
        MaskedBatchRenorm1d(4, channel_dim=-1),
        MaskedLayerNorm(4),
        MaskedLayerNorm(4, over="sequence"),
        MaskedRMSNorm(4),
        MaskedGroupNorm(2, 4, channel_dim=-1),
        MaskedInstanceNorm1d(4, affine=True, channel_dim=-1),
        MaskedNorm(),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_every_norm_answers_in_the_dtype_of_its_input(norm: nn.Module, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(3, 6, 4).to(dtype), torch.rand(3, 6) < 0.7
    exact = copy.deepcopy(norm).double()(x.double(), mask)
    for module in (copy.deepcopy(norm).to(dtype), copy.deepcopy(norm)):
        if dtype == torch.float64 and any(p.dtype == torch.float32 for p in module.parameters()):
            continue
        out = module(x, mask)
        assert out.dtype == dtype
        step = torch.finfo(dtype).eps
        torch.testing.assert_close(out.double(), exact, rtol=4 * step, atol=4 * step)


def test_complex_statistics_stay_wide() -> None:
    norm = nn.Sequential(MaskedComplexBatchNorm1d(2)).half()[0]
    assert norm.running_mean.dtype == torch.complex64
    assert norm.running_covar.dtype == torch.float32
    assert norm.weight.dtype == torch.float16
