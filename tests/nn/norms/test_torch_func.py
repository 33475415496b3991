"""``torch.func``, forward mode and batched gradients: as torch's own layers, masked or not."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as fw
from torch import Tensor, nn
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)

from seqtrain.nn import norms as ours
from seqtrain.nn.norms.kernels import cpu

Kinds = dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module] | None]]

# Ours, and torch's where nothing is masked; all over (B, C, L) = (3, 4, 6).
KINDS: Kinds = {
    "batch": (
        lambda: ours.MaskedBatchNorm1d(4, track_running_stats=False),
        lambda: nn.BatchNorm1d(4, track_running_stats=False),
    ),
    "batch, evaluation": (
        lambda: ours.MaskedBatchNorm1d(4).eval(),
        lambda: nn.BatchNorm1d(4).eval(),
    ),
    "group": (lambda: ours.MaskedGroupNorm(2, 4), lambda: nn.GroupNorm(2, 4)),
    "instance": (
        lambda: ours.MaskedInstanceNorm1d(4, affine=True),
        lambda: nn.InstanceNorm1d(4, affine=True),
    ),
    "instance, evaluation": (
        lambda: ours.MaskedInstanceNorm1d(4, affine=True, track_running_stats=True).eval(),
        lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True).eval(),
    ),
    "layer": (lambda: ours.MaskedLayerNorm(4, channel_dim=1), None),
    "layer over sequences": (
        lambda: ours.MaskedLayerNorm(4, channel_dim=1, over="sequence"),
        lambda: nn.GroupNorm(1, 4),
    ),
    "rms": (lambda: ours.MaskedRMSNorm(4, channel_dim=1), None),
    "general": (lambda: ours.MaskedNorm(dims=(0, 2), eps=1e-5), None),
    "complex": (
        lambda: ours.MaskedComplexBatchNorm1d(4, track_running_stats=False, dtype=torch.complex128),
        None,
    ),
}
MASKS = ["no mask", "all real", "positions", "channels"]


pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"  # torch's own rules use it
)


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of the CPU takes the smallest input, where no transform keeps it away."""
    monkeypatch.setattr(cpu, "SMALLEST", 0)


def build(kind: str, which: int = 0) -> nn.Module:
    torch.manual_seed(which)
    make, _ = KINDS[kind]
    norm = make().double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    for buffer in norm.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    return norm


def some_mask(kind: str, mask: str, seed: int = 0) -> Tensor | None:
    generator = torch.Generator().manual_seed(seed)
    if mask == "no mask":
        return None
    if mask == "all real":
        return torch.ones(3, 6, dtype=torch.bool)
    shape = (3, 4, 6) if mask == "channels" or kind == "general" else (3, 6)
    return torch.rand(shape, generator=generator) < 0.7


def inputs(kind: str, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    dtype = torch.complex128 if kind == "complex" else torch.float64
    return torch.randn(count, 3, 4, 6, dtype=dtype, generator=generator)


def fits(kind: str, mask: str) -> None:
    if kind == "general" and mask == "all real":
        pytest.skip("the general form takes masks of the input's rank")


every_kind = pytest.mark.parametrize("kind", KINDS)
every_mask = pytest.mark.parametrize("mask", MASKS)


@every_kind
@every_mask
def test_vmap_is_the_loop(kind: str, mask: str) -> None:
    """Over inputs, and over a mask of each."""
    fits(kind, mask)
    norm, xs = build(kind), inputs(kind, 2)
    one = some_mask(kind, mask)
    torch.testing.assert_close(
        vmap(lambda x: norm(x, one))(xs), torch.stack([norm(x, one) for x in xs])
    )
    if one is not None:
        masks = torch.stack([one, ~one | one.flip(0)])
        expected = torch.stack([norm(x, m) for x, m in zip(xs, masks, strict=True)])
        torch.testing.assert_close(vmap(norm)(xs, masks), expected)


@every_kind
@every_mask
def test_jacobians_of_every_kind_are_one(kind: str, mask: str) -> None:
    """Reverse mode row by row, vectorized both ways, forward mode, and a directional one."""
    fits(kind, mask)
    norm, (x,), real = build(kind), inputs(kind, 1), some_mask(kind, mask)
    if kind == "complex":
        x = torch.view_as_real(x)

    def f(x: Tensor) -> Tensor:
        out = norm(torch.view_as_complex(x) if kind == "complex" else x, real)
        return torch.view_as_real(out) if kind == "complex" else out

    by_rows = torch.autograd.functional.jacobian(f, x)
    for found in (
        jacrev(f)(x),
        jacfwd(f)(x),
        torch.autograd.functional.jacobian(f, x, vectorize=True),
        torch.autograd.functional.jacobian(f, x, vectorize=True, strategy="forward-mode"),
    ):
        torch.testing.assert_close(found, by_rows)
    direction = torch.randn_like(x)
    expected = torch.tensordot(by_rows, direction, x.ndim)
    torch.testing.assert_close(jvp(f, (x,), (direction,))[1], expected)
    with fw.dual_level():
        dual = f(fw.make_dual(x, direction))
        torch.testing.assert_close(fw.unpack_dual(dual).tangent, expected)
    back = torch.tensordot(direction, by_rows, x.ndim)
    torch.testing.assert_close(vjp(f, x)[1](direction)[0], back)
    leaf = x.clone().requires_grad_()
    upstream = torch.randn(2, *x.shape, dtype=x.dtype)
    (found,) = torch.autograd.grad(f(leaf), leaf, upstream, is_grads_batched=True)
    torch.testing.assert_close(found, torch.tensordot(upstream, by_rows, x.ndim))


@pytest.mark.parametrize("kind", ["batch", "group", "rms", "layer over sequences"])
def test_second_derivatives_are_those_of_reverse_mode(kind: str) -> None:
    norm, (x,), real = build(kind), inputs(kind, 1), some_mask(kind, "channels")
    x = x[:, :, :2]
    real = real[:, :, :2]
    weights = torch.randn(x.shape, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return (norm(x, real).sin() * weights).sum()

    expected = torch.autograd.functional.hessian(f, x)
    for found in (hessian(f)(x), jacrev(jacrev(f))(x), jacfwd(jacfwd(f))(x)):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "general"])
@every_mask
def test_gradients_per_sample_are_those_of_each_alone(kind: str, mask: str) -> None:
    norm, xs, real = build(kind), inputs(kind, 2), some_mask(kind, mask)
    parameters = {name: p.detach() for name, p in norm.named_parameters()}
    buffers = dict(norm.named_buffers())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(norm, (parameters, buffers), (x, real)).abs().square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, xs)
    for at, x in enumerate(xs):
        norm.zero_grad()
        norm(x, real).abs().square().sum().backward()
        for name, parameter in norm.named_parameters():
            torch.testing.assert_close(found[name][at], parameter.grad)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shared", [True, False], ids=["one input", "an input each"])
def test_an_ensemble_of_batch_norms_is_its_members(training: bool, mask: str, shared: bool) -> None:
    """Parameters and running statistics are stacked; each member moves its own."""
    options = {"momentum": 0.3}
    members = [ours.MaskedBatchNorm1d(4, **options).double().train(training) for _ in range(3)]
    for at, member in enumerate(members):
        nn.init.normal_(member.weight)
        member.running_mean.fill_(at)
    parameters, buffers = stack_module_state(copy.deepcopy(members))
    base, xs, real = copy.deepcopy(members[0]), inputs("batch", 3), some_mask("batch", mask)

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(base, (parameters, buffers), (x, real))

    x_dim = None if shared else 0
    given = xs[0] if shared else xs
    found = vmap(call, in_dims=(0, 0, x_dim))(parameters, buffers, given)
    for at, member in enumerate(members):
        torch.testing.assert_close(found[at], member(xs[0] if shared else xs[at], real))
        for name, buffer in member.named_buffers():
            torch.testing.assert_close(buffers[name][at], buffer)


@pytest.mark.parametrize("kind", [ours.MaskedBatchNorm1d, ours.MaskedBatchRenorm1d])
@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_running_statistics_that_cannot_move_are_refused_in_a_sentence(
    kind: type[nn.Module], transform: str
) -> None:
    """As torch refuses it, too: one buffer cannot take the statistics of each input."""
    norm, xs, real = kind(4).double(), inputs("batch", 2), some_mask("batch", "positions")
    before = copy.deepcopy(norm.state_dict())
    calls = {
        "vmap": lambda: vmap(lambda x: norm(x, real))(xs),
        "grad": lambda: grad(lambda x: norm(x, real).sum())(xs[0]),
    }
    with pytest.raises(RuntimeError, match=r"functional_call, or use eval\(\)"):
        calls[transform]()
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_a_gradient_through_handed_over_buffers_moves_them() -> None:
    norm, (x,), real = build("batch, evaluation").train(), inputs("batch", 1), some_mask("", "")
    alone = copy.deepcopy(norm)
    parameters = dict(norm.named_parameters())

    def loss(
        parameters: dict[str, Tensor], buffers: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return functional_call(norm, (parameters, buffers), (x, real)).square().sum(), buffers

    buffers = {name: b.clone() for name, b in norm.named_buffers()}
    found, moved = grad(loss, has_aux=True)(parameters, buffers)
    alone(x, real).square().sum().backward()
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
    for name, buffer in alone.named_buffers():
        torch.testing.assert_close(moved[name], buffer)


@pytest.mark.parametrize("kind", [name for name, (_, theirs) in KINDS.items() if theirs])
def test_nothing_masked_is_torchs_layer_under_transforms(kind: str) -> None:
    norm, (x,), full = build(kind), inputs(kind, 1), some_mask(kind, "all real")
    theirs = KINDS[kind][1]().double()
    theirs.load_state_dict(norm.state_dict())
    theirs.train(norm.training)
    for mask in (None, full):
        torch.testing.assert_close(jacfwd(lambda x, m=mask: norm(x, m))(x), jacfwd(theirs)(x))


def test_renormalization_follows_the_same_rules() -> None:
    """r and d are constants in every mode."""
    norm, (x,), real = ours.MaskedBatchRenorm1d(4, warmup_batches=0), inputs("", 1), None
    norm = norm.double()
    real = some_mask("batch", "positions")

    def f(x: Tensor) -> Tensor:
        fresh = {name: b.clone() for name, b in norm.named_buffers()}
        return functional_call(norm, fresh, (x, real))

    expected = torch.autograd.functional.jacobian(f, x)
    with fw.dual_level():
        direction = torch.randn_like(x)
        tangent = fw.unpack_dual(f(fw.make_dual(x, direction))).tangent
        torch.testing.assert_close(tangent, torch.tensordot(expected, direction, 3))
    buffers = {name: b.expand(2, *b.shape).clone() for name, b in norm.named_buffers()}
    found = vmap(lambda b, x: functional_call(norm, b, (x, real)))(buffers, torch.stack([x, x]))
    torch.testing.assert_close(found[0], f(x))


def test_forward_mode_leaves_no_tangent_in_the_buffers() -> None:
    norm, (x,), real = build("batch, evaluation").train(), inputs("", 1), some_mask("", "")
    with fw.dual_level():
        norm(fw.make_dual(x, torch.ones_like(x)), real)
        assert all(fw.unpack_dual(b).tangent is None for b in norm.buffers())


def test_nested_transforms_agree_with_loops() -> None:
    norm, xs, real = build("batch"), inputs("batch", 2), some_mask("batch", "positions")
    found = vmap(jacrev(lambda x: norm(x, real).square().sum()))(xs)
    for at, x in enumerate(xs):
        leaf = x.clone().requires_grad_()
        norm(leaf, real).square().sum().backward()
        torch.testing.assert_close(found[at], leaf.grad)
