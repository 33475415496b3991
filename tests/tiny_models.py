"""Small models whose every weight and statistic matters, and batches to feed them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from seqtrain.build import build_model
from seqtrain.config import CnnConfig, EncoderConfig, NormConfig, RunConfig, TransformerConfig
from seqtrain.data.alphabet import ALPHABETS
from seqtrain.data.labels import LabelCodec, is_residue
from seqtrain.data.tokenizer import PAD, Tokenizer
from seqtrain.nn.model import SequenceModel

TOKENIZER = Tokenizer(ALPHABETS["protein"])
CODECS = {
    "classification": LabelCodec("classification", ("a", "b", "c")),
    "multilabel": LabelCodec("multilabel", ("a", "b", "c")),
    "regression": LabelCodec("regression", mean=3.0, std=2.0),
    "residue_classification": LabelCodec("residue_classification", ("h", "e", "c"), ("u",)),
    "residue_regression": LabelCodec("residue_regression", mean=3.0, std=2.0),
    "mlm": LabelCodec.of_letters(TOKENIZER.alphabet.letters),
}


def encoder_config(name: str) -> EncoderConfig:
    """A small encoder that reaches far beyond the end of a sequence."""
    if name == "cnn":
        return CnnConfig(embed_dim=8, num_layers=3, kernel_size=5, max_dilation=4, dropout=0.2)
    return TransformerConfig(embed_dim=8, num_layers=2, num_heads=2, dropout=0.2)


def tiny_config(
    encoder: str = "cnn", norm: str = "masked_batch", pooling: str | None = "mean_max"
) -> RunConfig:
    """Settings of a small model."""
    config = RunConfig(encoder=encoder_config(encoder), norm=NormConfig(norm))
    config.task.pooling = pooling
    config.task.positions = 8 if pooling == "position" else None
    config.task.head_dropout = 0.2
    return config


def tiny_model(
    encoder: str = "cnn",
    norm: str = "masked_batch",
    pooling: str = "mean_max",
    task: str = "classification",
    seed: int = 0,
) -> SequenceModel:
    """A model as after long training: nothing is at its neutral start.

    Heads begin with zero weights and norms as the identity, and then any padding would seem
    harmless.
    """
    chosen = None if is_residue(task) else pooling
    torch.manual_seed(seed)
    model = build_model(tiny_config(encoder, norm, chosen), TOKENIZER, CODECS[task])
    generator = torch.Generator().manual_seed(seed + 1)

    def drawn(shape: torch.Size, low: float, high: float) -> Tensor:
        return torch.rand(shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.copy_(drawn(module.running_mean.shape, -1, 1))
                module.running_var.copy_(drawn(module.running_var.shape, 0.5, 2))
            if isinstance(module, nn.BatchNorm1d | nn.LayerNorm):
                module.weight.copy_(drawn(module.weight.shape, 0.5, 1.5))
                module.bias.copy_(drawn(module.bias.shape, -0.5, 0.5))
        model.head.linear.weight.copy_(drawn(model.head.linear.weight.shape, -1, 1))
        model.head.linear.bias.copy_(drawn(model.head.linear.bias.shape, -1, 1))
    return model.eval()


def draw_tokens(lengths: Sequence[int], seed: int = 0, pad_to: int = 0) -> tuple[Tensor, Tensor]:
    """Right-padded random tokens and their lengths; the residues do not depend on ``pad_to``."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(1, TOKENIZER.vocab_size, (n,), generator=generator) for n in lengths]
    tokens = torch.full((len(rows), max(*lengths, pad_to, 1)), PAD)
    for row, residues in zip(tokens, rows, strict=True):
        row[: len(residues)] = residues
    return tokens, torch.tensor(list(lengths))
