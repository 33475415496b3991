"""Every norm on a CUDA device against float64 on the CPU, without waiting for the device."""

import copy
from collections.abc import Iterator

import pytest
import torch
from masked_inputs import KINDS, make_mask, poisoned
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from seqtrain.nn.norms import (
    MaskedBatchNorm1d,
    MaskedBatchRenorm1d,
    MaskedGroupNorm,
    MaskedInstanceNorm1d,
    MaskedLayerNorm,
    MaskedNorm,
    MaskedRMSNorm,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

NORMS = [
    MaskedBatchNorm1d(4, channel_dim=-1),
    MaskedBatchNorm1d(4, momentum=None, channel_dim=-1, stat_weighting="tokens"),
    MaskedBatchRenorm1d(4, channel_dim=-1, warmup_batches=0),
    MaskedLayerNorm(4),
    MaskedLayerNorm(4, over="sequence"),
    MaskedRMSNorm(4, eps=1e-5),
    MaskedGroupNorm(2, 4, channel_dim=-1),
    MaskedInstanceNorm1d(4, affine=True, track_running_stats=True, channel_dim=-1),
    MaskedNorm(eps=1e-5),
]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def steps(dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for kind in KINDS:
        mask = make_mask(kind, 5, 40, generator)
        x, grad = (torch.randn(5, 40, 4, generator=generator) + 1 for _ in range(2))
        padding = mask[..., None]
        found.append((poisoned(x.to(dtype), padding), mask, poisoned(grad.to(dtype), padding)))
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_the_device_gives_what_float64_gives(norm: nn.Module, dtype: torch.dtype) -> None:
    exact = copy.deepcopy(norm).double()
    ours = copy.deepcopy(norm).to("cuda", torch.promote_types(dtype, torch.float32))
    tolerance = 40 * torch.finfo(dtype).eps
    for x, mask, grad in steps(dtype):
        a, b = x.clone().cuda().requires_grad_(), x.double().requires_grad_()
        out, expected = ours(a, mask.cuda()), exact(b, mask)
        out.backward(grad.cuda())
        expected.backward(grad.double())
        assert out.dtype == dtype
        assert (out[~mask.cuda()] == 0).all()
        assert (a.grad[~mask.cuda()] == 0).all()
        for found, wanted in ((out, expected), (a.grad, b.grad)):
            torch.testing.assert_close(found.cpu().double(), wanted, rtol=tolerance, atol=tolerance)
    for found, wanted in zip(ours.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(found.cpu().double(), wanted.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_nothing_waits_for_the_device(norm: nn.Module) -> None:
    """Counts, ``min_count`` and the counter are decided on the device."""
    torch.cuda.set_sync_debug_mode("default")
    ours = copy.deepcopy(norm).cuda()
    batches = [tuple(t.cuda() for t in step) for step in steps(torch.float32)]
    torch.cuda.set_sync_debug_mode("error")
    for x, mask, grad in batches:
        ours(x.requires_grad_(), mask).backward(grad)


def wide_batch(channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(channels)
    mask = make_mask("right", 24, 300, generator)
    x, grad = (torch.randn(24, 300, channels, generator=generator) + 1 for _ in range(2))
    x, grad = (poisoned(t.to(dtype), mask[..., None]) for t in (x, grad))
    return x.cuda(), mask.cuda(), grad.cuda()


def both_ways(norm: nn.Module, x: Tensor, mask: Tensor, grad: Tensor) -> list[Tensor]:
    """Output, gradients and buffers of one training step."""
    leaf = x.clone().requires_grad_()
    norm.zero_grad()
    out = norm(leaf, mask)
    out.backward(grad)
    return [out.detach(), leaf.grad, *(p.grad.clone() for p in norm.parameters()), *norm.buffers()]


@pytest.mark.parametrize("channels", [32, 100, 513, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["channels last", "channels first"])
def test_the_fused_kernels_give_what_float64_gives_and_the_same_bits_twice(
    channels: int, dtype: torch.dtype, layout: str
) -> None:
    """The float64 norm on the device takes the plain form."""
    x, mask, grad = wide_batch(channels, dtype)
    if layout == "channels first":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    norm = MaskedBatchNorm1d(channels, channel_dim=-1, device="cuda")
    again, exact = copy.deepcopy(norm), copy.deepcopy(norm).double()
    found = both_ways(norm, x, mask, grad)
    for first, second in zip(found, both_ways(again, x, mask, grad), strict=True):
        assert torch.equal(first, second)
    for ours, theirs in zip(found, both_ways(exact, x.double(), mask, grad.double()), strict=True):
        step = max(torch.finfo(ours.dtype).eps, 2e-6) if ours.is_floating_point() else 0
        within = step * (1 + theirs.abs().max().item())
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=within)


def test_a_gpu_takes_the_fused_kernels_by_itself() -> None:
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(function))
            return function(*args, **kwargs or {})

    seen: list[str] = []
    x, mask, grad = wide_batch(32, torch.bfloat16)
    with Names():
        both_ways(MaskedBatchNorm1d(32, channel_dim=-1, device="cuda"), x, mask, grad)
    ours = [name for name in seen if name.startswith("seqtrain.")]
    assert ours == [
        "seqtrain.masked_batch_statistics.default",
        "seqtrain.masked_normalize.default",
        "seqtrain.masked_normalize_sums.default",
        "seqtrain.masked_normalize_gradient.default",
    ]


def test_a_training_step_can_be_captured_in_a_graph() -> None:
    x, mask, grad = wide_batch(128, torch.bfloat16)
    norm = MaskedBatchNorm1d(128, channel_dim=-1, device="cuda")
    expected = both_ways(copy.deepcopy(norm), x, mask, grad)
    leaf = torch.zeros_like(x).requires_grad_()

    def step() -> Tensor:
        out = norm(leaf, mask)
        out.backward(grad)
        return out

    before = copy.deepcopy(norm.state_dict())
    apart = torch.cuda.Stream()
    apart.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(apart):
        step()
    torch.cuda.current_stream().wait_stream(apart)
    norm.load_state_dict(before)
    norm.zero_grad()
    leaf.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    leaf.data.copy_(x)
    norm.load_state_dict(before)
    graph.replay()
    found = [out.detach(), leaf.grad, *(p.grad for p in norm.parameters()), *norm.buffers()]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
