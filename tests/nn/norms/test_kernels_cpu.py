"""Oracle 13: the fused batch norm of the CPU against the plain form and against float64."""

import copy
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from cpu_kernels import STRIDES, finely, made, plainly, python_loops, some_input, train
from hypothesis import example, given, settings
from hypothesis import strategies as st
from masked_inputs import KINDS, make_mask, poisoned
from oracles import batch_norm_by_channel, batch_norm_gradient, real_rows
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqtrain.nn.norms import MaskedBatchNorm1d, masked_batch_norm
from seqtrain.nn.norms.kernels import choice, cpu, cpu_loops, cpu_loops_first
from seqtrain.nn.norms.kernels.call import Call
from seqtrain.nn.norms.moments import Moments
from seqtrain.nn.norms.running import RunningStatistics

OPTIONS: list[dict[str, object]] = [
    {},
    {"affine": False},
    {"bias": False},
    {"momentum": None},
    {"stat_weighting": "tokens"},
    {"min_count": 5},
    {"track_running_stats": False},
]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("loops_in", ["python", "machine code"])
@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 5)),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    strides=st.sampled_from(sorted(STRIDES)),
    channel_dim=st.sampled_from([0, 1, 2]),
    options=st.sampled_from(OPTIONS),
    seed=st.integers(0, 2**16),
)
@example(
    shape=(1, 3, 3),
    kind="right",
    dtype=torch.float32,
    strides="channels slow",
    channel_dim=0,
    options={},
    seed=3,
)
def test_fused_and_plain_agree_and_each_repeats_its_bits(
    loops_in: str,
    shape: tuple[int, int, int],
    kind: str,
    dtype: torch.dtype,
    strides: str,
    channel_dim: int,
    options: dict[str, object],
    seed: int,
) -> None:
    x, mask, grad = some_input(shape, kind, dtype, seed)
    norm = made(shape[2], dtype, channel_dim=channel_dim, **options)

    def once() -> dict[str, Tensor]:
        return train(copy.deepcopy(norm), STRIDES[strides](x), mask, STRIDES[strides](grad))

    with pytest.MonkeyPatch.context() as patch:
        finely(patch, loops_in)
        fused, again = once(), once()
    with pytest.MonkeyPatch.context() as patch:
        plainly(patch)
        plain = once()
    tolerance = 200 * torch.finfo(dtype).eps
    # Gradients are differences of terms as large as the inverse of the standard deviation.
    spread = x[mask].double().var(0, correction=0).min() if mask.any() else torch.tensor(1.0)
    largest = max(1.0, float((spread + norm.eps).rsqrt()))
    for name, value in fused.items():
        assert torch.equal(value, again[name]), name
        torch.testing.assert_close(value, plain[name], rtol=tolerance, atol=tolerance * largest)
    for name in ("out", "dx", "evaluation"):
        assert (fused[name][~mask] == 0).all()


@pytest.mark.parametrize(
    ("loops_in", "channels"),
    [("python", 3), ("machine code", 3), ("machine code", 200), ("machine code", 1500)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_gives_what_float64_gives(
    loops_in: str, channels: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    finely(monkeypatch, loops_in)
    x, mask, grad = some_input((4, 20, channels), "ragged", dtype, 0)
    norm = made(channels, dtype, channel_dim=-1)
    found = train(copy.deepcopy(norm), x, mask, grad)
    weight, bias = (p.detach().double() for p in norm.parameters())
    normal, mean, var = batch_norm_by_channel(x, mask[..., None].expand_as(x))
    dx, dweight, dbias = batch_norm_gradient(
        real_rows(x, mask).double(), real_rows(grad, mask).double(), weight
    )
    out = (normal * weight + bias)[mask]
    gradients = {"dx": (found["dx"][mask], dx), "dweight": (found["dweight"], dweight)}
    tolerance = 200 * torch.finfo(dtype).eps
    for name, (value, expected) in {
        "out": (found["out"][mask], out),
        **gradients,
        "dbias": (found["dbias"], dbias),
        "running_mean": (found["running_mean"], 0.1 * mean),
        "running_var": (found["running_var"], 0.9 + 0.1 * var),
    }.items():
        close = torch.allclose(value.double(), expected, rtol=tolerance, atol=tolerance)
        assert close, name


@pytest.mark.parametrize("mean", [1e2, 1e4, 1e5])
def test_a_large_mean_costs_no_digit(mean: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 the mean itself is rounded by 0.004 at 1e5; what is lost comes back as shift."""
    finely(monkeypatch, "machine code")
    monkeypatch.setattr(cpu, "TILE", 2**14)  # as large as they ever are
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(8, 300, 4, generator=generator) + mean).requires_grad_()
    mask = make_mask("right", 8, 300, generator)
    grad = torch.randn(x.shape, generator=generator)
    norm = MaskedBatchNorm1d(4, channel_dim=-1, momentum=1.0)
    out = norm(x, mask)
    out.backward(grad)
    expected, _, var = batch_norm_by_channel(x, mask[..., None].expand_as(x))
    dx, dweight, _ = batch_norm_gradient(
        real_rows(x.detach(), mask).double(), real_rows(grad, mask).double(), torch.ones(4)
    )
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad[mask].double(), dx, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.weight.grad.double(), dweight, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-5, atol=0)


def test_autograd_learns_that_buffers_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a graph that evaluation saved them for would go on with other numbers."""
    finely(monkeypatch, "python")
    norm = MaskedBatchNorm1d(3, channel_dim=-1)
    before = norm.running_mean._version, norm.running_var._version
    norm(torch.randn(2, 9, 3), torch.ones(2, 9, dtype=torch.bool))
    after = norm.running_mean._version, norm.running_var._version
    assert after == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("loops", [python_loops().rows, cpu_loops])
@pytest.mark.parametrize("kind", KINDS)
def test_places_of_real_rows_are_found(kind: str, loops: ModuleType) -> None:
    mask = make_mask(kind, 3, 9, torch.Generator().manual_seed(1)).numpy().ravel()
    mask = mask * np.uint8(2)  # a byte that is true need not be 1
    places = np.full(28, -1)
    n = loops.find(1, mask, places[:27])
    assert np.array_equal(places[:n], mask.nonzero()[0])
    assert places[27] == -1


@pytest.mark.parametrize("loops", [python_loops().first, cpu_loops_first])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_hold_every_real_position_once_and_end_with_one(
    kind: str, loops: ModuleType
) -> None:
    mask = make_mask(kind, 3, 9, torch.Generator().manual_seed(1)).numpy()
    pieces = np.full((10, 4), -1)
    n = loops.cut(1, mask * np.uint8(2), pieces[:9], 4)
    covered = np.zeros_like(mask)
    for b, begin, end, size in pieces[:n]:
        assert end - begin <= 4
        assert mask[b, begin]
        assert mask[b, end - 1]
        assert mask[b, begin:end].sum() == size
        covered[b, begin:end] |= mask[b, begin:end]
    assert np.array_equal(covered, mask)
    assert (pieces[n:] == -1).all()


@pytest.mark.parametrize("loops_in", ["python", "machine code"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("relu", [False, True])
def test_channels_first_are_what_channels_last_are(
    loops_in: str, dtype: torch.dtype, relu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any rank, read as it lies in memory."""
    finely(monkeypatch, loops_in)
    x, mask, grad = some_input((4, 30, 5), "interior", dtype, 4)
    shapes = {"1d": (4, 30), "2d": (4, 6, 5), "3d": (4, 2, 5, 3)}
    found = {}
    for name, shape in shapes.items():
        for channel_dim in (1, -1):
            norm = made(5, dtype, channel_dim=-1)
            leaf, residual, g = (
                t.view(*shape, 5).movedim(-1, channel_dim).contiguous() for t in (x, x * 2, grad)
            )
            leaf.requires_grad_()
            residual.requires_grad_()
            options = {"channel_dim": channel_dim, "relu": relu, "residual": residual}
            buffers = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
            out = masked_batch_norm(leaf, mask.view(shape), *buffers, True, **options)
            out.backward(g)
            results = [out, leaf.grad, residual.grad]
            assert all(t.is_contiguous() for t in results)
            results = [t.movedim(channel_dim, -1).reshape(4, 30, 5) for t in results]
            found[name, channel_dim] = [*results, norm.weight.grad, norm.bias.grad, *buffers[:2]]
    expected = found.pop(("1d", -1))
    tolerance = 200 * torch.finfo(dtype).eps
    for key, values in found.items():
        for value, other in zip(values, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=tolerance, atol=tolerance, msg=str(key))
        assert all((value[~mask] == 0).all() for value in values[:3])


def test_a_constant_channel_comes_out_as_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    finely(monkeypatch, "python")
    x, mask = torch.full((2, 9, 3), 7.0), torch.ones(2, 9, dtype=torch.bool)
    bias = torch.tensor([1.0, 2.0, 3.0])
    out = masked_batch_norm(x, mask, bias=bias, training=True, channel_dim=-1)
    assert torch.equal(out, bias.expand(2, 9, 3))


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("channel_dim", [-1, 1])
@pytest.mark.parametrize("relu", [False, True])
def test_derivatives_are_those_of_finite_differences(
    order: str, channel_dim: int, relu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many channels as positions, so that a mask laid over the wrong ones would fit as well."""
    finely(monkeypatch, "python")
    x, mask, _ = some_input((2, 4, 4), "interior", torch.float64, 3)
    x = x.masked_fill(~mask[..., None], 0).movedim(-1, channel_dim).contiguous().requires_grad_()
    mask = mask.unsqueeze(channel_dim)
    weight, bias = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def normalized(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return masked_batch_norm(
            *(x, mask, None, None, weight, bias, True), channel_dim=channel_dim, relu=relu
        )

    check = torch.autograd.gradcheck if order == "first" else torch.autograd.gradgradcheck
    assert check(normalized, (x, weight, bias))
    assert check(lambda x: normalized(x, None, None), (x,))


class Watched(np.ndarray):
    """``(N, 1)``, notes which rows are read and written, in it and in views of it."""

    def __array_finalize__(self, source: object) -> None:
        is_view = isinstance(source, Watched)
        self.read: list[int] = source.read if is_view else []
        self.written: list[int] = source.written if is_view else []
        self.begin: int = source.begin if is_view else self.ctypes.data

    def __getitem__(self, key: object) -> object:
        found = super().__getitem__(key)
        if not isinstance(found, np.ndarray):
            self.read += self.rows(key)
        return found

    def __setitem__(self, key: object, value: object) -> None:
        self.written += self.rows(key)
        if isinstance(value, Watched):
            value.read += value.rows(slice(None))
        super().__setitem__(key, value)

    def rows(self, key: object) -> list[int]:
        first = (self.ctypes.data - self.begin) // self.itemsize
        at = key[0] if isinstance(key, tuple) else key
        return (first + np.arange(len(self))[at]).reshape(-1).tolist()


def test_no_padded_row_is_read_and_every_row_is_written_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The work counts: two reads of a real row for its moments, one wherever else it is needed."""
    finely(monkeypatch, "python")
    mask = make_mask("interior", 4, 11, torch.Generator().manual_seed(5))
    real = mask.flatten().int()
    assert 16 < real.sum() < len(real)
    plain, seen = cpu._array, dict[int, Watched]()

    def array(values: Tensor) -> np.ndarray:
        found = plain(values)
        if found.shape != (44, 1):
            return found
        return seen.setdefault(values.data_ptr(), found.view(Watched))

    def counts(values: Tensor) -> tuple[Tensor, Tensor]:
        """How often each row was read and written since the last time."""
        watched = seen.pop(values.data_ptr())
        return tuple(
            torch.tensor(np.bincount(c, minlength=44)) for c in (watched.read, watched.written)
        )

    def reads(values: Tensor, times: int) -> bool:
        """Those of real rows alone, and nothing written."""
        read, written = counts(values)
        return torch.equal(read, times * real.long()) and not written.any()

    def writes(values: Tensor) -> bool:
        """Every row once, and nothing read."""
        read, written = counts(values)
        return not read.any() and bool((written == 1).all())

    monkeypatch.setattr(cpu, "_array", array)
    x, residual, grad = torch.randn(3, 4, 11, 1, dtype=torch.float64).unbind()
    x.requires_grad_()
    residual.requires_grad_()
    norm = made(1, torch.float64, channel_dim=-1)
    out = norm(x, mask, residual=residual, relu=True)
    assert reads(x, 3)
    assert reads(residual, 1)
    assert writes(out)
    out.backward(grad)
    assert reads(x, 2)
    assert reads(grad, 3)
    assert writes(x.grad)
    assert writes(residual.grad)
    with torch.no_grad():
        out = norm.eval()(x, mask)
    assert reads(x, 1)
    assert writes(out)


STRANGE: dict[str, Callable[[Tensor], Tensor]] = {
    "to be negated": lambda t: torch._neg_view(-t),
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape),
    "a subclass": lambda t: TwoTensor(t, t),
}


@pytest.mark.parametrize("which", ["x", "residual", "grad", "weight", "running_mean"])
@pytest.mark.parametrize("kind", sorted(STRANGE))
def test_memory_that_is_not_what_the_tensor_says(
    which: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch has it: the result of the plain form, or its error."""
    finely(monkeypatch, "machine code")
    mask = torch.ones(2, 9, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    plain = {name: torch.randn(2, 9, 3, generator=generator) for name in ("x", "residual", "grad")}
    plain |= {name: torch.rand(3, generator=generator) for name in ("weight", "running_mean")}

    def both_ways() -> list[Tensor] | type[Exception]:
        given = {name: t.clone() for name, t in plain.items()}
        given[which] = STRANGE[kind](given[which])
        bias, mean = torch.zeros(3, requires_grad=True), given["running_mean"]
        x, residual, grad = (given[name] for name in ("x", "residual", "grad"))
        options = (mean, torch.ones(3), given["weight"], bias, True)
        try:
            out = masked_batch_norm(x, mask, *options, channel_dim=-1, residual=residual)
            found = [out, *torch.autograd.grad(out, bias, grad), mean]
        except (RuntimeError, NotImplementedError) as error:
            return type(error)
        return [t.a if isinstance(t, TwoTensor) else t.resolve_neg() + 0 for t in found]

    fused = both_ways()
    plainly(monkeypatch)
    expected = both_ways()
    if isinstance(expected, type):
        assert fused == expected
    else:
        torch.testing.assert_close(fused, expected)


def test_nothing_is_made_on_the_default_device(monkeypatch: pytest.MonkeyPatch) -> None:
    finely(monkeypatch, "machine code")
    x, mask, grad = some_input((2, 9, 3), "right", torch.float32, 1)
    norm = made(3, torch.float32, channel_dim=-1, momentum=None)
    expected = train(copy.deepcopy(norm), x, mask, grad)
    with torch.device("meta"):
        found = train(norm, x, mask, grad)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize("name", ["weight", "running_var"])
def test_memory_of_another_device_is_not_touched(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finely(monkeypatch, "machine code")
    norm = MaskedBatchNorm1d(3, channel_dim=-1)
    away = getattr(norm, name).to("meta")
    setattr(norm, name, nn.Parameter(away) if name == "weight" else away)
    with pytest.raises((RuntimeError, NotImplementedError)):
        norm(torch.randn(2, 9, 3), torch.ones(2, 9, dtype=torch.bool)).sum().item()


def test_memory_that_was_given_back_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    finely(monkeypatch, "machine code")
    norm, x = MaskedBatchNorm1d(3, channel_dim=-1), torch.randn(2, 9, 3)
    x.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"memory behind|out of bounds for storage of size 0"):
        norm(x, torch.ones(2, 9, dtype=torch.bool))
    norm.weight.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"expected memory behind a tensor of shape \(3,\)"):
        norm(torch.randn(2, 9, 3), torch.ones(2, 9, dtype=torch.bool))


def test_a_counter_that_takes_four_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    finely(monkeypatch, "machine code")
    x, mask, _ = some_input((2, 9, 3), "right", torch.float32, 1)
    norm, two = MaskedBatchNorm1d(3, channel_dim=-1), torch.tensor([-1, -1], dtype=torch.int32)
    norm.num_batches_tracked = two[0]
    norm(x, mask)
    assert two.tolist() == [0, -1]


@pytest.mark.parametrize(
    "counter", [torch.tensor(2.0), torch.tensor([2, 4]), torch.tensor(2, dtype=torch.uint8)]
)
def test_other_counters_than_torch_makes_are_counted_as_the_plain_form_does(
    counter: Tensor,
) -> None:
    statistics = torch.tensor([[1.0, 2.0, 3.0], [8.0, 16.0, 0.0], [1.0, 1.0, 1.0]]).double()
    fast, plain = (
        RunningStatistics(torch.zeros(3), torch.ones(3), counter.clone()) for _ in range(2)
    )
    before = fast.mean._version, fast.var._version
    cpu._update(fast, statistics, 9, 0.1)
    size, enough = torch.tensor(9), torch.tensor(True)
    plain.update(Moments(size, statistics[0], statistics[1]), enough, 0.1)
    torch.testing.assert_close(fast[:3], plain[:3])
    assert (fast.mean._version, fast.var._version) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("training", [True, False])
def test_results_have_the_strides_that_torchs_have(
    channel_dim: int, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    finely(monkeypatch, "machine code")
    x, mask, grad = some_input((4, 15, 3), "ragged", torch.float32, 1)
    x, residual, grad = (t.movedim(-1, channel_dim).contiguous() for t in (x, x.clone(), grad))
    x.requires_grad_(training)
    norm = made(3, torch.float32, channel_dim=channel_dim).train(training)
    with torch.set_grad_enabled(training):
        out = norm(x, mask, residual=residual)
    assert torch.equal(out.view(-1), out.flatten())
    if training:
        out.backward(grad)
        assert x.grad.is_contiguous()
    turned = norm(x.detach().transpose(0, 2).contiguous().transpose(0, 2), mask)
    torch.testing.assert_close(turned, norm(x.detach(), mask))


@pytest.mark.parametrize("channel_dim", [1, -1])
def test_an_input_that_changed_before_the_backward_pass_is_refused(
    channel_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    finely(monkeypatch, "machine code")
    x, mask, grad = some_input((4, 15, 3), "ragged", torch.float32, 1)
    x, grad = (t.movedim(-1, channel_dim).contiguous() for t in (x, grad))
    leaf = x.requires_grad_() * 1
    out = made(3, torch.float32, channel_dim=channel_dim)(leaf, mask)
    leaf.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward(grad)


@pytest.mark.parametrize(
    ("brought", "error"),
    [
        (lambda t: t.double() if t.is_floating_point() else t, None),
        (lambda t: t[:1], "expected a saved input of shape"),
    ],
)
def test_saved_states_may_come_back_otherwise(
    brought: Callable[[Tensor], Tensor], error: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    finely(monkeypatch, "machine code")
    x, mask, grad = some_input((2, 9, 3), "right", torch.float32, 1)
    norm = made(3, torch.float32, channel_dim=-1)
    expected = train(copy.deepcopy(norm), x, mask, grad)
    leaf = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, brought):
        out = norm(leaf, mask)
    if error is not None:
        with pytest.raises(RuntimeError, match=error):
            out.backward(grad)
        return
    out.backward(grad)
    assert torch.equal(leaf.grad, expected["dx"])


def taken(x: Tensor, mask: Tensor, norm: nn.Module) -> bool:
    """Whether the kernel takes the call, which leaves the buffers alone where it does not."""
    before = copy.deepcopy(norm.state_dict())
    running = RunningStatistics(norm.running_mean, norm.running_var)
    options = (norm.training, 0.1, 1e-5, -1, 2)
    found = choice.fused_batch_norm(Call(x, mask, running, norm.weight, norm.bias, *options))
    if found is None:
        for name, value in norm.state_dict().items():
            assert torch.equal(value, before[name])
    return found is not None


class Idle(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


def test_what_it_does_not_cover_it_leaves_to_the_plain_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    norm, x = MaskedBatchNorm1d(4, channel_dim=-1), torch.randn(2, 30, 4)
    mask = torch.ones(2, 30, dtype=torch.bool)
    assert not taken(x, mask, norm), "small"
    finely(monkeypatch, "python")
    assert taken(x, mask, norm)
    assert not taken(x.bfloat16(), mask, norm)
    assert not taken(x.to("meta"), mask, norm)
    assert not taken(x, mask[..., None].expand_as(x), norm), "a mask for each channel"
    assert not taken(x, mask & (torch.arange(30) < 0), norm)
    assert not taken(x, mask & (torch.arange(60) < 1).view(2, 30), norm), "under min_count"
    assert not taken(x[..., :3], mask, norm), "the plain form raises"
    assert not taken(x.as_subclass(type("Marked", (Tensor,), {})), mask, norm)
    with Idle():
        assert not taken(x, mask, norm)
    seen: list[bool] = []
    torch.func.vmap(lambda m: seen.append(taken(x, m, norm)) or m)(mask[None])
    assert seen == [False]
    norm.eval()
    assert not taken(x, mask, norm), "gradients through running statistics"
    with torch.no_grad(), forward_ad.dual_level():
        assert not taken(x, mask, norm), "it would lose the tangent"
    with torch.no_grad():
        assert taken(x, mask, norm)
    with torch.inference_mode():
        assert taken(x, mask, norm)


def test_parameters_in_half_precision_are_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    finely(monkeypatch, "python")
    x, mask, grad = some_input((2, 12, 3), "left", torch.float32, 2)
    norm = made(3, torch.bfloat16, channel_dim=-1)
    fused = train(copy.deepcopy(norm), x, mask, grad)
    plainly(monkeypatch)
    for name, value in train(norm, x, mask, grad).items():
        assert fused[name].dtype == value.dtype
        torch.testing.assert_close(fused[name], value)


def test_only_wanted_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    finely(monkeypatch, "python")
    x, mask, grad = some_input((2, 12, 3), "left", torch.float32, 2)
    norm = made(3, torch.float32, channel_dim=-1)
    monkeypatch.setattr(python_loops().rows, "gradient", lambda *call: pytest.fail("not wanted"))
    monkeypatch.setattr(python_loops().rows, "pick", lambda *call: pytest.fail("not wanted"))
    norm(x, mask, residual=torch.zeros_like(x)).backward(grad)
    assert norm.weight.grad is not None


def rectified(
    norm: nn.Module, x: Tensor, mask: Tensor, residual: Tensor, grad: Tensor, inside: bool
) -> dict[str, Tensor]:
    """``residual + relu(norm)``, by the norm itself or after it, with its gradients."""
    leaves = {name: t.detach().requires_grad_() for name, t in (("x", x), ("residual", residual))}
    if inside:
        out = norm(leaves["x"], mask, relu=True, residual=leaves["residual"])
    else:
        out = torch.relu(norm(leaves["x"], mask)) + leaves["residual"]
        out = torch.where(mask[..., None], out, out.new_zeros(()))
    out.backward(grad)
    gradients = {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    gradients |= {f"d{name}": p.grad for name, p in norm.named_parameters()}
    return {"out": out.detach(), **gradients}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("loops_in", ["python", "machine code", "none: the plain form"])
@pytest.mark.parametrize("kind", ["right", "ragged", "interior"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activation_and_residual_in_the_same_pass(
    loops_in: str, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, mask, grad = some_input((4, 15, 3), kind, dtype, 3)
    residual = poisoned(torch.randn(x.shape, dtype=dtype), mask[..., None])
    norm = made(3, dtype, channel_dim=-1)
    wanted = rectified(copy.deepcopy(norm), x, mask, residual, grad, inside=False)
    finely(monkeypatch, loops_in)
    if loops_in.startswith("none"):
        plainly(monkeypatch)
    found = rectified(copy.deepcopy(norm), x, mask, residual, grad, inside=True)
    tolerance = 200 * torch.finfo(dtype).eps
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=tolerance, atol=tolerance, msg=name)
    for name in ("out", "dx", "dresidual"):
        assert (found[name][~mask] == 0).all()
    with torch.no_grad():
        inside = norm.eval()(x, mask, relu=True, residual=residual)
        after = torch.where(mask[..., None], torch.relu(norm(x, mask)) + residual, 0.0)
    torch.testing.assert_close(inside, after.to(dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("loops_in", ["python", "machine code"])
def test_a_rectifier_lets_nan_through_as_torchs_does(
    loops_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finely(monkeypatch, loops_in)
    x, mask = torch.randn(2, 9, 3), torch.ones(2, 9, dtype=torch.bool)
    x[0, 0, 0] = torch.nan
    out = MaskedBatchNorm1d(3, channel_dim=-1)(x, mask, relu=True)
    assert out[..., 0].isnan().all()
    assert (out[..., 1:] >= 0).all()


def test_a_rectified_norm_has_second_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    finely(monkeypatch, "python")
    x, mask, _ = some_input((2, 6, 2), "interior", torch.float64, 3)
    x = x.masked_fill(~mask[..., None], 0).requires_grad_()
    residual = torch.randn_like(x).detach().requires_grad_()
    weight, bias = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def block(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        options = {"training": True, "channel_dim": -1, "relu": True, "residual": residual}
        return masked_batch_norm(x, mask, weight=weight, bias=bias, **options)

    assert torch.autograd.gradcheck(block, (x, residual, weight, bias))
    assert torch.autograd.gradgradcheck(block, (x, residual, weight, bias))


def test_a_wider_residual_stays_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    finely(monkeypatch, "python")
    x, mask = torch.randn(2, 9, 3), torch.ones(2, 9, dtype=torch.bool)
    norm, residual = MaskedBatchNorm1d(3, channel_dim=-1), torch.randn(2, 9, 3).double()
    found = norm(x, mask, residual=residual)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, norm(x, mask).double() + residual, rtol=1e-5, atol=1e-5)


def test_a_residual_of_another_shape_is_refused() -> None:
    x, mask = torch.randn(2, 9, 3), torch.ones(2, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"shape \(2, 9, 3\), found one of \(3,\)"):
        MaskedBatchNorm1d(3, channel_dim=-1)(x, mask, residual=torch.ones(3))


def test_a_residual_alone_has_second_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    finely(monkeypatch, "python")
    x, mask = torch.randn(2, 9, 3), torch.arange(9) < torch.tensor([[9], [4]])
    residual = torch.randn(2, 9, 3).requires_grad_()
    out = masked_batch_norm(x, mask, training=True, channel_dim=-1, residual=residual)
    (first,) = torch.autograd.grad((out**2).sum(), residual, create_graph=True)
    torch.testing.assert_close(first, torch.where(mask[..., None], 2 * out, 0.0))
    (second,) = torch.autograd.grad(first.sum(), residual)
    torch.testing.assert_close(second, 2.0 * mask[..., None].expand_as(x))


def test_saved_states_may_come_back_with_other_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from hooks that keep them elsewhere."""
    finely(monkeypatch, "python")
    x, mask, grad = some_input((4, 15, 3), "right", torch.float32, 3)
    norm = made(3, torch.float32, channel_dim=-1)
    wanted = train(copy.deepcopy(norm), x, mask, grad)

    def turned(t: Tensor) -> Tensor:
        return t.transpose(0, 1).contiguous().transpose(0, 1) if t.ndim == 3 else t

    def gradient_to_go_on_from() -> Tensor:
        leaf = x.detach().requires_grad_()
        out = copy.deepcopy(norm)(leaf, mask, relu=True)
        return torch.autograd.grad(out, leaf, grad, create_graph=True)[0]

    wanted_again = gradient_to_go_on_from()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, turned):
        found = train(copy.deepcopy(norm), x, mask, grad)
        found_again = gradient_to_go_on_from()
    torch.testing.assert_close(found["dx"], wanted["dx"])
    torch.testing.assert_close(found_again, wanted_again)
