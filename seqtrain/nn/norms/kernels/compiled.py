"""Numba, where it is installed: loops compiled on first use, and run on torch's number of threads.

Numba's own parallel loops would not do: its portable thread pool ends the process when two threads
enter it at once, and the one on OpenMP does so after a fork. These release the lock of the
interpreter, so ordinary threads run them side by side.
"""

import functools
import importlib.util
import inspect
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

Loop = Callable[..., None]


@functools.cache
def is_available() -> bool:
    """Whether Numba is installed. It is not imported: that takes most of a second."""
    return importlib.util.find_spec("numba") is not None


@functools.cache
def compiled(loop: Loop) -> Loop:
    """``loop`` as machine code, kept on disk if there is any place to keep it.

    Next to the source or, where that cannot be written, in the user's cache directory.
    """
    import numba

    source = inspect.unwrap(loop)
    compile: Callable[..., Callable[[Loop], Any]] = functools.partial(numba.njit, nogil=True)
    try:
        found: Loop = compile(cache=True)(source)
    except RuntimeError:  # Numba found no place that it may write to.
        found = compile()(source)
    return found


@functools.lru_cache(maxsize=1)
def _workers(process: int, count: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """Threads of this process: those of a parent are not there after a fork."""
    return ThreadPoolExecutor(count, "seqtrain-norm")


def run(loop: Loop, num_chunks: int, least: int, *arguments: Any) -> None:
    """``loop(first, last, *arguments)`` over all chunks, each thread taking a run of them.

    Args:
        loop: From ``loops``.
        num_chunks: How many there are.
        least: Chunks that are worth waking a thread for.
        arguments: What the loop takes after its first two.
    """
    machine = compiled(loop)
    threads = max(1, min(torch.get_num_threads(), num_chunks // least))
    bounds = [num_chunks * t // threads for t in range(threads + 1)]
    others = []
    if threads > 1:
        pool = _workers(os.getpid(), threads - 1)
        spans = zip(bounds[1:-1], bounds[2:], strict=True)
        others = [pool.submit(machine, first, last, *arguments) for first, last in spans]
    machine(0, bounds[1], *arguments)
    for other in others:
        other.result()
