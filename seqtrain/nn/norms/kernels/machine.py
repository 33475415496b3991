"""Numba, where it is installed, and what it makes of a loop."""

import ctypes
import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any


@functools.cache
def find_numba() -> ModuleType | None:
    """Numba, or ``None`` where it is missing or does not fit the numpy beside it.

    Nothing loads it before a norm asks: that takes most of a second.
    """
    try:
        return importlib.import_module("numba")
    except ImportError:
        return None


def machine_code(source: Callable[..., Any], *kinds: Any, result: Any = None) -> Any:
    """Machine code that is called by ctypes, without the interpreter; its ``address`` is another's.

    It is kept on disk if there is any place to keep it: next to the source or, where that cannot be
    written, in the user's cache directory.

    Args:
        source: In the part of Python that Numba compiles; takes words.
        kinds: As which types of ctypes they are given.
        result: As which the word comes back that it returns; ``None`` for none.
    """
    numba = find_numba()
    assert numba is not None, "who asks for machine code has found numba"
    signature = (numba.void if result is None else numba.intp)(*[numba.intp] * len(kinds))
    try:
        found = numba.cfunc(signature, cache=True)(source)
    except (RuntimeError, OSError):  # no place that it may write to, or a full disk
        found = numba.cfunc(signature)(source)
    function: Any = ctypes.CFUNCTYPE(result, *kinds)(found.address)
    function.address, function.kept = found.address, found
    return function
