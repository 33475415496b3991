"""The learning rate over a run."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(step: int, num_steps: int, warmup_steps: int) -> float:
    """Share of the highest learning rate at a step counted from 0.

    It rises linearly over ``warmup_steps`` and falls to zero as half a cosine (SGDR without
    restarts, Loshchilov and Hutter 2017, arXiv:1608.03983).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def build_schedule(optimizer: Optimizer, num_steps: int, warmup_fraction: float) -> LambdaLR:
    """A scheduler to be stepped after each optimizer step."""
    warmup_steps = round(num_steps * warmup_fraction)
    return LambdaLR(optimizer, lambda step: warmup_cosine(step, num_steps, warmup_steps))
