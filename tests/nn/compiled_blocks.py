"""A program: one compiled block of each encoder on packed batches of many sizes, as on a GPU.

In a process of its own, because torch.compile cannot trace the shape checks of the tests. The
backend only traces, so no compiler is needed. Prints how many graphs each block took. Attention is
once that of a GPU in half precision, by a stand-in that reads what FlashAttention does, and once in
grids, each number of which is compiled anew.
"""

import torch
import torch.nn.functional as F
from tiny_models import tiny_model
from torch import Tensor
from torch._dynamo.utils import counters

from seqtrain.nn import attention
from seqtrain.nn.layout import Layout, packed_layout

SIZES = (
    *([9, 5, 3], [30, 20, 10, 4], [100, 60, 2], [50, 7], [31] * 9),
    *([400, 30, 20, 5], [900, 400, 100, 20, 10], [1500, 700, 300, 90, 80, 7], [20] * 40),
)
"""The first five and the last are one grid each, the others two and more."""


def attend_among_numbers(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """In place of FlashAttention, which no CPU has."""
    same = layout.sequences[:, None] == layout.sequences
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=same).transpose(1, 2)


def number_of_graphs(encoder: str, norm: str) -> int:
    """For all sizes, each of which gives what the block gives that is not compiled."""
    counters.clear()
    torch._dynamo.reset()
    block = tiny_model(encoder, norm).encoder.blocks[0]
    compiled = tiny_model(encoder, norm).encoder.blocks[0]
    compiled.compile(dynamic=True, backend="aot_eager", fullgraph=True)
    for seed, lengths in enumerate(SIZES):
        layout = packed_layout(torch.tensor(lengths), torch.device("cpu"))._replace(spans=None)
        torch.manual_seed(seed)
        x = torch.randn(1, sum(lengths), 8)
        if encoder == "cnn":
            layout = layout.with_gaps(block.conv.reach)
            x = layout.open(x)
        x.requires_grad_()
        outs = []
        for form in (compiled, block):
            torch.manual_seed(seed)  # of what dropout drops
            outs.append(form(x, layout))
        torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)
        upstream = torch.randn_like(x)
        gradients = [torch.autograd.grad(out, x, upstream)[0] for out in outs]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    return counters["stats"]["unique_graphs"]


def main() -> None:
    print("cnn", number_of_graphs("cnn", "masked_batch"))
    number_of_graphs("transformer", "layer")
    attention._has_flash = lambda x: True
    attention._attend_by_flash = attend_among_numbers
    print("transformer", number_of_graphs("transformer", "layer"))


if __name__ == "__main__":
    main()
