"""Every norm on a CUDA device against float64 on the CPU, without waiting for the device."""

import copy
from collections.abc import Iterator

import pytest
import torch
from masked_inputs import KINDS, make_mask, poisoned
from torch import Tensor, nn

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
