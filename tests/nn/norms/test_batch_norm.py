"""Masked batch norm against versions of it that share none of its code."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from masked_inputs import MaskedInput, make_mask, masked_inputs
from oracles import (
    batch_norm_gradient,
    real_rows,
    variance_with_padding_counted,
)
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from seqtrain.nn.norms import (
    MaskedBatchNorm1d,
    masked_batch_norm,
)

# The fixture ``path`` only sets which implementation runs, for all examples alike.
few = settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
close = {"rtol": 1e-9, "atol": 1e-9}


def placed(x: Tensor, channel_dim: int) -> Tensor:
    """``(B, L, C)`` with the channels where they are wanted."""
    return x.movedim(-1, channel_dim)


def randomized(channels: int, **options: object) -> MaskedBatchNorm1d:
    torch.manual_seed(channels)
    norm = MaskedBatchNorm1d(channels, **options).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@few
@given(
    steps=st.lists(masked_inputs(), min_size=1, max_size=3), channel_dim=st.sampled_from([1, -1])
)
def test_equals_batch_norm_of_packed_rows(
    path: str, steps: list[MaskedInput], channel_dim: int
) -> None:
    """Oracle 1: outputs, buffers over several steps, dx, dγ and dβ, then evaluation."""
    channels = steps[0].x.shape[-1]
    norm = randomized(channels, channel_dim=channel_dim)
    plain = nn.BatchNorm1d(channels).double()
    plain.load_state_dict(norm.state_dict())
    for x, mask, grad in (step for step in steps if step.x.shape[-1] == channels):
        norm.zero_grad()
        plain.zero_grad()
        few_rows = mask.sum() < 2
        plain.train(not few_rows)
        ours = placed(x, channel_dim).detach().requires_grad_()
        out = norm(ours, mask)
        out.backward(placed(grad, channel_dim))
        out, dx = out.movedim(channel_dim, -1), ours.grad.movedim(channel_dim, -1)
        assert (out[~mask] == 0).all()
        assert (dx[~mask] == 0).all()
        if mask.any():
            rows = real_rows(x, mask).requires_grad_()
            expected = plain(rows)
            expected.backward(real_rows(grad, mask))
            torch.testing.assert_close(out[mask], expected, **close)
            torch.testing.assert_close(dx[mask], rows.grad, **close)
            torch.testing.assert_close(norm.weight.grad, plain.weight.grad, **close)
            torch.testing.assert_close(norm.bias.grad, plain.bias.grad, **close)
        else:
            assert not norm.weight.grad.any()
            assert not norm.bias.grad.any()
        for ours, theirs in zip(norm.buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, **close)
    x, mask, _ = steps[0]
    out = norm.eval()(placed(x, channel_dim), mask).movedim(channel_dim, -1)
    assert (out[~mask] == 0).all()
    torch.testing.assert_close(out[mask], plain.eval()(x[mask]), **close)


@few
@given(case=masked_inputs(("right", "left", "interior", "ragged", "all real")))
def test_gradient_has_the_closed_form(path: str, case: MaskedInput) -> None:
    """Oracle 2."""
    x, mask, grad = case
    if mask.sum() < 2:
        return
    weight = torch.linspace(-1, 2, x.shape[-1], dtype=torch.float64).requires_grad_()
    bias = torch.zeros_like(weight).requires_grad_()
    x.requires_grad_()
    masked_batch_norm(x, mask, weight=weight, bias=bias, training=True, channel_dim=-1).backward(
        grad
    )
    rows = (x.detach()[mask], grad[mask], weight.detach())
    for ours, expected in zip(
        (x.grad[mask], weight.grad, bias.grad), batch_norm_gradient(*rows), strict=True
    ):
        torch.testing.assert_close(ours, expected, **close)


@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", ["padded rows", "per channel"])
def test_first_and_second_derivatives(
    path: str, channel_dim: int, training: bool, affine: bool, kind: str
) -> None:
    """Oracle 3, with fully padded rows and with a mask of each channel's own."""
    generator = torch.Generator().manual_seed(0)
    shape = placed(torch.empty(3, 4, 2), channel_dim).shape
    if kind == "padded rows":
        mask = make_mask("ragged", 3, 4, generator)
        mask[1] = False
    else:
        mask = torch.rand(shape, generator=generator) < 0.6
    mean, var = torch.tensor([1.0, -1.0]).double(), torch.tensor([2.0, 0.5]).double()

    def norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return masked_batch_norm(
            x,
            mask,
            None if training else mean,
            None if training else var,
            weight,
            bias,
            training,
            channel_dim=channel_dim,
        )

    shapes = [shape, (2,), (2,)] if affine else [shape]
    inputs = [
        torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes
    ]
    assert gradcheck(norm, inputs)
    assert gradgradcheck(norm, inputs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["ragged", "per channel"])
def test_the_derivative_that_can_be_differentiated_is_the_same(
    path: str, training: bool, kind: str
) -> None:
    """There are two ways to it; differences of the second derivative do not compare them."""
    generator = torch.Generator().manual_seed(0)
    mask = make_mask("ragged", 3, 4, generator)
    if kind == "per channel":
        mask = torch.rand(3, 4, 2, generator=generator) < 0.6
    shapes = (3, 4, 2), (2,), (2,)
    x, weight, bias = (
        torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes
    )
    grad = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
    buffers = torch.tensor([1.0, -1.0]).double(), torch.tensor([2.0, 0.5]).double()
    for wanted in ((x, weight, bias), (x, bias), (weight,)):
        given = [t if any(t is w for w in wanted) else t.detach() for t in (x, weight, bias)]
        statistics = (None, None) if training else buffers
        out = masked_batch_norm(given[0], mask, *statistics, *given[1:], training, channel_dim=-1)
        once = torch.autograd.grad(out, wanted, grad, retain_graph=True)
        again = torch.autograd.grad(out, wanted, grad, create_graph=True)
        for a, b in zip(once, again, strict=True):
            torch.testing.assert_close(a, b)


def test_channels_with_too_few_positions_have_derivatives_too() -> None:
    mask = torch.ones(2, 3, 3, dtype=torch.bool)
    mask[:, :, 1] = False
    mask[0, 0, 1] = True
    mask[:, :, 2] = False
    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    buffers = torch.tensor([5.0, 0.5, 1.0]).double(), torch.tensor([2.0, 0.5, 1.0]).double()

    def norm(x: Tensor) -> Tensor:
        copies = (b.clone() for b in buffers)
        return masked_batch_norm(x, mask, *copies, training=True, channel_dim=-1)

    assert gradcheck(norm, [x])
    assert gradgradcheck(norm, [x])
    alone = (x[0, 0, 1] - 0.5) / (0.5 + 1e-5) ** 0.5
    torch.testing.assert_close(norm(x)[0, 0, 1], alone)


def test_one_position_that_is_enough_has_no_derivative(path: str) -> None:
    """It is its own mean: whatever it is, it comes out as the bias."""
    x = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[False, True, False]])
    out = masked_batch_norm(x, mask, training=True, channel_dim=-1, min_count=1)
    out.backward(torch.randn(out.shape, dtype=torch.float64))
    assert not out.any()
    assert not x.grad.any()


def test_third_derivative_exists(path: str) -> None:
    x = torch.randn(2, 3, 1, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, True, True]])

    def second(x: Tensor) -> Tensor:
        out = masked_batch_norm(x, mask, training=True, channel_dim=-1).pow(3).sum()
        (first,) = torch.autograd.grad(out, x, create_graph=True)
        (again,) = torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)
        return again

    assert gradcheck(second, [x])


@few
@given(case=masked_inputs(), training=st.booleans())
def test_poison_at_padding_reaches_nothing(path: str, case: MaskedInput, training: bool) -> None:
    """Oracle 4: NaN and ±Inf in x and in the upstream gradient."""
    x, mask, grad = case
    norm = randomized(x.shape[-1], channel_dim=-1).train(training)
    x.requires_grad_()
    out = norm(x, mask)
    out.backward(grad)
    for tensor in (out, x.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()):
        assert tensor.isfinite().all()
    assert (out[~mask] == 0).all()
    assert (x.grad[~mask] == 0).all()


@few
@given(case=masked_inputs(), data=st.data())
def test_nothing_but_the_real_positions_matters(
    path: str, case: MaskedInput, data: st.DataObject
) -> None:
    """Oracle 5: content, amount and side of the padding, order of the batch, packing."""
    x, mask, _ = case
    norm = randomized(x.shape[-1], channel_dim=-1)
    expected = norm(x, mask)[mask]
    buffers = [b.clone() for b in norm.buffers()]
    extra = data.draw(st.integers(0, 3), "padding more")
    order = data.draw(st.permutations(range(len(x))), "order")
    left = data.draw(st.booleans(), "on the left")
    sides = (0, 0, extra, 0) if left else (0, 0, 0, extra)
    wider, wider_mask = F.pad(x, sides, value=7.0), F.pad(mask, sides[2:], value=False)
    packed, packed_mask = x[mask][None], torch.ones(1, int(mask.sum()), dtype=torch.bool)
    for other, other_mask, arranged in (
        (torch.nan_to_num(x, 5.0, 6.0, 7.0), mask, expected),
        (wider, wider_mask, expected),
        (x[order], mask[order], None),
        (packed, packed_mask, expected),
    ):
        norm.reset_running_stats()
        out = norm(other, other_mask)
        if arranged is None:
            back = torch.empty_like(out)
            back[order] = out
            torch.testing.assert_close(back[mask], expected, **close)
        else:
            torch.testing.assert_close(out[other_mask], arranged, **close)
        for now, before in zip(norm.buffers(), buffers, strict=True):
            torch.testing.assert_close(now, before, **close)
    norm.eval()
    together = norm(x, mask)
    for b in range(len(x)):
        alone = norm(x[b : b + 1, mask[b]], torch.ones(1, int(mask[b].sum()), dtype=torch.bool))
        torch.testing.assert_close(together[b, mask[b]], alone[0], **close)


@pytest.mark.parametrize("form", ["no mask", "all real"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"affine": False},
        {"bias": False},
        {"track_running_stats": False},
        {"eps": 0.1, "momentum": 0.3},
    ],
    ids=str,
)
def test_without_padding_it_is_torchs_layer(
    path: str,
    device: str,
    form: str,
    dtype: torch.dtype,
    options: dict[str, object],
) -> None:
    """Oracle 6: training, evaluation, and every constructor argument."""
    torch.manual_seed(1)
    channel_dim = {"no mask": 0, "all real": -1}[form] if path == "rows" else 1
    ours = MaskedBatchNorm1d(3, channel_dim=channel_dim, device=device, **options)
    theirs = nn.BatchNorm1d(3, device=device, **options)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    if dtype == torch.float64:
        ours, theirs = ours.double(), theirs.double()
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5}.get(dtype, 4 * torch.finfo(dtype).eps)
    for training in (True, True, False):
        x = (torch.randn(4, 3, 5, device=device) * 2 + 3).to(dtype)
        a = x.clone().requires_grad_()
        b = x.clone().requires_grad_()
        mask = None if form == "no mask" else torch.ones(4, 5, dtype=torch.bool, device=device)
        out = ours.train(training)(a.movedim(1, channel_dim), mask).movedim(channel_dim, 1)
        expected = theirs.train(training)(b)
        assert out.dtype == x.dtype
        grad = torch.randn(4, 3, 5, device=device).to(dtype)
        out.backward(grad)
        expected.backward(grad)
        for found, wanted in ((out, expected), (a.grad, b.grad)):
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=tolerance * 4, atol=tolerance * 4)


def test_without_a_mask_it_raises_what_torch_raises() -> None:
    norm = MaskedBatchNorm1d(3)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        norm(torch.zeros(1, 3))
    with pytest.raises(RuntimeError, match="running_mean"):
        norm(torch.zeros(4, 2))


@given(mean=st.sampled_from([1.0, 5.0]), seed=st.integers(0, 100))
@settings(max_examples=10)
def test_the_formula_that_counts_padding_is_wrong_by_what_theory_says(
    mean: float, seed: int
) -> None:
    """Oracle 7, the negative control: too large by (N - n)/n · μ², and it must be caught."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 40, (8,), generator=generator)
    mask = torch.arange(40) < lengths[:, None]
    x = torch.randn(8, 40, 2, generator=generator, dtype=torch.float64) + mean
    n, total = mask.sum(), mask.numel()
    mu, var = x[mask].mean(0), x[mask].var(0, correction=0)
    wrong = variance_with_padding_counted(x, mask)
    torch.testing.assert_close(wrong, var + (total - n) / n * mu**2)
    norm = MaskedBatchNorm1d(2, momentum=1.0, channel_dim=-1).double()
    norm(x, mask)
    torch.testing.assert_close(norm.running_var, x[mask].var(0))
    assert (wrong > norm.running_var * 1.2).all()


@given(case=masked_inputs(("right", "left", "interior", "ragged", "all real")))
@settings(max_examples=25)
def test_a_plain_norm_sees_zero_filled_padding_as_the_formula_says(case: MaskedInput) -> None:
    """Oracle 8: μ' = μ/r and v' = (v + μ²(1 - 1/r))/r with r = N/n, from the masked statistics."""
    if case.mask.sum() < 2:
        return
    channels = case.x.shape[-1]
    norm = MaskedBatchNorm1d(channels, momentum=1.0, channel_dim=-1).double()
    norm(case.x, case.mask)
    n, total = int(case.mask.sum()), case.mask.numel()
    mu, v, r = norm.running_mean, norm.running_var * (n - 1) / n, total / n
    plain = nn.BatchNorm1d(channels, momentum=1.0).double()
    plain(case.clean.flatten(0, 1))
    torch.testing.assert_close(plain.running_mean, mu / r)
    seen = plain.running_var * (total - 1) / total
    torch.testing.assert_close(seen, (v + mu**2 * (1 - 1 / r)) / r)
