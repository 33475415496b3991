"""Batch renormalization: the paper's formula over real positions."""

import pytest
import torch
from masked_inputs import make_mask, poisoned
from oracles import real_rows
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from seqtrain.nn.norms import MaskedBatchNorm1d, MaskedBatchRenorm1d


def example(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = make_mask("ragged", 4, 6, generator)
    return torch.randn(4, 6, 3, generator=generator, dtype=torch.float64) * 2 + 1, mask


def renorm(**options: object) -> MaskedBatchRenorm1d:
    norm = MaskedBatchRenorm1d(3, channel_dim=-1, warmup_batches=0, **options).double()
    norm.running_mean.copy_(torch.tensor([0.5, -2.0, 1.0]))
    norm.running_var.copy_(torch.tensor([2.0, 50.0, 0.01]))
    return norm


def by_the_paper(
    rows: Tensor, mean: Tensor, var: Tensor, r_max: float, d_max: float, eps: float = 1e-5
) -> Tensor:
    sigma_batch = (rows.var(0, correction=0) + eps).sqrt()
    sigma = (var + eps).sqrt()
    r = (sigma_batch / sigma).detach().clamp(1 / r_max, r_max)
    d = ((rows.mean(0) - mean) / sigma).detach().clamp(-d_max, d_max)
    return (rows - rows.mean(0)) / sigma_batch * r + d


@pytest.mark.parametrize(("r_max", "d_max"), [(3.0, 5.0), (1.0, 0.0), (1e6, 1e6)])
def test_the_paper_over_packed_rows(path: str, r_max: float, d_max: float) -> None:
    x, mask = example()
    norm = renorm(r_max=r_max, d_max=d_max)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    ours = poisoned(x, mask[..., None]).requires_grad_()
    rows = real_rows(x, mask).requires_grad_()
    out = norm(ours, mask)
    expected = by_the_paper(rows, mean, var, r_max, d_max) * norm.weight + norm.bias
    torch.testing.assert_close(out[mask], expected)
    assert (out[~mask] == 0).all()
    grad = torch.randn(out.shape, dtype=torch.float64)
    out.backward(poisoned(grad, mask[..., None]))
    found = [p.grad.clone() for p in norm.parameters()]
    norm.zero_grad()
    expected.backward(grad[mask])
    torch.testing.assert_close(ours.grad[mask], rows.grad)
    assert (ours.grad[~mask] == 0).all()
    for mine, parameter in zip(found, norm.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)
    torch.testing.assert_close(norm.running_mean, 0.9 * mean + 0.1 * rows.mean(0))
    sigma, sigma_batch = (var + 1e-5).sqrt(), (rows.var(0, correction=0) + 1e-5).sqrt()
    sigma = 0.9 * sigma + 0.1 * sigma_batch
    torch.testing.assert_close((norm.running_var + 1e-5).sqrt(), sigma)


def test_within_wide_limits_training_is_evaluation(path: str) -> None:
    x, mask = example()
    norm = renorm(r_max=1e6, d_max=1e6)
    expected = norm.eval()(x, mask)
    torch.testing.assert_close(norm.train()(x, mask), expected)


def test_it_starts_as_batch_norm_and_the_limits_open_linearly() -> None:
    norm = MaskedBatchRenorm1d(3, channel_dim=-1, warmup_batches=4, r_max=3.0, d_max=5.0).double()
    plain = MaskedBatchNorm1d(3, channel_dim=-1).double()
    x, mask = example()
    torch.testing.assert_close(norm(x, mask), plain(x, mask))
    for counted in range(1, 7):
        r_max, d_max = norm._limits()
        opened = min(counted / 4, 1)
        assert r_max.item() == pytest.approx(1 + 2 * opened)
        assert d_max.item() == pytest.approx(5 * opened)
        norm(x, mask)
    assert renorm()._limits()[0].item() == 3


def test_one_batch_of_warmup_is_one() -> None:
    norm = MaskedBatchRenorm1d(3, channel_dim=-1, warmup_batches=1).double()
    norm(*example())
    assert [limit.item() for limit in norm._limits()] == [3, 5]


def test_as_few_positions_as_min_count_are_enough() -> None:
    norm = renorm(momentum=1.0)
    x, mask = torch.randn(1, 3, 3, dtype=torch.float64), torch.tensor([[True, False, True]])
    norm(x, mask)
    torch.testing.assert_close(norm.running_mean, x[mask].mean(0))


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}], ids=str)
def test_first_and_second_derivatives(path: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    norm = renorm(**options)
    # Wide within the limits, where r and d would not be constants of differences, and at them.
    norm.r_max, norm.d_max = 1.0, 0.0
    x, mask = example()
    x, mask = x[:2, :3].clone().requires_grad_(), mask[:2, :3]
    assert gradcheck(lambda x: norm(x, mask), [x])
    assert gradgradcheck(lambda x: norm(x, mask), [x])


def test_a_batch_with_too_little_is_normalized_as_in_evaluation(path: str) -> None:
    norm = renorm()
    before = [b.clone() for b in norm.buffers()]
    x, mask = torch.randn(1, 3, 3, dtype=torch.float64), torch.tensor([[True, False, False]])
    out = norm(x, mask)
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))
    torch.testing.assert_close(out, norm.eval()(x, mask))


def test_without_a_mask_all_positions_count() -> None:
    x, _ = example()
    everything = torch.ones(4, 6, dtype=torch.bool)
    torch.testing.assert_close(renorm()(x), renorm()(x, everything))
    with pytest.raises(ValueError, match="2D or 3D"):
        renorm()(x[0, 0])


def test_it_is_a_batch_norm_to_checkpoints_and_refuses_to_forget() -> None:
    norm = renorm()
    assert isinstance(norm, nn.BatchNorm1d)
    nn.BatchNorm1d(3).load_state_dict(norm.state_dict())
    with pytest.raises(ValueError, match="track them"):
        MaskedBatchRenorm1d(3, track_running_stats=False)
    assert "r_max=3.0, d_max=5.0, warmup_batches=100" in repr(MaskedBatchRenorm1d(3))


def test_token_weighting_reaches_it() -> None:
    x, mask = example()
    norm = MaskedBatchRenorm1d(3, channel_dim=-1, stat_weighting="tokens").double()
    norm(x, mask)
    torch.testing.assert_close(norm.running_mean, x[mask].mean(0))
