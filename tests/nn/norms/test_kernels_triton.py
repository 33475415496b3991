"""The Triton kernels against float64: on a GPU where there is one, else under the interpreter.

The interpreter runs a kernel program by program in numpy, so what is tested is all but the
compiler. That each kernel compiles for a GPU, and how it reads memory, is a test of its own.
"""

import copy
import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from masked_inputs import KINDS, make_mask, poisoned
from oracles import batch_norm_gradient, real_rows
from torch import Tensor, nn

from seqtrain.nn.norms import MaskedBatchNorm1d, masked_batch_norm
from seqtrain.nn.norms.kernels import choice, triton_norm
from seqtrain.nn.norms.running import RunningStatistics

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # Read when Triton is first imported.
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton", reason="there is no Triton for this machine")

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

few = settings(
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)


@pytest.fixture(autouse=True)
def by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call takes the kernels, on this machine whatever it is."""
    monkeypatch.setattr(choice, "KERNELS", {DEVICE: triton_norm.batch_norm})
    monkeypatch.setattr(triton_norm, "usable", lambda device: True)
    monkeypatch.setattr(triton_norm, "DTYPES", DTYPES)


def batch(
    seed: int,
    shape: tuple[int, int, int],
    kind: str,
    dtype: torch.dtype = torch.float32,
    mean: float = 3.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """x and upstream gradient ``(B, L, C)`` with NaN and Inf at padding, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "one real":
        mask = torch.arange(shape[0] * shape[1]).view(shape[:2]) == shape[1]
    else:
        mask = make_mask(kind, *shape[:2], generator)
    x, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    x, grad = (poisoned(t.to(dtype), mask[..., None]).to(DEVICE) for t in (x * 2 + mean, grad))
    return x, mask.to(DEVICE), grad


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same ``(B, L, C)`` with other strides."""
    match layout:
        case "channels first":
            return values.transpose(1, 2).contiguous().transpose(1, 2)
        case "sequences inside":
            return values.transpose(0, 1).contiguous().transpose(0, 1)
        case "gaps":
            return values.repeat_interleave(2, dim=2)[..., ::2]
    return values


def strides(values: Tensor) -> list[int]:
    """Those that matter."""
    return [step for size, step in zip(values.shape, values.stride(), strict=True) if size > 1]


def rounding(dtype: torch.dtype) -> float:
    """One step of the dtype at 1; the interpreter cuts off where a GPU rounds."""
    return max(torch.finfo(dtype).eps, 2e-6)


@few
@given(
    st.integers(0, 2**16),
    st.tuples(st.integers(1, 4), st.integers(1, 100), st.integers(1, 40)),
    st.sampled_from(KINDS),
    st.sampled_from(DTYPES),
    st.sampled_from(["channels last", "channels first", "sequences inside", "gaps"]),
)
def test_two_steps_as_float64_over_packed_rows(
    seed: int, shape: tuple[int, int, int], kind: str, dtype: torch.dtype, layout: str
) -> None:
    """Oracles 1, 2 and 4: output, buffers, dx, dγ and dβ; exact zeros at padding."""
    wide = torch.promote_types(dtype, torch.float32)
    norm = MaskedBatchNorm1d(shape[2], channel_dim=-1, dtype=wide, device=DEVICE)
    exact = nn.BatchNorm1d(shape[2]).double()
    for parameter, other in zip(norm.parameters(), exact.parameters(), strict=True):
        nn.init.normal_(parameter)
        other.data.copy_(parameter)
    for step in range(2):
        x, mask, grad = batch(seed + step, shape, kind, dtype)
        leaf = laid_out(x, layout).requires_grad_()
        norm.zero_grad()
        out = norm(leaf, mask)
        out.backward(grad)
        assert out.dtype == leaf.grad.dtype == dtype
        assert layout == "gaps" or strides(out) == strides(leaf)
        assert (out[~mask] == 0).all()
        assert (leaf.grad[~mask] == 0).all()
        if mask.sum() < 2:
            continue
        rows, upstream = (real_rows(t.cpu().double(), mask.cpu()) for t in (x, grad))
        expected = exact(rows)
        gradients = batch_norm_gradient(rows, upstream, exact.weight.detach())
        found = (out[mask], leaf.grad[mask], norm.weight.grad, norm.bias.grad)
        # With two rows alike the variance is all rounding, and its inverse root is large.
        sharp = 1 + rows.var(0, correction=0).add(1e-5).rsqrt().max().item() ** 2
        for ours, theirs in zip(found, (expected.detach(), *gradients), strict=True):
            within = rounding(ours.dtype) * sharp * (1 + theirs.abs().max().item())
            torch.testing.assert_close(ours.cpu().double(), theirs, rtol=0, atol=within)
    for ours, theirs in zip(norm.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs.double(), rtol=1e-5, atol=1e-5)


def moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance, as a first batch with momentum 1 leaves them."""
    norm = MaskedBatchNorm1d(x.shape[2], momentum=1.0, channel_dim=-1, device=DEVICE)
    norm(x, mask)
    return norm.running_mean.cpu().double(), norm.running_var.cpu().double()


@pytest.mark.parametrize("mean", [1e2, 1e3, 1e4, 1e5])
def test_a_large_mean_costs_no_digit_of_the_variance(mean: float) -> None:
    """Oracle 12, over several splits and sequences that differ in their means."""
    x, mask, _ = batch(0, (6, 300, 5), "ragged", mean=mean)
    x = x + torch.arange(6, device=DEVICE)[:, None, None] * 3
    found, var = moments(x, mask)
    rows = x[mask].cpu().double()
    torch.testing.assert_close(found, rows.mean(0), rtol=6e-8, atol=0)
    torch.testing.assert_close(var, rows.var(0), rtol=2e-6, atol=0)


def test_a_first_tile_far_from_the_rest_costs_few_digits() -> None:
    x, mask, _ = batch(0, (1, 1200, 3), "all real")
    x[:, :3] += 1e4
    found, var = moments(x, mask)
    rows = x[mask].cpu().double()
    torch.testing.assert_close(found, rows.mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(var, rows.var(0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_run_to_run(dtype: torch.dtype) -> None:
    x, mask, grad = batch(1, (2, 200, 20), "ragged", dtype)

    def run() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        norm = MaskedBatchNorm1d(20, channel_dim=-1, device=DEVICE)
        out = norm(leaf, mask)
        out.backward(grad)
        return [out, leaf.grad, *(p.grad for p in norm.parameters()), *norm.buffers()]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average": {"momentum": None},
    "tokens": {"stat_weighting": "tokens"},
    "bare": {"affine": False, "track_running_stats": False},
    "many": {"min_count": 40},
    "unshifted": {"bias": False},
    "narrow parameters": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_does_what_it_does_plainly(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches with many, few, one and no real positions, in training and then in evaluation."""
    norm = MaskedBatchNorm1d(6, channel_dim=-1, device=DEVICE, **options)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    plain = copy.deepcopy(norm)
    for step, kind in enumerate(["right", "none real", "ragged", "one real", "left", "left"]):
        x, mask, grad = batch(step, (3, 40, 6), kind)
        results = []
        for module, kernels in ((norm, choice.KERNELS), (plain, {})):
            with monkeypatch.context() as patch:
                patch.setattr(choice, "KERNELS", kernels)
                module.zero_grad()
                leaf = x.clone().requires_grad_()
                module.train(step < 5)
                out = module(leaf, mask)
                out.backward(grad)
                gradients = [p.grad for p in module.parameters()]
                results.append([out, leaf.grad, *gradients, *module.buffers()])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("shape", [(50, 3), (2, 9, 3), (2, 3, 4, 3)])
def test_any_rank_and_place_of_the_channels(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, device=DEVICE)
    mask = torch.rand(shape[:-1], device=DEVICE) < 0.7
    expected = torch.zeros_like(x)
    expected[mask] = nn.BatchNorm1d(3, device=DEVICE)(x[mask])
    for channel_dim in range(len(shape)):
        moved = x.movedim(-1, channel_dim)
        out = masked_batch_norm(moved, mask, training=True, channel_dim=channel_dim)
        torch.testing.assert_close(out.movedim(channel_dim, -1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 0, 3), (2, 5, 0)])
def test_nothing_in_a_dimension_gives_nothing(shape: tuple[int, int, int]) -> None:
    x = torch.ones(shape, device=DEVICE, requires_grad=True)
    out = masked_batch_norm(
        x, x.new_ones(shape[:2], dtype=torch.bool), training=True, channel_dim=2
    )
    out.sum().backward()
    assert out.shape == x.grad.shape == shape


def test_masks_of_single_channels_take_the_plain_form() -> None:
    x, _, _ = batch(0, (2, 9, 3), "all real")
    assert (
        triton_norm.batch_norm(
            x, torch.ones_like(x, dtype=torch.bool), None, None, None, True, 0.1, 1e-5, 2, 2
        )
        is None
    )


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_activation_and_residual_in_the_same_pass(relu: bool, affine: bool) -> None:
    x, mask, grad = batch(3, (3, 90, 6), "ragged", torch.float64)
    residual = poisoned(torch.randn_like(x), mask[..., None])
    weight, bias = (torch.randn(6, dtype=x.dtype, device=DEVICE) for _ in range(2))
    results = []
    for fused in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, residual, weight, bias)]
        a, r, w, b = leaves if affine else [*leaves[:2], None, None]
        if fused:
            out = triton_norm.batch_norm(
                a, mask[..., None], None, w, b, True, 0.1, 1e-5, 2, 2, relu=relu, residual=r
            )
        else:
            rows = nn.functional.batch_norm(a[mask], None, None, w, b, True)
            rows = torch.relu(rows) if relu else rows
            out = torch.zeros_like(a).index_put((mask,), rows + r[mask])
        wanted = leaves if affine else leaves[:2]
        results.append([out, *torch.autograd.grad(out, wanted, grad)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_real_nan_goes_through_the_activation() -> None:
    x = torch.zeros(1, 4, 2, device=DEVICE)
    x[0, 1, 1] = torch.nan
    real = torch.ones(1, 4, 1, dtype=torch.bool, device=DEVICE)
    out = triton_norm.batch_norm(x, real, None, None, None, True, 0.1, 1e-5, 2, 2, relu=True)
    assert out is not None
    assert (out[..., 0] == 0).all()
    assert out[..., 1].isnan().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_first_and_second_derivatives(training: bool, relu: bool) -> None:
    """Oracle 3; the second is that of the plain form."""
    x, mask, _ = batch(4, (2, 4, 2), "ragged", torch.float64)
    x = x.nan_to_num(0, 0, 0).requires_grad_()
    weight, bias = (torch.randn(2, dtype=x.dtype, device=DEVICE).requires_grad_() for _ in "wb")
    buffers = RunningStatistics(x.new_zeros(2), x.new_ones(2)) if not training else None

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor | None:
        return triton_norm.batch_norm(
            x, mask[..., None], buffers, weight, bias, training, 0.1, 1e-5, 2, 2, relu=relu
        )

    assert torch.autograd.gradcheck(norm, (x, weight, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(norm, (x, weight, bias), fast_mode=True)


@pytest.mark.parametrize("needing", [[0], [1], [2], [0, 2], [1, 2]])
@pytest.mark.parametrize("training", [True, False])
def test_only_the_gradients_that_are_asked_for(needing: list[int], training: bool) -> None:
    x, mask, grad = batch(5, (2, 9, 3), "right")
    buffers = [torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)]
    results = []
    for wanted in ([0, 1, 2], needing):
        leaves = [x.clone(), torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE)]
        for at in wanted:
            leaves[at].requires_grad_()
        out = masked_batch_norm(
            leaves[0], mask, *(b.clone() for b in buffers), *leaves[1:], training, channel_dim=2
        )
        out.backward(grad)
        results.append([leaf.grad for leaf in leaves])
    for at in range(3):
        if at in needing:
            assert torch.equal(results[0][at], results[1][at])
        else:
            assert results[1][at] is None
