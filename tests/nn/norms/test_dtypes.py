"""The oracles in every dtype: float64 over the same rounded values, to the dtype's own step.

What is compared over float64 alone elsewhere, because differences or many digits are needed, is
here once more in each of the four.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_inputs import KINDS, make_mask, poisoned
from oracles import batch_norm_gradient, real_rows
from torch import Tensor, nn

from seqtrain.nn.norms import MaskedBatchNorm1d, masked_norm

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
few = settings(max_examples=8, deadline=None)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# "none real" has nothing to compare.
kinds = st.sampled_from([kind for kind in KINDS if kind != "none real"])
seeds = st.integers(0, 2**16)


def near(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Equal to a few steps of ``dtype``, or of float32 where sums were taken in that."""
    steps = 4 * torch.finfo(dtype).eps
    sums = 100 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    torch.testing.assert_close(found.double(), exact.double(), rtol=steps, atol=steps / 4 + sums)


def example(kind: str, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Input ``(B, L, C)`` and upstream gradient, poisoned at padding, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = make_mask(kind, 4, 9, generator)
    mask[0, :6] = True  # Enough for a variance that is no matter of rounding.
    x, grad = (torch.randn(4, 9, 3, generator=generator).to(dtype) for _ in range(2))
    return poisoned(x + 1, mask[..., None]), mask, poisoned(grad, mask[..., None])


def norm_for(dtype: torch.dtype) -> MaskedBatchNorm1d:
    """With parameters that every dtype can hold."""
    norm = MaskedBatchNorm1d(3, channel_dim=-1).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -0.5, 2.0]))
        norm.bias.copy_(torch.tensor([0.25, 0.0, -1.0]))
    return norm


@each_dtype
@few
@given(kind=kinds, seed=seeds)
def test_packed_rows_closed_gradient_and_poison(dtype: torch.dtype, kind: str, seed: int) -> None:
    """Oracles 1, 2 and 4: two steps and an evaluation."""
    norm, plain = norm_for(dtype), nn.BatchNorm1d(3).double()
    plain.load_state_dict(norm.state_dict())
    for step in (0, 1):
        x, mask, grad = example(kind, seed + step, dtype)
        norm.zero_grad()
        leaf = x.clone().requires_grad_()
        out = norm(leaf, mask)
        out.backward(grad)
        rows, upstream = real_rows(x, mask).double(), real_rows(grad, mask).double()
        near(out[mask], plain(rows), dtype)
        dx, dweight, dbias = batch_norm_gradient(rows, upstream, plain.weight.detach())
        near(leaf.grad[mask], dx, dtype)
        near(norm.weight.grad, dweight, dtype)
        near(norm.bias.grad, dbias, dtype)
        assert (out[~mask] == 0).all()
        assert (leaf.grad[~mask] == 0).all()
    for ours, exact in zip(norm.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours.double(), exact.double(), rtol=1e-5, atol=1e-5)
    near(norm.eval()(x, mask)[mask], plain.eval()(rows), dtype)


@each_dtype
@few
@given(kind=kinds, seed=seeds)
def test_only_real_positions_matter(dtype: torch.dtype, kind: str, seed: int) -> None:
    """Oracle 5: padding of another side, amount and content; the order; alone in evaluation."""
    x, mask, _ = example(kind, seed, dtype)
    expected = norm_for(dtype)(x, mask)[mask]
    wider = F.pad(x, (0, 0, 2, 1), value=9.0), F.pad(mask, (2, 1))
    packed = x[mask][None], torch.ones(1, int(mask.sum()), dtype=torch.bool)
    for other, other_mask in (wider, packed):
        near(norm_for(dtype)(other, other_mask)[other_mask], expected, dtype)
    near(norm_for(dtype)(x.flip(0), mask.flip(0)).flip(0)[mask], expected, dtype)
    norm = norm_for(dtype).eval()
    together = norm(x, mask)
    for row, real, found in zip(x, mask, together, strict=True):
        near(norm(row[real][None], real[real][None])[0], found[real], dtype)


@each_dtype
@few
@given(kind=kinds, seed=seeds)
def test_what_a_plain_norm_sees_of_zero_filled_padding(
    dtype: torch.dtype, kind: str, seed: int
) -> None:
    """Oracles 7 and 8, of statistics that the masked norm takes of ``dtype``."""
    x, mask, _ = example(kind, seed, dtype)
    norm = MaskedBatchNorm1d(3, momentum=1.0, channel_dim=-1)
    norm = norm.double() if dtype == torch.float64 else norm
    norm(x, mask)
    n, total = int(mask.sum()), mask.numel()
    mu, v, r = norm.running_mean.double(), norm.running_var.double() * (n - 1) / n, total / n
    filled = x.masked_fill(~mask[..., None], 0).double().flatten(0, 1)
    near(mu / r, filled.mean(0), torch.float32)
    near((v + mu**2 * (1 - 1 / r)) / r, filled.var(0, correction=0), torch.float32)
    counted = (filled - mu).square().sum(0) / n
    near(v + (total - n) / n * mu**2, counted, torch.float32)


@each_dtype
def test_torchs_norms_by_reshaping(dtype: torch.dtype) -> None:
    """Oracle 14."""
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = x.double()
    grouped = masked_norm(x.view(3, 2, 2, 5), None, (2, 3), eps=1e-5).view_as(x)
    near(
        masked_norm(x, None, (0, 2), eps=1e-5),
        F.batch_norm(exact, None, None, None, None, True),
        dtype,
    )
    near(masked_norm(x, None, -1, eps=1e-5), F.layer_norm(exact, [5]), dtype)
    near(grouped, F.group_norm(exact, 2), dtype)
    near(masked_norm(x, None, 2, eps=1e-5), F.instance_norm(exact), dtype)
