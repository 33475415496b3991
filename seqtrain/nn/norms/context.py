"""The mask of a ``with`` block, for norms that are called without one."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import torch
from jaxtyping import Bool
from torch import Tensor


class _OfThread(threading.local):
    mask: Tensor | None = None


class _OfCoroutines:
    """Blocks that coroutines have opened, in whatever thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.any = False
        """A flag, because compiled code is made anew for each value that it has read."""

    def add(self, number: int) -> None:
        with self.lock:
            self.count += number
            self.any = self.count > 0


class _Unset:
    pass


_UNSET: Final = _Unset()
# torch.compile cannot trace a ContextVar, so it serves coroutines alone: everything else has the
# mask of its thread, which can be traced.
_of_thread = _OfThread()
_of_coroutines = _OfCoroutines()
_of_task: ContextVar[Tensor | _Unset | None] = ContextVar("mask", default=_UNSET)


@contextmanager
def mask_context(mask: Bool[Tensor, "..."] | None) -> Iterator[None]:
    """Within it, a masked norm of this module family that is called without a mask uses this one.

    It is how masks reach norms inside a model whose own code calls ``norm(x)``, such as one made by
    ``convert_masked_batchnorm``. Each thread and each coroutine of asyncio has its own; contexts
    nest, the innermost counts, and ``None`` suspends an outer one.

    It works around a ``torch.compile``d model and within one. Compiled code cannot tell coroutines
    apart: while one of them has a context open, compiled norms that are called without a mask run
    uncompiled, or with ``fullgraph=True`` refuse. With activation checkpointing, open the context
    inside the checkpointed function, which runs again later.

    Args:
        mask: True where real; has to fit the input of every norm that runs within.
    """
    if torch.compiler.is_compiling() or not _in_coroutine():
        outer = _of_thread.mask
        _of_thread.mask = mask
        try:
            yield
        finally:
            _of_thread.mask = outer
        return
    token = _of_task.set(mask)
    _of_coroutines.add(1)
    try:
        yield
    finally:
        _of_coroutines.add(-1)
        _of_task.reset(token)


def given_or_current(mask: Bool[Tensor, "..."] | None) -> Bool[Tensor, "..."] | None:
    """``mask``, or that of the innermost ``mask_context`` where none was given.

    Raises:
        RuntimeError: In compiled code, while a coroutine has a context open.
    """
    if mask is not None:
        return mask
    if torch.compiler.is_compiling():
        if _of_coroutines.any:
            raise RuntimeError(
                "mask_context is open in a coroutine, which compiled code cannot tell from others: "
                "pass the mask to the norm, or open the context in a thread without an event loop"
            )
        return _of_thread.mask
    current = _of_task.get()
    return _of_thread.mask if isinstance(current, _Unset) else current


def _in_coroutine() -> bool:
    """True if an event loop of asyncio is running in this thread."""
    asyncio = sys.modules.get("asyncio")  # without it there is no loop
    return asyncio is not None and asyncio._get_running_loop() is not None
