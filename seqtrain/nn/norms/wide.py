"""Buffers that stay in float32 or wider when the module around them is cast."""

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

from seqtrain.nn.norms.moments import wide_dtype


class WideBuffers(nn.Module):
    """Mixin: ``half()``, ``bfloat16()`` and the like leave the floating-point buffers wide.

    A bfloat16 running mean of 1.0 would never move by 0.002.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and _is_narrow(new):
                self._buffers[name] = old.to(new.device, wide_dtype(new.dtype))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self._buffers:
            value = state_dict.get(prefix + name)
            if value is not None and _is_narrow(value):
                state_dict[prefix + name] = value.to(wide_dtype(value.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _is_narrow(buffer: Tensor) -> bool:
    return buffer.is_floating_point() and buffer.dtype != wide_dtype(buffer.dtype)
