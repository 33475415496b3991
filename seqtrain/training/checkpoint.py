"""Checkpoints and trained models of a run directory, written and read back.

Weights are safetensors, optimizer state loads with ``weights_only=True``, everything else is JSON
or YAML: nothing is pickled, so a run directory from a stranger cannot run code.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from seqtrain.build import build_model
from seqtrain.compose import read_run_config
from seqtrain.config import RunConfig
from seqtrain.data.files import sync
from seqtrain.data.labels import LabelCodec
from seqtrain.data.schema import read_json
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import CheckpointError, ConfigError
from seqtrain.nn.model import SequenceModel
from seqtrain.training.calibration import Calibration, set_temperature
from seqtrain.training.run_dir import (
    FIX,
    STATE,
    TRAINING,
    WEIGHTS,
    RunDir,
    before,
    check_format,
    check_listed,
    existing,
)
from seqtrain.training.saved import check_report, check_resolved, check_state
from seqtrain.training.sums import SUMS, check_sums, read_sums, sums_text
from seqtrain.training.weights import check_weights


def save_checkpoint(
    folder: Path,
    model: torch.nn.Module,
    state: Mapping[str, Any],
    tensors: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint beside the old one, then swap; a crash leaves one of the two whole.

    Nothing is renamed before it is on disk, so that a power cut is no different from a crash.

    Args:
        folder: Where it comes to lie.
        model: Its weights and buffers are saved.
        state: What JSON can hold.
        tensors: Optimizer, scheduler and random state: tensors and plain containers only.

    Raises:
        CheckpointError: the disk is full or not writable; the old checkpoint is still there.
    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        sums = {
            name: [write_synced(partial / name, content)]
            for name, content in _contents(model, state, tensors)
        }
        write_synced(partial / SUMS, sums_text(sums).encode())
        sync(partial)
        _swap(partial, folder)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{folder}: the checkpoint could not be written: {error}. "
            "Make room or choose another --run-dir, then continue with --resume."
        ) from error


def _contents(
    model: torch.nn.Module, state: Mapping[str, Any], tensors: Mapping[str, Any] | None
) -> Iterator[tuple[str, bytes]]:
    """The files of a checkpoint, one after the other.

    They are made in memory: torch aborts the process where its own writer meets a full disk, and
    safetensors makes files that nobody else may read.
    """
    weights = {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()}
    yield WEIGHTS, save(weights)
    if tensors is not None:
        packed = io.BytesIO()
        torch.save(dict(tensors), packed)
        yield TRAINING, packed.getvalue()
    yield STATE, json.dumps(dict(state), indent=1).encode()


def write_synced(path: Path, content: bytes) -> str:
    """Write a file through to the disk; returns its SHA-256."""
    path.write_bytes(content)
    sync(path)
    return hashlib.sha256(content).hexdigest()


def _swap(partial: Path, folder: Path) -> None:
    """Put a new checkpoint in the place of the old one, which goes last."""
    if folder.exists():  # else the old one is all there is: a crash came between the renames
        shutil.rmtree(before(folder), ignore_errors=True)
        folder.rename(before(folder))
    partial.rename(folder)
    sync(folder.parent)
    shutil.rmtree(before(folder), ignore_errors=True)


def load_checkpoint(folder: Path, model: torch.nn.Module) -> dict[str, Any]:
    """Put a checkpoint's weights into ``model``; returns its state.

    Raises:
        CheckpointError: missing, cut short, changed since it was written, or of another model.
    """
    folder = existing(folder)
    check_checkpoint(folder)
    try:
        weights = load((folder / WEIGHTS).read_bytes())
        state = read_json(folder / STATE)
    except PermissionError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}.") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{folder}: the checkpoint is damaged: {error}.") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder}: the checkpoint is damaged: state.json holds no object.")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder}: the weights are of another model than config.yaml describes: {error}"
        ) from error
    return state


def check_checkpoint(folder: Path, fix: str = "Copy the run directory anew.") -> None:
    """Refuse a checkpoint that is not as it was written; those of before 0.2 have no checksums.

    Args:
        folder: The checkpoint.
        fix: What to do about damage.

    Raises:
        CheckpointError: Names the file.
    """
    sums = read_sums(folder)
    if sums is None:
        return
    check_sums(folder, sums, fix)
    check_sums(folder, sums, fix, [WEIGHTS, STATE])


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A trained model and all it needs to read sequences and name its answers."""

    model: SequenceModel
    """In evaluation mode."""
    config: RunConfig
    tokenizer: Tokenizer
    codec: LabelCodec
    data: dict[str, Any]
    """What ``data.json`` holds."""
    state: dict[str, Any]
    """Of the checkpoint: step, epoch, best value."""
    calibration: Calibration | None = None
    """What the model's probabilities are calibrated by; None: they are as trained."""

    def calibrated(self, calibration: Calibration | None) -> "LoadedRun":
        """The same run, its model reading out by ``calibration``, or as trained if None.

        Raises:
            ValueError: It is of other classes.
        """
        if calibration != self.calibration:
            temperature = (1.0,) if calibration is None else calibration.temperature
            set_temperature(self.model, temperature)
        return replace(self, calibration=calibration)


def read_run(run: RunDir) -> tuple[RunConfig, dict[str, Any]]:
    """Settings and data report of a run directory, and all that it holds checked.

    Raises:
        CheckpointError: it is none, damaged, or of a format that this version cannot read.
    """
    if not run.config.is_file() or not run.data.is_file():
        raise CheckpointError(
            f"{run.path}: not a run directory: expected config.yaml and data.json in it. "
            "Give the folder passed to `train -o`."
        )
    run.check_links()
    check_listed(run)
    try:
        data = read_json(run.data)
        check_format(run.data, data)
        config = read_run_config(run.config)
        _, codec = check_report(data)
        check_resolved(config, codec.task)
    except OSError as error:
        raise CheckpointError(f"{run.path}: cannot be read: {error}.") from error
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"{run.path}: is damaged: {str(error).rstrip('.')}. {FIX}") from error
    return config, data


def load_run(path: Path, checkpoint: str = "best") -> LoadedRun:
    """The model of a run directory, calibrated where it has been; the last one never is.

    Args:
        path: What ``seqtrain train -o`` made.
        checkpoint: ``best`` or ``last``.

    Raises:
        CheckpointError: it is no run directory, or damaged.
    """
    run = RunDir(path)
    config, data = read_run(run)
    folder = existing(run.checkpoint(checkpoint))
    tokenizer = Tokenizer.from_dict(data["tokenizer"])
    codec = LabelCodec.from_dict(data["labels"])
    check_checkpoint(folder)
    try:
        check_weights(folder / WEIGHTS, config, tokenizer, codec)
        model = build_model(config, tokenizer, codec)
        state = load_checkpoint(folder, model)
        check_state(state)
    except PermissionError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the checkpoint is damaged: {error}.") from error
    loaded = LoadedRun(model.eval(), config, tokenizer, codec, data, state)
    if checkpoint != "best" or not run.calibration.exists():
        return loaded
    try:
        return loaded.calibrated(Calibration.from_dict(read_json(run.calibration)))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{run.calibration}: is damaged: {str(error).rstrip('.')}. {FIX}"
        ) from error
