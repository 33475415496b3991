"""Numba, where it is installed: loops compiled on first use, and run on torch's number of threads.

Numba's own parallel loops would not do: its portable thread pool ends the process when two threads
enter it at once, and the one on OpenMP does so after a fork. These release the lock of the
interpreter, so ordinary threads run them side by side, woken once a call: they share the work by
counters in memory, for each return to the interpreter costs more than a chunk of work.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch

from seqtrain.nn.crew import call
from seqtrain.nn.norms.kernels import loops

Loop = Callable[..., Any]

WORTH_WAKING = 4
"""Chunks for each thread: another wakes up in the time of about two."""


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
    _teach(numba)
    source = inspect.unwrap(loop)
    try:
        found: Loop = numba.njit(source, nogil=True, cache=True)
    except RuntimeError:  # It found no place that it may write to.
        found = numba.njit(source, nogil=True)
    return found


@functools.cache
def _teach(numba: ModuleType) -> None:
    """Have compiled loops call the other loops, and make their counters atomic."""
    extending = importlib.import_module("numba.extending")
    for name, loop in vars(loops).items():
        if callable(loop) and loop.__module__ == loops.__name__ and name not in ("add", "read"):
            _stand_for(extending, loop, loop)
    fetch_add, load = _atomics(numba, extending)

    def add(counters: Any, which: int) -> Any:  # pragma: no cover (it runs as machine code)
        return fetch_add(np.intp(counters.ctypes.data) + which * 8)

    def read(counters: Any, which: int) -> Any:  # pragma: no cover
        return load(np.intp(counters.ctypes.data) + which * 8)

    _stand_for(extending, loops.add, add)
    _stand_for(extending, loops.read, read)


def _stand_for(extending: ModuleType, loop: Loop, source: Callable[..., Any]) -> None:
    plain = inspect.unwrap(source)
    extending.overload(loop, strict=False)(lambda *_, **__: plain)


def _atomics(numba: ModuleType, extending: ModuleType) -> tuple[Any, Any]:
    """An addition of 1 that gives what was there before, and a load, at an address."""
    ir = importlib.import_module("llvmlite.ir")
    word = ir.IntType(64)

    def fetch_add(_: Any, address: Any) -> Any:
        def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
            place = builder.inttoptr(args[0], word.as_pointer())
            return builder.atomic_rmw("add", place, ir.Constant(word, 1), "seq_cst")

        return numba.int64(address), generate

    def load(_: Any, address: Any) -> Any:
        def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
            place = builder.inttoptr(args[0], word.as_pointer())
            return builder.load_atomic(place, "seq_cst", 8)

        return numba.int64(address), generate

    return extending.intrinsic(inspect.unwrap(fetch_add)), extending.intrinsic(inspect.unwrap(load))


def run(loop: Loop, num_chunks: int, *arguments: Any) -> None:
    """``loop(counters, leads, *arguments)``, by at most as many threads as torch may use.

    One that gets no core, or cannot wake up because another holds the interpreter, is waited for
    only if it has taken a chunk.

    Args:
        loop: From ``loops``, of those that take counters.
        num_chunks: How many there are.
        arguments: What the loop takes after its first two.
    """
    counters = np.zeros(loops.COUNTERS, np.int64)
    machine = compiled(loop)
    helpers = min(torch.get_num_threads(), num_chunks // WORTH_WAKING) - 1
    if helpers > 0:
        call(helpers, functools.partial(machine, counters, False, *arguments))
    try:
        machine(counters, True, *arguments)
    except OSError:  # as of a full disk: the machine code is there, and could only not be kept
        machine(counters, True, *arguments)
