"""The norms as layers of models that others wrote: what torch's layers can do, or a refusal."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from masked_inputs import poisoned
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

from seqtrain.nn.norms import (
    AffineMaskedNorm,
    MaskedBatchNorm1d,
    MaskedBatchNorm2d,
    MaskedBatchRenorm1d,
    MaskedComplexBatchNorm1d,
    MaskedGroupNorm,
    MaskedInstanceNorm1d,
    MaskedLayerNorm,
    MaskedNorm,
    MaskedRMSNorm,
    MaskedSyncBatchNorm,
    NaiveMaskedComplexBatchNorm1d,
    convert_masked_sync_batchnorm,
    fold_masked_conv_bn,
    mask_context,
    masked_batch_norm,
    masked_group_norm,
    masked_instance_norm,
    masked_layer_norm,
    masked_norm,
    masked_rms_norm,
    update_bn_stats,
)

# Over 4 channels at dimension 1 or -1.
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": lambda d: MaskedBatchNorm1d(4, channel_dim=d),
    "batch, average": lambda d: MaskedBatchNorm1d(4, momentum=None, channel_dim=d),
    "batch, evaluation": lambda d: MaskedBatchNorm1d(4, channel_dim=d).eval(),
    "renorm": lambda d: MaskedBatchRenorm1d(4, channel_dim=d),
    "group": lambda d: MaskedGroupNorm(2, 4, channel_dim=d),
    "instance": lambda d: MaskedInstanceNorm1d(4, affine=True, channel_dim=d),
    "layer": lambda d: MaskedLayerNorm(4, channel_dim=d),
    "layer over sequences": lambda d: MaskedLayerNorm(4, channel_dim=d, over="sequence"),
    "rms": lambda d: MaskedRMSNorm(4, channel_dim=d),
}


def example(channel_dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 6, 4, generator=generator).movedim(-1, channel_dim).contiguous()
    return x, torch.rand(3, 6, generator=generator) < 0.7


@pytest.mark.parametrize("given", ["no mask", "a mask", "a mask of channels"])
@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("name", NORMS)
def test_what_comes_of_contiguous_features_is_contiguous(
    path: str, name: str, channel_dim: int, given: str
) -> None:
    x, mask = example(channel_dim)
    real = {"no mask": None, "a mask": mask}.get(given, x > -1)
    norm = NORMS[name](channel_dim)
    out = norm(x.requires_grad_(), real)
    assert out.view(3, -1).stride() == (24, 1)
    out.sum().backward()
    assert x.grad.is_contiguous()


@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("name", [name for name in NORMS if name != "batch, evaluation"])
def test_an_input_changed_before_backward_is_refused_as_in_torch(
    path: str, name: str, channel_dim: int
) -> None:
    x, mask = example(channel_dim)
    for real in (mask, x > -1):
        hidden = x.clone().requires_grad_() * 2
        out = NORMS[name](channel_dim)(hidden, real)
        hidden.add_(1)
        if name in ("layer", "rms") and real is mask:
            continue  # torch's own norm has saved a copy with zeros at padding
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


WITH_AFFINE = {
    "group of (N, C)": lambda x, m, w, b: masked_group_norm(x, m, 3, w, b),
    "instances in groups": lambda x, m, w, b: masked_group_norm(x, m, 12, w, b),
    "layer": lambda x, m, w, b: masked_layer_norm(x, m, [12], w, b),
    "layer over the sequence": lambda x, m, w, b: masked_layer_norm(
        x, m, [12], w, b, over="sequence"
    ),
    "rms": lambda x, m, w, b: masked_rms_norm(x, m, [12], w) + 0 * b.sum(),
    "batch": lambda x, m, w, b: masked_batch_norm(x, m, weight=w, bias=b, training=True),
}


@pytest.mark.parametrize("kind", ["positions", "channels"])
@pytest.mark.parametrize("name", WITH_AFFINE)
def test_gradients_of_vectors_are_those_of_differences(name: str, kind: str) -> None:
    """``(N, C)``: what is summed over positions has none, and sums over nothing are no sums."""
    if name == "instances in groups" and kind == "positions":
        pytest.skip("a group of one value has no variance")
    torch.manual_seed(0)
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    w, b = (torch.randn(12, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.tensor([True, False, True, True]) if kind == "positions" else x.detach() > -1
    norm = WITH_AFFINE[name]
    assert torch.autograd.gradcheck(lambda x, w, b: norm(x, mask, w, b), (x, w, b))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_features_that_are_not_floating_point_are_refused_as_in_torch(dtype: torch.dtype) -> None:
    import seqtrain.nn.norms as n

    x, mask = torch.ones(2, 4, 6).to(dtype), torch.ones(2, 6, dtype=torch.bool)
    with pytest.raises(NotImplementedError):
        F.batch_norm(x, None, None, training=True)
    whole = mask[:, None].expand(2, 4, 6)
    for call in (
        lambda: n.masked_batch_norm(x, mask, training=True),
        lambda: n.masked_batch_norm(x, mask, torch.zeros(4), torch.ones(4)),
        lambda: n.MaskedBatchRenorm1d(4)(x),
        lambda: n.masked_instance_norm(x, mask),
        lambda: n.masked_group_norm(x, mask, 2),
        lambda: n.masked_layer_norm(x, whole, [6]),
        lambda: n.masked_rms_norm(x, whole, [6]),
        lambda: n.masked_norm(x, whole, -1),
    ):
        with pytest.raises(NotImplementedError, match="floating-point"):
            call()
    for call in (
        lambda: n.masked_batch_norm(x, training=True),
        lambda: n.masked_instance_norm(x),
        lambda: n.masked_group_norm(x, None, 2),
        lambda: n.masked_layer_norm(x, mask, [4], channel_dim=1),
    ):
        with pytest.raises(NotImplementedError):
            call()
    if not x.is_complex():  # which torch's takes
        for given in (None, mask):
            with pytest.raises(NotImplementedError, match="floating-point"):
                n.masked_rms_norm(x, given, [4], torch.ones(4), channel_dim=1)


def test_an_eps_that_torch_refuses_is_refused() -> None:
    x, mask = torch.randn(2, 4, 6), torch.ones(2, 6, dtype=torch.bool)
    mean, var = torch.zeros(4), torch.ones(4)
    for eps in (0.0, -1e-5):
        for given in (None, mask):
            with pytest.raises(ValueError, match="eps"):
                masked_batch_norm(x, given, training=True, eps=eps)
        with pytest.raises(ValueError, match="eps"):
            MaskedBatchRenorm1d(4, eps=eps)(x)
    with pytest.raises(ValueError, match="eps"):
        masked_batch_norm(x, mask, training=True, eps=float("nan"))
    for given in (None, mask):
        with pytest.raises(ValueError, match="eps"):
            masked_batch_norm(x, given, mean, var, eps=-1e-5)
        torch.testing.assert_close(masked_batch_norm(x, given, mean, var, eps=0.0), x)
    for call in (
        lambda eps: masked_instance_norm(x, mask, eps=eps),
        lambda eps: masked_group_norm(x, mask, 2, eps=eps),
        lambda eps: masked_layer_norm(x, x > -9, [6], eps=eps),
        lambda eps: masked_norm(x, x > -9, -1, eps=eps),
    ):
        assert call(0.0).isfinite().all()
        with pytest.raises(ValueError, match="at least 0"):
            call(-1e-5)


def test_too_few_dimensions_are_refused() -> None:
    line, real = torch.randn(4), torch.ones(4, dtype=torch.bool)
    one = torch.tensor(True)
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        masked_batch_norm(line, one, training=True, channel_dim=0)
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        masked_group_norm(line, real, 2)
    with pytest.raises(RuntimeError, match="at least 2 dimensions"):
        masked_group_norm(line, None, 2)
    with pytest.raises(ValueError, match="at least 3 dimensions"):
        masked_instance_norm(torch.randn(2, 4), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one dimension"):
        masked_norm(line, real, ())
    with pytest.raises(ValueError, match="at least one dimension"):
        masked_layer_norm(line, real, [4], over="sequence")
    for given in (None, torch.ones(6, dtype=torch.bool)):
        with pytest.raises(ValueError, match="sequences at dimension 0"):
            masked_group_norm(torch.randn(4, 6), given, 2, channel_dim=0)


@pytest.mark.parametrize("kind", [MaskedLayerNorm, MaskedRMSNorm])
def test_several_last_dimensions_are_one(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    norm, theirs = kind([2, 5]).double(), kind.__mro__[2]([2, 5]).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    theirs.load_state_dict(norm.state_dict())
    flat = kind(10).double()
    flat.load_state_dict({name: p.flatten() for name, p in norm.state_dict().items()})
    x = torch.randn(3, 4, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(norm(x), theirs(x))
    mask = torch.rand(3, 4) < 0.6
    out = norm(poisoned(x, mask[..., None, None]), mask)
    torch.testing.assert_close(out[mask], theirs(x)[mask])
    assert (out[~mask] == 0).all()
    assert torch.equal(norm(x, mask[..., None, None]), out)
    channels = torch.rand(x.shape) < 0.7
    torch.testing.assert_close(
        norm(x, channels).flatten(-2), flat(x.flatten(-2), channels.flatten(-2))
    )


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"affine": False}], ids=str)
def test_group_norm_without_a_mask_is_torchs(options: dict[str, bool]) -> None:
    x = torch.randn(3, 4, 6)
    ours, theirs = MaskedGroupNorm(2, 4, **options), nn.GroupNorm(2, 4, **options)
    assert torch.equal(ours(x), theirs(x))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    last = MaskedGroupNorm(2, 4, channel_dim=-1, **options)
    assert torch.equal(last(x.transpose(1, 2).contiguous()), theirs(x).transpose(1, 2))
    for norm in (ours, theirs):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            type(norm)(4, 4)(torch.randn(1, 4))


def test_instance_norm_takes_no_bias_where_torchs_takes_none() -> None:
    ours = MaskedInstanceNorm1d(4, affine=True, bias=False)
    theirs = nn.InstanceNorm1d(4, affine=True, bias=False)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight"]
    x, mask = example(1)
    assert torch.equal(ours(x), theirs(x))
    assert (ours(x, mask).movedim(1, -1)[~mask] == 0).all()


@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("name", NORMS)
def test_tensors_without_numbers_go_through(name: str, channel_dim: int) -> None:
    """Under FakeTensorMode, as programs that plan memory or sharding run a model."""
    norm = NORMS[name](channel_dim)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x, mask = example(channel_dim)
        out = norm(mode.from_tensor(x).requires_grad_(), mode.from_tensor(mask))
        assert out.shape == x.shape
        out.sum().backward()


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", ["batch", "batch, evaluation", "renorm", "group", "instance"])
def test_make_fx_records_a_program_for_other_masks(name: str, mode: str) -> None:
    x, mask = example(1)
    norm = NORMS[name](1)
    buffers = copy.deepcopy(norm.state_dict())
    graph = make_fx(lambda x, m: norm(x, m), tracing_mode=mode, _allow_non_fake_inputs=True)(
        x, mask
    )
    other, other_mask = example(1, seed=5)
    norm.load_state_dict(buffers)
    expected = NORMS[name](1)(other, other_mask)
    norm.load_state_dict(buffers)
    torch.testing.assert_close(graph(other, other_mask), expected)


@pytest.mark.parametrize(
    "norm",
    [
        MaskedBatchNorm1d(4),
        MaskedBatchRenorm1d(4),
        MaskedSyncBatchNorm(4),
        MaskedGroupNorm(2, 4),
        MaskedInstanceNorm1d(4),
        MaskedLayerNorm(4, channel_dim=1),
        MaskedRMSNorm(4, channel_dim=1),
        MaskedNorm(),
        AffineMaskedNorm(6),
        MaskedComplexBatchNorm1d(4),
        NaiveMaskedComplexBatchNorm1d(4),
        fold_masked_conv_bn(nn.Conv1d(4, 4, 1).eval(), MaskedBatchNorm1d(4).eval()),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_fx_keeps_a_norm_whole_and_scripting_is_refused(norm: nn.Module) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleList([norm])

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.inner[0](x, mask) + 1

    x, mask = example(1)
    if "Complex" in type(norm).__name__:
        x = x.to(torch.complex64)
    model = Model().eval()
    graph = torch.fx.symbolic_trace(model)
    assert [n.op for n in graph.graph.nodes if "inner" in str(n.target)] == ["call_module"]
    mask = mask if not isinstance(norm, MaskedNorm) else mask[:, None]
    assert torch.equal(graph(x, mask), model(x, mask))
    if type(norm).__name__ != "FoldedConv":
        with (
            pytest.warns(DeprecationWarning, match="jit.script"),
            pytest.raises(NotImplementedError, match="cannot be scripted"),
        ):
            torch.jit.script(model)


@pytest.mark.parametrize("kind", [MaskedBatchNorm1d, MaskedSyncBatchNorm, MaskedBatchRenorm1d])
def test_torchs_conversion_to_synced_norms_is_refused(kind: type[nn.Module]) -> None:
    """It would put a norm there that knows of no mask; ours keeps it."""
    model = nn.Sequential(nn.Conv1d(4, 4, 1), kind(4))
    with pytest.raises(RuntimeError, match="convert_masked_sync_batchnorm"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(model[1]) is kind
    plain = nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4))
    assert type(convert_masked_sync_batchnorm(plain)[1]) is MaskedSyncBatchNorm


class Averaged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = MaskedBatchNorm1d(2, channel_dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.norm(x, mask)


def test_torchs_update_of_statistics_drops_masks_and_ours_does_not() -> None:
    """``update_bn`` hands over the first of a pair alone: documented, and why ours is there."""
    torch.manual_seed(0)
    batches = []
    for _ in range(3):
        mask = torch.rand(4, 9) < 0.5
        batches.append(((torch.randn(4, 9, 2) + 3).masked_fill(~mask[..., None], 0), mask))
    rows = torch.cat([x[mask] for x, mask in batches])
    model = AveragedModel(Averaged())
    update_bn(batches, model)
    assert ((model.module.norm.running_mean - rows.mean(0)).abs() > 1).all()
    update_bn_stats(model, batches, lambda model, b: model(*b))
    torch.testing.assert_close(model.module.norm.running_mean, rows.mean(0))
    torch.testing.assert_close(model.module.norm.running_var, rows.var(0))


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_weights_are_the_average(use_buffers: bool) -> None:
    torch.manual_seed(0)
    model = Averaged()
    averaged = AveragedModel(model, use_buffers=use_buffers)
    seen = []
    for step in range(3):
        nn.init.normal_(model.norm.weight)
        x = torch.randn(4, 9, 2) + step
        model(x, torch.rand(4, 9) < 0.5)
        averaged.update_parameters(model)
        seen.append((model.norm.weight.detach().clone(), model.norm.running_mean.clone()))
    weights, means = (torch.stack(values).mean(0) for values in zip(*seen, strict=True))
    torch.testing.assert_close(averaged.module.norm.weight.detach(), weights)
    if use_buffers:
        torch.testing.assert_close(averaged.module.norm.running_mean, means)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", ["batch", "group", "instance"])
def test_under_activation_checkpointing_gradients_stay(
    path: str, name: str, use_reentrant: bool
) -> None:
    """Running statistics move once more when the forward pass is repeated, as torch's do."""
    x, mask = example(1)
    found = []
    for again in (False, True):
        norm, leaf = NORMS[name](1), x.clone().requires_grad_()

        def block(x: Tensor, norm: nn.Module = norm) -> Tensor:
            with mask_context(mask):
                return norm(x).sin()

        out = checkpoint(block, leaf, use_reentrant=use_reentrant) if again else block(leaf)
        out.square().sum().backward()
        found.append([out.detach(), leaf.grad, *(p.grad for p in norm.parameters())])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_renormalization_is_refused(use_reentrant: bool) -> None:
    """r and d would be those of running statistics that the first pass has moved."""
    norm, (x, mask) = MaskedBatchRenorm1d(4), example(1)
    out = checkpoint(norm, x.requires_grad_(), mask, use_reentrant=use_reentrant)
    with pytest.raises(RuntimeError, match="cannot be repeated in the backward pass"):
        out.square().sum().backward()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_an_exported_program_holds_no_size_that_only_chose_a_kernel(
    training: bool, masked: bool
) -> None:
    """Exported at 8 × 33 × 16, where the kernel of the CPU would run, and called where not."""
    import seqtrain.nn.norms as n

    def build() -> nn.Module:
        norms = [
            n.MaskedBatchNorm1d(16),
            n.MaskedBatchRenorm1d(16),
            n.MaskedGroupNorm(4, 16),
            n.MaskedInstanceNorm1d(16, affine=True, track_running_stats=True),
            n.MaskedLayerNorm(16, channel_dim=1),
            n.MaskedLayerNorm(16, channel_dim=1, over="sequence"),
            n.MaskedRMSNorm(16, channel_dim=1),
            n.MaskedSyncBatchNorm(16),
        ]
        return Stack(norms).train(training)

    class Stack(nn.Module):
        def __init__(self, norms: list[nn.Module]) -> None:
            super().__init__()
            self.norms = nn.ModuleList(norms)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            for norm in self.norms:
                x = norm(x, mask)
            return x.view(x.shape[0], -1)

    size, length = torch.export.Dim("B"), torch.export.Dim("L", min=2)
    x, mask = torch.randn(8, 16, 33), torch.rand(8, 33) < 0.7
    shapes = ({0: size, 2: length}, {0: size, 1: length})
    given = (x, mask) if masked else (x,)
    program = torch.export.export(build(), given, dynamic_shapes=shapes[: len(given)])
    for shape in ((4, 20), (2, 2), (9, 40)):
        x, mask = torch.randn(shape[0], 16, shape[1]), torch.rand(shape) < 0.7
        given = (x, mask) if masked else (x,)
        torch.testing.assert_close(program.module()(*given), build()(*given))


def test_a_norm_of_images_is_contiguous_as_torchs() -> None:
    x, mask = torch.randn(2, 3, 4, 5), torch.rand(2, 4, 5) < 0.8
    norm = MaskedBatchNorm2d(3)
    assert norm(x, mask).is_contiguous()
    channels_last = x.to(memory_format=torch.channels_last)
    out = norm(channels_last, mask)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert nn.BatchNorm2d(3)(channels_last).stride() == out.stride()


def test_a_batch_of_gradients_is_each_alone(path: str) -> None:
    x, mask = example(1)
    norm = MaskedBatchNorm1d(4)
    leaf = x.clone().requires_grad_()
    rows = torch.randn(5, *x.shape)
    (found,) = torch.autograd.grad(norm(leaf, mask), leaf, rows, is_grads_batched=True)
    for at, row in enumerate(rows):
        (one,) = torch.autograd.grad(norm(leaf, mask), leaf, row)
        torch.testing.assert_close(found[at], one)
