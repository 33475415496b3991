"""The general form: any axes, corrections and constants; torch's norms by reshaping."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from seqtrain.nn.norms import (
    AffineMaskedNorm,
    LazyAffineMaskedNorm,
    MaskedNorm,
    masked_norm,
)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    data=st.data(),
    correction=st.integers(0, 2),
    eps=st.sampled_from([0.0, 1e-5, 0.1]),
    seed=st.integers(0, 2**16),
)
def test_every_selection_alone(
    shape: list[int], data: st.DataObject, correction: int, eps: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) + 1
    dims = sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    broadcast = [data.draw(st.sampled_from((size, 1))) for size in shape]
    mask = torch.rand(broadcast, generator=generator) < 0.7
    whole = mask.expand(shape)
    poisoned = x.masked_fill(~whole, torch.nan)
    out = masked_norm(poisoned, mask, dims, eps=eps, correction=correction)
    kept = masked_norm(poisoned, mask, dims, eps=eps, correction=correction, constant="keep")
    assert (out[~whole] == 0).all()
    assert (kept[~whole] == 0).all()
    rest = [d for d in range(len(shape)) if d not in dims]
    arranged = [t.permute(*rest, *dims).flatten(len(rest)) for t in (x, whole, out, kept)]
    for values, real, found, found_kept in zip(
        *(t.reshape(-1, t.shape[-1]) for t in arranged), strict=True
    ):
        values = values[real]
        squares = (values - values.mean()).square().sum()
        if len(values) < 2 or squares == 0:
            torch.testing.assert_close(found[real], torch.zeros_like(values))
            assert torch.equal(found_kept[real], values)
            continue
        std = (squares / max(len(values) - correction, 1) + eps).sqrt()
        torch.testing.assert_close(found[real], (values - values.mean()) / std)
        torch.testing.assert_close(found_kept[real], found[real])


def test_torchs_norms_by_reshaping() -> None:
    """Oracle 14: batch, layer, group and instance norm are this over suitable axes."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    everything = torch.ones(3, 4, 5, dtype=torch.bool)
    for mask in (None, everything):
        batch = masked_norm(x, mask, (0, 2), eps=1e-5)
        layer = masked_norm(x, mask, -1, eps=1e-5)
        whole = masked_norm(x, mask, (1, 2), eps=1e-5)
        instance = masked_norm(x, mask, 2, eps=1e-5)
        grouped = None if mask is None else mask.view(3, 2, 2, 5)
        group = masked_norm(x.view(3, 2, 2, 5), grouped, (2, 3), eps=1e-5).view(3, 4, 5)
        torch.testing.assert_close(batch, F.batch_norm(x, None, None, training=True))
        torch.testing.assert_close(layer, F.layer_norm(x, [5]))
        torch.testing.assert_close(whole, F.layer_norm(x, [4, 5]))
        torch.testing.assert_close(group, F.group_norm(x, 2))
        torch.testing.assert_close(instance, F.instance_norm(x))


@pytest.mark.parametrize("constant", ["zero", "keep"])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_first_and_second_derivatives(constant: str, eps: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64)
    x[2] = 1.5
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)

    def norm(x: Tensor) -> Tensor:
        return masked_norm(x, mask, -1, eps=eps, correction=1, constant=constant)

    # A step off a constant row leaves it: only the other rows have derivatives by differences.
    varied = x[:2].requires_grad_()
    fixed = x[2:]
    whole = lambda v: norm(torch.cat([v, fixed]))
    assert gradcheck(whole, [varied])
    assert gradgradcheck(whole, [varied])
    row = x[2:].detach().requires_grad_()
    masked_norm(row, mask[2:], -1, constant=constant).sum().backward()
    expected = mask[2:].double() if constant == "keep" else torch.zeros(1, 4, dtype=torch.float64)
    assert torch.equal(row.grad, expected)


def test_with_eps_a_constant_row_has_a_derivative() -> None:
    row = torch.full((1, 4), 1.5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    assert gradcheck(lambda row: masked_norm(row, mask, -1, eps=0.1), [row])
    assert gradgradcheck(lambda row: masked_norm(row, mask, -1, eps=0.1), [row])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_row_that_only_rounding_moves_is_constant(dtype: torch.dtype) -> None:
    x = torch.full((1, 1000), 0.1, dtype=dtype)
    x[0, ::3] = torch.nextafter(x[0, 0], torch.ones((), dtype=dtype))
    assert (masked_norm(x, None, -1) == 0).all()
    assert torch.equal(masked_norm(x, None, -1, constant="keep"), x)
    spread = 8 * torch.finfo(dtype).eps * torch.linspace(-1, 1, 1000, dtype=torch.float64)
    varied = (0.1 + spread).to(dtype)[None]
    assert masked_norm(varied, None, -1).double().std().item() == pytest.approx(1, abs=0.01)


def test_unbiased_variance() -> None:
    x = torch.tensor([[1.0, 2.0, 4.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    out = masked_norm(x, mask, -1, correction=1)[0, :3]
    torch.testing.assert_close(out, (x[0, :3] - 7 / 3) / x[0, :3].std(correction=1))
    torch.testing.assert_close(out.std(correction=1), torch.tensor(1.0))


def test_the_module_is_the_function() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(4, 5, 3), torch.rand(4, 5) < 0.7
    assert torch.equal(MaskedNorm()(x, mask), masked_norm(x, mask, -1))
    assert torch.equal(MaskedNorm(batched=True)(x, mask), masked_norm(x, mask, 0))
    options = {"eps": 0.1, "correction": 1, "constant": "keep"}
    module = MaskedNorm(dims=(0, 1), **options)
    assert torch.equal(module(x, mask), masked_norm(x, mask, (0, 1), **options))
    assert not list(module.parameters())
    assert repr(module) == "MaskedNorm(dims=(0, 1), eps=0.1, correction=1, constant='keep')"


@pytest.mark.parametrize("batched", [False, True])
def test_affine_parameters_belong_to_features(batched: bool) -> None:
    torch.manual_seed(0)
    lazy = LazyAffineMaskedNorm(batched, dtype=torch.float64, eps=1e-5)
    assert lazy.has_uninitialized_params()
    x, mask = torch.randn(4, 5, 3, dtype=torch.float64), torch.rand(4, 5) < 0.7
    normal = MaskedNorm(batched, eps=1e-5)(x, mask)
    torch.testing.assert_close(lazy(x, mask), normal)
    assert type(lazy) is AffineMaskedNorm
    assert lazy.weight.shape == lazy.bias.shape == (3,)
    assert lazy.weight.dtype == torch.float64
    torch.nn.init.normal_(lazy.weight)
    torch.nn.init.normal_(lazy.bias)
    out = lazy(x, mask)
    expected = torch.where(mask[..., None], normal * lazy.weight + lazy.bias, 0)
    torch.testing.assert_close(out, expected)
    other = torch.randn(2, 7, 3, dtype=torch.float64)
    assert lazy(other, torch.ones(2, 7, dtype=torch.bool)).shape == other.shape
    again = AffineMaskedNorm(3, batched, eps=1e-5).double()
    again.load_state_dict(lazy.state_dict())
    assert torch.equal(again(x, mask), out)


def test_a_lazy_norm_can_be_filled_from_a_checkpoint() -> None:
    saved = AffineMaskedNorm(3)
    torch.nn.init.normal_(saved.weight)
    lazy = LazyAffineMaskedNorm()
    lazy.load_state_dict(saved.state_dict())
    x = torch.randn(2, 5, 3)
    assert torch.equal(lazy(x), saved(x))
