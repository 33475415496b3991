"""Checks that this machine can train what the settings ask for, before data are read."""

import copy
import os
from pathlib import Path

import torch

from seqtrain.build import build_model
from seqtrain.config import RunConfig
from seqtrain.data.alphabet import PROTEIN
from seqtrain.data.labels import LabelCodec, is_regression
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import ConfigError
from seqtrain.training.device import check_compile, choose_device, choose_training_precision

BYTES_PER_WEIGHT = 16
"""Of a weight, its gradient and the two moments of AdamW, in float32."""

_MEMORY_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def check_machine(config: RunConfig) -> None:
    """Refuse a device, precision or size that this machine does not have.

    Raises:
        ConfigError: Names the setting and what there is.
    """
    device = choose_device(config.trainer.device)
    choose_training_precision(config.trainer.precision, device)
    if config.trainer.compile:
        check_compile(device)
    if config.encoder.embed_dim is None:
        return
    weights, free = count_weights(config), free_memory(device)
    if free is not None and weights * BYTES_PER_WEIGHT > free:
        given = [f"encoder.embed_dim={config.encoder.embed_dim}"]
        if config.encoder.num_layers is not None:
            given.append(f"encoder.num_layers={config.encoder.num_layers}")
        raise ConfigError(
            f"{', '.join(given)}: a model of {weights:,} weights or more takes "
            f"{weights * BYTES_PER_WEIGHT / 1e9:,.1f} GB to train, and {free / 1e9:,.1f} GB of "
            f"memory are free ({device.type}). Set {given[0].partition('=')[0]} lower."
        )


def machine_warnings(config: RunConfig) -> list[str]:
    """Settings that this machine can follow, to no good."""
    cpus, threads = os.cpu_count() or 1, config.trainer.num_threads
    if threads <= cpus:
        return []
    return [
        f"trainer.num_threads={threads}: this machine has {cpus} CPUs, so threads wait for each "
        "other and training is slower than with as many"
    ]


def count_weights(config: RunConfig) -> int:
    """Trainable numbers of a model with two classes; nothing is allocated for them."""
    config = copy.deepcopy(config)
    config.task.pooling = config.task.pooling or "mean_max"
    config.task.positions = config.task.positions or 1
    config.encoder.num_layers = config.encoder.num_layers or 1
    task = config.task.name or "classification"
    codec = LabelCodec(task) if is_regression(task) else LabelCodec(task, ("a", "b"))
    with torch.device("meta"):
        model = build_model(config, Tokenizer(PROTEIN), codec)
    return sum(parameter.numel() for parameter in model.parameters())


def free_memory(device: torch.device) -> int | None:
    """Bytes that a program may still take on a device; None where nothing tells."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return _free_ram() if device.type == "cpu" else None


def _free_ram() -> int | None:
    """Memory that the system can still give, or the limit of the container, the lesser."""
    found = []
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith(("MemAvailable:", "SwapFree:")):
            found.append(int(line.split()[1]) * 1024)
    limits = [int(text) for path in _MEMORY_LIMITS for text in _lines(Path(path)) if text.isdigit()]
    return min([sum(found), *limits]) if found else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:  # another system, or no container
        return []
