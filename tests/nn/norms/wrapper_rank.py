"""One rank of the tests of wrappers: `python wrapper_rank.py RANK WORLD_SIZE FOLDER`.

It trains a small model with masked norms under DDP and FSDP2, on the CPU with gloo, and leaves what
came out in FOLDER/RANK.pt.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from seqtrain.nn.norms import (
    MaskedBatchNorm1d,
    MaskedGroupNorm,
    MaskedLayerNorm,
    MaskedSyncBatchNorm,
    convert_masked_sync_batchnorm,
)

STEPS = 3


class Model(nn.Module):
    """Norms of three kinds between layers, ``(B, L, 4)``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.norms = nn.ModuleList(
            [
                MaskedBatchNorm1d(4, channel_dim=-1),
                MaskedLayerNorm(4),
                MaskedGroupNorm(2, 4, channel_dim=-1),
            ]
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """What comes of the last norm, 0 at padding."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x), mask)
        return x


def batch(rank: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, mask and targets of one rank."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    mask = torch.rand(3, 5, generator=generator) < 0.6
    mask[0, 0] = True
    x, target = torch.randn(2, 3, 5, 4, generator=generator)
    return x, mask, target


def train(model: nn.Module, ranks: list[int]) -> None:
    """A few steps on the batches of these ranks as one, of equally weighted squared errors."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        parts = zip(*(batch(rank, step) for rank in ranks), strict=True)
        x, mask, target = (torch.cat(part) for part in parts)
        optimizer.zero_grad()
        (model(x, mask) - target).square().mean().backward()
        optimizer.step()


def state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, whole."""
    return {
        name.removeprefix("module."): (t.full_tensor() if isinstance(t, DTensor) else t).clone()
        for name, t in model.state_dict().items()
    }


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    found = {}
    synced = convert_masked_sync_batchnorm(Model())
    assert isinstance(synced.norms[0], MaskedSyncBatchNorm)
    synced = DistributedDataParallel(synced)
    train(synced, [rank])
    found["DDP"] = state(synced)
    sharded = convert_masked_sync_batchnorm(Model())
    mesh = init_device_mesh("cpu", (world_size,))
    for norm in sharded.norms:
        fully_shard(norm, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    train(sharded, [rank])
    assert isinstance(sharded.norms[0].weight, DTensor)
    found["FSDP2"] = state(sharded)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
