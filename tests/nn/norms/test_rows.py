"""Oracle 13: the fast path over gathered rows against all positions under the mask."""

import pytest
import torch
from cpu_kernels import STRIDES, train
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_inputs import KINDS, make_mask, poisoned
from torch import Tensor, nn

from seqtrain.nn.norms import MaskedBatchNorm1d, MaskedBatchRenorm1d, rows
from seqtrain.nn.norms.rows import Standard, over_real_rows
from seqtrain.nn.norms.standardize import Statistics


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 5)),
    mask_kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    strides=st.sampled_from(sorted(STRIDES)),
    channel_dim=st.sampled_from([0, 1, 2]),
    kind=st.sampled_from([MaskedBatchNorm1d, MaskedBatchRenorm1d]),
    options=st.sampled_from(
        [{}, {"affine": False}, {"stat_weighting": "tokens"}, {"min_count": 5}]
    ),
    seed=st.integers(0, 2**16),
)
def test_both_ways_agree_and_each_repeats_its_bits(
    shape: tuple[int, int, int],
    mask_kind: str,
    dtype: torch.dtype,
    strides: str,
    channel_dim: int,
    kind: type[MaskedBatchNorm1d],
    options: dict[str, object],
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = make_mask(mask_kind, *shape[:2], generator)
    x, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    x = poisoned(x + 1, mask[..., None])
    grad = poisoned(grad, mask[..., None])

    def once() -> dict[str, Tensor]:
        torch.manual_seed(0)
        norm = kind(shape[2], channel_dim=channel_dim, **options)
        norm = norm.double() if dtype == torch.float64 else norm
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
        return train(norm, STRIDES[strides](x), mask, grad)

    by_rows, again = once(), once()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_pays", lambda *_: False)
        masked, masked_again = once(), once()
    tolerance = 50 * torch.finfo(dtype).eps
    for name, value in by_rows.items():
        assert torch.equal(value, again[name])
        assert torch.equal(masked[name], masked_again[name])
        assert value.isfinite().all()
        torch.testing.assert_close(value, masked[name], rtol=tolerance, atol=tolerance)


def test_the_norm_gets_real_rows_alone() -> None:
    """The work counts: what the norm sees is as large as what is real."""
    x, mask = torch.randn(4, 6, 3), torch.rand(4, 6) < 0.5
    seen: list[tuple[torch.Size, Tensor | None, int]] = []

    def unchanged(input: Tensor, mask: Tensor | None, channel_dim: int) -> Standard:
        seen.append((input.shape, mask, channel_dim))
        zeros = input.new_zeros(1, 3) if input.ndim == 2 else input.new_zeros(1, 1, 3)
        return Standard(Statistics(zeros, zeros + 1, None, None, (0,)), None, None)

    out = over_real_rows(unchanged, x, mask[..., None], -1)
    assert seen == [((int(mask.sum()), 3), None, 1)]
    assert torch.equal(out, x.masked_fill(~mask[..., None], 0))
    assert torch.equal(over_real_rows(unchanged, x, None, -1), x)
    whole = mask[..., None].expand(4, 6, 3)
    assert torch.equal(over_real_rows(unchanged, x, whole, -1), out)
    assert over_real_rows(unchanged, x.to("meta"), mask[..., None].to("meta"), -1).is_meta
    assert seen[1:] == [(x.shape, None, -1), (x.shape, whole, -1), (x.shape, seen[3][1], -1)]


def test_parameters_alone_get_a_gradient_where_features_need_none() -> None:
    x, mask = torch.randn(4, 6, 3), torch.rand(4, 6) < 0.5
    norm, again = (MaskedBatchRenorm1d(3, channel_dim=-1) for _ in range(2))
    norm(x, mask).square().sum().backward()
    leaf = x.clone().requires_grad_()
    again(leaf, mask).square().sum().backward()
    for ours, expected in zip(norm.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours.grad, expected.grad)
    assert leaf.grad is not None
