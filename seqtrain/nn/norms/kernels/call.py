"""What a fused kernel is asked for."""

from typing import NamedTuple

from torch import Tensor

from seqtrain.nn.norms.running import RunningStatistics


class Call(NamedTuple):
    """A batch norm, and what is done to its result in the same pass.

    A kernel does all that the plain form does, the update of ``running`` included, or it returns
    ``None`` and has done nothing.
    """

    input: Tensor
    """Features of any rank from 2, any strides and any dtype."""
    mask: Tensor
    """Bool, of the input's shape, without its channels or with 1 or all at ``channel_dim``."""
    running: RunningStatistics | None
    """To be updated when ``training``, else what to normalize by."""
    weight: Tensor | None
    """``(C,)``."""
    bias: Tensor | None
    """``(C,)``."""
    training: bool
    """Normalize by this batch."""
    momentum: float | None
    """As in :func:`~seqtrain.nn.norms.masked_batch_norm`, like all that follows."""
    eps: float
    """Added to the variance."""
    channel_dim: int
    """Where the channels are."""
    min_count: int
    """Fewer real positions normalize as in evaluation and leave ``running`` alone."""
    relu: bool = False
    """Apply ``torch.relu`` to the normalized features."""
    residual: Tensor | None = None
    """Of the shape of ``input``, added last; the wider of their dtypes comes out."""
