"""An encoder that was trained before, on the same or another task, to begin a training with."""

from dataclasses import fields

import torch

from seqtrain.config import RunConfig
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import ConfigError
from seqtrain.nn.model import SequenceModel
from seqtrain.training.checkpoint import LoadedRun

_GROUPS = ("encoder.name", "norm.name")
_FREE = ("encoder.pretrained", "encoder.dropout", "norm.momentum")
"""What training alone reads: no weight means something else by it."""


def check_fits(config: RunConfig, tokenizer: Tokenizer, pretrained: LoadedRun) -> None:
    """Refuse settings under which the weights of ``pretrained`` would mean something else.

    Args:
        config: Settings with nothing left open; ``encoder.pretrained`` names the run.
        tokenizer: Of the training.
        pretrained: The run.

    Raises:
        ConfigError: Names the first setting that differs, what it must be, and what to do.
    """
    wanted = _settings(pretrained.config, pretrained.tokenizer)
    found = _settings(config, tokenizer)
    for key, value in wanted.items():
        if found.get(key) == value:
            continue
        option = key.removesuffix(".name") if key in _GROUPS else key
        raise ConfigError(
            f"{key}={found.get(key)}: the encoder of {config.encoder.pretrained} was trained with "
            f"{value}. Set {option}={value}, or leave out encoder.pretrained."
        )


def _settings(config: RunConfig, tokenizer: Tokenizer) -> dict[str, object]:
    """By dotted name, what decides which weights an encoder has and what they mean."""
    found: dict[str, object] = {
        f"{section}.{field.name}": getattr(part, field.name)
        for section, part in (("encoder", config.encoder), ("norm", config.norm))
        for field in fields(part)
    }
    # The name first: an encoder of another kind has other settings.
    found = {"encoder.name": config.encoder.name} | found
    found |= {f"tokenizer.{name}": value for name, value in tokenizer.to_dict().items()}
    return {key: value for key, value in found.items() if key not in _FREE}


@torch.no_grad()
def load_encoder(model: SequenceModel, pretrained: SequenceModel) -> None:
    """Give ``model`` the encoder weights and running statistics of another one, in place.

    Args:
        model: Of the same tokens and encoder settings. Where it alone has a mask token, the
            embedding of that stays as it was.
        pretrained: Whose head and pooling are left aside.

    Raises:
        RuntimeError: The encoders differ in more than the mask token.
    """
    states = pretrained.encoder.state_dict()
    known = states["embedding.weight"]
    rows = model.encoder.state_dict()["embedding.weight"].clone()
    shared = min(len(rows), len(known))
    rows[:shared] = known[:shared]
    model.encoder.load_state_dict({**states, "embedding.weight": rows})
