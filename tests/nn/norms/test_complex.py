"""Complex batch norm: whitening against an eigendecomposition."""

import copy
import pickle

import numpy as np
import pytest
import torch
from masked_inputs import make_mask
from oracles import whitened
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from seqtrain.nn.norms import (
    MaskedBatchNorm1d,
    MaskedComplexBatchNorm1d,
    MaskedComplexBatchNorm2d,
    NaiveMaskedComplexBatchNorm1d,
    NaiveMaskedComplexBatchNorm2d,
)
from seqtrain.nn.norms.complex import (
    MaskedComplexBatchNorm,
    Symmetric,
    complex_moments,
    inverse_square_root,
)


def example(dtype: torch.dtype = torch.complex128) -> tuple[Tensor, Tensor]:
    """Correlated parts ``(B, C, L)`` with NaN at padding, and the mask."""
    generator = torch.Generator().manual_seed(3)
    mask = make_mask("ragged", 5, 9, generator)
    x = torch.randn(5, 2, 9, dtype=torch.complex128, generator=generator)
    x = 2 * x + 0.8 * x.conj() + (3 - 1j)
    return x.masked_fill(~mask[:, None], complex(np.nan, np.inf)).to(dtype), mask


def rows_of(x: Tensor, mask: Tensor, channel: int) -> np.ndarray:
    return x[:, channel][mask].detach().numpy()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_output_is_white_times_the_weight(dtype: torch.dtype) -> None:
    x, mask = example(dtype)
    norm = MaskedComplexBatchNorm1d(2, eps=0.0, dtype=dtype)
    out = norm(x, mask)
    assert out.dtype == dtype
    assert (out.movedim(1, -1)[~mask] == 0).all()
    for c in range(2):
        white = torch.from_numpy(whitened(rows_of(x, mask, c)))
        found = torch.from_numpy(rows_of(out, mask, c))
        torch.testing.assert_close(found.to(white.dtype), white / 2**0.5, rtol=1e-4, atol=1e-5)
        # So that |y|² is 1 on average, where a start at √2 would make it 4.
        assert found.abs().square().mean().item() == pytest.approx(1, rel=1e-4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    rr, ii, ri = (w.view(2, 1) for w in norm.weight.unbind(1))
    white = out * 2**0.5
    expected = torch.complex(
        rr * white.real + ri * white.imag + norm.bias[:, :1],
        ri * white.real + ii * white.imag + norm.bias[:, 1:],
    ).masked_fill(~mask[:, None], 0)
    torch.testing.assert_close(norm(x, mask), expected)


def test_running_statistics_over_two_batches() -> None:
    x, mask = example()
    norm = MaskedComplexBatchNorm1d(2, momentum=0.25, dtype=torch.complex128)
    mean, covariance = np.zeros(2, complex), np.array([[0.5, 0.5, 0.0]] * 2)
    for scale in (1.0, -2.0):
        norm(x * scale, mask)
        for c in range(2):
            real = rows_of(x * scale, mask, c)
            (rr, ri), (_, ii) = np.cov(real.real, real.imag)
            mean[c] = 0.75 * mean[c] + 0.25 * real.mean()
            covariance[c] = 0.75 * covariance[c] + 0.25 * np.array([rr, ii, ri])
    np.testing.assert_allclose(norm.running_mean.numpy(), mean)
    np.testing.assert_allclose(norm.running_covar.numpy(), covariance)
    assert norm.num_batches_tracked == 2


def test_evaluation_counts_eps_once_as_training_does() -> None:
    x, mask = example()
    n = int(mask.sum())
    norm = MaskedComplexBatchNorm1d(2, eps=0.5, momentum=1.0, dtype=torch.complex128)
    trained = norm(x, mask)
    norm.running_covar.mul_((n - 1) / n)
    torch.testing.assert_close(norm.eval()(x, mask), trained)


def test_a_fresh_module_in_evaluation_is_the_identity() -> None:
    x, mask = example()
    norm = MaskedComplexBatchNorm1d(2, eps=0.0, dtype=torch.complex128).eval()
    torch.testing.assert_close(norm(x, mask), x.masked_fill(~mask[:, None], 0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_first_and_second_derivatives(training: bool, affine: bool) -> None:
    x, mask = example()
    x, mask = x[:2, :, :4].masked_fill(~mask[:2, None, :4], 0).requires_grad_(), mask[:2, :4]
    norm = MaskedComplexBatchNorm1d(
        2, affine=affine, track_running_stats=not training, dtype=torch.complex128
    ).train(training)
    assert gradcheck(lambda x: norm(x, mask), [x])
    assert gradgradcheck(lambda x: norm(x, mask), [x])


def test_poison_at_padding_reaches_nothing() -> None:
    x, mask = example()
    x.requires_grad_()
    norm = MaskedComplexBatchNorm1d(2, dtype=torch.complex128)
    out = norm(x, mask)
    grad = torch.where(mask[:, None], out.detach(), complex(np.nan, np.nan))
    out.backward(grad)
    assert (x.grad.movedim(1, -1)[~mask] == 0).all()
    for tensor in (out, x.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("correlation", ["real alone", "imag = 2 real"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_degenerate_covariances_stay_finite_at_every_scale(correlation: str, scale: float) -> None:
    """Rounding of the determinant exceeds any absolute eps at large scales."""
    real = torch.randn(1, 1, 500, generator=torch.Generator().manual_seed(0)) * scale
    imag = torch.zeros_like(real) if correlation == "real alone" else 2 * real
    x = torch.complex(real, imag).requires_grad_()
    norm = MaskedComplexBatchNorm1d(1, affine=False)
    out = norm(x, torch.ones(1, 500, dtype=torch.bool))
    out.abs().sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    assert out.abs().max() < 10
    if scale >= 1:  # below, eps is no longer small beside the variance
        assert out.abs().square().mean().item() == pytest.approx(1, rel=0.1)


def test_a_constant_channel_comes_out_as_the_bias() -> None:
    for eps in (1e-5, 0.0):
        norm = MaskedComplexBatchNorm1d(1, eps=eps, dtype=torch.complex128)
        nn.init.constant_(norm.bias, 2.0)
        x = torch.full((2, 1, 3), 1.5 + 1j, dtype=torch.complex128, requires_grad=True)
        out = norm(x, torch.ones(2, 3, dtype=torch.bool))
        torch.testing.assert_close(out, torch.full_like(out, 2 + 2j))
        out.abs().sum().backward()
        assert x.grad.isfinite().all()


def test_too_few_positions_and_masks_of_single_channels() -> None:
    x, mask = example()
    x = x.masked_fill(~mask[:, None], 1j)
    whole = mask[:, None].repeat(1, 2, 1)
    whole[:, 1] = False
    whole[0, 1, :2] = torch.tensor([True, True])
    kwargs = {"dtype": torch.complex128, "min_count": 3}
    out = MaskedComplexBatchNorm1d(2, **kwargs)(x, whole)
    alone = MaskedComplexBatchNorm1d(1, **kwargs)
    torch.testing.assert_close(out[:, :1], alone(x[:, :1], mask))
    few = MaskedComplexBatchNorm1d(2, **kwargs).eval()(x, whole)
    torch.testing.assert_close(out[:, 1], few[:, 1])
    untracked = MaskedComplexBatchNorm1d(2, track_running_stats=False, **kwargs)
    assert (untracked(x, whole)[:, 1] == 0).all()
    torch.testing.assert_close(untracked(x, whole)[:, :1], out[:, :1])
    torch.testing.assert_close(untracked.eval()(x, whole)[:, :1], out[:, :1])
    norm = MaskedComplexBatchNorm1d(2, **kwargs)
    norm(x, torch.zeros_like(mask))
    assert norm.num_batches_tracked == 0
    assert not norm.running_mean.any()


@pytest.mark.parametrize("min_count", [1, 2, 3])
def test_every_count_from_none_up(min_count: int) -> None:
    """Channel c has c real positions."""
    torch.manual_seed(0)
    x = torch.randn(1, 5, 6, dtype=torch.complex128, requires_grad=True)
    mask = torch.arange(6) < torch.arange(5)[None, :, None]
    norm = MaskedComplexBatchNorm1d(5, momentum=1.0, min_count=min_count, dtype=x.dtype)
    settled = copy.deepcopy(norm).eval()(x, mask)
    out = norm(x, mask)
    out.abs().square().sum().backward()
    assert x.grad.isfinite().all()
    for c in range(5):
        if c < min_count:
            assert torch.equal(out[0, c], settled[0, c])
            assert norm.running_mean[c] == 0
            assert norm.running_covar[c].tolist() == [0.5, 0.5, 0]
            continue
        real = x[0, c, :c].detach().numpy()
        (rr, ri), (_, ii) = np.cov(real.real, real.imag) if c > 1 else np.zeros((2, 2))
        assert norm.running_mean[c].item() == pytest.approx(real.mean())
        np.testing.assert_allclose(norm.running_covar[c].numpy(), [rr, ii, ri], atol=1e-12)
        torch.testing.assert_close(out[0, c].sum().abs(), torch.zeros(()).double())


def test_what_has_no_inverse_root_gets_zeros() -> None:
    nothing = Symmetric(*torch.zeros(3, 1))
    assert all(entry.item() == 0 for entry in inverse_square_root(nothing, 0.0))


def test_a_rough_first_mean_is_corrected_by_the_second_pass() -> None:
    """The mean of 1e8, 1e8 + 8 and so on is no number of float32: the deviations from it are."""
    real = torch.tensor([1e8, 1e8 + 8, 1e8 + 16, 1e8 + 16])
    imag = torch.tensor([1e8, 1e8 + 16, 1e8, 1e8 + 8])
    _, _, m2 = complex_moments(torch.complex(real, imag)[:, None], None, 1)
    exact = 3 * np.cov(real.double().numpy(), imag.double().numpy())
    found = [entry.item() for entry in m2]
    np.testing.assert_allclose(found, [exact[0, 0], exact[1, 1], exact[0, 1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "shape", "channel_dim"),
    [
        (MaskedComplexBatchNorm1d, (30, 2), 1),
        (MaskedComplexBatchNorm1d, (5, 2, 6), 1),
        (MaskedComplexBatchNorm1d, (5, 6, 2), -1),
        (MaskedComplexBatchNorm2d, (3, 2, 4, 5), 1),
        (MaskedComplexBatchNorm2d, (3, 4, 5, 2), -1),
    ],
)
def test_every_rank_and_no_mask(kind: type, shape: tuple[int, ...], channel_dim: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.complex128)
    mask = torch.rand([s for d, s in enumerate(shape) if d != channel_dim % len(shape)]) < 0.7
    norm = kind(2, dtype=torch.complex128, channel_dim=channel_dim, momentum=None)
    out = norm(x, mask).movedim(channel_dim, -1)
    real = x.movedim(channel_dim, -1)[mask]
    torch.testing.assert_close(out[mask], MaskedComplexBatchNorm1d(2, dtype=x.dtype)(real))
    torch.testing.assert_close(norm(x), norm(x, torch.ones_like(mask)))
    assert norm.num_batches_tracked == 3
    with pytest.raises(ValueError, match="input"):
        norm(torch.zeros(3, dtype=x.dtype))


def test_the_base_takes_any_rank_from_two() -> None:
    norm = MaskedComplexBatchNorm(2)
    assert norm(torch.randn(5, 2, dtype=torch.complex64)).shape == (5, 2)
    assert norm(torch.randn(2, 2, 3, 2, 2, dtype=torch.complex64)).shape == (2, 2, 3, 2, 2)
    with pytest.raises(ValueError, match="at least 2D"):
        norm(torch.zeros(2, dtype=torch.complex64))


def test_large_means_keep_their_covariance() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 2000, dtype=torch.complex64) + (1e4 - 1e4j)
    norm = MaskedComplexBatchNorm1d(2, momentum=1.0)
    norm(x, torch.ones(1, 2000, dtype=torch.bool))
    for c in range(2):
        exact = np.cov(np.stack([x[0, c].real.double().numpy(), x[0, c].imag.double().numpy()]))
        found = norm.running_covar[c].double().numpy()
        np.testing.assert_allclose(found, [exact[0, 0], exact[1, 1], exact[0, 1]], atol=1e-5)
        np.testing.assert_allclose(
            norm.running_mean[c].numpy(), x[0, c].to(torch.complex128).mean().numpy(), rtol=1e-7
        )


def test_buffers_hold_no_graph_and_keep_their_place() -> None:
    x, mask = example()
    norm = MaskedComplexBatchNorm1d(2, dtype=torch.complex128)
    where = [b.data_ptr() for b in norm.buffers()]
    for _ in range(3):
        norm(x.clone().requires_grad_(), mask).abs().sum().backward()
    assert [b.data_ptr() for b in norm.buffers()] == where
    assert not any(b.requires_grad for b in norm.buffers())


def test_copies_states_and_settings() -> None:
    x, mask = example(torch.complex64)
    norm = MaskedComplexBatchNorm1d(2, channel_dim=1, min_count=3)
    norm(x, mask)
    again = MaskedComplexBatchNorm1d(2)
    again.load_state_dict(norm.state_dict())
    for copied in (again, copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert torch.equal(copied.eval()(x, mask), norm.eval()(x, mask))
    assert "2, eps=1e-05, momentum=0.1" in repr(norm)
    assert "min_count=3" in repr(norm)
    norm.reset_parameters()
    fresh = MaskedComplexBatchNorm1d(2).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in norm.state_dict().items())
    bare = MaskedComplexBatchNorm1d(2, affine=False, track_running_stats=False)
    assert not bare.state_dict()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_the_naive_form_is_two_real_norms(dtype: torch.dtype) -> None:
    x, mask = example(dtype)
    real_dtype = torch.float64 if dtype == torch.complex128 else torch.float32
    norm = NaiveMaskedComplexBatchNorm1d(2, eps=1e-3, dtype=real_dtype)
    out = norm(x, mask)
    assert out.dtype == dtype
    real, imag = (MaskedBatchNorm1d(2, eps=1e-3, dtype=real_dtype) for _ in range(2))
    assert torch.equal(out.real, real(x.real, mask))
    assert torch.equal(out.imag, imag(x.imag, mask))
    assert not torch.equal(norm.bn_r.running_mean, norm.bn_i.running_mean)
    image = torch.randn(2, 2, 3, 4, dtype=torch.complex64)
    flat = NaiveMaskedComplexBatchNorm1d(2)(image.flatten(2))
    torch.testing.assert_close(NaiveMaskedComplexBatchNorm2d(2)(image).flatten(2), flat)
