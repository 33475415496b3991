"""Models converted to masked batch norms and back, folded, and calibrated on a data set."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from seqtrain.nn.norms import (
    FoldedConv,
    MaskedBatchNorm,
    MaskedBatchNorm1d,
    MaskedBatchNorm2d,
    MaskedBatchNorm3d,
    MaskedBatchRenorm1d,
    MaskedSyncBatchNorm,
    convert_masked_batchnorm,
    convert_masked_sync_batchnorm,
    fold_masked_conv_bn,
    mask_context,
    revert_masked_batchnorm,
    update_bn_stats,
)
from seqtrain.nn.plain_norms import LeakyBatchNorm, PlainBatchNorm


class Block(nn.Module):
    """As in torchvision: the code calls ``bn(x)`` and knows of no mask."""

    def __init__(self, bn: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(4, 4, 3, padding=1, bias=False)
        self.bn1 = bn or nn.BatchNorm1d(4)
        self.conv2 = nn.Conv1d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm1d(4, eps=1e-3, momentum=0.3, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))


class Special(nn.BatchNorm1d):
    """Somebody's batch norm with a meaning of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(Block(), nn.ReLU(), Block())
    for _ in range(3):
        model(torch.randn(5, 4, 9))
    nn.init.normal_(model[0].bn1.weight)
    return model


def padded() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(9) < torch.tensor([[9], [2], [5], [7], [1]])
    x = torch.randn(5, 4, 9, generator=generator)
    return x.masked_fill(~mask[:, None], 0), mask


def masked_forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, mask = batch
    with mask_context(mask):
        return model(x)


def test_a_model_is_converted_with_everything_it_holds() -> None:
    model = network()
    before = {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    state = copy.deepcopy(model.state_dict())
    model[0].bn2.eval()
    assert convert_masked_batchnorm(model, min_count=3) is model
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    assert [type(norm) for norm in norms] == [MaskedBatchNorm1d] * 4
    assert all(norm.min_count == 3 for norm in norms)
    assert (norms[1].eps, norms[1].momentum, norms[1].affine) == (1e-3, 0.3, False)
    assert [norm.training for norm in norms] == [True, False, True, True]
    for name, parameter in model.named_parameters():
        assert id(parameter) == before[name][0]
        assert torch.equal(parameter, before[name][1])
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_without_a_mask_a_converted_model_is_the_model() -> None:
    model = network()
    converted = convert_masked_batchnorm(copy.deepcopy(model))
    x, _ = padded()
    for training in (True, False):
        model.train(training)
        converted.train(training)
        assert torch.equal(converted(x), model(x))
    for ours, theirs in zip(converted.buffers(), model.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_converted_model_does_not_see_padding() -> None:
    model = convert_masked_batchnorm(network()).eval()
    x, mask = padded()
    together = masked_forward(model, (x, mask))
    for b, real in enumerate(mask):
        alone = masked_forward(model, (x[b : b + 1, :, real], real[real][None]))
        torch.testing.assert_close(together[b][:, real], alone[0])
    assert (together.movedim(1, -1)[~mask] == 0).all()


def test_there_and_back() -> None:
    model = network()
    parameters = {name: id(p) for name, p in model.named_parameters()}
    expected = copy.deepcopy(model).eval()
    back = revert_masked_batchnorm(convert_masked_batchnorm(model, stat_weighting="tokens"))
    assert back is model
    assert [type(m) for m in back.modules()] == [type(m) for m in expected.modules()]
    assert {name: id(p) for name, p in back.named_parameters()} == parameters
    x, _ = padded()
    assert torch.equal(back.eval()(x), expected(x))


@pytest.mark.parametrize(
    ("plain", "masked"),
    [
        (nn.BatchNorm1d, MaskedBatchNorm1d),
        (nn.BatchNorm2d, MaskedBatchNorm2d),
        (nn.BatchNorm3d, MaskedBatchNorm3d),
        (nn.SyncBatchNorm, MaskedSyncBatchNorm),
    ],
)
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}], ids=str
)
def test_a_norm_alone_is_replaced(
    plain: type[nn.Module], masked: type[nn.Module], options: dict[str, object]
) -> None:
    norm = plain(3, **options)
    there = convert_masked_batchnorm(norm)
    assert type(there) is masked
    assert there.weight is norm.weight
    assert there.running_mean is norm.running_mean
    back = revert_masked_batchnorm(there)
    assert type(back) is plain
    assert repr(back) == repr(norm)
    assert back.bias is norm.bias


def test_a_norm_that_occurs_twice_stays_one() -> None:
    shared = nn.BatchNorm1d(4)
    model = nn.ModuleDict({"a": Block(shared), "b": Block(shared), "c": nn.Sequential(shared)})
    convert_masked_batchnorm(model)
    assert model["a"].bn1 is model["b"].bn1 is model["c"][0]
    assert type(model["a"].bn1) is MaskedBatchNorm1d


def test_subclasses_are_left_and_named() -> None:
    model = nn.Sequential(Special(4), nn.Sequential(nn.BatchNorm1d(4)))
    with pytest.warns(UserWarning, match=r"left as they are: 0 \(Special\)$"):
        convert_masked_batchnorm(model)
    assert type(model[0]) is Special
    assert type(model[1][0]) is MaskedBatchNorm1d
    with pytest.warns(UserWarning, match=r"the module \(Special\)"):
        assert type(convert_masked_batchnorm(Special(4))) is Special
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        renorm = nn.Sequential(MaskedBatchRenorm1d(4), MaskedSyncBatchNorm(4))
        assert type(convert_masked_batchnorm(renorm)[0]) is MaskedBatchRenorm1d
        assert type(revert_masked_batchnorm(nn.Sequential(Special(4)))[0]) is Special
    with pytest.warns(UserWarning, match=r"0 \(MaskedBatchRenorm1d\)$"):
        revert_masked_batchnorm(renorm)
    with pytest.warns(UserWarning, match=r"0 \(MaskedBatchRenorm1d\)$"):
        convert_masked_sync_batchnorm(nn.Sequential(MaskedBatchRenorm1d(4)))


@pytest.mark.usefixtures("unchecked")
def test_the_warning_points_at_the_conversion() -> None:
    from seqtrain.nn import norms

    for convert in (norms.convert_masked_batchnorm, norms.convert_masked_sync_batchnorm):
        with pytest.warns(UserWarning, match="left as they are") as found:
            convert(nn.Sequential(Special(4)))
        assert found[0].filename == __file__


def test_channels_last_cannot_be_torchs() -> None:
    with pytest.raises(ValueError, match="channels at dimension 1"):
        revert_masked_batchnorm(nn.Sequential(MaskedBatchNorm1d(4, channel_dim=-1)))


def test_sync_conversion_keeps_the_settings_of_masked_norms() -> None:
    model = nn.Sequential(
        nn.BatchNorm1d(4),
        MaskedBatchNorm1d(4, channel_dim=-1, min_count=5, stat_weighting="tokens"),
        MaskedSyncBatchNorm(4, min_count=7),
    )
    running_weight = model[1].running_weight
    convert_masked_sync_batchnorm(model, min_count=3)
    assert [type(norm) for norm in model] == [MaskedSyncBatchNorm] * 3
    assert [norm.min_count for norm in model] == [3, 5, 7]
    assert model[1].channel_dim == -1
    assert model[1].running_weight is running_weight
    assert model[0].process_group is None
    x, mask = padded()
    plain = MaskedBatchNorm1d(4)
    assert torch.equal(MaskedSyncBatchNorm(4)(x, mask), plain(x, mask))


def test_converted_statistics_count_as_much_as_the_next_batch() -> None:
    norm = nn.BatchNorm1d(4)
    norm.running_mean.fill_(8.0)
    masked = convert_masked_batchnorm(norm, stat_weighting="tokens")
    x, mask = padded()
    masked(x, mask)
    real = x.movedim(1, -1)[mask]
    torch.testing.assert_close(masked.running_mean, 0.9 * 8 + 0.1 * real.mean(0))


def test_a_half_precision_model_gets_wide_statistics() -> None:
    masked = convert_masked_batchnorm(nn.BatchNorm1d(4).half())
    assert masked.running_mean.dtype == torch.float32
    assert masked.weight.dtype == torch.float16


@pytest.mark.parametrize(
    ("conv", "norm", "shape", "out_shape"),
    [
        (nn.Conv1d(2, 3, 3, padding=1), MaskedBatchNorm1d(3), (2, 2, 6), (2, 6)),
        (nn.Conv1d(2, 3, 1, bias=False), MaskedBatchNorm1d(3, affine=False), (2, 2, 6), (2, 6)),
        (nn.Conv2d(2, 3, 3, stride=2), MaskedBatchNorm2d(3), (2, 2, 7, 7), (2, 3, 3)),
        (nn.ConvTranspose1d(2, 3, 2, stride=2), MaskedBatchNorm1d(3), (2, 2, 3), (2, 6)),
    ],
)
def test_folding_and_masking_again_is_the_norm_after_the_convolution(
    conv: nn.Module, norm: MaskedBatchNorm, shape: tuple[int, ...], out_shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(shape), torch.rand(out_shape) < 0.6
    for _ in range(3):
        norm.train()(conv(x) * 3 + 1, mask)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    weight = conv.weight.clone()
    folded = fold_masked_conv_bn(conv.eval(), norm.eval())
    expected = norm(conv(x), mask)
    torch.testing.assert_close(folded(x, mask), expected, rtol=1e-5, atol=1e-5)
    assert (folded(x, mask).movedim(1, -1)[~mask] == 0).all()
    with mask_context(mask):
        assert torch.equal(folded(x), folded(x, mask))
    torch.testing.assert_close(folded(x), norm(conv(x)), rtol=1e-5, atol=1e-5)
    assert (folded(x).movedim(1, -1)[~mask] != 0).any()
    assert torch.equal(conv.weight, weight)
    assert isinstance(folded, FoldedConv)


def test_folding_needs_evaluation_and_statistics() -> None:
    conv, norm = nn.Conv1d(2, 3, 1), MaskedBatchNorm1d(3)
    for c, n in ((conv.train(), norm.eval()), (conv.eval(), norm.train())):
        with pytest.raises(ValueError, match="evaluation mode"):
            fold_masked_conv_bn(copy.deepcopy(c), copy.deepcopy(n))
        conv.eval()
    with pytest.raises(ValueError, match="running statistics"):
        fold_masked_conv_bn(conv, MaskedBatchNorm1d(3, track_running_stats=False).eval())


def cut(size: int, order: list[int]) -> list[tuple[Tensor, Tensor]]:
    x, mask = padded()
    x, mask = x[order], mask[order]
    return [(x[i : i + size], mask[i : i + size]) for i in range(0, len(x), size)]


def received(model: nn.Module, norm: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The real positions that ``norm`` gets in evaluation, ``(N, C)``."""
    found: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    masked_forward(model.eval(), batch)
    handle.remove()
    return found[0].movedim(1, -1)[batch[1]]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_exact_statistics_are_what_each_norm_receives(size: int) -> None:
    model = convert_masked_batchnorm(network().double(), stat_weighting="tokens")
    batches = [(x.double(), mask) for x, mask in cut(size, [4, 2, 0, 1, 3])]
    whole = tuple(t.double() if t.is_floating_point() else t for t in padded())
    update_bn_stats(model, batches, masked_forward)
    assert model.training
    for norm in (m for m in model.modules() if isinstance(m, MaskedBatchNorm)):
        rows = received(model, norm, whole)
        torch.testing.assert_close(norm.running_mean, rows.mean(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm.running_var, rows.var(0), rtol=1e-12, atol=1e-12)
        assert not norm.running_mean.requires_grad
        assert norm.num_batches_tracked == len(batches)
        assert norm.running_weight.tolist() == [len(rows) / len(batches)] * 4


def test_order_and_cut_of_the_batches_do_not_matter() -> None:
    model = convert_masked_batchnorm(network())
    model.register_module("dropout", nn.Dropout(0.5))
    model[1].eval()
    other = copy.deepcopy(model)
    update_bn_stats(model, cut(4, [0, 1, 2, 3, 4]), masked_forward)
    update_bn_stats(other, iter(cut(3, [3, 1, 4, 0, 2])), masked_forward)
    for a, b in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert [m.training for m in model.modules()] == [m.training for m in other.modules()]
    assert not model[1].training
    assert model[2].training


def test_torchs_norms_are_set_too_and_idle_or_starved_ones_stay() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.BatchNorm1d(4)
            self.idle = MaskedBatchNorm1d(4)
            self.untracked = MaskedBatchNorm1d(4, track_running_stats=False)
            self.starved = MaskedBatchNorm1d(4)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            x = self.untracked(self.first(x), mask=mask)
            return self.starved(input=x, mask=mask & (mask.cumsum(1) == 0))

    model = Odd()
    model.untracked.num_batches_tracked = model.starved.num_batches_tracked = None
    x, mask = padded()
    update_bn_stats(model, [(x, mask)], lambda model, batch: model(*batch))
    rows = x.movedim(1, -1).flatten(0, 1)
    torch.testing.assert_close(model.first.running_mean, rows.mean(0))
    torch.testing.assert_close(model.first.running_var, rows.var(0))
    assert model.first.num_batches_tracked == 1
    for norm in (model.idle, model.starved):
        assert not norm.running_mean.any()
        assert (norm.running_var == 1).all()
    assert model.idle.num_batches_tracked == 0


def test_a_channel_needs_two_real_positions_for_exact_statistics() -> None:
    x = torch.arange(12.0).view(1, 4, 3)
    mask = torch.zeros(1, 4, 3, dtype=torch.bool)
    mask[:, 1, :1] = mask[:, 2, :2] = mask[:, 3] = True
    norm = MaskedBatchNorm1d(4)
    update_bn_stats(norm, [(x, mask)], lambda norm, batch: norm(*batch))
    assert norm.running_mean.tolist() == [0, 0, 6.5, 10]
    assert norm.running_var.tolist() == [1, 1, 0.5, 1]


@pytest.mark.parametrize("kind", [PlainBatchNorm, LeakyBatchNorm])
def test_norms_that_have_their_channels_last_are_set_too(kind: type[nn.BatchNorm1d]) -> None:
    """The unmasked controls: by real positions where a mask is given, else by all."""
    x, mask = padded()
    x = x.movedim(1, -1)
    norm = kind(4)
    update_bn_stats(norm, [(x[:3], mask[:3]), (x[3:], mask[3:])], lambda norm, b: norm(*b))
    torch.testing.assert_close(norm.running_mean, x[mask].mean(0))
    torch.testing.assert_close(norm.running_var, x[mask].var(0))
    update_bn_stats(norm, [x], lambda norm, b: norm(b))
    torch.testing.assert_close(norm.running_mean, x.flatten(0, 1).mean(0))


def test_an_error_in_the_model_leaves_it_as_it_was() -> None:
    model = convert_masked_batchnorm(network())

    def fail(model: nn.Module, batch: object) -> None:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        update_bn_stats(model, [1], fail)
    assert all(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())
