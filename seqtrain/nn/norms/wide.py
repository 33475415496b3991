"""Buffers that stay in float32 or wider when the module around them is narrower."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from seqtrain.nn.norms.moments import wide_dtype


class WideBuffers(nn.Module):
    """Mixin: casting the module, or loading a narrower checkpoint, leaves its buffers wide.

    A bfloat16 running mean of 1.0 would never move by 0.002.
    """

    def widen_buffers(self) -> None:
        """Bring the module's own floating-point buffers to float32 or wider."""
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                self._buffers[name] = buffer.to(wide_dtype(buffer.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "WideBuffers":
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.is_floating_point():
                wide = wide_dtype(new.dtype)
                self._buffers[name] = new if new.dtype == wide else old.to(new.device, wide)
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        # load_state_dict(assign=True) puts the checkpoint's own tensors in place of the buffers.
        self.widen_buffers()
