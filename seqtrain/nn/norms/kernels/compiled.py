"""Numba, where it is installed: loops compiled on first use, and run on torch's number of threads.

Numba's own parallel loops would not do: its portable thread pool ends the process when two threads
enter it at once, and the one on OpenMP does so after a fork. These release the lock of the
interpreter, so ordinary threads run them side by side.
"""

import functools
import importlib
import inspect
import os
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from types import ModuleType
from typing import Any

import torch

Loop = Callable[..., None]


@functools.cache
def find_numba() -> ModuleType | None:
    """Numba, or ``None`` where it is missing or does not fit the numpy beside it.

    Nothing loads it before a norm asks: that takes most of a second.
    """
    try:
        return importlib.import_module("numba")
    except ImportError:
        return None


@functools.cache
def compiled(loop: Loop) -> Loop:
    """``loop`` as machine code, kept on disk if there is any place to keep it.

    Next to the source or, where that cannot be written, in the user's cache directory.
    """
    numba = find_numba()
    assert numba is not None, "who asks for machine code has found numba"
    source = inspect.unwrap(loop)
    try:
        found: Loop = numba.njit(source, nogil=True, cache=True)
    except RuntimeError:  # It found no place that it may write to.
        found = numba.njit(source, nogil=True)
    return found


@functools.lru_cache(maxsize=1)
def _crew(process: int) -> tuple[SimpleQueue[Callable[[], None]], list[Thread]]:  # noqa: ARG001
    """Where work is left, and who takes it: nobody yet, in a new process after a fork too."""
    return SimpleQueue(), []


def _call(helpers: int, work: Callable[[], None]) -> None:
    """Have ``work`` called by that many other threads, whenever they come to it."""

    def serve() -> None:
        while True:
            jobs.get()()

    jobs, threads = _crew(os.getpid())
    while len(threads) < helpers:
        thread = Thread(target=serve, name="seqtrain-norm", daemon=True)
        thread.start()
        threads.append(thread)
    for _ in range(helpers):
        jobs.put(work)


def run(loop: Loop, num_chunks: int, least: int, *arguments: Any) -> None:
    """``loop(first, last, *arguments)`` over all chunks, by as many threads as torch may use.

    Each takes the next few chunks until none are left, so that one which gets no core for a while,
    or cannot wake up because another holds the interpreter, is not waited for.

    Args:
        loop: From ``loops``.
        num_chunks: How many there are.
        least: Chunks that are worth waking a thread for.
        arguments: What the loop takes after its first two.
    """
    machine = compiled(loop)
    helpers = min(torch.get_num_threads(), num_chunks // least) - 1
    if helpers < 1:
        machine(0, num_chunks, *arguments)
        return
    # The interpreter's lock makes one iterator safe to share.
    firsts = iter(range(0, num_chunks, least))
    done: SimpleQueue[None] = SimpleQueue()

    def work() -> None:
        for first in firsts:
            try:
                machine(first, min(first + least, num_chunks), *arguments)
            finally:
                done.put(None)

    _call(helpers, work)
    work()
    for _ in range(0, num_chunks, least):
        done.get()
