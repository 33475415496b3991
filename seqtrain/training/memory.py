"""Estimates, before it is tried, whether a record fits into memory in one piece."""

import os
from pathlib import Path

import torch

from seqtrain.config import EncoderConfig, TransformerConfig

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")

MOST = 0.8
"""Fraction of the available memory that one record may take."""


def available_memory(device: torch.device | None = None) -> int | None:
    """Bytes that can be allocated on a device, the CPU if none is given; None if unknown.

    On the CPU that is what the system has available, or what the control group of a container or
    a batch job leaves of its limit, whichever is less.
    """
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device is not None and device.type != "cpu":
        return None
    known = [size for size in (_system_memory(), _group_memory()) if size is not None]
    return min(known, default=None)


def _system_memory() -> int | None:
    try:
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _group_memory() -> int | None:
    """Of version 2 of the control groups, or of version 1."""
    pairs = (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    )
    for limit, used in pairs:
        try:
            return max(0, int((CGROUP / limit).read_text()) - int((CGROUP / used).read_text()))
        except (OSError, ValueError):  # "max" is no limit
            continue
    return None


def forward_bytes(encoder: EncoderConfig, outputs_per_residue: int = 0) -> int:
    """Bytes per residue that reading a record in one pass takes, about.

    As the growth of the resident memory showed it on a CPU: 6 to 9 float32 per channel in a
    convolution block, some 24 in a transformer block with an ``ffn_ratio`` of 4.
    """
    assert encoder.embed_dim is not None
    floats = 13 + 3 * encoder.ffn_ratio if isinstance(encoder, TransformerConfig) else 10
    return int(4 * floats * encoder.embed_dim + 200 + 12 * outputs_per_residue)


def longest_in_one_pass(
    encoder: EncoderConfig, outputs_per_residue: int = 0, device: torch.device | None = None
) -> int | None:
    """Residues of the longest record that can be read in one pass; None if memory is unknown."""
    available = available_memory(device)
    if available is None:
        return None
    return int(MOST * available / forward_bytes(encoder, outputs_per_residue))
