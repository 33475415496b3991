"""Checkpoints, copies, memory, and what a batch does to the running statistics."""

import copy
import gc
import pickle
import resource

import pytest
import torch
from torch import Tensor, nn

from seqtrain.nn.norms import (
    LazyMaskedBatchNorm1d,
    LazyMaskedBatchNorm2d,
    LazyMaskedBatchNorm3d,
    MaskedBatchNorm,
    MaskedBatchNorm1d,
    MaskedBatchNorm2d,
    MaskedBatchNorm3d,
    masked_batch_norm,
)
from seqtrain.nn.norms.running import write


def batches(count: int, channels: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Batches ``(B, L, C)`` of very different numbers of real positions."""
    generator = torch.Generator().manual_seed(7)
    found = []
    for step in range(count):
        lengths = torch.randint(2, 4 + 6 * step % 17, (3, 1), generator=generator)
        mask = torch.arange(20) < lengths
        x = torch.randn(3, 20, channels, generator=generator, dtype=torch.float64)
        found.append((x + 3 * torch.rand(1, generator=generator).item(), mask))
    return found


def test_state_dicts_go_both_ways() -> None:
    """Oracle 10: same keys, same version, and what evaluation makes of them."""
    torch.manual_seed(0)
    for masked_kind, plain_kind, shape in (
        (MaskedBatchNorm1d, nn.BatchNorm1d, (3, 2, 5)),
        (MaskedBatchNorm2d, nn.BatchNorm2d, (3, 2, 5, 4)),
        (MaskedBatchNorm3d, nn.BatchNorm3d, (3, 2, 5, 4, 3)),
    ):
        masked, plain = masked_kind(2), plain_kind(2)
        assert isinstance(masked, plain_kind)
        assert masked._version == plain._version
        masked(torch.randn(shape), torch.rand(shape[:1] + shape[2:]) < 0.7)
        nn.init.normal_(masked.weight)
        assert list(masked.state_dict()) == list(plain.state_dict())
        plain.load_state_dict(masked.state_dict())
        x = torch.randn(shape)
        torch.testing.assert_close(plain.eval()(x), masked.eval()(x))
        again = masked_kind(2)
        again.load_state_dict(plain.state_dict())
        assert torch.equal(again.eval()(x), masked(x))


def test_a_checkpoint_from_before_the_counter_loads() -> None:
    old = nn.BatchNorm1d(2).state_dict()
    del old["num_batches_tracked"]
    old._metadata[""]["version"] = 1
    norm = MaskedBatchNorm1d(2)
    norm.load_state_dict(old)
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize("options", [{}, {"stat_weighting": "tokens"}, {"affine": False}], ids=str)
def test_copies_are_whole_and_apart(options: dict[str, object]) -> None:
    norm = MaskedBatchNorm1d(2, channel_dim=-1, **options).double()
    (x, mask), *rest = batches(3)
    norm(x, mask)
    for again in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        before = [b.clone() for b in norm.buffers()]
        assert torch.equal(copy.deepcopy(again)(x, mask), copy.deepcopy(norm)(x, mask))
        again(*rest[0])
        assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))
        assert repr(again) == repr(norm)


def test_buffers_are_written_in_place_and_hold_no_graph(path: str) -> None:
    """Oracle 11, the leak: a rebound buffer would keep each step's graph."""
    norm = MaskedBatchNorm1d(2, channel_dim=-1, stat_weighting="tokens").double()
    where = [b.data_ptr() for b in norm.buffers()]
    for x, mask in batches(4):
        norm(x.requires_grad_(), mask).sum().backward()
        for buffer in norm.buffers():
            assert buffer.grad_fn is None
            assert not buffer.requires_grad
    assert [b.data_ptr() for b in norm.buffers()] == where


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shared_mask", [True, False])
def test_memory_is_flat_over_a_thousand_steps(shared_mask: bool) -> None:
    """Oracle 11: tensors alive, and the most memory held, after 50 steps and 1,000 later."""
    from seqtrain.nn.norms import MaskedBatchNorm1d

    norm = MaskedBatchNorm1d(2, channel_dim=-1)
    x = torch.randn(2, 4, 2, requires_grad=True)
    mask = torch.rand((2, 4) if shared_mask else (2, 4, 2)) < 0.8

    def steps(count: int) -> tuple[int, int]:
        for _ in range(count):
            norm(x, mask).sum().backward()
        gc.collect()
        tensors = sum(issubclass(type(o), Tensor) for o in gc.get_objects())
        return tensors, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    tensors, kilobytes = steps(50)
    tensors_later, kilobytes_later = steps(1000)
    assert tensors_later == tensors
    assert kilobytes_later - kilobytes < 4096


def test_momentum_none_is_the_plain_average_over_batches(path: str) -> None:
    norm = MaskedBatchNorm1d(2, momentum=None, channel_dim=-1).double()
    steps = batches(5)
    for x, mask in steps:
        norm(x, mask)
    means = torch.stack([x[mask].mean(0) for x, mask in steps])
    variances = torch.stack([x[mask].var(0) for x, mask in steps])
    torch.testing.assert_close(norm.running_mean, means.mean(0))
    torch.testing.assert_close(norm.running_var, variances.mean(0))
    assert norm.num_batches_tracked == 5


def test_an_empty_first_batch_does_not_count_in_the_average() -> None:
    norm = MaskedBatchNorm1d(2, momentum=None, channel_dim=-1).double()
    (x, mask), *_ = batches(1)
    norm(x, torch.zeros_like(mask))
    assert norm.num_batches_tracked == 0
    norm(x, mask)
    torch.testing.assert_close(norm.running_mean, x[mask].mean(0))


def test_the_plain_average_needs_its_counter() -> None:
    x, mask = torch.zeros(2, 3, 1), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="num_batches_tracked is needed"):
        masked_batch_norm(
            x, mask, torch.zeros(1), torch.ones(1), training=True, momentum=None, channel_dim=-1
        )


@pytest.mark.parametrize("momentum", [0.3, None])
def test_token_weighting_divides_two_moving_averages(path: str, momentum: float | None) -> None:
    """EMA(n·mean) / EMA(n), and the same of the unbiased variance, from the first batch on."""
    norm = MaskedBatchNorm1d(2, momentum=momentum, channel_dim=-1, stat_weighting="tokens").double()
    n_mean = n_var = n_average = 0.0
    for step, (x, mask) in enumerate(batches(5), start=1):
        norm(x, mask)
        gain = 1 / step if momentum is None else momentum
        n = mask.sum()
        n_mean = (1 - gain) * n_mean + gain * n * x[mask].mean(0)
        n_var = (1 - gain) * n_var + gain * n * x[mask].var(0)
        n_average = (1 - gain) * n_average + gain * n
        torch.testing.assert_close(norm.running_mean, n_mean / n_average)
        torch.testing.assert_close(norm.running_var, n_var / n_average)
        torch.testing.assert_close(norm.running_weight, n_average.double().expand(2))
    norm.reset_running_stats()
    assert not norm.running_weight.any()
    assert norm.num_batches_tracked == 0


def test_token_weighting_follows_the_data_where_short_batches_are_many() -> None:
    """Batches of few positions stop counting as much as full ones."""
    generator = torch.Generator().manual_seed(0)
    norms = {
        weighting: MaskedBatchNorm1d(1, 1e-5, 0.05, channel_dim=-1, stat_weighting=weighting)
        for weighting in ("batches", "tokens")
    }
    total = count = 0.0
    for step in range(100):
        length = 100 if step % 4 == 0 else 2
        x = torch.randn(1, length, 1, generator=generator) + (0.0 if length == 100 else 2.0)
        total, count = total + x.sum(), count + length
        for norm in norms.values():
            norm(x, torch.ones(1, length, dtype=torch.bool))
    error = {w: (norm.running_mean - total / count).abs().item() for w, norm in norms.items()}
    assert error["tokens"] < 0.2 < 1 < error["batches"]


def test_token_weighting_goes_on_from_a_plain_checkpoint() -> None:
    plain = nn.BatchNorm1d(2).double()
    plain.running_mean.fill_(5.0)
    norm = MaskedBatchNorm1d(2, channel_dim=-1, stat_weighting="tokens").double()
    norm.load_state_dict(plain.state_dict())
    steps = batches(2)
    norm(*steps[0])
    x, mask = steps[0]
    torch.testing.assert_close(norm.running_mean, 0.9 * 5 + 0.1 * x[mask].mean(0))
    assert norm.running_weight.tolist() == [mask.sum()] * 2
    again = MaskedBatchNorm1d(2, channel_dim=-1, stat_weighting="tokens").double()
    again.load_state_dict(norm.state_dict())
    again(*steps[1])
    norm(*steps[1])
    assert torch.equal(again.running_weight, norm.running_weight)
    untracked = MaskedBatchNorm1d(2, stat_weighting="tokens", track_running_stats=False)
    assert untracked.running_weight is None


def test_statistics_that_are_not_tracked_any_more_stay() -> None:
    """As in torch: with the flag off, training leaves the buffers and evaluation uses them."""
    norm = MaskedBatchNorm1d(2, channel_dim=-1).double()
    (x, mask), *_ = batches(1)
    norm.track_running_stats = False
    norm(x, mask)
    assert not norm.running_mean.any()
    torch.testing.assert_close(norm.eval()(x, mask)[mask], x[mask] / (1 + 1e-5) ** 0.5)


@pytest.mark.parametrize(
    ("lazy", "kind", "shape"),
    [
        (LazyMaskedBatchNorm1d, MaskedBatchNorm1d, (2, 3, 4)),
        (LazyMaskedBatchNorm2d, MaskedBatchNorm2d, (2, 3, 4, 5)),
        (LazyMaskedBatchNorm3d, MaskedBatchNorm3d, (2, 3, 4, 5, 2)),
    ],
)
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_lazy_norms_learn_their_channels(
    lazy: type[MaskedBatchNorm],
    kind: type[MaskedBatchNorm],
    shape: tuple[int, ...],
    channel_dim: int,
) -> None:
    torch.manual_seed(0)
    norm = lazy(1e-3, 0.2, channel_dim=channel_dim, min_count=3, stat_weighting="tokens")
    norm.reset_parameters()
    assert norm.has_uninitialized_params()
    assert norm.num_features == 0
    x = torch.randn(shape).movedim(1, channel_dim)
    mask = torch.rand(shape[:1] + shape[2:]) < 0.8
    known = kind(3, 1e-3, 0.2, channel_dim=channel_dim, min_count=3, stat_weighting="tokens")
    assert torch.equal(norm(x, mask), known(x, mask))
    assert type(norm) is kind
    assert repr(norm) == repr(known)
    for mine, other in zip(norm.state_dict().items(), known.state_dict().items(), strict=True):
        assert mine[0] == other[0]
        assert torch.equal(mine[1], other[1])


@pytest.mark.parametrize(
    "options",
    [{"affine": False}, {"bias": False}, {"track_running_stats": False}, {"dtype": torch.bfloat16}],
    ids=str,
)
def test_lazy_norms_take_every_argument(options: dict[str, object]) -> None:
    norm, known = LazyMaskedBatchNorm1d(**options), MaskedBatchNorm1d(3, **options)
    x = torch.randn(2, 3, 4).to(options.get("dtype", torch.float32))
    assert torch.equal(norm(x), known(x))
    found = {name: (t.shape, t.dtype) for name, t in norm.state_dict().items()}
    assert found == {name: (t.shape, t.dtype) for name, t in known.state_dict().items()}


def test_a_lazy_norm_is_filled_from_a_checkpoint() -> None:
    saved = MaskedBatchNorm1d(3)
    saved(torch.randn(4, 3))
    norm = LazyMaskedBatchNorm1d()
    norm.load_state_dict(saved.state_dict())
    x, mask = torch.randn(2, 3, 4), torch.ones(2, 4, dtype=torch.bool)
    assert torch.equal(norm.eval()(x, mask), saved.eval()(x, mask))
    assert norm.num_batches_tracked == 1


def test_a_buffer_of_another_shape_is_torchs_error() -> None:
    write(None, torch.zeros(3))
    with pytest.raises(RuntimeError, match="must match the size"):
        write(torch.zeros(2), torch.zeros(3))
