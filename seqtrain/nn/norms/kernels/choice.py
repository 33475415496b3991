"""Which fused kernel, if any, takes a call."""

from torch import Tensor

from seqtrain.nn.norms.kernels import cpu, triton_norm
from seqtrain.nn.norms.kernels.call import Call

KERNELS = {"cpu": cpu.batch_norm, "cuda": triton_norm.batch_norm}
"""By type of device."""


def fused_batch_norm(call: Call) -> Tensor | None:
    """Masked batch norm by the kernel for the input's device; ``None`` where none covers the call.

    Args:
        call: What to compute, and what a kernel owes.
    """
    kernel = KERNELS.get(call.input.device.type)
    return None if kernel is None else kernel(call)
