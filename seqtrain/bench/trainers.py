"""The two trainers that are compared: seqtrain's, packed, and plain torch's, of the same size."""

from pathlib import Path

import torch

from seqtrain.bench.plain import PlainCnn, PlainModel, PlainTrainer, PlainTransformer
from seqtrain.bench.synthetic import CLASSES, CODEC, TOKENIZER
from seqtrain.build import build_model, build_optimizer
from seqtrain.config import CnnConfig, EncoderConfig, NormConfig, RunConfig, TransformerConfig
from seqtrain.data.dataset import SequenceDataset
from seqtrain.nn.model import SequenceModel
from seqtrain.training.objective import Objective
from seqtrain.training.run_dir import RunDir
from seqtrain.training.trainer import Trainer, TrainerSettings

EMBED_DIM, KERNEL_SIZE, NUM_HEADS = 128, 5, 4
NUM_LAYERS = {"cnn": 6, "transformer": 4}
BATCH_SIZE = 32
LR = 1e-3
NO_LIMIT = 10**9


def packed_config(encoder: str) -> RunConfig:
    """Settings of seqtrain's model: layers, norm and pooling as in the plain one, no dropout."""
    body: EncoderConfig = (
        CnnConfig(
            embed_dim=EMBED_DIM,
            num_layers=NUM_LAYERS["cnn"],
            kernel_size=KERNEL_SIZE,
            max_dilation=1,
            dropout=0.0,
        )
        if encoder == "cnn"
        else TransformerConfig(
            embed_dim=EMBED_DIM,
            num_layers=NUM_LAYERS["transformer"],
            num_heads=NUM_HEADS,
            dropout=0.0,
        )
    )
    config = RunConfig(
        encoder=body, norm=NormConfig("masked_batch" if encoder == "cnn" else "layer")
    )
    config.task.pooling, config.task.head_dropout = "mean", 0.0
    config.optim.lr = LR
    return config


def packed_model(encoder: str) -> SequenceModel:
    """seqtrain's model, freshly initialised."""
    return build_model(packed_config(encoder), TOKENIZER, CODEC)


def plain_model(encoder: str, max_length: int) -> PlainModel:
    """The plain model, freshly initialised.

    Args:
        encoder: ``cnn`` or ``transformer``.
        max_length: Positions that the transformer has.
    """
    num_layers = NUM_LAYERS[encoder]
    body = (
        PlainCnn(EMBED_DIM, num_layers, KERNEL_SIZE)
        if encoder == "cnn"
        else PlainTransformer(EMBED_DIM, num_layers, NUM_HEADS, max_length)
    )
    return PlainModel(body, TOKENIZER.vocab_size, EMBED_DIM, len(CLASSES))


def packed_trainer(
    encoder: str,
    train: SequenceDataset,
    valid: SequenceDataset,
    folder: Path,
    *,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    max_epochs: int = 10**6,
) -> Trainer:
    """The trainer that `seqtrain train` uses.

    Args:
        encoder: ``cnn`` or ``transformer``.
        train: Labelled records.
        valid: Labelled records, looked at after an epoch.
        folder: Of checkpoints.
        device: To train on.
        precision: Of matrix products.
        max_epochs: Of the learning rate's fall; the default keeps it constant.
    """
    config = packed_config(encoder)
    model = build_model(config, TOKENIZER, CODEC).to(device)
    settings = TrainerSettings(
        max_epochs=max_epochs,
        patience=0,
        monitor="mcc",
        batching="packed",
        max_tokens=NO_LIMIT,
        max_sequences=BATCH_SIZE,
        num_classes=len(CLASSES),
        warmup_fraction=0.0,
        precision=precision,
    )
    return Trainer(
        model,
        Objective("classification"),
        build_optimizer(config.optim, model),
        settings,
        train,
        valid,
        RunDir(folder),
    )


def plain_trainer(
    encoder: str,
    train: SequenceDataset,
    *,
    device: torch.device,
    precision: torch.dtype = torch.float32,
) -> PlainTrainer:
    """The plain loop around the plain model."""
    model = plain_model(encoder, int(train.lengths.max())).to(device)
    return PlainTrainer(model, train, LR, precision)
