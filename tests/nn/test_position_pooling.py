"""The readout with weights for each position, against loops over residues."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seqtrain.masking import lengths_to_mask
from seqtrain.nn.layout import packed_layout
from seqtrain.nn.pooling import PositionPooling

POSITIONS, DIM, RANK = 5, 4, 3
CPU = torch.device("cpu")


def pooling() -> PositionPooling:
    torch.manual_seed(0)
    module = PositionPooling(DIM, POSITIONS, RANK)
    nn.init.normal_(module.weight)
    return module


def written_out(module: PositionPooling, records: list[Tensor]) -> Tensor:
    """The vectors of these records ``(n, C)``, residue by residue, by torch's own batch norm."""
    sums = []
    for residues in records:
        total = torch.zeros(RANK)
        for position, state in enumerate(residues[:POSITIONS]):
            total = total + module.weight[position] * module.value(state)
        sums.append(total)
    norm = nn.BatchNorm1d(RANK).train(module.training)
    z = norm(torch.stack(sums))
    return torch.cat([z, module.interactions(z).relu()], dim=1)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    extra=st.integers(0, 4),
    training=st.booleans(),
    seed=st.integers(0, 999),
)
def test_padded_and_packed_are_what_the_formula_says(
    lengths: list[int], extra: int, training: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    records = [torch.randn(n, DIM, generator=generator) for n in lengths]
    expected = written_out(pooling().train(training), records)
    grid = torch.full((len(lengths), max(lengths) + extra, DIM), torch.nan)
    for row, residues in zip(grid, records, strict=True):
        row[: len(residues)] = residues
    mask = lengths_to_mask(torch.tensor(lengths), grid.shape[1])
    torch.testing.assert_close(pooling().train(training)(grid, mask), expected, atol=1e-4, rtol=0)
    layout = packed_layout(torch.tensor(lengths), CPU)
    packed = pooling().train(training).packed(torch.cat(records)[None], layout)
    torch.testing.assert_close(packed, expected, atol=1e-4, rtol=0)


def test_poisoned_padding_reaches_neither_output_nor_gradient() -> None:
    module = pooling()
    x = torch.randn(3, 6, DIM, generator=torch.Generator().manual_seed(1))
    mask = lengths_to_mask(torch.tensor([2, 6, 4]))
    x[~mask] = torch.nan
    x.requires_grad_()
    module(x, mask).square().sum().backward()
    assert x.grad is not None
    assert not x.grad[~mask].any()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_positions_are_counted_from_the_first_residue_wherever_padding_lies() -> None:
    module = pooling().eval()
    residues = torch.randn(1, 3, DIM)
    behind = torch.cat([residues, torch.zeros(1, 2, DIM)], dim=1)
    before = torch.cat([torch.zeros(1, 2, DIM), residues], dim=1)
    torch.testing.assert_close(
        module(before, torch.tensor([[False, False, True, True, True]])),
        module(behind, torch.tensor([[True, True, True, False, False]])),
    )


def test_one_changed_residue_moves_the_vector_whatever_the_length() -> None:
    """The reason for this readout: a mean over 500 residues moves by a 500th of that."""
    torch.manual_seed(0)
    module = PositionPooling(DIM, 500, RANK).train()
    state = torch.randn(DIM)
    x = state.expand(8, 500, DIM).clone()
    x[:4, 77] += 1
    vectors = module(x, torch.ones(8, 500, dtype=torch.bool))
    apart = (vectors[0, :RANK] - vectors[7, :RANK]).abs()
    assert apart.max() > 1  # of values whose standard deviation is at most one


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_one_record_is_no_error(training: bool) -> None:
    module = pooling().train(training)
    assert module(torch.randn(1, 3, DIM), torch.ones(1, 3, dtype=torch.bool)).isfinite().all()
