"""Chooses epochs and seeds that fit into a given time."""

import math
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from seqtrain.compare.plan import Arm, Comparison
from seqtrain.compare.run import run_arm

FEWEST_SEEDS = 2
FEWEST_EPOCHS = 3
RESERVE = 0.85
"""Share of the budget that is planned; the rest is for the report and for slower arms."""


@dataclass(frozen=True)
class Fit:
    """What a budget allows."""

    epochs: int
    seeds: int
    seconds: float
    """What it is expected to take."""


def parse_duration(text: str) -> float:
    """Seconds of ``90s``, ``30m``, ``4h``, ``1h30m``; a bare number is minutes.

    Raises:
        ValueError: it is none of these.
    """
    units = {"h": 3600, "m": 60, "s": 1}
    if re.fullmatch(r"\d+(\.\d+)?", text):
        text += "m"
    if not re.fullmatch(r"(\d+(\.\d+)?[hms])+", text):
        raise ValueError(f"expected a time such as 30m, 4h or 1h30m, found {text!r}")
    seconds = sum(float(n) * units[u] for n, _, u in re.findall(r"(\d+(\.\d+)?)([hms])", text))
    if not seconds:
        raise ValueError(f"expected some time such as 30m, found {text!r}")
    return seconds


def fit_budget(
    seconds: float, epoch_seconds: float, arm_seconds: float, num_conditions: int, most: Fit
) -> Fit:
    """The most epochs, then the most seeds, that fit; at least one of each.

    First the epochs are shortened, to a third of what was wanted and not below three, so that
    seeds stay: without seeds there is no spread. Then seeds go, down to two; then epochs again.

    Args:
        seconds: The budget.
        epoch_seconds: Of one epoch of one arm.
        arm_seconds: Of one arm beside its epochs.
        num_conditions: Arms per seed.
        most: What was asked for.
    """

    def cost(epochs: int, seeds: int) -> float:
        return seeds * num_conditions * (arm_seconds + epochs * epoch_seconds)

    def longest(seeds: int) -> int:
        left = seconds * RESERVE / (seeds * num_conditions) - arm_seconds
        return min(most.epochs, math.floor(left / max(epoch_seconds, 1e-9)))

    floor = min(most.epochs, max(FEWEST_EPOCHS, most.epochs // 3))
    seeds = most.seeds
    while seeds > min(FEWEST_SEEDS, most.seeds) and longest(seeds) < floor:
        seeds -= 1
    epochs = max(1, longest(seeds))
    return Fit(epochs, seeds, cost(epochs, seeds))


def time_one_arm(comparison: Comparison) -> tuple[float, float]:
    """(Seconds of an epoch, seconds beside) of the slowest encoder, by training it once."""
    slowest = (0.0, 0.0)
    for encoder in comparison.plans:
        condition = next(c for c in comparison.conditions if c.encoder == encoder)
        arm = Arm(condition, 0)
        plan = comparison.plan(arm)
        plan.config.trainer.max_epochs = 1
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            result = run_arm(plan, arm, Path(folder))
            whole = time.monotonic() - began
        epoch = float(result.get("seconds", whole))
        slowest = max(slowest, (epoch, whole - epoch))
    return slowest
