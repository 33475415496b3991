"""Attention one sequence after the other, against torch's with a mask."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqtrain.masking import lengths_to_mask
from seqtrain.nn.attention import _has_flash, attend
from seqtrain.nn.layout import packed_layout, padded_layout

CPU = torch.device("cpu")
HEADS, HEAD_DIM = 2, 4


@pytest.fixture(params=[1, 3], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def drawn(lengths: list[int], width: int, seed: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Queries, keys and values, padded with NaN; the mask; an upstream gradient."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4, len(lengths), width, HEADS, HEAD_DIM)
    mask = lengths_to_mask(torch.tensor(lengths), width)
    *states, grad = torch.randn(shape, dtype=torch.float64, generator=generator)
    states = [x.masked_fill(~mask[..., None, None], torch.nan) for x in states]
    return states, mask, grad.masked_fill(~mask[..., None, None], 0)


def by_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    real = mask[..., None, None]
    q, k, v = (x.masked_fill(~real, 0).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
    return out.transpose(1, 2).masked_fill(~real, 0)


@settings(max_examples=25)
@given(
    # One may outweigh all others, which torch's own threads then compute together.
    lengths=st.lists(st.one_of(st.integers(1, 12), st.integers(50, 90)), min_size=1, max_size=7),
    extra=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_with_a_mask(
    lengths: list[int], extra: int, seed: int
) -> None:
    states, mask, grad = drawn(lengths, max(lengths) + extra, seed)
    leaves = [x.clone().requires_grad_() for x in states]
    wanted = by_mask(*leaves, mask)
    gradients = torch.autograd.grad(wanted, leaves, grad)
    counts = torch.tensor(lengths)
    padded, packed = padded_layout(counts, mask.shape[1]), packed_layout(counts, CPU)

    inputs = [x.clone().requires_grad_() for x in states]
    found = attend(*inputs, padded)
    torch.testing.assert_close(found, wanted)
    for a, b in zip(torch.autograd.grad(found, inputs, grad), gradients, strict=True):
        torch.testing.assert_close(a, b)

    inputs = [x[mask][None].requires_grad_() for x in states]
    found = attend(*inputs, packed)
    torch.testing.assert_close(found[0], wanted[mask])
    rows = torch.autograd.grad(found, inputs, grad[mask][None])
    for a, b in zip(rows, gradients, strict=True):
        torch.testing.assert_close(a[0], b[mask])


def test_a_batch_without_sequences_stays_empty() -> None:
    q = torch.zeros(1, 0, HEADS, HEAD_DIM)
    layout = packed_layout(torch.tensor([], dtype=torch.int64), CPU)
    assert attend(q, q, q, layout).shape == q.shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_flash_attention_gives_each_sequence_what_it_gives_alone(dtype: torch.dtype) -> None:
    """And what float64 gives, up to its rounding."""
    device, lengths = torch.device("cuda"), [90, 33, 7, 1]
    layout = packed_layout(torch.tensor(lengths), device)
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = torch.randn(4, 1, sum(lengths), HEADS, 16, generator=generator).to(dtype)
    leaves = [x.to(device).requires_grad_() for x in (q, k, v)]
    assert _has_flash(leaves[0])
    found = attend(*leaves, layout)
    gradients = torch.autograd.grad(found, leaves, grad.to(device))
    begin = 0
    for length in lengths:
        own = slice(begin, begin + length)
        begin += length
        parts = [x[:, own] for x in leaves]
        alone = attend(*parts, packed_layout(torch.tensor([length]), device))
        assert torch.equal(found[:, own], alone)
        exact = [x[:, own].double().requires_grad_() for x in (q, k, v)]
        wanted = by_mask(*exact, torch.ones(1, length, dtype=torch.bool))
        torch.testing.assert_close(found[:, own].double().cpu(), wanted, rtol=2e-2, atol=2e-2)
        backward = torch.autograd.grad(wanted, exact, grad[:, own].double())
        for a, b in zip(gradients, backward, strict=True):
            torch.testing.assert_close(a[:, own].double().cpu(), b, rtol=5e-2, atol=5e-2)


def test_in_inference_mode_as_outside() -> None:
    states, mask, _ = drawn([9, 5, 2, 1], 9, 0)
    layout = padded_layout(mask.sum(1), 9)
    wanted = attend(*states, layout)
    with torch.inference_mode():
        assert torch.equal(attend(*states, layout), wanted)
