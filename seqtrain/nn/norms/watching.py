"""Tells ordinary calls of a norm from those watched by a tracer, a transform or a mode."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """True if derivatives are taken by ``torch.func`` or forward-mode AD.

    An ``autograd.Function`` has a rule for reverse mode alone; under these, a norm is written in
    torch's own operations, each of which has all rules.
    """
    if torch._C._are_functorch_transforms_active():  # which torch.compile can trace
        return True
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def is_watched(*tensors: Tensor) -> bool:
    """True if work may not depend on what a mask holds.

    That is so where operations are recorded (``torch.compile``, ``torch.export``, ``make_fx``,
    ``torch.jit.trace``), transformed (``torch.func``), or run on tensors that hold no numbers or
    are no plain tensors (``FakeTensorMode``, ``meta``, subclasses).

    Args:
        tensors: What the call is about.
    """
    return (
        torch.compiler.is_compiling()
        or is_transformed()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or any(_holds_no_plain_numbers(t) for t in tensors)
    )


def _holds_no_plain_numbers(values: Tensor) -> bool:
    # Backward over a batch of gradients is in no transform, but these wrap the memory of others.
    return (
        values.is_meta
        or type(values) not in (Tensor, torch.nn.Parameter)
        or not torch._C._has_storage(values)
    )


def is_repeated() -> bool:
    """True if a forward pass runs within a backward pass, as activation checkpointing does."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
