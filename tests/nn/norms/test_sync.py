"""Oracle 9: two or three gloo processes equal one process on the pooled batch."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from seqtrain.nn.norms import (
    MaskedBatchNorm1d,
    MaskedSyncBatchNorm,
    batch_functional,
    masked_batch_norm,
    update_bn_stats,
)
from seqtrain.nn.norms.moments import Moments, merge_moments

sys.path.insert(0, str(Path(__file__).parent))
from sync_rank import CASES, CHANNELS, DTYPES, OPTIONS, batch, run


@pytest.fixture(
    scope="module",
    params=[(2, "gloo"), (3, "gloo"), pytest.param((2, "nccl"), marks=pytest.mark.gpu)],
    ids="{0[0]} ranks, {0[1]}".format,
)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What every rank found; processes are started once for all cases."""
    world_size, backend = request.param
    if backend == "nccl" and torch.cuda.device_count() < world_size:
        pytest.skip(f"fewer than {world_size} CUDA devices")
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("sync_rank.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(world_size), backend, str(folder)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    messages = [process.communicate(timeout=300)[1] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(messages)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def pooled_steps(case: str, world_size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [
        tuple(
            torch.cat(parts)
            for parts in zip(*(batch(case, rank, step) for rank in range(world_size)), strict=True)
        )
        for step in (0, 1)
    ]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("option", OPTIONS)
def test_ranks_equal_the_pooled_batch(ranks: list[dict], case: str, option: str) -> None:
    norm = MaskedBatchNorm1d(CHANNELS, channel_dim=-1, **OPTIONS[option]).double()
    pooled = run(norm, pooled_steps(case, len(ranks)))
    for name, expected in pooled.items():
        parts = [found[case, option][name] for found in ranks]
        if name.startswith(("out", "dx", "evaluation")):
            together = torch.cat(parts)
        elif name.startswith(("dweight", "dbias")):
            together = torch.stack(parts).sum(0)
        else:
            assert all(torch.equal(part, parts[0]) for part in parts)
            together = parts[0]
        assert together.isfinite().all()
        torch.testing.assert_close(together, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ranks_equal_the_pooled_batch_in_every_dtype(ranks: list[dict], dtype: torch.dtype) -> None:
    """Against float64 over the same rounded values, and parameters."""
    norm = MaskedBatchNorm1d(CHANNELS, channel_dim=-1).to(dtype)
    (x, mask, grad), _ = pooled_steps("uneven", len(ranks))
    torch.manual_seed(0)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    exact = norm.double()
    leaf = x.to(dtype).double().requires_grad_()
    out = exact(leaf, mask)
    out.backward(grad.to(dtype).double())
    step = torch.finfo(dtype).eps
    for name, expected in (("out 0", out), ("dx 0", leaf.grad)):
        together = torch.cat([found[dtype][name] for found in ranks])
        assert together.dtype == dtype
        torch.testing.assert_close(together.double(), expected, rtol=4 * step, atol=4 * step)
    for found in ranks:
        assert found[dtype]["running_var 0"].dtype == torch.float32
        torch.testing.assert_close(
            found[dtype]["running_mean 0"].double(), exact.running_mean, rtol=1e-6, atol=1e-6
        )


def test_averaging_the_means_of_ranks_would_be_wrong(ranks: list[dict]) -> None:
    """The negative control: uneven counts need weights."""
    (x, mask, _), _ = pooled_steps("uneven", len(ranks))
    means = [
        x[mask].mean(0) for x, mask, _ in (batch("uneven", rank, 0) for rank in range(len(ranks)))
    ]
    synced = ranks[0]["uneven", "plain"]["running_mean 0"]
    torch.testing.assert_close(synced, 0.1 * x[mask].mean(0))
    assert ((torch.stack(means).mean(0) * 0.1 - synced).abs() > 0.05).all()


def test_without_a_mask_all_positions_of_all_ranks_count(ranks: list[dict]) -> None:
    assert all(torch.equal(found["no mask"], ranks[0]["no mask"]) for found in ranks)
    assert ranks[0]["no mask"].isfinite().all()


def test_a_process_group_limits_who_shares(ranks: list[dict]) -> None:
    steps = [batch("uneven", rank, 0) for rank in (0, 1)]
    rows = torch.cat([x[mask] for x, mask, _ in steps])
    for found in ranks[:2]:
        torch.testing.assert_close(found["group"], 0.1 * rows.mean(0))


def test_exact_statistics_are_pooled_over_ranks(ranks: list[dict]) -> None:
    case = "one rank has nothing real"
    steps = [batch(case, rank, step) for rank in range(len(ranks)) for step in (0, 1)]
    rows = torch.cat([x[mask] for x, mask, _ in steps])
    for found in ranks:
        mean, var = found["exact"]
        torch.testing.assert_close(mean, rows.mean(0))
        torch.testing.assert_close(var, rows.var(0))


def test_a_second_derivative_through_ranks_is_refused(ranks: list[dict]) -> None:
    assert all("no second derivative" in found["second derivative"] for found in ranks)


def test_merged_moments_keep_a_large_mean() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(n, 2) + 1e5 for n in (3, 500, 40)]
    moments = Moments(
        torch.tensor([[len(p)] for p in parts]),
        torch.stack([p.double().mean(0).float() for p in parts]),
        torch.stack([p.double().var(0, correction=0).float() * len(p) for p in parts]),
    )
    merged = merge_moments(moments)
    exact = torch.cat(parts).double()
    torch.testing.assert_close(merged.mean.double(), exact.mean(0), rtol=6e-8, atol=0)
    torch.testing.assert_close(
        merged.variance().double(), exact.var(0, correction=0), rtol=1e-3, atol=0
    )
    assert merged.n.item() == 543
    empty = merge_moments(Moments(torch.zeros(2, 1), torch.zeros(2, 2), torch.zeros(2, 2)))
    assert not empty.mean.any()
    assert not empty.variance(1).any()


def test_a_rough_merged_mean_is_corrected() -> None:
    """Products of counts and means round by more than float32 tells the means apart."""
    torch.manual_seed(0)
    counts = torch.randint(1, 1000, (5, 200))
    means = 1e5 + 100 * torch.rand(5, 200)
    merged = merge_moments(Moments(counts, means, torch.zeros(5, 200)))
    exact = (counts * means.double()).sum(0) / counts.sum(0)
    step = torch.finfo(torch.float32).eps * 1e5
    assert ((merged.mean.double() - exact).abs() < 0.8 * step).all()
    rough = (counts * means).sum(0) / counts.sum(0)
    assert ((rough.double() - exact).abs() > 0.8 * step).any()


def test_alone_it_is_the_masked_batch_norm() -> None:
    x, mask, _ = batch("uneven", 0, 0)
    sync = MaskedSyncBatchNorm(CHANNELS, channel_dim=-1).double()
    assert sync.ranks() is None
    assert torch.equal(sync(x, mask), MaskedBatchNorm1d(CHANNELS, channel_dim=-1).double()(x, mask))
    assert not isinstance(sync, torch.nn.SyncBatchNorm)
    assert sync(torch.randn(2, 4, 2, 3).double()).shape == (2, 4, 2, 3)
    with pytest.raises(ValueError, match="at least 2D"):
        sync(torch.zeros(3))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    """A group of one rank, in this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("mask_channels", [1, CHANNELS])
def test_a_group_of_one_changes_nothing(alone: dist.ProcessGroup, mask_channels: int) -> None:
    x, mask, grad = batch("uneven", 0, 0)
    mask = mask[..., None].repeat(1, 1, mask_channels)
    weight = torch.randn(CHANNELS, dtype=torch.float64)
    results = []
    for group in (None, alone):
        leaf = x.clone().requires_grad_()
        out = masked_batch_norm(
            leaf, mask, weight=weight, training=True, channel_dim=-1, group=group
        )
        out.backward(grad)
        results.append((out, leaf.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    leaf = x.clone().requires_grad_()
    out = masked_batch_norm(leaf, mask, training=True, channel_dim=-1, group=alone)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out.sum(), leaf, create_graph=True)
    whole = torch.randn(3, 5, CHANNELS)
    torch.testing.assert_close(
        masked_batch_norm(whole, training=True, channel_dim=-1, group=alone),
        masked_batch_norm(whole, training=True, channel_dim=-1),
    )
    norm = MaskedSyncBatchNorm(CHANNELS, channel_dim=-1).double()
    assert norm.ranks() is None
    norm.ranks = lambda: alone
    update_bn_stats(norm, [(x, mask)], lambda norm, b: norm(*b))
    rows = x[mask[..., 0]]
    torch.testing.assert_close(norm.running_mean, rows.mean(0))
    torch.testing.assert_close(norm.running_var, rows.var(0))


def test_shared_statistics_never_go_through_a_kernel_for_one_process(
    alone: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel knows of no ranks: it would normalize by its own positions without a word."""

    def kernel(*_: object) -> Tensor:
        raise AssertionError("a kernel was asked")

    monkeypatch.setattr(batch_functional, "fused_batch_norm", kernel)
    x, mask, _ = batch("uneven", 0, 0)
    for given in (mask, None):
        masked_batch_norm(x, given, training=True, channel_dim=-1, group=alone)
    with pytest.raises(AssertionError, match="a kernel was asked"):
        masked_batch_norm(x, mask, training=True, channel_dim=-1)
