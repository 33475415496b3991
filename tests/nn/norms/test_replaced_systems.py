"""For each system that this family replaces: the behaviour that is kept, and the error that is not.

The faulty formulas are written here in a line or two each, as negative controls: every one has to
fail by what it is known to fail by.
"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from oracles import real_rows, variance_with_padding_counted, whitened
from torch import Tensor, nn

from seqtrain.nn.norms import (
    LazyAffineMaskedNorm,
    LazyMaskedBatchNorm1d,
    MaskedBatchNorm,
    MaskedBatchNorm1d,
    MaskedComplexBatchNorm1d,
    MaskedNorm,
    MaskedSyncBatchNorm,
    NaiveMaskedComplexBatchNorm1d,
    convert_masked_batchnorm,
    convert_masked_sync_batchnorm,
    masked_norm,
    revert_masked_batchnorm,
    update_bn_stats,
)


@pytest.fixture
def padded() -> tuple[Tensor, Tensor]:
    """``(B, C, L)`` with mean 2, zeros at 57 % padding, and a mask ``(B, 1, L)``."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(30) < torch.tensor([[30], [4], [12], [5]])
    x = torch.randn(4, 3, 30, generator=generator) + 2
    return x.masked_fill(~mask[:, None], 0), mask[:, None]


class TestTheBlogsMaskedBatchNorm1d:
    """Mask (B, 1, L), 2-D and 3-D input, moving and cumulative averages."""

    def test_kept_its_call_for_2d_and_3d_input(self, padded: tuple[Tensor, Tensor]) -> None:
        x, mask = padded
        norm = MaskedBatchNorm1d(3)
        assert norm(x, mask).shape == x.shape
        assert norm(x[:, :, 0], mask[:, :, 0]).shape == (4, 3)
        assert norm(x).shape == x.shape

    def test_kept_both_averages(self, padded: tuple[Tensor, Tensor]) -> None:
        x, mask = padded
        rows = real_rows(x.movedim(1, -1), mask[:, 0])
        moving, cumulative = MaskedBatchNorm1d(3, momentum=0.2), MaskedBatchNorm1d(3, momentum=None)
        for norm in (moving, cumulative):
            norm(x, mask)
            norm(2 * x, mask)
        torch.testing.assert_close(moving.running_mean, (0.8 * 0.2 + 0.2 * 2) * rows.mean(0))
        torch.testing.assert_close(cumulative.running_mean, 1.5 * rows.mean(0))

    def test_kept_torchs_state_dict(self) -> None:
        nn.BatchNorm1d(3).load_state_dict(MaskedBatchNorm1d(3).state_dict())
        MaskedBatchNorm1d(3).load_state_dict(nn.BatchNorm1d(3).state_dict())

    def test_not_kept_a_variance_that_counts_padding(self, padded: tuple[Tensor, Tensor]) -> None:
        x, mask = padded
        rows = real_rows(x.movedim(1, -1), mask[:, 0]).double()
        norm = MaskedBatchNorm1d(3, momentum=1.0)
        norm(x, mask)
        torch.testing.assert_close(norm.running_var.double(), rows.var(0))
        wrong = variance_with_padding_counted(x.movedim(1, -1).double(), mask[:, 0])
        share = (mask.numel() - mask.sum()) / mask.sum()
        expected = rows.var(0, correction=0) + share * rows.mean(0) ** 2
        torch.testing.assert_close(wrong, expected)
        assert (wrong > 4 * rows.var(0)).all()

    def test_not_kept_buffers_that_change_shape_and_hold_the_graph(
        self, padded: tuple[Tensor, Tensor]
    ) -> None:
        x, mask = padded
        norm = MaskedBatchNorm1d(3)
        buffer = norm.running_mean
        norm(x.requires_grad_(), mask)
        assert norm.running_mean is buffer
        assert buffer.shape == (3,)
        assert buffer.grad_fn is None

    def test_not_kept_a_crash_of_the_cumulative_average(
        self, padded: tuple[Tensor, Tensor]
    ) -> None:
        MaskedBatchNorm1d(3, momentum=None)(*padded)

    def test_not_kept_statistics_of_one_gpu_alone(self) -> None:
        synced = convert_masked_sync_batchnorm(nn.Sequential(MaskedBatchNorm1d(3)))
        assert type(synced[0]) is MaskedSyncBatchNorm  # equal to the pooled batch in test_sync.py

    def test_not_kept_the_loss_of_precision_under_mixed_precision(self) -> None:
        """Counted in float16, 70,000 positions are infinitely many."""
        x, mask = torch.randn(7, 1, 10_000).half(), torch.ones(7, 1, 10_000, dtype=torch.bool)
        assert mask.half().sum() == torch.inf
        norm = MaskedBatchNorm1d(1, momentum=1.0)
        assert norm(x, mask).isfinite().all()
        torch.testing.assert_close(norm.running_var, x.float().var()[None])

    def test_not_kept_slower_than_native(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the work: arithmetic is on real rows alone, whatever the padding."""
        from seqtrain.nn.norms import rows

        seen = []
        scaled = rows.scaled

        def counting(input: Tensor, *arguments: object) -> Tensor:
            seen.append(input.numel())
            return scaled(input, *arguments)

        monkeypatch.setattr(rows, "scaled", counting)
        mask = torch.arange(100)[None] < 10
        MaskedBatchNorm1d(3, channel_dim=-1)(torch.randn(1, 100, 3), mask)
        assert seen == [10 * 3]


class TestTheMaskedNormPackage:
    """Normalization along the last or first axis, unbiased, without running statistics."""

    def test_kept_the_last_and_the_first_axis(self) -> None:
        x = torch.randn(5, 4, 6)
        for batched, dim in ((False, -1), (True, 0)):
            out = MaskedNorm(batched, correction=1)(x)
            expected = (x - x.mean(dim, keepdim=True)) / x.std(dim, keepdim=True)
            torch.testing.assert_close(out, expected)
            assert not MaskedNorm(batched).state_dict()

    def test_kept_constant_selections_unaltered(self) -> None:
        x = torch.tensor([[0.1, 0.1, 0.1], [1.0, 2.0, 3.0]])
        out = masked_norm(x, None, -1, correction=1, constant="keep")
        assert torch.equal(out, torch.tensor([[0.1, 0.1, 0.1], [-1.0, 0.0, 1.0]]))

    def test_kept_torchs_norms_by_reshaping(self) -> None:
        x = torch.randn(4, 6, 5, dtype=torch.float64)
        batch = masked_norm(x.movedim(1, 0).flatten(1), None, -1, eps=1e-5)
        torch.testing.assert_close(
            batch.view(6, 4, 5).movedim(0, 1), F.batch_norm(x, None, None, training=True)
        )
        group = masked_norm(x.reshape(4, 3, 10), None, -1, eps=1e-5).view(4, 6, 5)
        torch.testing.assert_close(group, F.group_norm(x, 3))
        torch.testing.assert_close(masked_norm(x, None, -1, eps=1e-5), F.instance_norm(x))
        layer = masked_norm(x.flatten(1), None, -1, eps=1e-5).view_as(x)
        torch.testing.assert_close(layer, F.layer_norm(x, (6, 5)))

    def test_kept_a_lazy_affine_form(self) -> None:
        norm = LazyAffineMaskedNorm(correction=1, constant="keep")
        x = torch.randn(2, 3, 4)
        torch.testing.assert_close(norm(x), MaskedNorm(correction=1, constant="keep")(x))

    def test_not_kept_statistics_that_the_mask_does_not_reach(self) -> None:
        x = torch.tensor([[1.0, 2.0, 3.0, 1000.0]])
        mask = torch.tensor([[True, True, True, False]])
        out = masked_norm(x, mask, -1, correction=1)
        assert torch.equal(out, torch.tensor([[-1.0, 0.0, 1.0, 0.0]]))
        unreached = (x - x.mean()) / x.std()
        assert (unreached[0, :3] + 0.5).abs().max() < 0.01

    def test_not_kept_a_nearly_constant_row_blown_up(self) -> None:
        x = torch.full((1, 1000), 0.1)
        x[0, ::3] = torch.nextafter(x[0, 0], torch.tensor(1.0))
        blown_up = (x - x.mean()) / x.std()
        assert blown_up.abs().max() > 1
        assert (masked_norm(x, None, -1, correction=1) == 0).all()
        assert torch.equal(masked_norm(x, None, -1, correction=1, constant="keep"), x)

    def test_not_kept_parameters_shaped_like_the_mask(self) -> None:
        norm = LazyAffineMaskedNorm()
        norm(torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
        assert norm.weight.shape == (4,)
        norm(torch.randn(7, 5, 4), torch.ones(7, 5, dtype=torch.bool))


class TestLabmlsBatchNorm:
    """Any trailing dimensions, optional scale and shift, optional running statistics."""

    @pytest.mark.parametrize("trailing", [(), (5,), (5, 4), (3, 4, 5), (2, 3, 2, 2)])
    def test_kept_any_trailing_dimensions(self, trailing: tuple[int, ...]) -> None:
        torch.manual_seed(0)
        x, mask = torch.randn(6, 3, *trailing), torch.rand(6, *trailing) < 0.8
        out = MaskedBatchNorm(3)(x, mask).movedim(1, -1)
        rows = x.movedim(1, -1)[mask]
        torch.testing.assert_close(out[mask], F.batch_norm(rows, None, None, training=True))

    def test_kept_its_options(self) -> None:
        bare = MaskedBatchNorm(3, affine=False, track_running_stats=False)
        assert not bare.state_dict()
        x, mask = torch.randn(4, 3, 5), torch.rand(4, 5) < 0.8
        assert torch.equal(bare(x, mask), bare.eval()(x, mask))

    def test_not_kept_the_graph_in_the_buffers(self) -> None:
        norm = MaskedBatchNorm(3)
        norm(torch.randn(4, 3, 5, requires_grad=True), torch.ones(4, 5, dtype=torch.bool))
        assert not any(buffer.requires_grad for buffer in norm.buffers())

    def test_not_kept_a_failure_on_strided_input(self) -> None:
        x, mask = torch.randn(5, 4, 3).permute(1, 2, 0), torch.ones(4, 5, dtype=torch.bool)
        assert not x.is_contiguous()
        with pytest.raises(RuntimeError, match="view size is not compatible"):
            x.view(4, -1)
        torch.testing.assert_close(
            MaskedBatchNorm(3)(x, mask), MaskedBatchNorm(3)(x.contiguous(), mask)
        )


class TestReturnnsBatchNorm:
    """Lazy channels, a train flag, masked time, delayed or weighted statistics, a fused op."""

    def test_kept_lazy_channels_and_the_train_flag(self, padded: tuple[Tensor, Tensor]) -> None:
        norm = LazyMaskedBatchNorm1d()
        trained = norm(*padded)
        assert norm.num_features == 3
        assert not torch.equal(norm.eval()(*padded), trained)

    def test_kept_masked_time(self, padded: tuple[Tensor, Tensor]) -> None:
        x, mask = padded
        out = MaskedBatchNorm1d(3)(x, mask)
        assert torch.equal(out, MaskedBatchNorm1d(3)(x.masked_fill(~mask, torch.nan), mask))

    def test_kept_delayed_and_weighted_statistics(self, padded: tuple[Tensor, Tensor]) -> None:
        x, mask = padded
        starved = MaskedBatchNorm1d(3, min_count=1000)
        starved(x, mask)
        assert starved.num_batches_tracked == 0
        later = copy.deepcopy(starved)
        update_bn_stats(later, [(x, mask)], lambda norm, batch: norm(*batch))
        rows = x.movedim(1, -1)[mask[:, 0]]
        torch.testing.assert_close(later.running_mean, rows.mean(0))
        weighted = MaskedBatchNorm1d(3, momentum=0.5, stat_weighting="tokens")
        weighted(x[:1], mask[:1])
        weighted(x[1:2], mask[1:2])
        # 30 positions, then 4: weights 30 · 0.25 and 4 · 0.5.
        parts = [x[b].T[mask[b, 0]].mean(0) for b in (0, 1)]
        expected = (0.25 * 30 * parts[0] + 0.5 * 4 * parts[1]) / (0.25 * 30 + 0.5 * 4)
        torch.testing.assert_close(weighted.running_mean, expected)

    def test_kept_a_fast_way_behind_the_same_call(self, padded: tuple[Tensor, Tensor]) -> None:
        x, mask = padded
        everywhere = mask.repeat(1, 3, 1)  # a mask of every channel has no gathered rows
        torch.testing.assert_close(
            MaskedBatchNorm1d(3)(x, mask), MaskedBatchNorm1d(3)(x, everywhere)
        )

    def test_not_kept_a_biased_running_variance(self, padded: tuple[Tensor, Tensor]) -> None:
        x, mask = padded
        few = mask & (mask.cumsum(-1) <= 2)
        norm = MaskedBatchNorm1d(3, momentum=1.0)
        norm(x, few)
        rows = x.movedim(1, -1)[few[:, 0]]
        torch.testing.assert_close(norm.running_var, rows.var(0, correction=1))
        assert ((norm.running_var - rows.var(0, correction=0)).abs() > 0.05).all()


class TestTheForumsComplexBatchNorm:
    """Whitening of the 2 × 2 covariance, and the naive form."""

    @pytest.fixture
    def z(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(400, 1, dtype=torch.complex128, generator=generator)
        return z + 0.5 * z.conj() + 2

    def test_kept_whitening_and_the_naive_form(self, z: Tensor) -> None:
        whole = torch.ones(400, dtype=torch.bool)
        out = MaskedComplexBatchNorm1d(1, eps=0.0, affine=False, dtype=z.dtype)(z, whole)
        white = torch.from_numpy(whitened(z[:, 0].numpy()))[:, None]
        torch.testing.assert_close(out, white)
        naive = NaiveMaskedComplexBatchNorm1d(1, dtype=torch.float64)(z, whole)
        real, imag = (nn.BatchNorm1d(1).double()(part) for part in (z.real, z.imag))
        torch.testing.assert_close(naive, torch.complex(real, imag))

    def test_not_kept_the_leak(self, z: Tensor) -> None:
        norm = MaskedComplexBatchNorm1d(1, dtype=z.dtype)
        mean = norm.running_mean
        norm(z.requires_grad_())
        assert norm.running_mean is mean
        assert not mean.requires_grad
        assert not norm.running_covar.requires_grad

    def test_not_kept_eps_twice_in_evaluation(self, z: Tensor) -> None:
        eps = 0.5
        norm = MaskedComplexBatchNorm1d(1, eps=eps, affine=False, dtype=z.dtype).eval()
        once = z / (0.5 + eps) ** 0.5
        twice = z / (0.5 + 2 * eps) ** 0.5
        torch.testing.assert_close(norm(z), once)
        assert not torch.allclose(once, twice, rtol=0.1)

    def test_not_kept_a_first_gamma_of_root_two(self, z: Tensor) -> None:
        power = MaskedComplexBatchNorm1d(1, dtype=z.dtype)(z).abs().square().mean().item()
        assert power == pytest.approx(1, rel=1e-4)
        naive = NaiveMaskedComplexBatchNorm1d(1, dtype=torch.float64)
        assert naive(z).abs().square().mean().item() == pytest.approx(2, rel=1e-4)

    def test_not_kept_a_cast_to_complex64(self, z: Tensor) -> None:
        norm = MaskedComplexBatchNorm1d(1, dtype=torch.complex128)
        assert norm(z).dtype == norm.running_mean.dtype == torch.complex128


class TestTorchsBatchNorms:
    """The native and the synced one."""

    def test_kept_being_found_as_batch_norms(self) -> None:
        from torch.nn.modules.batchnorm import _BatchNorm

        assert isinstance(MaskedBatchNorm1d(3), nn.BatchNorm1d)
        assert isinstance(MaskedSyncBatchNorm(3), _BatchNorm)

    def test_kept_conversion_both_ways(self) -> None:
        """Masked, synced and back, around the same parameters and buffers."""
        model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3))
        weight, mean = model[1].weight, model[1].running_mean
        assert type(convert_masked_batchnorm(model)[1]) is MaskedBatchNorm1d
        synced = convert_masked_sync_batchnorm(copy.deepcopy(model))[1]
        assert type(synced) is MaskedSyncBatchNorm  # uneven and zero counts: test_sync.py
        assert type(revert_masked_batchnorm(synced)) is nn.SyncBatchNorm
        assert type(revert_masked_batchnorm(model)[1]) is nn.BatchNorm1d
        assert model[1].weight is weight
        assert model[1].running_mean is mean

    def test_kept_fusion_with_a_convolution(self) -> None:
        conv, norm = nn.Conv1d(2, 3, 3).eval(), MaskedBatchNorm1d(3).eval()
        norm.running_mean.fill_(0.5)
        x = torch.randn(2, 2, 8)
        fused = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
        torch.testing.assert_close(fused(x), norm(conv(x)))

    def test_not_kept_the_refusal_of_the_cpu(self) -> None:
        x = torch.randn(2, 3, 4)
        synced = convert_masked_batchnorm(nn.SyncBatchNorm(3))
        torch.testing.assert_close(synced(x), nn.BatchNorm1d(3)(x))
        assert not isinstance(synced, nn.SyncBatchNorm)  # what DDP looks for, and refuses

    def test_not_kept_subclasses_dropped_by_conversion(self) -> None:
        class Scaled(nn.BatchNorm1d):
            def forward(self, x: Tensor) -> Tensor:
                return 3 * super().forward(x)

        dropped = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(Scaled(3)))
        assert type(dropped[0]) is nn.SyncBatchNorm
        for convert in (convert_masked_batchnorm, convert_masked_sync_batchnorm):
            with pytest.warns(UserWarning, match=r"0 \(Scaled\)"):
                assert type(convert(nn.Sequential(Scaled(3)))[0]) is Scaled
        kept = convert_masked_sync_batchnorm(MaskedBatchNorm1d(3, channel_dim=-1, min_count=9))
        assert (kept.channel_dim, kept.min_count) == (-1, 9)
        assert pickle.loads(pickle.dumps(kept)).min_count == 9
