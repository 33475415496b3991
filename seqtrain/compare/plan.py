"""The arms of a comparison, and the proof that they differ in nothing but what they are to."""

import copy
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seqtrain.build import build_model
from seqtrain.nn.model import SequenceModel
from seqtrain.pipeline import Plan
from seqtrain.training.events import EpochEvent, StepEvent


@dataclass(frozen=True, order=True)
class Condition:
    """What is compared: everything that one way of training is, but its seed."""

    norm: str
    batching: str
    encoder: str

    @property
    def name(self) -> str:
        """Fit for a folder."""
        return f"{self.norm}-{self.batching}-{self.encoder}"


@dataclass(frozen=True, order=True)
class Arm:
    """One training of a condition."""

    condition: Condition
    seed: int

    @property
    def name(self) -> str:
        """The folder of its run."""
        return f"{self.condition.name}-seed{self.seed}"


@dataclass(frozen=True)
class Comparison:
    """Everything that is to be trained. The first norm and batching are what others are held to."""

    plans: Mapping[str, Plan]
    """By encoder, all over the same data."""
    conditions: tuple[Condition, ...]
    num_seeds: int

    def arms(self) -> list[Arm]:
        """Seed by seed, so that a comparison cut short still pairs whole seeds."""
        return [Arm(c, seed) for seed in range(self.num_seeds) for c in self.conditions]

    def plan(self, arm: Arm) -> Plan:
        """The run of one arm."""
        plan, condition = self.plans[arm.condition.encoder], arm.condition
        config = copy.deepcopy(plan.config)
        config.norm.name = condition.norm
        config.batching.kind = condition.batching
        config.trainer.seed = arm.seed
        return dataclasses.replace(plan, config=config)

    def reference(self, condition: Condition) -> Condition | None:
        """What a condition is held to; None for the first of all.

        Another norm: the first norm under the same batching and encoder. The first norm under
        another batching: the same under the first. Another encoder: the first.
        """
        first = self.conditions[0]
        nearer = dataclasses.replace(condition, norm=first.norm)
        if nearer == condition:
            nearer = dataclasses.replace(condition, batching=first.batching)
        if nearer == condition:
            nearer = first
        return None if nearer == condition else nearer


def conditions_of(
    norms: Sequence[str], batchings: Sequence[str], encoders: Iterable[str]
) -> tuple[Condition, ...]:
    """Every combination once, encoder by encoder, in the order given."""
    found = [Condition(n, b, e) for e, b, n in product(encoders, batchings, norms)]
    return tuple(dict.fromkeys(found))


def limit_records(plan: Plan, num_records: int) -> Plan:
    """The plan with at most so many training records, chosen by the seed of its settings."""
    train = plan.data.train
    rng = np.random.default_rng(plan.config.trainer.seed)
    chosen = np.sort(rng.permutation(len(train))[:num_records])
    data = dataclasses.replace(plan.data, train=train.subset(chosen))
    return dataclasses.replace(plan, data=data)


def check_same_start(comparison: Comparison, seed: int) -> None:
    """Build every condition of a seed and compare: all weights but the norms', and the next draw.

    What is shared is what a model without norms consists of; anything else must be the norm's.

    Raises:
        ValueError: two arms would begin with different weights or dropout draws.
    """
    bare: dict[str, tuple[dict[str, Tensor], Tensor]] = {}
    for condition in comparison.conditions:
        encoder = condition.encoder
        if encoder not in bare:
            bare[encoder] = _start(
                comparison, Arm(dataclasses.replace(condition, norm="none"), seed)
            )
        shared, state = bare[encoder]
        weights, own_state = _start(comparison, Arm(condition, seed))
        differing = [
            name
            for name, weight in shared.items()
            if name not in weights or not torch.equal(weight, weights[name])
        ]
        if differing or not torch.equal(state, own_state):
            raise ValueError(
                f"{condition.name}, seed {seed}: does not begin as the arms without a norm do: "
                f"{', '.join(differing) or 'the state of the random generator'} differs"
            )


def _start(comparison: Comparison, arm: Arm) -> tuple[dict[str, Tensor], Tensor]:
    """Weights by name and the generator's state, as ``build_trainer`` makes them."""
    plan = comparison.plan(arm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.config.trainer.seed)
        model = build_model(plan.config, plan.data.tokenizer, plan.data.codec)
        return dict(model.named_parameters()), torch.get_rng_state()


class Witness:
    """Records what an arm was fed and drew, so that it can be held against another's.

    An observer of the trainer, and a hook on the model: it sees the tokens as the model does.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, str]] = []
        self._digest = hashlib.sha256()

    @contextmanager
    def watching(self) -> Iterator["Witness"]:
        """While this is open, every batch that a model is trained on is taken down."""
        handle = nn.modules.module.register_module_forward_pre_hook(self._see)
        try:
            yield self
        finally:
            handle.remove()

    def _see(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, SequenceModel) and module.training:
            for tensor in inputs[:2]:
                self._digest.update(tensor.detach().cpu().numpy().tobytes())

    def on_step(self, event: StepEvent) -> None:
        """Nothing: batches are seen on their way in."""

    def on_epoch(self, event: EpochEvent) -> None:
        """Close the epoch: its batches, and where the draws of dropout stand."""
        device = next(event.model.parameters()).device
        is_cuda = device.type == "cuda"
        state = torch.cuda.get_rng_state(device) if is_cuda else torch.get_rng_state()
        draws = hashlib.sha256(state.numpy().tobytes()).hexdigest()
        self.epochs.append({"batches": self._digest.hexdigest(), "draws": draws})

    def close(self) -> None:
        """Nothing is open."""


def check_same_training(
    name: str, epochs: Sequence[Mapping[str, str]], others: Sequence[Mapping[str, str]]
) -> None:
    """Hold what one arm saw against what another saw, over the epochs that both had.

    Raises:
        ValueError: they saw other batches, or drew otherwise for dropout.
    """
    for number, (mine, other) in enumerate(zip(epochs, others, strict=False), 1):
        differing = [key for key in mine if mine[key] != other[key]]
        if differing:
            raise ValueError(
                f"{name}: not comparable: from epoch {number} on its {' and '.join(differing)} "
                "are not those of the other arms of its seed"
            )
