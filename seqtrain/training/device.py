"""Chooses the device and the precision."""

from contextlib import AbstractContextManager, nullcontext

import torch

from seqtrain.config import check_device
from seqtrain.errors import ConfigError
from seqtrain.nn.model import SequenceModel


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: there is no such name, or this machine or build of torch has no such device.
    """
    check_device(name, "device")
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "mps" if has_mps else "cpu")
    device = torch.device(name)
    missing = (device.type == "cuda" and not has_cuda) or (device.type == "mps" and not has_mps)
    if missing or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(
            f"device {name}: torch {torch.__version__} sees no such device here. Use auto or cpu."
        )
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products; ``auto`` is bfloat16 on a GPU that computes it, else float32.

    What was trained in float16 on a GPU is computed in float32 on a CPU.
    """
    if name == "auto":
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if on_gpu else torch.float32
    if name == "float16" and device.type == "cpu":
        return torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def choose_training_precision(name: str, device: torch.device) -> torch.dtype:
    """As :func:`choose_precision`, for training.

    Raises:
        ConfigError: the device cannot train in that precision.
    """
    if name == "float16" and device.type == "cpu":
        raise ConfigError(
            "trainer.precision=float16: a CPU has no loss scaling to keep small gradients. "
            "Use bfloat16 or float32."
        )
    return choose_precision(name, device)


def compile_blocks(model: SequenceModel, device: torch.device) -> None:
    """Compile each block of the encoder, for any number of residues.

    Block by block, because they are alike: one is compiled and all are served. What lies around
    them reads lengths on the host.

    Raises:
        ConfigError: the device is not CUDA.
    """
    check_compile(device)
    for block in model.encoder.blocks:  # type: ignore[union-attr]  # nn.Module types attributes as Tensor | Module
        block.compile(dynamic=True)


def check_compile(device: torch.device) -> None:
    """Refuse to compile where it does not pay: on a CPU each batch's lengths are compiled anew.

    Raises:
        ConfigError: the device is not CUDA.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"trainer.compile: expected a CUDA device, found {device.type}. Leave it out."
        )


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[None]:
    """Mixed precision for the forward pass; nothing in float32."""
    if precision == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision)
