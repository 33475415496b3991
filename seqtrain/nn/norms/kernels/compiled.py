"""Loops compiled on first use, and run on torch's number of threads.

Numba's own parallel loops would not do: its portable thread pool ends the process when two threads
enter it at once, and the one on OpenMP does so after a fork. Threads of our own are woken once a
call: they share the work by counters in memory, for each return to the interpreter costs more than
a chunk of work.
"""

import ctypes
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from seqtrain.nn.crew import call
from seqtrain.nn.norms.kernels import loops
from seqtrain.nn.norms.kernels.loops import RECORD, Job, packed
from seqtrain.nn.norms.kernels.machine import find_numba, machine_code

Loop = Callable[[bytes, bool], None]

WORTH_WAKING = 4
"""Chunks for each thread: another wakes up in the time of about two."""


@functools.cache
def compiled(make: Callable[..., Any], *constants: Any) -> Loop:
    """The loop that ``make`` makes of these, as machine code."""
    _teach()
    loop = inspect.unwrap(inspect.unwrap(make)(*constants))
    found: Loop = machine_code(loop, ctypes.c_char_p, ctypes.c_ssize_t)
    return found


def find(mask: int, size: int, rows: int) -> int:
    """``loops.find``."""
    found: int = _find()(mask, size, rows)
    return found


@functools.cache
def _find() -> Any:
    _teach()
    word = ctypes.c_ssize_t
    return machine_code(inspect.unwrap(loops.find), word, word, word, result=word)


@functools.cache
def _teach() -> None:
    """Have compiled loops call the other loops, and find their job and its arrays in memory."""
    numba = find_numba()
    assert numba is not None, "who asks for machine code has found numba"
    intrinsics = importlib.import_module("seqtrain.nn.norms.kernels.intrinsics")
    carray, fetch_add, load = numba.carray, intrinsics.fetch_add, intrinsics.load
    pointer = intrinsics.pointer

    def add(counters: Any, which: int) -> Any:  # pragma: no cover (it runs as machine code)
        return fetch_add(np.intp(counters.ctypes.data) + which * 8)

    def read(counters: Any, which: int) -> Any:  # pragma: no cover
        return load(np.intp(counters.ctypes.data) + which * 8)

    def job_at(place: Any) -> Any:  # pragma: no cover
        return carray(pointer(place), 1, RECORD)[0]

    def array_at(address: Any, shape: Any, dtype: Any) -> Any:  # pragma: no cover
        return carray(pointer(address), shape, dtype)

    special = {"add": add, "read": read, "job_at": job_at, "array_at": array_at}
    overload = importlib.import_module("numba.extending").overload
    for name, loop in vars(loops).items():
        if callable(loop) and loop.__module__ == loops.__name__:
            plain = inspect.unwrap(special.get(name, loop))
            overload(loop, strict=False)(lambda *_, plain=plain, **__: plain)


def run(make: Callable[..., Any], constants: tuple[Any, ...], job: Job, *kept: Any) -> None:
    """Do a job, by at most as many threads as torch may use.

    One that gets no core is waited for only if it has taken a chunk.

    Args:
        make: From ``loops``.
        constants: What it takes.
        job: For the loop that it makes.
        kept: What holds the memory that the job names.
    """
    loop, place = compiled(make, *constants), packed(job)
    helpers = min(torch.get_num_threads(), job.K // WORTH_WAKING) - 1
    crew = _crew() if helpers > 0 else None
    if crew is not None:
        crew.lead(helpers, loop, place)
        return
    if helpers > 0:
        call(helpers, functools.partial(_help, loop, place, kept))
    loop(place, True)


_crews: dict[int, Any] = {}


def _crew() -> Any:
    """The waiting threads of this process, which a fork does not take along; ``None`` off Linux."""
    if sys.platform != "linux":
        return None
    found = _crews.get(os.getpid())
    if found is None:
        waiting = importlib.import_module("seqtrain.nn.norms.kernels.waiting")
        # It has no thread yet: of threads that get here at once all take that of the first.
        found = _crews.setdefault(os.getpid(), waiting.Crew())
    return found


def _help(loop: Loop, place: bytes, kept: Any) -> None:  # noqa: ARG001
    """Late, perhaps: the memory is held until then."""
    loop(place, False)
