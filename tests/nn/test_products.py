"""Products of a packed row against torch's own layers, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seqtrain.nn.products import HAS_ONEDNN, PIECE, convolve_row, linear


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def plain(row: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    options = {"padding": "same", "dilation": dilation}
    out = F.conv1d(row.transpose(1, 2), weight.squeeze(2), bias, **options)
    return out.transpose(1, 2)


def as_kernel(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


# Whole pieces, one piece, and a row that no piece divides.
@pytest.mark.parametrize("width", [3 * PIECE, PIECE, 17])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (5, 1), (7, 4), (3, PIECE + 1)])
def test_a_row_is_convolved_as_torch_does_with_the_same_gradients(
    width: int, kernel_size: int, dilation: int
) -> None:
    row, weight, bias = drawn(1, width, 3), drawn(4, 3, 1, kernel_size), drawn(4, seed=2)
    reach = (kernel_size - 1) // 2 * dilation
    found = convolve_row(row, as_kernel(weight), bias, dilation, reach)
    wanted = plain(row, weight, bias, dilation)
    torch.testing.assert_close(found, wanted)
    assert found.is_contiguous()
    upstream = drawn(*wanted.shape, seed=1).detach()
    for a, b in zip(
        torch.autograd.grad(found, (row, weight, bias), upstream),
        torch.autograd.grad(wanted, (row, weight, bias), upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_row_has_second_derivatives() -> None:
    row, weight, bias = drawn(1, PIECE, 1), drawn(1, 1, 1, 3), drawn(1)

    def first(row: Tensor, weight: Tensor) -> Tensor:
        out = convolve_row(row, as_kernel(weight), bias, 1, 1)
        return torch.autograd.grad((out**3).sum(), weight, create_graph=True)[0]

    def wanted(row: Tensor, weight: Tensor) -> Tensor:
        out = plain(row, weight, bias, 1)
        return torch.autograd.grad((out**3).sum(), weight, create_graph=True)[0]

    for a, b in zip(
        torch.autograd.grad(first(row, weight).sum(), (row, weight, bias)),
        torch.autograd.grad(wanted(row, weight).sum(), (row, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("wanted", ["row", "weight", "bias"])
def test_only_the_gradient_that_is_wanted_is_computed(wanted: str) -> None:
    tensors = {"row": drawn(1, PIECE, 2), "weight": drawn(2, 2, 1, 3), "bias": drawn(2)}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name == wanted)
    row, weight, bias = tensors.values()
    convolve_row(row, as_kernel(weight), bias, 1, 1).sum().backward()
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == [wanted]


def fresh(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().float().requires_grad_() for tensor in tensors]


# With rows left over, without, and fewer than a piece.
@pytest.mark.parametrize("num_rows", [2 * PIECE + 3, 2 * PIECE, 5, 1])
def test_a_linear_layer_is_torchs_with_the_same_gradients(num_rows: int) -> None:
    x, weight, bias = drawn(1, num_rows, 6), drawn(4, 6, seed=1), drawn(4, seed=2)
    ours, upstream = fresh(x, weight, bias), drawn(1, num_rows, 4, seed=3).detach()
    found, wanted = linear(*ours), F.linear(x, weight, bias)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(wanted, (x, weight, bias), upstream)
    for a, b in zip(torch.autograd.grad(found, ours, upstream.float()), gradients, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_a_linear_layer_has_second_derivatives() -> None:
    found, wanted = [], []
    for layer, into in ((linear, found), (F.linear, wanted)):
        x, weight, bias = fresh(drawn(9, 3), drawn(2, 3, seed=1), drawn(2, seed=2))
        first = torch.autograd.grad((layer(x, weight, bias) ** 3).sum(), weight, create_graph=True)
        into += torch.autograd.grad(first[0].square().sum(), (x, weight, bias))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(not HAS_ONEDNN, reason="this build of torch has no oneDNN")
def test_oneDNN_computes_it_in_float32_and_torch_in_anything_else() -> None:  # noqa: N802
    x, weight, bias = fresh(drawn(9, 3), drawn(2, 3), drawn(2))
    assert "_Linear" in type(linear(x, weight, bias).grad_fn.next_functions[0][0]).__name__
    wide = linear(x.double(), weight.double(), bias.double())
    assert "_Linear" not in type(wide.grad_fn).__name__
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
        row = convolve_row(x.detach()[None], as_kernel(drawn(2, 3, 1, 3).float()), bias, 1, 1)
        assert row.dtype == torch.bfloat16
