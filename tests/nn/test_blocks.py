"""The parts of the encoders against plain torch, one sequence at a time."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seqtrain.masking import lengths_to_mask, zero_padding
from seqtrain.nn.blocks import (
    ChannelDropout,
    ChannelsLastConv1d,
    ConvBlock,
    RotaryPositions,
    SelfAttention,
    TransformerBlock,
    normalize,
)
from seqtrain.nn.layout import ROW_QUANTUM, Layout, packed_layout, padded_layout
from seqtrain.nn.norms import (
    MaskedBatchNorm1d,
    MaskedGroupNorm,
    MaskedInstanceNorm1d,
    MaskedLayerNorm,
)
from seqtrain.nn.plain_norms import LeakyBatchNorm, NoNorm, PlainBatchNorm

CPU = torch.device("cpu")
lengths_drawn = st.lists(st.integers(1, 40), min_size=1, max_size=8)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def forms(lengths: list[int], channels: int, seed: int = 0) -> list[tuple[Tensor, Layout]]:
    """The same states padded and packed."""
    counts = torch.tensor(lengths)
    padded = padded_layout(counts, max(lengths) + 3)
    x = drawn(len(lengths), max(lengths) + 3, channels, seed=seed)
    assert padded.mask is not None
    x = zero_padding(x, padded.mask)
    return [(x, padded), (x[padded.mask][None], packed_layout(counts, CPU))]


def opened(x: Tensor, layout: Layout, reach: int) -> tuple[Tensor, Layout]:
    """The same packed states with gaps."""
    layout = layout.with_gaps(reach)
    return layout.open(x), layout


def split(x: Tensor, layout: Layout, lengths: list[int]) -> list[Tensor]:
    """The residues of each sequence."""
    x = x if layout.places is None else layout.close(x)
    if layout.sequences is not None:
        return list(x[0].split(lengths))
    return [row[:length] for row, length in zip(x, lengths, strict=True)]


class TestLayout:
    @given(lengths=lengths_drawn)
    def test_a_packed_layout_knows_where_each_residue_belongs(self, lengths: list[int]) -> None:
        layout = packed_layout(torch.tensor(lengths), CPU)
        assert layout.sequences is not None
        assert layout.spans is not None
        assert layout.sequences.tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]
        assert layout.positions.tolist() == [[p for n in lengths for p in range(n)]]
        assert [length for _, _, length in layout.spans] == lengths
        assert [start for _, start, _ in layout.spans] == [
            sum(lengths[:i]) for i in range(len(lengths))
        ]
        assert layout.num_sequences == len(lengths)

    @given(lengths=st.lists(st.integers(1, 900), min_size=1, max_size=30), seed=st.integers(0, 99))
    @settings(max_examples=30)
    def test_grids_hold_every_residue_once_with_little_padding(
        self, lengths: list[int], seed: int
    ) -> None:
        lengths = sorted(lengths, reverse=True)
        layout = packed_layout(torch.tensor(lengths), CPU)
        assert layout.grids is not None
        x = drawn(1, sum(lengths), 2, seed=seed)
        parts = [grid.unpad(grid.pad(rows)) for grid, rows in layout.in_grids(x)]
        assert torch.equal(torch.cat(parts), x[0])
        for grid, rows in layout.in_grids(x):
            opened = grid.pad(rows)
            assert not opened[~grid.mask].any()
            assert grid.mask.sum() == len(rows)
            assert grid.mask.numel() - grid.mask.sum() <= 256
        assert sum(len(grid.mask) for grid in layout.grids) == len(lengths)

    @given(lengths=lengths_drawn, reach=st.integers(0, 9))
    def test_gaps_are_empty_and_as_wide_as_asked(self, lengths: list[int], reach: int) -> None:
        x, layout = forms(lengths, 2)[1]
        row, layout = opened(x, layout, reach)
        assert layout.mask is not None
        wanted: list[float] = []
        for own in split(x, packed_layout(torch.tensor(lengths), CPU), lengths):
            wanted += [*own[:, 0].tolist(), *[0.0] * reach]
        wanted = wanted[: len(wanted) - reach]
        assert row.shape[1] % ROW_QUANTUM == 0
        assert row.shape[1] - len(wanted) < ROW_QUANTUM
        assert row[0, :, 0].tolist() == wanted + [0.0] * (row.shape[1] - len(wanted))
        assert torch.equal(row[layout.mask], x[0])
        assert torch.equal(layout.close(row), x)

    def test_opening_and_closing_a_grid_has_the_right_gradients(self) -> None:
        layout = packed_layout(torch.tensor([4, 2, 1]), CPU)
        assert layout.grids is not None
        (grid,) = layout.grids
        x = drawn(7, 2).double().requires_grad_()
        assert torch.autograd.gradcheck(grid.pad, x)
        assert torch.autograd.gradcheck(lambda y: grid.unpad(grid.pad(y) ** 2), x)
        assert torch.autograd.gradgradcheck(lambda y: grid.unpad(grid.pad(y) ** 3), x)


class TestConvolution:
    @pytest.mark.parametrize("dilation", [1, 2, 5])
    @pytest.mark.parametrize("kernel_size", [1, 3, 7])
    def test_it_is_torchs_own_over_channels_last(self, kernel_size: int, dilation: int) -> None:
        torch.manual_seed(0)
        conv = ChannelsLastConv1d(3, 5, kernel_size, dilation)
        plain = nn.Conv1d(3, 5, kernel_size, padding="same", dilation=dilation)
        plain.load_state_dict(conv.state_dict())
        x = drawn(2, 11, 3).requires_grad_()
        found = conv(x, padded_layout(torch.tensor([11, 11]), 11))
        assert found.is_contiguous()
        y = x.detach().clone().requires_grad_()
        wanted = plain(y.transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(found, wanted)
        found.square().sum().backward()
        wanted.square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
        for (name, a), b in zip(conv.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)

    @given(lengths=lengths_drawn, dilation=st.integers(1, 9), seed=st.integers(0, 99))
    @settings(max_examples=25)
    def test_sequences_do_not_see_each_other(
        self, lengths: list[int], dilation: int, seed: int
    ) -> None:
        torch.manual_seed(seed)
        conv = ChannelsLastConv1d(3, 4, 5, dilation)
        padded, packed = forms(lengths, 3, seed)
        for x, layout in (padded, opened(*packed, conv.reach), opened(*packed, conv.reach + 3)):
            residues = split(x, layout, lengths)
            found = split(conv(x, layout), layout, lengths)
            for own, out in zip(residues, found, strict=True):
                alone = conv(own[None], padded_layout(torch.tensor([len(own)]), len(own)))[0]
                torch.testing.assert_close(out, alone)


class TestChannelDropout:
    @pytest.mark.parametrize("packed", [False, True])
    def test_whole_channels_of_a_sequence_are_dropped_and_the_mean_is_kept(
        self, packed: bool
    ) -> None:
        lengths = [7] * 400
        x, layout = forms(lengths, 16)[packed]
        x = torch.ones_like(x)
        torch.manual_seed(0)
        out = ChannelDropout(0.25).train()(x, layout)
        by_sequence = torch.stack(split(out, layout, lengths))
        assert (by_sequence == by_sequence[:, :1]).all()
        assert by_sequence.unique().tolist() == pytest.approx([0, 1 / 0.75])
        assert by_sequence.mean() == pytest.approx(1, abs=0.03)

    def test_padded_and_packed_draw_alike(self) -> None:
        lengths = [5, 2, 9]
        dropped = []
        for x, layout in forms(lengths, 6):
            torch.manual_seed(3)
            dropped.append(split(ChannelDropout(0.5).train()(x, layout), layout, lengths))
        for a, b in zip(*dropped, strict=True):
            assert torch.equal(a, b)

    def test_it_is_off_in_evaluation_and_at_zero(self) -> None:
        x, layout = forms([5, 2], 6)[0]
        assert ChannelDropout(0.9).eval()(x, layout) is x
        assert ChannelDropout(0.0).train()(x, layout) is x


class TestNormalize:
    @pytest.mark.parametrize(
        "norm",
        [
            MaskedInstanceNorm1d(4, affine=True, channel_dim=-1),
            MaskedGroupNorm(2, 4, channel_dim=-1),
            MaskedLayerNorm(4, over="sequence"),
            MaskedLayerNorm(4),
            MaskedBatchNorm1d(4, channel_dim=-1),
        ],
        ids=["instance", "group", "layer over sequences", "layer", "batch"],
    )
    def test_a_packed_batch_is_normalized_as_a_padded_one(self, norm: nn.Module) -> None:
        lengths = [9, 3, 1, 20]
        padded, packed = forms(lengths, 4)
        found = [
            split(normalize(norm, x, layout), layout, lengths)
            for x, layout in (padded, packed, opened(*packed, 3))
        ]
        for a, b, c in zip(*found, strict=True):
            torch.testing.assert_close(a, b)
            torch.testing.assert_close(a, c)

    @pytest.mark.parametrize("norm", [LeakyBatchNorm(4), PlainBatchNorm(4), NoNorm()])
    def test_gaps_are_no_padding_and_come_out_empty(self, norm: nn.Module) -> None:
        x, layout = forms([9, 3, 1, 20], 4)[1]
        wanted = copy.deepcopy(norm)(x, None)
        row, layout = opened(x, layout, 3)
        assert layout.mask is not None
        out = normalize(norm, row, layout)
        assert torch.equal(layout.close(out), wanted)
        assert not out[~layout.mask].any()

    def test_a_single_packed_residue_is_normalized_as_in_evaluation(self) -> None:
        norm = MaskedBatchNorm1d(4, channel_dim=-1).train()
        x, layout = drawn(1, 1, 4), packed_layout(torch.tensor([1]), CPU)
        out = normalize(norm, x, layout)
        torch.testing.assert_close(out, x / math.sqrt(1 + norm.eps))
        assert norm.running_mean is not None
        assert not norm.running_mean.any()


class TestRotaryPositions:
    def scores(self, shift: int) -> Tensor:
        rotary = RotaryPositions(8)
        angles = rotary.angles(torch.arange(6) + shift)
        q, k = drawn(1, 6, 1, 8, seed=1), drawn(1, 6, 1, 8, seed=2)
        return rotary.turn(q, angles)[0, :, 0] @ rotary.turn(k, angles)[0, :, 0].T

    def test_scores_depend_on_the_distance_alone(self) -> None:
        torch.testing.assert_close(self.scores(0), self.scores(1000), rtol=1e-3, atol=1e-3)

    def test_lengths_are_kept_and_the_first_position_is_not_turned(self) -> None:
        rotary, x = RotaryPositions(8), drawn(1, 5, 2, 8)
        turned = rotary.turn(x, rotary.angles(torch.arange(5)))
        torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
        torch.testing.assert_close(turned[:, 0], x[:, 0])
        assert not torch.allclose(turned[:, 1], x[:, 1])

    def test_it_is_the_rotation_of_the_paper(self) -> None:
        """Pair i at position p turns by ``p * 10000 ** (-2 i / d)``, as a complex product."""
        rotary, x = RotaryPositions(6), drawn(1, 7, 1, 6)
        turned = rotary.turn(x, rotary.angles(torch.arange(7)))
        for position in range(7):
            for pair in range(3):
                value = complex(x[0, position, 0, pair], x[0, position, 0, pair + 3])
                angle = position * 10_000 ** (-2 * pair / 6)
                value *= complex(math.cos(angle), math.sin(angle))
                assert turned[0, position, 0, pair] == pytest.approx(value.real, abs=1e-5)
                assert turned[0, position, 0, pair + 3] == pytest.approx(value.imag, abs=1e-5)

    def test_its_gradient_turns_back(self) -> None:
        rotary, x = RotaryPositions(4), drawn(1, 3, 2, 4).double().requires_grad_()
        angles = rotary.angles(torch.arange(3))
        assert torch.autograd.gradcheck(lambda x: rotary.turn(x, angles), x)
        assert torch.autograd.gradgradcheck(lambda x: rotary.turn(x, angles) ** 2, x)

    def test_it_has_no_weights_and_no_state(self) -> None:
        assert not RotaryPositions(8).state_dict()


def attention_by_hand(module: SelfAttention, x: Tensor) -> Tensor:
    """One sequence ``(n, C)``, head by head."""
    n, C = x.shape
    size = C // module.num_heads
    q, k, v = module.in_proj(x).split(C, dim=-1)
    angles = module.rotary.angles(torch.arange(n))
    heads = []
    for head in range(module.num_heads):
        own = slice(head * size, (head + 1) * size)
        turned = [module.rotary.turn(part[None, :, None, own], angles)[0, :, 0] for part in (q, k)]
        weights = (turned[0] @ turned[1].T / math.sqrt(size)).softmax(dim=-1)
        heads.append(weights @ v[:, own])
    return module.out_proj(torch.cat(heads, dim=-1))


class TestSelfAttention:
    @pytest.mark.parametrize("form", ["padded", "packed"])
    @pytest.mark.parametrize("with_spans", [True, False])
    def test_it_is_the_textbook_formula_within_each_sequence(
        self, form: str, with_spans: bool
    ) -> None:
        torch.manual_seed(0)
        module, lengths = SelfAttention(8, 2), [9, 5, 1]
        x, layout = forms(lengths, 8)[form == "packed"]
        if not with_spans:
            layout = layout._replace(spans=None)
        found = split(module(x, layout), layout, lengths)
        for own, out in zip(split(x, layout, lengths), found, strict=True):
            torch.testing.assert_close(out, attention_by_hand(module, own), rtol=1e-4, atol=1e-5)

    def test_order_matters(self) -> None:
        torch.manual_seed(0)
        module, x = SelfAttention(8, 2), drawn(1, 6, 8)
        layout = padded_layout(torch.tensor([6]), 6)
        assert not torch.allclose(module(x.flip(1), layout).flip(1), module(x, layout), atol=1e-3)


class TestBlocks:
    def test_a_convolution_block_adds_what_its_docstring_says(self) -> None:
        torch.manual_seed(0)
        block = ConvBlock(4, 3, 2, 0.0, lambda _: NoNorm())
        x, layout = forms([6, 6], 4)[0]
        wanted = x + F.relu(zero_padding(block.conv(x, layout), layout.mask))
        torch.testing.assert_close(block(x, layout), wanted)

    def test_a_transformer_block_adds_attention_then_feed_forward(self) -> None:
        torch.manual_seed(0)
        block = TransformerBlock(8, 2, 16, 0.0, lambda dim: MaskedLayerNorm(dim))
        x, layout = forms([6, 4], 8)[0]
        middle = x + block.attention(block.attention_norm(x, layout.mask), layout)
        wanted = middle + block.ffn(block.ffn_norm(middle, layout.mask))
        torch.testing.assert_close(block(x, layout), wanted)

    def test_dropout_leaves_the_residual_path_alone(self) -> None:
        """With nearly everything dropped, what came in goes out."""
        for block in (
            ConvBlock(8, 3, 1, 0.999, lambda _: NoNorm()),
            ConvBlock(8, 3, 1, 0.999, lambda dim: MaskedBatchNorm1d(dim, channel_dim=-1)),
            TransformerBlock(8, 2, 16, 0.999, lambda _: NoNorm()),
        ):
            x, layout = forms([6, 4], 8)[0]
            torch.manual_seed(1)
            out = block.train()(x, layout)
            assert (out == x).float().mean() > 0.9


def test_masks_are_those_of_the_lengths() -> None:
    assert lengths_to_mask(torch.tensor([2, 0, 3])).tolist() == [
        [True, True, False],
        [False, False, False],
        [True, True, True],
    ]
