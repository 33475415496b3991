"""Poolings against plain torch on each sequence alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqtrain.build import build_pooling
from seqtrain.config import POOLINGS as ALL_POOLINGS
from seqtrain.masking import lengths_to_mask
from seqtrain.nn.layout import packed_layout
from seqtrain.nn.pooling import AttentionPooling, Pooling

CPU = torch.device("cpu")
POOLINGS = tuple(name for name in ALL_POOLINGS if name != "position")
"""See test_position_pooling.py for the other."""
lengths_drawn = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def make(name: str, dim: int = 4) -> Pooling:
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


@pytest.mark.parametrize("name", POOLINGS)
@given(
    # Some as long as to lie in grids of their own.
    lengths=st.lists(st.one_of(st.integers(1, 9), st.integers(300, 320)), min_size=1, max_size=5),
    seed=st.integers(0, 999),
)
@settings(max_examples=25)
def test_packed_states_are_pooled_as_padded_with_the_same_gradients(
    name: str, lengths: list[int], seed: int
) -> None:
    module = make(name).double()
    counts = torch.tensor(lengths)
    mask = lengths_to_mask(counts, max(lengths))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*mask.shape, 4, dtype=torch.float64, generator=generator)
    padded, rows = x.requires_grad_(), x.detach()[mask][None].requires_grad_()
    wanted, found = module(padded, mask), module.packed(rows, packed_layout(counts, CPU))
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn(wanted.shape, dtype=torch.float64, generator=generator)
    (expected,) = torch.autograd.grad(wanted, padded, upstream)
    (gradient,) = torch.autograd.grad(found, rows, upstream)
    torch.testing.assert_close(gradient[0], expected[mask])


@pytest.mark.parametrize("name", POOLINGS)
def test_packed_pooling_has_second_derivatives(name: str) -> None:
    module, layout = make(name, 2).double(), packed_layout(torch.tensor([4, 2, 1]), CPU)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 7, 2, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module.packed(x, layout), x)
    assert torch.autograd.gradgradcheck(lambda x: module.packed(x**2, layout), x)


def test_the_mean_of_many_residues_keeps_its_digits() -> None:
    """Added one to the other in float32, 10^5 of them are off by 3e-4."""
    x = torch.rand(1, 100_000, 2, generator=torch.Generator().manual_seed(0))
    found = make("mean", 2).packed(x, packed_layout(torch.tensor([100_000]), CPU))
    torch.testing.assert_close(found.double(), x.double().mean(1), rtol=2e-6, atol=0)


def test_the_first_of_equal_residues_gets_the_gradient() -> None:
    x = torch.tensor([[[1.0], [3.0], [3.0], [9.0]]], requires_grad=True)
    make("max", 1)(x, torch.tensor([[True, True, True, False]])).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0, 1, 0, 0]
