"""Small labelled data sets and trainers on them, without any file but the run directory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import CODECS, TOKENIZER, tiny_config

from seqtrain.build import build_model, build_optimizer
from seqtrain.config import OptimConfig
from seqtrain.data.corruption import Corruption
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.labels import is_residue
from seqtrain.training.events import EpochEvent, StepEvent
from seqtrain.training.objective import Objective
from seqtrain.training.run_dir import RunDir
from seqtrain.training.trainer import Trainer, TrainerSettings

IGNORED = -100


def tiny_dataset(
    task: str = "classification",
    num_records: int = 24,
    seed: int = 0,
    lengths: Sequence[int] | None = None,
) -> SequenceDataset:
    """Records of 1 to 30 random residues; targets follow from the residues."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 31, num_records).tolist() if lengths is None else list(lengths)
    tokens = [rng.integers(1, TOKENIZER.vocab_size, size).astype(np.uint8) for size in sizes]
    targets: list[Any] = [_target(task, residues, rng) for residues in tokens]
    ids = [f"s{seed}-{i}" for i in range(len(sizes))]
    return SequenceDataset.from_lists(ids, tokens, targets, per_residue=is_residue(task))


def _target(task: str, residues: np.ndarray, rng: np.random.Generator) -> Any:
    share = (residues > 10).mean()
    match task:
        case "classification":
            return int(share * 2.99)
        case "multilabel":
            return np.array([share > 0.3, share > 0.6, len(residues) > 9], np.float32)
        case "regression":
            return float(share * 4 + 1)
    ignored = rng.random(len(residues)) < 0.2
    if task == "mlm":
        return np.where(
            ignored | (residues == TOKENIZER.vocab_size - 1), IGNORED, residues.astype(np.int64) - 1
        )
    if task == "residue_regression":
        return np.where(ignored, np.nan, residues / 4).astype(np.float32)
    classes = (residues % 3).astype(np.int64)
    return np.where(ignored, IGNORED, classes)


class Recorder:
    """Keeps every event."""

    def __init__(self) -> None:
        self.steps: list[StepEvent] = []
        self.epochs: list[EpochEvent] = []

    def on_step(self, event: StepEvent) -> None:
        self.steps.append(event)

    def on_epoch(self, event: EpochEvent) -> None:
        self.epochs.append(event)

    def close(self) -> None:
        pass


def tiny_trainer(
    folder: Path,
    task: str = "classification",
    *,
    encoder: str = "cnn",
    norm: str = "masked_batch",
    dropout: float = 0.2,
    lr: float = 1e-2,
    train: SequenceDataset | None = None,
    valid: SequenceDataset | None = None,
    observers: Sequence[Any] = (),
    model_seed: int = 0,
    objective: Objective | None = None,
    **settings: Any,
) -> Trainer:
    """A trainer as a new process would make it: everything seeded, nothing shared."""
    config = tiny_config(encoder, norm, None if is_residue(task) else "mean_max")
    config.encoder.dropout = config.task.head_dropout = dropout
    codec = CODECS[task]
    torch.manual_seed(model_seed)
    model = build_model(config, TOKENIZER, codec)
    chosen: dict[str, Any] = {
        "max_epochs": 2,
        "patience": 0,
        "monitor": "loss",
        "batching": "bucketed",
        "max_tokens": 80,
        "max_sequences": None,
        "num_classes": codec.num_outputs,
    }
    return Trainer(
        model,
        objective or Objective(task),
        build_optimizer(OptimConfig(lr=lr), model),
        TrainerSettings(**{**chosen, **settings}),
        tiny_dataset(task) if train is None else train,
        tiny_dataset(task, 8, seed=1) if valid is None else valid,
        RunDir(folder),
        observers,
        Corruption.for_training(TOKENIZER, 0.3, seed=4) if task == "mlm" else None,
    )


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights and buffers."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different
