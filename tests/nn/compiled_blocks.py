"""A program: one compiled block of each encoder on packed batches of many sizes, as on a GPU.

In a process of its own, because torch.compile cannot trace the shape checks of the tests. The
backend only traces, so no compiler is needed. Prints how many graphs each block took.
"""

import torch
from tiny_models import tiny_model
from torch._dynamo.utils import counters

from seqtrain.nn.layout import packed_layout

SIZES = ([9, 5, 3], [30, 20, 10, 4], [100, 60, 2], [50, 7], [31] * 9)


def main() -> None:
    for encoder, norm in (("cnn", "masked_batch"), ("transformer", "layer")):
        counters.clear()
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
            found, wanted = compiled(x, layout), block(x, layout)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
            upstream = torch.randn_like(wanted)
            gradients = [torch.autograd.grad(out, x, upstream)[0] for out in (found, wanted)]
            torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
        print(encoder, counters["stats"]["unique_graphs"])


if __name__ == "__main__":
    main()
