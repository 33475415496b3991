"""Masks find their place beside the input's dimensions, and their way into a model."""

import asyncio
import threading

import pytest
import torch
from torch import Tensor, nn

from seqtrain.nn.norms import (
    MaskedBatchNorm1d,
    MaskedBatchNorm2d,
    MaskedComplexBatchNorm1d,
    MaskedGroupNorm,
    MaskedInstanceNorm1d,
    MaskedLayerNorm,
    MaskedNorm,
    MaskedRMSNorm,
    NaiveMaskedComplexBatchNorm1d,
    context,
    mask_context,
    masked_norm,
)
from seqtrain.nn.norms.context import given_or_current
from seqtrain.nn.norms.masks import broadcast_mask, place_mask


@pytest.mark.parametrize(
    ("mask", "input", "channel_dim", "shape"),
    [
        ((2, 5), (2, 3, 5), 1, (2, 1, 5)),
        ((2, 5), (2, 5, 3), -1, (2, 5, 1)),
        ((2, 1, 5), (2, 3, 5), 1, (2, 1, 5)),
        ((2, 3, 5), (2, 3, 5), 1, (2, 3, 5)),
        ((2,), (2, 3), 1, (2, 1)),
        ((5, 2), (3, 5, 2), 0, (1, 5, 2)),
        ((2, 4, 5), (2, 3, 4, 5), 1, (2, 1, 4, 5)),
    ],
)
def test_a_mask_is_placed_at_the_channels(
    mask: tuple[int, ...], input: tuple[int, ...], channel_dim: int, shape: tuple[int, ...]
) -> None:
    placed = place_mask(torch.ones(mask, dtype=torch.bool), torch.zeros(input), channel_dim)
    assert placed.shape == shape


@pytest.mark.parametrize("channel_dim", [1, 2])
def test_a_square_mask_is_not_aligned_with_the_wrong_axes(channel_dim: int) -> None:
    """B = L = C: broadcasting would take it for anything, and so would no error tell."""
    mask = torch.eye(3, dtype=torch.bool)
    placed = place_mask(mask, torch.zeros(3, 3, 3), channel_dim)
    assert torch.equal(placed.squeeze(channel_dim), mask)


@pytest.mark.parametrize(
    ("mask", "input", "channel_dim"),
    [
        ((5, 2), (2, 3, 5), 1),
        ((2, 3), (2, 3, 5), 1),
        ((2, 1, 1), (2, 3, 5), 1),
        ((1, 5), (2, 3, 5), 1),
        ((2, 2, 5), (2, 3, 5), 1),
        ((5,), (2, 3, 5), 1),
        ((1, 2, 1, 5), (2, 3, 5), 1),
        ((2, 5, 1), (2, 3, 5), 1),
    ],
)
def test_other_shapes_are_refused_with_both(
    mask: tuple[int, ...], input: tuple[int, ...], channel_dim: int
) -> None:
    with pytest.raises(ValueError, match="does not fit input of shape") as error:
        place_mask(torch.ones(mask, dtype=torch.bool), torch.zeros(input), channel_dim)
    assert str(mask) in str(error.value)
    assert str(input) in str(error.value)


def test_a_mask_of_numbers_is_refused() -> None:
    """Ones and zeros could as well mean padding."""
    for place in (lambda m, x: place_mask(m, x, 1), broadcast_mask):
        with pytest.raises(TypeError, match="True = real"):
            place(torch.ones(2, 1, 5), torch.zeros(2, 3, 5))


def test_the_general_form_broadcasts_at_the_same_rank_only() -> None:
    x = torch.zeros(2, 3, 5)
    assert broadcast_mask(None, x) is None
    assert broadcast_mask(torch.ones(2, 3, dtype=torch.bool), x).shape == (2, 3, 1)
    assert broadcast_mask(torch.ones(1, 3, 1, dtype=torch.bool), x).shape == (1, 3, 1)
    for shape in ((2, 3, 4), (5,), (1, 2, 3, 5)):
        with pytest.raises(ValueError, match="does not"):
            broadcast_mask(torch.ones(shape, dtype=torch.bool), x)
    with pytest.raises(ValueError, match="does not fit"):
        masked_norm(x, torch.ones(3, 5, dtype=torch.bool), -1)


def test_contexts_nest_and_end() -> None:
    outer, inner, given = (torch.ones(n, dtype=torch.bool) for n in (1, 2, 3))
    assert given_or_current(None) is None
    with mask_context(outer):
        assert given_or_current(None) is outer
        assert given_or_current(given) is given
        with mask_context(inner):
            assert given_or_current(None) is inner
        with mask_context(None):
            assert given_or_current(None) is None
        assert given_or_current(None) is outer
        with pytest.raises(RuntimeError), mask_context(inner):
            raise RuntimeError
        assert given_or_current(None) is outer
    assert given_or_current(None) is None


def test_every_thread_has_its_own_context() -> None:
    """Two threads share a model and each sees its own mask, at the same time."""
    norm = nn.Sequential(MaskedBatchNorm1d(1, track_running_stats=False))
    barrier = threading.Barrier(2)
    found: dict[int, Tensor] = {}

    def run(real: int) -> None:
        mask = torch.arange(6)[None] < real
        with mask_context(mask):
            barrier.wait()
            found[real] = norm(torch.arange(6.0).view(1, 1, 6)).detach()
            barrier.wait()

    threads = [threading.Thread(target=run, args=(real,)) for real in (3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for real, out in found.items():
        assert (out[..., real:] == 0).all()
        assert out[..., :real].mean().abs() < 1e-6
        assert out[..., :real].std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_every_coroutine_has_its_own_context() -> None:
    """Requests of a server take turns within their blocks, which end in another order."""
    norm = nn.Sequential(MaskedBatchNorm1d(1, track_running_stats=False))
    masks = {real: torch.arange(6)[None] < real for real in (3, 5)}
    x = torch.arange(6.0).view(1, 1, 6)

    async def serve(real: int, turns: int) -> list[Tensor | None]:
        seen = [given_or_current(None)]
        with mask_context(masks[real]):
            for _ in range(turns):
                await asyncio.sleep(0)
                seen.append(given_or_current(None))
            out = norm(x)
            in_thread = await asyncio.to_thread(given_or_current, None)
            with mask_context(None):
                await asyncio.sleep(0)
                seen.append(given_or_current(None))
        assert torch.equal(out[..., real:], torch.zeros(1, 1, 6 - real))
        assert torch.equal(out, norm[0](x, masks[real]))
        return [*seen, in_thread, given_or_current(None)]

    async def both() -> list[list[Tensor | None]]:
        return await asyncio.gather(serve(3, 4), serve(5, 2))

    for real, seen in zip((3, 5), asyncio.run(both()), strict=True):
        before, *within, suspended, in_thread, after = seen
        assert before is suspended is after is None
        assert all(mask is masks[real] for mask in [*within, in_thread])
    assert given_or_current(None) is None
    assert not context._of_coroutines.any


def test_a_context_around_an_event_loop_reaches_its_coroutines() -> None:
    outer, inner = torch.ones(1, dtype=torch.bool), torch.ones(2, dtype=torch.bool)

    async def read() -> Tensor | None:
        await asyncio.sleep(0)
        return given_or_current(None)

    async def nested() -> list[Tensor | None]:
        with mask_context(inner):
            within = await read()
        return [within, await read()]

    with mask_context(outer):
        assert asyncio.run(read()) is outer
        assert [
            mask is expected
            for mask, expected in zip(asyncio.run(nested()), (inner, outer), strict=True)
        ] == [True, True]


@pytest.mark.parametrize(
    "norm",
    [
        MaskedBatchNorm1d(4, channel_dim=-1),
        MaskedLayerNorm(4),
        MaskedRMSNorm(4),
        MaskedGroupNorm(2, 4, channel_dim=-1),
        MaskedInstanceNorm1d(4, channel_dim=-1),
        MaskedNorm(),
        MaskedComplexBatchNorm1d(4, channel_dim=-1),
        NaiveMaskedComplexBatchNorm1d(4, channel_dim=-1),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_every_norm_takes_its_mask_from_the_context(norm: nn.Module) -> None:
    torch.manual_seed(0)
    is_complex = "Complex" in type(norm).__name__
    x = torch.randn(3, 5, 4, dtype=torch.complex64 if is_complex else torch.float32)
    mask = torch.rand(3, 5) < 0.6
    with mask_context(mask):
        within = norm(x)
    assert torch.equal(within, norm(x, mask))
    assert (within[~mask] == 0).all()
    assert (norm(x)[~mask] != 0).any()


def test_a_mask_of_the_wrong_length_is_refused_within_a_model() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), MaskedBatchNorm2d(2))
    with (
        mask_context(torch.ones(1, 6, 6, dtype=torch.bool)),
        pytest.raises(ValueError, match="does not fit"),
    ):
        model(torch.zeros(1, 1, 6, 6))


def test_compiled_code_reads_the_mask_of_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile traces, as test_traced.py has it do: no ContextVar is asked."""
    mask = torch.ones(1, dtype=torch.bool)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with mask_context(mask):
        assert given_or_current(None) is mask
    assert given_or_current(None) is None
    monkeypatch.setattr(context._of_coroutines, "any", True)
    assert given_or_current(mask) is mask
    with pytest.raises(RuntimeError, match="open in a coroutine"):
        given_or_current(None)
