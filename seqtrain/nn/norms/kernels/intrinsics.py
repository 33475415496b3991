"""What Numba has no words for: memory at an address, atomic operations on it, a call of an address.

For compiled code alone. Importing this needs Numba. Words are of 64 bits.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

WORD = ir.IntType(64)


@intrinsic
def pointer(_: Any, address: Any) -> Any:
    """The address as a pointer."""

    def generate(_: Any, builder: Any, __: Any, words: Any) -> Any:
        return builder.inttoptr(words[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def load(_: Any, address: Any) -> Any:
    """The word there, and all that was written before it was."""

    def generate(_: Any, builder: Any, __: Any, words: Any) -> Any:
        return builder.load_atomic(_word(builder, words[0]), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def store(_: Any, address: Any, value: Any) -> Any:
    """Write a word, after all that was written before."""

    def generate(context: Any, builder: Any, __: Any, words: Any) -> Any:
        builder.store_atomic(words[1], _word(builder, words[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def fetch_add(_: Any, address: Any) -> Any:
    """Add 1 to the word there, and what it was before."""

    def generate(_: Any, builder: Any, __: Any, words: Any) -> Any:
        one = ir.Constant(WORD, 1)
        return builder.atomic_rmw("add", _word(builder, words[0]), one, "seq_cst")

    return types.int64(types.int64), generate


@intrinsic
def replace(_: Any, address: Any, old: Any, new: Any) -> Any:
    """Write ``new`` if ``old`` is there; whether it was. Ordered as the others."""

    def generate(_: Any, builder: Any, __: Any, words: Any) -> Any:
        pair = builder.cmpxchg(_word(builder, words[0]), words[1], words[2], "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


@intrinsic
def invoke(_: Any, address: Any, first: Any, second: Any) -> Any:
    """Call the machine code there, which takes two words and returns nothing."""

    def generate(context: Any, builder: Any, __: Any, words: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [WORD, WORD])
        builder.call(builder.inttoptr(words[0], kind.as_pointer()), words[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _word(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, WORD.as_pointer())
