"""``torch.compile(fullgraph=True)`` and ``torch.export`` see what eager mode computes."""

import asyncio
import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

pytestmark = [
    pytest.mark.usefixtures("unchecked"),
    # What dynamo does to every autograd.Function.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

NORMS: dict[str, Callable[[object], nn.Module]] = {
    "batch": lambda n: n.MaskedBatchNorm1d(4, channel_dim=-1),
    "batch, average": lambda n: n.MaskedBatchNorm1d(4, momentum=None, channel_dim=-1),
    "batch, tokens": lambda n: n.MaskedBatchNorm1d(4, channel_dim=-1, stat_weighting="tokens"),
    "batch, bare": lambda n: n.MaskedBatchNorm1d(
        4, affine=False, track_running_stats=False, channel_dim=-1
    ),
    "sync": lambda n: n.MaskedSyncBatchNorm(4, channel_dim=-1),
    "renorm": lambda n: n.MaskedBatchRenorm1d(4, channel_dim=-1),
    "layer": lambda n: n.MaskedLayerNorm(4),
    "layer, sequence": lambda n: n.MaskedLayerNorm(4, over="sequence"),
    "rms": lambda n: n.MaskedRMSNorm(4),
    "group": lambda n: n.MaskedGroupNorm(2, 4, channel_dim=-1),
    "instance": lambda n: n.MaskedInstanceNorm1d(4, affine=True, channel_dim=-1),
    "instance, tracked": lambda n: n.MaskedInstanceNorm1d(
        4, affine=True, track_running_stats=True, channel_dim=-1
    ),
    "general": lambda n: n.MaskedNorm(constant="keep"),
    "affine": lambda n: n.AffineMaskedNorm(4),
}


# One of each kind of arithmetic: compiling takes seconds, exporting does not.
COMPILED = [
    "batch",
    "batch, average",
    "batch, tokens",
    "renorm",
    "layer, sequence",
    "rms",
    "group",
    "instance, tracked",
]


def build(name: str) -> nn.Module:
    import seqtrain.nn.norms

    torch.manual_seed(0)
    norm = NORMS[name](seqtrain.nn.norms)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def batch(size: int, length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    mask = torch.rand(size, length, generator=generator) < 0.7
    x = torch.randn(size, length, 4, generator=generator)
    return x.masked_fill(~mask[..., None], torch.nan), mask


def same(found: nn.Module, expected: nn.Module) -> None:
    for a, b in zip(found.buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_whole_it_trains_and_evaluates_as_in_eager_mode(name: str) -> None:
    eager, traced = build(name), build(name)
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager", dynamic=True)
    for size, length in ((3, 5), (4, 7)):
        x, mask = batch(size, length)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, expected = compiled(a, mask), eager(b, mask)
        torch.testing.assert_close(out, expected)
        grad = torch.randn(out.shape).masked_fill(~mask[..., None], torch.nan)
        out.backward(grad)
        expected.backward(grad)
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    same(traced, eager)
    traced.eval()
    torch.testing.assert_close(compiled(x, mask), eager.eval()(x, mask))


def test_a_mask_that_comes_after_other_lengths_still_fits() -> None:
    """By then a length is kept open in the program, and the mask's is not yet."""
    norm = build("batch").eval()
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    for length in (6, 9):
        compiled(torch.randn(3, length, 4))
    x, mask = batch(3, 9)
    torch.testing.assert_close(compiled(x, mask), norm(x, mask))


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_exported_with_any_batch_and_length(name: str, training: bool) -> None:
    norm = build(name).train(training)
    size, length = torch.export.Dim("B", min=2), torch.export.Dim("L", min=2)
    program = torch.export.export(
        norm, batch(3, 5), dynamic_shapes=({0: size, 1: length}, {0: size, 1: length})
    )
    exported = program.module()
    for shape in ((3, 5), (2, 9), (6, 4)):
        x, mask = batch(*shape)
        # Buffers that training moves, and renormalization depends on, are the program's.
        norm.load_state_dict(exported.state_dict())
        expected = copy.deepcopy(norm)(x, mask)
        torch.testing.assert_close(exported(x, mask), expected)


def test_strict_export_too() -> None:
    norm = build("batch")
    size, length = torch.export.Dim("B", min=2), torch.export.Dim("L", min=2)
    shapes = ({0: size, 1: length}, {0: size, 1: length})
    program = torch.export.export(norm, batch(3, 5), dynamic_shapes=shapes, strict=True)
    x, mask = batch(2, 8)
    torch.testing.assert_close(program.module()(x, mask), norm(x, mask))


@pytest.mark.parametrize("where", ["around", "within"])
def test_the_context_survives_compilation(where: str) -> None:
    from seqtrain.nn.norms import convert_masked_batchnorm, mask_context

    class Within(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            with mask_context(mask):
                return self.model(x)

    torch.manual_seed(0)
    conv = nn.Conv1d(4, 4, 3, padding=1)
    model = convert_masked_batchnorm(nn.Sequential(conv, nn.BatchNorm1d(4)))
    model.eval()
    inner = torch.compile(model, fullgraph=True, backend="aot_eager")
    whole = torch.compile(Within(model), fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 4, 6)
    unmasked = model(x)
    masks = [torch.arange(6) < torch.tensor(lengths)[:, None] for lengths in ([6, 2, 3], [1, 5, 4])]
    for mask in masks * 2:
        with mask_context(mask):
            expected = model(x)
        if where == "within":
            found = whole(x, mask)
        else:
            with mask_context(mask):
                found = inner(x)
        torch.testing.assert_close(found, expected)
        assert (found.movedim(1, -1)[~mask] == 0).all()
        torch.testing.assert_close(inner(x), unmasked)


@pytest.mark.parametrize("fullgraph", [True, False])
def test_compiled_code_never_takes_the_mask_of_another_coroutine(fullgraph: bool) -> None:
    """It runs uncompiled while a coroutine has a mask of its own, or says that it cannot."""
    from seqtrain.nn.norms import MaskedBatchNorm1d, mask_context

    norm = MaskedBatchNorm1d(4, channel_dim=-1).eval()
    compiled = torch.compile(norm, fullgraph=fullgraph, backend="aot_eager")
    x, mask = batch(3, 5)
    x = x.nan_to_num()

    async def open_long() -> Tensor:
        with mask_context(mask):
            await asyncio.sleep(0)
            return compiled(x)

    async def without() -> Tensor:
        return compiled(x)

    async def both() -> list[Tensor | BaseException]:
        return await asyncio.gather(open_long(), without(), return_exceptions=True)

    torch.testing.assert_close(compiled(x), norm(x))
    found = asyncio.run(both())
    if fullgraph:
        assert all("mask_context is open in a coroutine" in str(error) for error in found)
    else:
        torch.testing.assert_close(found, [norm(x, mask), norm(x)])
    with mask_context(mask):
        torch.testing.assert_close(compiled(x), norm(x, mask))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_compiled_transforms_are_those_of_eager_mode() -> None:
    """An autograd.Function in them is refused by torch, or gave other numbers without a word."""
    from seqtrain.nn.norms import MaskedBatchNorm1d

    norm = MaskedBatchNorm1d(4, channel_dim=-1, track_running_stats=False)
    x, mask = batch(3, 5)

    def transformed(x: Tensor) -> list[Tensor]:
        return [
            vmap(lambda x: norm(x, mask))(torch.stack([x, x + x.roll(1, 0)])),
            grad(lambda x: norm(x, mask).sin().sum())(x),
            jvp(lambda x: norm(x, mask), (x,), (x.roll(1, 0),))[1],
        ]

    x = x.nan_to_num()
    compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), transformed(x))


def test_a_complex_norm_compiles_whole() -> None:
    from seqtrain.nn.norms import MaskedComplexBatchNorm1d

    x, mask = batch(3, 5)
    z = torch.complex(x, x.flip(-1))
    eager, traced = (MaskedComplexBatchNorm1d(4, channel_dim=-1) for _ in range(2))
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z, mask), eager(z, mask))
    for a, b in zip(traced.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(a, b)
