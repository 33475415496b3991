"""Numba, where it is installed, and what it makes of a loop."""

import ctypes
import functools
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
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


@functools.cache
def _version() -> str:
    """A digest of the sources of this folder."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _of_this_version(source: Callable[..., Any]) -> Callable[..., Any]:
    """The same function by another name, under which its machine code is kept.

    Numba compiles anew what changes in the file of a function, not what changes in those beside it.
    """
    found = FunctionType(
        source.__code__,
        source.__globals__,
        source.__name__,
        source.__defaults__,
        source.__closure__,
    )
    found.__module__ = source.__module__
    found.__qualname__ = f"{source.__qualname__}-{_version()}"
    return found


def machine_code(source: Callable[..., Any], *kinds: Any, result: Any = None) -> Any:
    """Machine code that is called by ctypes, without the interpreter, or at its ``address``.

    It cannot raise: of an error a message comes, and whatever is in memory.

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
        found = numba.cfunc(signature, cache=True)(_of_this_version(source))
    except (RuntimeError, OSError):  # no place that it may write to, or a full disk
        found = numba.cfunc(signature)(source)
    function: Any = ctypes.CFUNCTYPE(result, *kinds)(found.address)
    function.address, function.kept = found.address, found
    return function
