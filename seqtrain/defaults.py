"""Settings that the user did not give, chosen from the data by stated rules.

The rules come from runs on small public sets of peptides, proteins and RNA with two CPU cores;
none of them looks at a label of the test part.
"""

import copy
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from seqtrain.config import RunConfig, TransformerConfig
from seqtrain.data.labels import is_residue
from seqtrain.training.metrics import primary_metric

RECORDS_PER_BATCH = 32
MIN_STEPS_PER_EPOCH = 40
TARGET_STEPS = 4000
TOKENS_RANGE = (1024, 16384)
NARROWEST = 64
"""Channels for the smallest data."""


@dataclass(frozen=True)
class Choice:
    """One setting that was chosen, and why."""

    key: str
    value: object
    reason: str


def choose_settings(
    config: RunConfig,
    lengths: Int64[np.ndarray, " N"],
    task: str,
    alphabet: str,
    uniform_valid: bool = False,
) -> tuple[RunConfig, list[Choice]]:
    """A copy of ``config`` with nothing left open, and what was chosen.

    Args:
        config: Settings; whatever is not None stays.
        lengths: Residues of each training record.
        task: What the labels ask for.
        alphabet: What the sequences are made of.
        uniform_valid: All targets of the validation part are the same.

    Raises:
        ConfigError: a setting that was given does not apply to the task, or two contradict.
    """
    config = copy.deepcopy(config)
    config.task.check_applies(task)
    choices: list[Choice] = []

    def choose(section: str, name: str, value: object, reason: str) -> None:
        part = getattr(config, section)
        if getattr(part, name) is None:
            setattr(part, name, value)
            choices.append(Choice(f"{section}.{name}", value, reason))

    residues, mean_length = int(lengths.sum()), float(lengths.mean())
    choose("tokenizer", "alphabet", alphabet, "the letters seen")
    choose("task", "name", task, "the form of the labels")
    is_transformer = isinstance(config.encoder, TransformerConfig)
    if not is_residue(task):
        choose("task", "pooling", "mean_max", "mean: how much of a feature; max: whether present")
        if config.task.pooling == "position":
            choose("task", "positions", int(lengths.max()), "the longest training record")
    choose("encoder", "num_layers", 4 if is_transformer else 6, f"encoder {config.encoder.name}")
    dim = _embed_dim(residues)
    choose("encoder", "embed_dim", dim, f"{residues:,} training residues")
    config.check_widths()
    tokens = _max_tokens(residues, mean_length)
    choose("batching", "max_tokens", tokens, f"mean length {mean_length:.0f}")
    choose("optim", "lr", 5e-4 if is_transformer else 2e-3, f"encoder {config.encoder.name}")
    assert config.batching.max_tokens is not None
    steps = max(1, residues // min(config.batching.max_tokens, residues))
    epochs = int(np.clip(TARGET_STEPS // steps, 8, 40))
    choose("trainer", "max_epochs", epochs, f"about {steps} batches per epoch")
    assert config.trainer.max_epochs is not None
    patience = max(5, config.trainer.max_epochs // 3)
    choose("trainer", "patience", patience, "a third of max_epochs, at least 5")
    monitor = primary_metric(task), f"task {task}"
    if uniform_valid:
        monitor = "loss", "the validation part holds one target alone"
    choose("trainer", "monitor", *monitor)
    return config, choices


def _embed_dim(residues: int) -> int:
    """Wider for more data: 64 below 100,000 residues, 128 above 2 million."""
    return NARROWEST if residues < 100_000 else 96 if residues < 2_000_000 else 128


def _max_tokens(residues: int, mean_length: float) -> int:
    """About 32 records, fewer where an epoch would have too few steps."""
    wanted = min(RECORDS_PER_BATCH * mean_length, residues / MIN_STEPS_PER_EPOCH)
    low, high = TOKENS_RANGE
    return int(np.clip(round(wanted / 256) * 256, low, high))
