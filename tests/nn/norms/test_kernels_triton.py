"""The Triton kernels against float64: on a GPU where there is one, else under the interpreter.

The interpreter runs a kernel program by program in numpy, so what is tested is all but the
compiler. That each kernel compiles for a GPU, and how it reads memory, is a test of its own.
"""

import copy
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from masked_inputs import KINDS, make_mask, poisoned
from oracles import batch_norm_gradient, real_rows
from torch import Tensor, nn

from seqtrain.nn.norms import MaskedBatchNorm1d, masked_batch_norm
from seqtrain.nn.norms.kernels import choice, triton_norm
from seqtrain.nn.norms.kernels.call import Call
from seqtrain.nn.norms.running import RunningStatistics

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # Read when Triton is first imported.
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton", reason="there is no Triton for this machine")

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

few = settings(
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    max_examples=10,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)


USUAL = (True, 0.1, 1e-5, 2, 2)
"""Of a call: training, momentum, eps, where the channels are, fewest real positions."""


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
# Several programs beside each other for the channels, the last one with some to spare.
@example(0, (2, 40, 100), "ragged", torch.float32, "channels last")
@example(1, (2, 40, 130), "interior", torch.bfloat16, "channels first")
@example(2, (1, 30, 513), "right", torch.float16, "channels last")
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


@pytest.mark.parametrize("mean", [1e2, 1e5])
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
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
    if norm.running_weight is not None:
        norm.running_weight[:3] = torch.nan
    plain = copy.deepcopy(norm)
    for step, kind in enumerate(["right", "none real", "one real", "ragged"]):
        x, mask, grad = batch(step, (3, 40, 6), kind)
        results = []
        for module, kernels in ((norm, choice.KERNELS), (plain, {})):
            with monkeypatch.context() as patch:
                patch.setattr(choice, "KERNELS", kernels)
                module.zero_grad()
                leaf = x.clone().requires_grad_()
                module.train(step < 3)
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
            Call(x, torch.ones_like(x, dtype=torch.bool), None, None, None, True, 0.1, 1e-5, 2, 2)
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
                Call(a, mask[..., None], None, w, b, True, 0.1, 1e-5, 2, 2, relu=relu, residual=r)
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
def test_a_wider_residual_stays_wide() -> None:
    """As under autocast, where convolutions give half precision and blocks are added in float32."""
    x, mask, grad = batch(4, (3, 9, 5), "ragged", torch.bfloat16)
    residual = torch.randn(x.shape, device=DEVICE)
    found, wanted = [], []
    for fused in (True, False):
        leaves = [x.clone().requires_grad_(), residual.clone().requires_grad_()]
        call = Call(leaves[0], mask[..., None], None, None, None, *USUAL, relu=True)
        if fused:
            out = triton_norm.batch_norm(call._replace(residual=leaves[1]))
        else:
            normal = triton_norm.batch_norm(call)
            assert normal is not None
            out = torch.where(mask[..., None], leaves[1] + normal.float(), 0.0)
        assert out is not None
        assert out.dtype == torch.float32
        upstream = grad.float().masked_fill(~mask[..., None], 0)
        (found if fused else wanted).extend([out, *torch.autograd.grad(out, leaves, upstream)])
    for value, expected in zip(found, wanted, strict=True):
        assert value.dtype == expected.dtype
        torch.testing.assert_close(value, expected, rtol=2e-2, atol=2e-2)


def test_a_real_nan_goes_through_the_activation() -> None:
    x = torch.zeros(1, 4, 2, device=DEVICE)
    x[0, 1, 1] = torch.nan
    real = torch.ones(1, 4, 1, dtype=torch.bool, device=DEVICE)
    out = triton_norm.batch_norm(Call(x, real, None, None, None, True, 0.1, 1e-5, 2, 2, relu=True))
    assert out is not None
    assert (out[..., 0] == 0).all()
    assert out[..., 1].isnan().all()


@pytest.mark.parametrize(("training", "relu"), [(True, True), (False, False)])
def test_first_and_second_derivatives(training: bool, relu: bool) -> None:
    """Oracle 3; the second is that of the plain form."""
    x, mask, _ = batch(4, (2, 4, 2), "ragged", torch.float64)
    x = x.nan_to_num(0, 0, 0).requires_grad_()
    weight, bias = (torch.randn(2, dtype=x.dtype, device=DEVICE).requires_grad_() for _ in "wb")
    buffers = RunningStatistics(x.new_zeros(2), x.new_ones(2)) if not training else None

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor | None:
        return triton_norm.batch_norm(
            Call(x, mask[..., None], buffers, weight, bias, training, 0.1, 1e-5, 2, 2, relu=relu)
        )

    assert torch.autograd.gradcheck(norm, (x, weight, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(norm, (x, weight, bias), fast_mode=True)


@pytest.mark.parametrize("needing", [[0], [1, 2]])
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


class Reads:
    """Counts what the interpreted kernels load from a tensor."""

    def __init__(self, values: Tensor) -> None:
        self.start = values.data_ptr()
        self.end = self.start + values.numel() * values.element_size()
        self.tiles = 0
        self.elements = 0
        self.by_program: Counter[object] = Counter()

    def see(self, pointers: Any, mask: Any, program: object) -> None:
        inside = (pointers >= self.start) & (pointers < self.end) & mask
        self.tiles += int(inside.any())
        self.elements += int(inside.sum())
        self.by_program[program] += int(inside.any())


def watch(patch: pytest.MonkeyPatch, *watched: Tensor) -> list[Reads]:
    from triton.runtime.interpreter import interpreter_builder

    load = interpreter_builder.create_masked_load
    counts = [Reads(values) for values in watched]

    def counted_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        for reads in counts:
            reads.see(pointers.data, mask.data, interpreter_builder.grid_idx)
        return load(pointers, mask, *rest)

    patch.setattr(interpreter_builder, "create_masked_load", counted_load)
    return counts


@pytest.mark.skipif(DEVICE == "cuda", reason="loads are counted by the interpreter")
@pytest.mark.parametrize("kind", ["right", "none real", "ragged"])
def test_only_tiles_with_real_positions_are_loaded_and_of_them_only_those(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2ρ + 1 passes forward and 4ρ + 1 backward: the 1 is what is written."""
    x, mask, grad = batch(6, (4, 150, 20), kind)
    tiles = nn.functional.pad(mask.flatten(), (0, -mask.numel() % 128)).view(-1, 128).any(1).sum()
    norm = MaskedBatchNorm1d(20, channel_dim=-1)
    leaf = x.requires_grad_()
    with monkeypatch.context() as patch:
        reads, of_grad = watch(patch, leaf, grad)
        out = norm(leaf, mask)
        assert (reads.tiles, reads.elements) == (2 * tiles, 2 * mask.sum() * 20)
        out.backward(grad)
        assert (reads.tiles, reads.elements) == (4 * tiles, 4 * mask.sum() * 20)
        assert (of_grad.tiles, of_grad.elements) == (2 * tiles, 2 * mask.sum() * 20)


@pytest.mark.skipif(DEVICE == "cuda", reason="loads are counted by the interpreter")
def test_every_program_has_as_much_to_load_where_sequences_end_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """32 tiles, each second one padding, in two rounds of 16 programs: one tile for each."""
    x = torch.randn(16, 256, 16)
    mask = (torch.arange(256) < 128).expand(16, -1)
    norm = MaskedBatchNorm1d(16, channel_dim=-1).eval()
    with monkeypatch.context() as patch:
        (reads,) = watch(patch, x)
        norm(x, mask)
    assert len(reads.by_program) == 16
    assert set(reads.by_program.values()) == {1}


@given(st.integers(0, 5), st.integers(0, 5000), st.integers(1, 2048), st.booleans(), st.booleans())
def test_a_pass_has_tiles_for_all_and_programs_for_no_more_than_it_has(
    sequences: int, length: int, channels: int, transposed: bool, alone: bool
) -> None:
    from seqtrain.nn.norms.kernels import triton_ops

    x = torch.empty(sequences, length, channels, device="meta")
    if transposed:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    cut = triton_ops.plan_pass(x[:1] if alone else x)
    held = cut.tiles // cut.tiles_per_sequence * cut.length if cut.tiles else 0
    assert held == (min(sequences, 1) if alone else sequences) * length
    assert cut.tiles_per_sequence * cut.tile_length >= cut.length
    assert cut.grid[0] * cut.block >= channels
    assert cut.block * cut.tile_length <= triton_ops.TILE
    assert 1 <= cut.splits <= max(1, cut.tiles)
    assert cut.splits * cut.grid[0] <= triton_ops.PROGRAMS


@pytest.mark.parametrize("kind", ["none real", "ragged"])
def test_every_element_is_written(kind: str, request: pytest.FixtureRequest) -> None:
    x, mask, grad = batch(7, (2, 130, 20), kind)
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    # New memory is then filled with NaN.
    torch.use_deterministic_algorithms(True)
    leaf = x.requires_grad_()
    out = MaskedBatchNorm1d(20, channel_dim=-1, device=DEVICE)(leaf, mask)
    out.backward(grad)
    assert out.isfinite().all()
    assert leaf.grad.isfinite().all()


def test_torch_finds_the_operators_as_they_say() -> None:
    """Schemas, shapes and strides without data, and derivatives under tracing."""
    from seqtrain.nn.norms.kernels import triton_ops as ops

    x, mask, grad = batch(8, (2, 9, 5), "ragged")
    x, grad = (t.nan_to_num(0, 0, 0) for t in (x, grad))
    ones, share = torch.ones(5, device=DEVICE), torch.full((1,), 0.1, device=DEVICE)
    sums = torch.ones(2, 5, device=DEVICE)
    count = torch.tensor(1, device=DEVICE)
    y = laid_out(x, "gaps")
    buffers = [ones.clone(), ones.clone(), ones.clone()]
    leaves = [t.detach().requires_grad_() for t in (y, ones.clone(), ones.clone(), x)]
    of_norm = (mask, ones, ones.clone())
    for operator, arguments in (
        (ops.batch_statistics, (y, mask, *buffers, count, None, 1e-5, 2)),
        (ops.batch_statistics, (x, mask, None, None, None, None, 0.1, 1e-5, 2)),
        (ops.normalize, (leaves[0], *of_norm, share, *leaves[1:], True)),
        (ops.gradient_sums, (y, grad, *of_norm, ones.clone(), None, False)),
        (ops.input_gradient, (y, grad, *of_norm, share, None, ones.clone(), sums, True)),
    ):
        torch.library.opcheck(operator, arguments)


@pytest.fixture
def traceable(unchecked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package without shape checks, its norms by the kernels."""
    from seqtrain.nn.norms.kernels import choice, triton_norm

    monkeypatch.setattr(choice, "KERNELS", {DEVICE: triton_norm.batch_norm})
    monkeypatch.setattr(triton_norm, "usable", lambda device: True)


@pytest.mark.usefixtures("traceable")
def test_compiled_whole_it_trains_and_evaluates_as_in_eager_mode() -> None:
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    from seqtrain.nn.norms import MaskedBatchNorm1d

    seen: list[str] = []

    def backend(module: torch.fx.GraphModule, _: object) -> Any:
        seen.extend(str(node.target) for node in module.graph.nodes)
        return make_boxed_func(module.forward)

    eager = MaskedBatchNorm1d(4, channel_dim=-1, device=DEVICE)
    traced = copy.deepcopy(eager)
    compiled = torch.compile(
        traced, fullgraph=True, backend=aot_autograd(fw_compiler=backend), dynamic=True
    )
    for step, shape in enumerate([(3, 5, 4), (4, 7, 4)]):
        x, mask, grad = batch(step, shape, "ragged")
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, expected = compiled(a, mask), eager(b, mask)
        out.backward(grad)
        expected.backward(grad)
        assert torch.equal(out, expected)
        assert torch.equal(a.grad, b.grad)
    for name in ("normalize", "normalize_sums", "normalize_gradient"):
        assert f"seqtrain_unchecked.masked_{name}.default" in seen
    for ours, theirs in zip(traced.state_dict().values(), eager.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(compiled.eval()(x, mask), eager.eval()(x, mask))


@pytest.mark.usefixtures("traceable")
@pytest.mark.parametrize("training", [True, False])
def test_exported_with_any_batch_and_length_it_can_still_be_trained(training: bool) -> None:
    from seqtrain.nn.norms import MaskedBatchNorm1d

    norm = MaskedBatchNorm1d(4, channel_dim=-1, device=DEVICE).train(training)
    size, length = torch.export.Dim("B", min=2), torch.export.Dim("L", min=2)
    program = torch.export.export(
        norm,
        batch(0, (3, 5, 4), "ragged")[:2],
        dynamic_shapes=({0: size, 1: length}, {0: size, 1: length}),
    )
    operators = [str(node.target) for node in program.graph.nodes]
    assert "seqtrain_unchecked.masked_normalize.default" in operators
    exported = program.module()
    for step, shape in enumerate([(2, 9, 4), (6, 4, 4)]):
        x, mask, grad = batch(step, shape, "ragged")
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        norm.load_state_dict(exported.state_dict())
        out, expected = exported(a, mask), copy.deepcopy(norm)(b, mask)
        out.backward(grad)
        expected.backward(grad)
        assert torch.equal(out, expected)
        assert torch.equal(a.grad, b.grad)


def test_only_where_triton_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    def usable(device: str) -> bool:
        triton_norm._compiles_for.cache_clear()
        return triton_norm.usable(torch.device(device))

    assert usable("cuda:0")
    assert not usable("cpu")
    capability = (7, 5)
    assert not usable("cuda:0")
    capability = (9, 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not usable("cuda:0")
    triton_norm._compiles_for.cache_clear()


@pytest.mark.usefixtures("unchecked")
def test_asking_the_machine_is_no_part_of_a_traced_program(monkeypatch: pytest.MonkeyPatch) -> None:
    from seqtrain.nn.norms.kernels import triton_norm

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu = torch.device("cuda", 0)

    def ask(x: Tensor) -> Tensor:
        return x + 1 if triton_norm.usable(gpu) and not triton_norm.usable(x.device) else x

    found = torch.compile(ask, fullgraph=True, backend="eager")(torch.zeros(2))
    triton_norm._compiles_for.cache_clear()
    assert (found == 1).all()


@pytest.mark.parametrize("spoilt", ["float64 buffers", "no counter", "gaps"])
def test_unusual_buffers_are_left_to_the_plain_form(spoilt: str) -> None:
    x, mask, _ = batch(9, (2, 9, 3), "ragged")
    mean, var = torch.zeros(2, 6, device=DEVICE)[:, :3]
    match spoilt:
        case "float64 buffers":
            mean, var = mean.double(), var.double()
        case "gaps":
            mean, var = torch.zeros(2, 6, device=DEVICE)[:, ::2]
    momentum = None if spoilt == "no counter" else 0.1
    buffers = RunningStatistics(mean, var)
    call = Call(x, mask[..., None], buffers, None, None, True, momentum, 1e-5, 2, 2)
    assert triton_norm.batch_norm(call) is None
    assert (mean == 0).all()


def test_triton_stays_away_until_a_gpu_asks_for_it() -> None:
    code = "import sys, seqtrain.nn.norms; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


KERNELS = ["moments_of_tiles", "settle", "write_normal", "gradient_sums_of_tiles", "write_gradient"]


@pytest.mark.parametrize(
    ("features", "capability", "options"),
    [
        ("*bf16", "90", ["RELU"]),
        ("*fp16", "80", ["residual", "running_weight"]),
        ("*fp32", "90", ["RELU", "residual"]),
    ],
)
def test_every_kernel_compiles_for_a_gpu_and_loads_16_bytes_at_once(
    features: str, capability: str, options: list[str], tmp_path: Path
) -> None:
    script = Path(__file__).with_name("compile_for_gpu.py")
    done = subprocess.run(
        [sys.executable, script, features, capability, ",".join(options), *KERNELS],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [f"{kernel} 128" for kernel in KERNELS]
