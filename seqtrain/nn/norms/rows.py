"""Statistics over gathered real positions, where that is the fastest way."""

from collections.abc import Callable

import torch
from torch import Tensor


def over_real_rows(
    norm: Callable[[Tensor, Tensor | None, int], Tensor],
    input: Tensor,
    mask: Tensor | None,
    channel_dim: int,
) -> Tensor:
    """``norm(input, mask, channel_dim)``, if possible by way of the real rows of channels alone.

    On the CPU in eager mode, where every pass counts and selection costs several, the real rows
    are gathered, normalized without a mask, and put back among zeros. Their number depends on the
    data, which a traced program cannot have and a GPU would have to be waited for.

    Args:
        norm: A norm that treats all positions alike, called with any rank.
        input: Features.
        mask: Of the input's rank, or ``None``.
        channel_dim: Where the channels are.
    """
    if (
        mask is None
        or mask.shape[channel_dim] != 1
        or input.device.type != "cpu"
        or torch.compiler.is_compiling()
    ):
        return norm(input, mask, channel_dim)
    moved = input.movedim(channel_dim, -1)
    everything = moved.reshape(-1, moved.shape[-1])
    real = mask.flatten().nonzero().squeeze(1)
    normal = norm(everything.index_select(0, real), None, 1)
    out = torch.zeros_like(everything).index_copy_(0, real, normal)
    return out.view(moved.shape).movedim(-1, channel_dim)
