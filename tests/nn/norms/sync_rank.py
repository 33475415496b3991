"""One rank of the tests of synced statistics: `python sync_rank.py RANK WORLD_SIZE BACKEND FOLDER`.

It runs every case of ``CASES``, on the CPU with gloo or on the GPU of its number with nccl, and
leaves what came out in FOLDER/RANK.pt.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from seqtrain.nn.norms import MaskedSyncBatchNorm, update_bn_stats

CHANNELS = 3
LENGTH = 6
# Real positions of each sequence of each rank, in two steps; ranks beyond the list have none.
CASES = {
    "uneven": [[[6, 1], [4]], [[2], [0, 3, 5]], [[1, 1, 1], [2, 2]]],
    "one rank has nothing real": [[[0, 0], [0]], [[3, 2], [6]], [[5], [1]]],
    "one rank has no sequences": [[[4, 3], [5]], [[], []], [[2], [6, 6]]],
    "too little on every rank, enough together": [[[1], [1]], [[1], [1]], [[1], [0]]],
    "too little altogether": [[[1], [0]], [[0], [1]], [[0], [0]]],
    "nothing at all": [[[0], [0]], [[0], [0]], [[0], [0]]],
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPTIONS = {"plain": {}, "average": {"momentum": None}, "tokens": {"stat_weighting": "tokens"}}


def batch(case: str, rank: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Input ``(B, L, C)``, mask and upstream gradient of one rank, with NaN at padding."""
    lengths = torch.tensor(CASES[case][rank][step], dtype=torch.long)
    generator = torch.Generator().manual_seed(100 * rank + 10 * step + len(case))
    mask = torch.arange(LENGTH) < lengths[:, None]
    shape = (len(lengths), LENGTH, CHANNELS)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 5 * rank
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    padding = ~mask[..., None]
    return x.masked_fill(padding, torch.nan), mask, grad.masked_fill(padding, torch.nan)


def run(norm: torch.nn.Module, steps: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    """Outputs, gradients and buffers after training on ``steps``, then evaluation."""
    torch.manual_seed(0)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    found: dict[str, Tensor] = {}
    for step, (x, mask, grad) in enumerate(steps):
        norm.zero_grad()
        x.requires_grad_()
        out = norm(x, mask)
        out.backward(grad)
        found |= {f"out {step}": out.detach(), f"dx {step}": x.grad}
        found |= {f"d{name} {step}": p.grad for name, p in norm.named_parameters()}
        found |= {f"{name} {step}": b.clone() for name, b in norm.named_buffers()}
    x, mask, _ = steps[0]
    found["evaluation"] = norm.eval()(x, mask).detach()
    return found


def second_derivative(norm: torch.nn.Module, x: Tensor, mask: Tensor) -> str:
    """The message of the refusal."""
    x.requires_grad_()
    out = norm(x, mask).pow(2).sum()
    try:
        torch.autograd.grad(out, x, create_graph=True)
    except RuntimeError as error:
        return str(error)
    return ""


def main(rank: int, world_size: int, backend: str, folder: Path) -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu" if backend == "gloo" else f"cuda:{rank}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )

    def fresh(**options: object) -> MaskedSyncBatchNorm:
        return MaskedSyncBatchNorm(CHANNELS, channel_dim=-1, **options).double().to(device)

    def own(case: str, step: int) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(t.to(device) for t in batch(case, rank, step))

    found: dict[object, object] = {}
    for case in CASES:
        for name, options in OPTIONS.items():
            results = run(fresh(**options), [own(case, step) for step in (0, 1)])
            found[case, name] = {key: value.cpu() for key, value in results.items()}
    for dtype in DTYPES:
        x, mask, grad = own("uneven", 0)
        results = run(fresh().to(dtype), [(x.to(dtype), mask, grad.to(dtype))])
        found[dtype] = {key: value.cpu() for key, value in results.items()}
    norm = fresh()
    norm(torch.randn(2, 4, CHANNELS, dtype=torch.float64, device=device) + rank)
    found["no mask"] = norm.running_mean.cpu()
    pair = dist.new_group([0, 1])
    if rank < 2:
        norm = fresh(process_group=pair)
        norm(*own("uneven", 0)[:2])
        found["group"] = norm.running_mean.cpu()
    norm = fresh()
    batches = [own("one rank has nothing real", step)[:2] for step in (0, 1)]
    update_bn_stats(norm, batches, lambda norm, b: norm(*b))
    found["exact"] = (norm.running_mean.cpu(), norm.running_var.cpu())
    found["second derivative"] = second_derivative(fresh(), *own("uneven", 0)[:2])
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
