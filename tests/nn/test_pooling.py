"""Poolings against plain torch on each sequence alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqtrain.build import build_pooling
from seqtrain.config import POOLINGS
from seqtrain.masking import lengths_to_mask
from seqtrain.nn.pooling import AttentionPooling

lengths_drawn = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def make(name: str, dim: int = 4) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_pooling(name, dim)


def alone(name: str, module: torch.nn.Module, rows: Tensor) -> Tensor:
    """The pooling of the residues ``(n, C)`` of one sequence, written out."""
    match name:
        case "mean":
            return rows.sum(0) / len(rows)
        case "max":
            return torch.stack([max(column) for column in rows.unbind(1)])
        case "mean_max":
            return torch.cat([alone("mean", module, rows), alone("max", module, rows)])
    assert isinstance(module, AttentionPooling)
    scores = torch.exp(rows @ module.score.weight[0] + module.score.bias)
    return (scores[:, None] * rows).sum(0) / scores.sum()


@pytest.mark.parametrize("name", POOLINGS)
@given(lengths=lengths_drawn, extra=st.integers(0, 5), seed=st.integers(0, 999))
def test_pooled_vector_is_that_of_each_sequence_alone(
    name: str, lengths: list[int], extra: int, seed: int
) -> None:
    module = make(name)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lengths), max(lengths) + extra, 4, generator=generator)
    mask = lengths_to_mask(torch.tensor(lengths), x.shape[1])
    x[~mask] = torch.nan
    pooled = module(x, mask)
    assert pooled.shape == (len(lengths), module.out_dim)
    for row, residues, length in zip(pooled, x, lengths, strict=True):
        torch.testing.assert_close(row, alone(name, module, residues[:length]))


@pytest.mark.parametrize("name", POOLINGS)
def test_gradient_at_poisoned_padding_is_zero_and_finite_elsewhere(name: str) -> None:
    module = make(name)
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    mask = lengths_to_mask(torch.tensor([2, 5]))
    x[~mask] = torch.nan
    x.requires_grad_()
    module(x, mask).square().sum().backward()
    assert x.grad is not None
    assert not x.grad[~mask].any()
    assert x.grad[mask].isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", POOLINGS)
def test_a_maximum_below_zero_is_not_hidden_by_padding(name: str) -> None:
    module = make(name)
    x = torch.full((1, 6, 4), -3.0)
    pooled = module(x, lengths_to_mask(torch.tensor([2]), 6))
    torch.testing.assert_close(pooled, torch.full_like(pooled, -3.0))


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_stay_and_do_not_overflow(name: str, dtype: torch.dtype) -> None:
    """60,000 residues of 2: their sum is beyond float16, their mean is not."""
    module = make(name).to(dtype)
    x = torch.full((1, 60_000, 4), 2.0, dtype=dtype)
    pooled = module(x, torch.ones(1, 60_000, dtype=torch.bool))
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled, torch.full_like(pooled, 2.0), rtol=1e-2, atol=0)


def test_attention_follows_its_score() -> None:
    """The residue with the far highest score is what comes out."""
    module = make("attention")
    assert isinstance(module, AttentionPooling)
    with torch.no_grad():
        module.score.weight.copy_(torch.tensor([[100.0, 0, 0, 0]]))
    x = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(2))
    x[0, :, 0] = torch.tensor([0.0, 1.0, 3.0, 2.0])
    torch.testing.assert_close(module(x, torch.ones(1, 4, dtype=torch.bool))[0], x[0, 2])


def test_every_pooling_of_the_settings_is_another_function() -> None:
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(3, 5, dtype=torch.bool)
    pooled = [module(x, mask)[:, :4] for module in map(make, POOLINGS)]
    mean, highest, both, attended = pooled
    torch.testing.assert_close(mean, both)
    assert not torch.allclose(mean, highest)
    assert not torch.allclose(mean, attended)
