"""Masked batch norm beside torch's own: a forward and a backward pass over one layer's states."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from seqtrain.bench.report import Figure, Report, describe_machine
from seqtrain.bench.timing import alternate, paired_ratio
from seqtrain.masking import lengths_to_mask
from seqtrain.nn.norms import MaskedBatchNorm1d
from seqtrain.nn.norms.kernels.call import Call
from seqtrain.nn.norms.kernels.choice import KERNELS, fused_batch_norm

# What is to be reached over torch's own on (B, C, L), at no and at half padding.
TARGETS = {"cpu": {"half": 0.60}, "cuda": {"no": 1.0, "half": 0.65}}
ROWS_TARGETS = {"cpu": {"half": 1.0}}
"""The same over torch's own on rows ``(B * L, C)``, padded ones among them."""
COPY_TARGET = 0.8
PASSES = 8
"""Over the states: two reads and a write forward, four reads and a write backward."""


@dataclass(frozen=True)
class NormBench:
    """How norms are measured."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: torch.dtype = torch.float32
    repetitions: int = 41
    batch_size: int = 32
    length: int = 512
    channels: tuple[int, ...] = (128,)


def bench_norms(settings: NormBench) -> Report:
    """Ratios to ``nn.BatchNorm1d`` on ``(B, C, L)`` and on rows, at no and at half padding."""
    figures: list[Figure] = []
    for channels in settings.channels:
        for padding in ("no", "half"):
            figures += measure_norm(settings, channels, padding)
    described = {
        "shape": f"({settings.batch_size}, {settings.length}, C)",
        "channels": list(settings.channels),
        "precision": str(settings.precision).removeprefix("torch."),
        "repetitions": settings.repetitions,
        "fused": _is_fused(settings),
    }
    return Report("norms", described, figures, describe_machine(settings.device))


def _is_fused(settings: NormBench) -> bool:
    """True if a kernel takes such states on this machine."""
    shape = (settings.batch_size, settings.length, settings.channels[0])
    states = torch.zeros(shape, device=settings.device, dtype=settings.precision)
    mask = states.new_ones(*shape[:2], 1, dtype=torch.bool)
    out = fused_batch_norm(Call(states, mask, None, None, None, True, None, 1e-5, 2, 2))
    return out is not None


def measure_norm(settings: NormBench, channels: int, padding: str) -> list[Figure]:
    """The fused and the plain torch form of the masked norm over torch's own norm."""
    device, B, L = settings.device, settings.batch_size, settings.length
    lengths = torch.full((B,), L)
    if padding == "half":
        lengths = torch.linspace(1, L - 1, B).round().long()
    mask = lengths_to_mask(lengths, L).to(device)
    ours = MaskedBatchNorm1d(channels, channel_dim=-1, device=device)
    theirs = nn.BatchNorm1d(channels, device=device)

    def run(norm: Callable[[Tensor], Tensor], *shape: int) -> Callable[[], None]:
        x = torch.randn(shape, device=device, dtype=settings.precision, requires_grad=True)
        upstream = torch.randn(shape, device=device, dtype=settings.precision)

        def both_ways() -> None:
            x.grad = None
            norm(x).backward(upstream)

        return both_ways

    def reference(x: Tensor) -> Tensor:
        with without_kernels():
            out: Tensor = ours(x, mask)
        return out

    num_real = int(mask.sum())
    source = torch.randn(B, L, channels, device=device, dtype=settings.precision)
    target = torch.empty_like(source)
    seconds = alternate(
        {
            "native": run(theirs, B, channels, L),
            "masked": run(lambda x: ours(x, mask), B, L, channels),
            "all rows": run(theirs, B * L, channels),
            "real rows": run(theirs, num_real, channels),
            "reference": run(reference, B, L, channels),
            "copy": lambda: target.copy_(source),
        },
        settings.repetitions,
        device,
    )
    case = f"C = {channels}, {padding} padding"
    figures = [
        Figure(f"{case}: nn.BatchNorm1d", 1e3 * float(np.median(seconds["native"])), "ms"),
        Figure(
            f"{case}: masked over nn.BatchNorm1d",
            paired_ratio(seconds["masked"], seconds["native"]),
            "ratio",
            TARGETS.get(device.type, {}).get(padding),
            at_most=True,
        ),
        Figure(
            f"{case}: masked over torch's norm of all rows (B * L, C)",
            paired_ratio(seconds["masked"], seconds["all rows"]),
            "ratio",
            ROWS_TARGETS.get(device.type, {}).get(padding),
            at_most=True,
        ),
        Figure(
            f"{case}: masked over torch's norm of the real rows, packed before",
            paired_ratio(seconds["masked"], seconds["real rows"]),
            "ratio",
        ),
        Figure(
            f"{case}: its plain torch form over nn.BatchNorm1d",
            paired_ratio(seconds["reference"], seconds["native"]),
            "ratio",
        ),
    ]
    if padding == "no":
        # A copy moves two passes; where states stay in the cache, it says little.
        share = paired_ratio(seconds["copy"] * PASSES / 2, seconds["masked"])
        target_share = COPY_TARGET if device.type == "cuda" else None
        name = f"{case}: bytes moved per second, over those of a copy"
        figures.append(Figure(name, share, "ratio", target_share))
    return figures


@contextmanager
def without_kernels() -> Iterator[None]:
    """The plain torch form, whatever kernels there are."""
    kept = dict(KERNELS)
    KERNELS.clear()
    try:
        yield
    finally:
        KERNELS.update(kept)
