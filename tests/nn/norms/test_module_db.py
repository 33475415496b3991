"""PyTorch's database of modules, which its own nn tests run over, with these classes in place.

``EXPECTED`` lists every difference with its reason; docs/norms.md has the same table.
"""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqtrain.nn import norms as ours

common = pytest.importorskip("torch.testing._internal.common_modules", exc_type=ImportError)

MASKED: dict[str, type[nn.Module]] = {
    "nn.BatchNorm1d": ours.MaskedBatchNorm1d,
    "nn.BatchNorm2d": ours.MaskedBatchNorm2d,
    "nn.BatchNorm3d": ours.MaskedBatchNorm3d,
    "nn.GroupNorm": ours.MaskedGroupNorm,
    "nn.InstanceNorm1d": ours.MaskedInstanceNorm1d,
    "nn.LayerNorm": ours.MaskedLayerNorm,
    "nn.RMSNorm": ours.MaskedRMSNorm,
}
# Norms of the database that have no masked form.
WITHOUT = {"nn.InstanceNorm2d", "nn.InstanceNorm3d", "nn.LocalResponseNorm"}

EXPECTED = {
    "an empty batch is not counted in num_batches_tracked": {
        (f"nn.BatchNorm{d}d", "zero_batch") for d in (1, 2, 3)
    }
}
"""Differences between an all-True mask and torch's layer: the reason, and the cases."""


EXPECTED_CASES = set().union(*EXPECTED.values())

torch_warns = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def cases() -> Iterator[Any]:
    for info in common.module_db:
        if info.name in MASKED:
            for training in (True, False):
                options = {"device": "cpu", "dtype": torch.float64, "requires_grad": True}
                made = info.module_inputs_func(info, training=training, **options)
                for at, case in enumerate(made):
                    mode = "training" if training else "evaluation"
                    yield pytest.param(
                        info, training, case, id=f"{info.name} {at} {case.desc} {mode}"
                    )


def built(kind: type[nn.Module], case: Any, training: bool) -> nn.Module:
    torch.manual_seed(0)
    given = case.constructor_input
    norm = kind(*given.args, **given.kwargs, dtype=torch.float64).train(training)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def positions(norm: nn.Module, x: Tensor) -> Tensor:
    """A mask of the shape that fits, all True."""
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        shape = x.shape[: -len(norm.normalized_shape)]
    else:
        channel = 0 if isinstance(norm, nn.InstanceNorm1d) and x.ndim == 2 else 1
        shape = x.shape[:channel] + x.shape[channel + 1 :]
    return torch.ones(shape, dtype=torch.bool)


def run(norm: nn.Module, x: Tensor, *mask: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers of one step."""
    leaf = x.detach().clone().requires_grad_()
    out = norm(leaf, *mask)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
    out.backward(grad)
    found = {"out": out.detach(), "dx": leaf.grad}
    found |= {f"d{name}": p.grad for name, p in norm.named_parameters()}
    return found | {name: b.clone() for name, b in norm.named_buffers()}


def outcome(norm: nn.Module, x: Tensor, *mask: Tensor) -> dict[str, Tensor] | type[Exception]:
    try:
        return run(norm, x, *mask)
    except (RuntimeError, ValueError) as error:
        return type(error)


@torch_warns
@pytest.mark.parametrize(("info", "training", "case"), list(cases()))
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "all True"])
@pytest.mark.parametrize("path", ["fused"], indirect=True)
def test_torchs_inputs_give_what_torchs_layers_give(
    info: Any, training: bool, case: Any, masked: bool, path: str
) -> None:
    theirs, norm = (built(kind, case, training) for kind in (info.module_cls, MASKED[info.name]))
    assert list(norm.state_dict()) == list(theirs.state_dict())
    (x,) = case.forward_input.args
    expected = outcome(theirs, x)
    found = outcome(norm, x, *([positions(norm, x)] if masked else []))
    if isinstance(expected, type):
        assert found is expected
        return
    assert not isinstance(found, type), found
    if masked and training and (info.name, case.desc) in EXPECTED_CASES:
        assert expected.pop("num_batches_tracked") == 1
        assert found.pop("num_batches_tracked") == 0
    torch.testing.assert_close(found, expected)


def test_every_norm_of_the_database_is_run_or_listed() -> None:
    of_torch = {info.name for info in common.module_db if "Norm" in info.name}
    assert of_torch == set(MASKED) | WITHOUT


@torch_warns
@pytest.mark.parametrize(("info", "training", "case"), list(cases()))
def test_what_torchs_nn_tests_ask_of_every_module(info: Any, training: bool, case: Any) -> None:
    """As its test_modules.py: factory arguments, repr, copies, gradients of differences, dtypes."""
    kind = MASKED[info.name]
    given = case.constructor_input
    (x,) = case.forward_input.args
    on_meta = kind(*given.args, **given.kwargs, device="meta", dtype=torch.float32)
    assert all(t.is_meta for t in [*on_meta.parameters(), *on_meta.buffers()])
    assert all(p.dtype == torch.float32 for p in on_meta.parameters())
    norm = built(kind, case, training)
    assert str(norm).startswith(f"{kind.__name__}(")
    mask = positions(norm, x)
    if x.numel():
        for again in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
            assert torch.equal(again(x, mask), copy.deepcopy(norm)(x, mask))
        if training and x.numel() <= 60:
            small = x.detach().clone().requires_grad_()
            assert torch.autograd.gradcheck(lambda x: norm(x, mask), small)
    for dtype in (torch.float32, torch.bfloat16):
        cast = copy.deepcopy(norm).to(dtype)
        assert cast(x.to(dtype), mask).dtype == dtype
    # A module that shares its memory with another process, as one that is not masked.
    assert all(t.is_shared() for t in copy.deepcopy(norm).share_memory().state_dict().values())
