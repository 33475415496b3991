"""The learning rate over a run, and which weights decay."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model
from torch import nn

from seqtrain.build import build_optimizer
from seqtrain.config import OptimConfig
from seqtrain.training.optim import build_schedule, warmup_cosine


def test_it_rises_in_a_line_and_falls_as_half_a_cosine() -> None:
    shares = [warmup_cosine(step, 14, 4) for step in range(14)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    wanted = [0.5 + 0.5 * math.cos(math.pi * i / 10) for i in range(10)]
    assert shares[4:] == pytest.approx(wanted)


@given(num_steps=st.integers(1, 200), warmup=st.integers(0, 50), step=st.integers(0, 400))
def test_it_is_a_share_and_zero_once_the_steps_are_done(
    num_steps: int, warmup: int, step: int
) -> None:
    warmup = min(warmup, num_steps)
    share = warmup_cosine(step, num_steps, warmup)
    assert 0 <= share <= 1
    if step >= max(num_steps, warmup + 1):
        assert share == pytest.approx(0, abs=1e-12)
    if step < num_steps:
        assert share > 0


def test_the_schedule_sets_the_rate_of_every_group() -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(OptimConfig(lr=0.3), model)
    schedule = build_schedule(optimizer, 20, 0.1)
    rates = []
    for _ in range(20):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert [a for a, _ in rates] == [b for _, b in rates]
    assert rates[0][0] == pytest.approx(0.15)
    assert rates[1][0] == pytest.approx(0.3)
    assert max(a for a, _ in rates) == pytest.approx(0.3)


@pytest.mark.parametrize("encoder", ["cnn", "transformer"])
def test_matrices_and_kernels_decay_and_nothing_else(encoder: str) -> None:
    """With no gradient a step only decays: by ``lr * weight_decay`` of each weight."""
    model = tiny_model(encoder)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(OptimConfig(lr=0.1, weight_decay=0.5), model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    norms = {
        id(p)
        for module in model.modules()
        if isinstance(module, nn.BatchNorm1d | nn.LayerNorm)
        for p in module.parameters()
    }
    for name, parameter in model.named_parameters():
        decays = id(parameter) not in norms and not name.endswith("bias")
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decays else 1))


def test_every_weight_is_optimized_once_with_the_given_memories() -> None:
    model = tiny_model()
    config = OptimConfig(lr=0.1, beta1=0.5, beta2=0.75)
    optimizer = build_optimizer(config, model)
    optimized = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(optimized) == sorted(id(p) for p in model.parameters())
    assert {group["betas"] for group in optimizer.param_groups} == {(0.5, 0.75)}
