"""Norms that know nothing of padding, in the encoders' calling form: the controls.

They are what a user would write without a mask, so that a comparison has something to compare
with.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seqtrain.masking import zero_padding


class LeakyBatchNorm(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` over every position: padding counts and is left as it comes out.

    A record's result depends on what it was batched with, in training and in evaluation.
    """

    channel_dim = -1

    def forward(
        self,
        input: Float[Tensor, "B L C"],
        mask: Bool[Tensor, "B L"] | None = None,  # noqa: ARG002  # every norm is called alike
    ) -> Float[Tensor, "B L C"]:
        """Normalized states; whatever comes out at padding stays.

        A single position has no variance: it is normalized as in evaluation.
        """
        rows = input.flatten(0, 1)
        if len(rows) > 1:
            return super().forward(rows).view_as(input)
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(rows, mean, var, self.weight, self.bias, eps=self.eps).view_as(input)


class PlainBatchNorm(LeakyBatchNorm):
    """``nn.BatchNorm1d`` over every position, padding zeroed again after.

    In training the padding still counts in the statistics; in evaluation a record's result no
    longer depends on its neighbours.
    """

    def forward(
        self, input: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B L C"]:
        """Normalized states, exact zeros at padding."""
        return zero_padding(super().forward(input, mask), mask)


class NoNorm(nn.Module):
    """The states as they are, with exact zeros at padding."""

    def forward(
        self, input: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B L C"]:
        """``input`` without what lies in the padding."""
        return zero_padding(input, mask)
