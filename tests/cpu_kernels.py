"""Inputs and steps for tests of the compiled norm of the CPU."""

import functools
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from masked_inputs import make_mask, poisoned
from torch import Tensor, nn

from seqtrain.nn.norms import MaskedBatchNorm1d
from seqtrain.nn.norms.kernels import choice, cpu, cpu_loops, cpu_loops_first

STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "length first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "channels slow": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "every other": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
}


@functools.cache
def python_loops() -> cpu.Loops:
    """The loops with nothing compiled, to be watched at work."""
    plain = ModuleType("numba")
    plain.njit, plain.prange = lambda **options: lambda function: function, range
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "numba", plain)
        rows = _load("python_loops", cpu_loops.__file__)
        patch.setitem(sys.modules, cpu_loops.__name__, rows)
        first = _load("python_loops_first", cpu_loops_first.__file__)
    rows.usable_threads = lambda: 1
    return cpu.Loops(rows, first)


def _load(name: str, path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def finely(patch: pytest.MonkeyPatch, loops_in: str) -> None:
    """Cut up the smallest input, and run the loops as Python or as machine code."""
    patch.setattr(cpu, "SMALLEST", 0)
    patch.setattr(cpu, "TILE", 1)  # which is eight rows
    patch.setattr(cpu, "PIECE", 7)
    patch.setattr(cpu, "WORTH_A_THREAD", 1)
    if loops_in == "python":
        patch.setattr(cpu, "find_loops", python_loops)


def plainly(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(choice.KERNELS, "cpu", lambda call: None)


def train(norm: nn.Module, x: Tensor, mask: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers of one step, then evaluation; channels last."""
    channel_dim = norm.channel_dim
    leaf = x.movedim(-1, channel_dim).detach().requires_grad_()
    out = norm(leaf, mask)
    out.backward(grad.movedim(-1, channel_dim))
    found = {"out": out.detach(), "dx": leaf.grad}
    found |= {f"d{name}": p.grad for name, p in norm.named_parameters()}
    found |= {name: b.clone() for name, b in norm.named_buffers()}
    found["evaluation"] = norm.eval()(leaf.detach(), mask).detach()
    norm.train()
    for name in ("out", "dx", "evaluation"):
        found[name] = found[name].movedim(channel_dim, -1)
    return found


def made(C: int, dtype: torch.dtype, **options: object) -> nn.Module:
    torch.manual_seed(0)
    norm = MaskedBatchNorm1d(C, dtype=dtype, **options)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm.double() if dtype == torch.float64 else norm


def some_input(
    shape: tuple[int, int, int], kind: str, dtype: torch.dtype, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, mask and upstream gradient, with NaN and ±Inf at padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = make_mask(kind, *shape[:2], generator)
    x, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    x, grad = ((t + 1).to(dtype) for t in (x, grad))
    return poisoned(x, mask[..., None]), mask, poisoned(grad, mask[..., None])
