"""A run directory: what it holds, how it is written so that a crash loses nothing, and read back.

Weights are safetensors, optimizer state loads with ``weights_only=True``, everything else is JSON
or YAML: nothing is pickled, so a run directory from a stranger cannot run code.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from seqtrain.build import build_model
from seqtrain.compose import config_to_yaml, read_run_config
from seqtrain.config import RunConfig
from seqtrain.data.files import whole_file
from seqtrain.data.labels import LabelCodec
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import CheckpointError, ConfigError
from seqtrain.nn.model import SequenceModel
from seqtrain.training.calibration import Calibration, set_temperature

FORMAT = 1
"""Raised when a run directory of before can no longer be read as it is."""


@dataclass(frozen=True)
class RunDir:
    """The paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        """Files, counts, fingerprints, rejects; tokenizer and label names."""
        return self.path / "data.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per line, step by step."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """The final numbers; its presence says that the run is complete."""
        return self.path / "summary.json"

    @property
    def calibration(self) -> Path:
        """What makes the probabilities of the best checkpoint come true; absent in older runs."""
        return self.path / "calibration.json"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        """The trace of a few steps, if one was asked for."""
        return self.path / "profile"

    @property
    def predictions(self) -> Path:
        """Tables of predictions."""
        return self.path / "predictions"

    def checkpoint(self, name: str) -> Path:
        """The folder of the ``last`` or the ``best`` checkpoint."""
        return self.path / "checkpoints" / name

    def has_checkpoint(self, name: str) -> bool:
        """Whether a checkpoint can be loaded, be it the one before a crash."""
        folder = self.checkpoint(name)
        return folder.exists() or _before(folder).exists()

    def holds_run(self) -> bool:
        """Whether a run was ever started here."""
        return self.config.exists() or self.has_checkpoint("last")


def create_run(run: RunDir, config: RunConfig, data: Mapping[str, Any]) -> None:
    """Write what is known before the first step.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        write_text(run.data, json.dumps({"format": FORMAT, **data}, indent=1))
        write_text(run.config, config_to_yaml(config))
    except OSError as error:
        raise CheckpointError(f"{run.path}: cannot be written: {error.strerror}.") from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def save_checkpoint(
    folder: Path,
    model: torch.nn.Module,
    state: Mapping[str, Any],
    tensors: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint beside the old one, then swap; a crash leaves one of the two whole.

    Args:
        folder: Where it comes to lie.
        model: Its weights and buffers are saved.
        state: What JSON can hold.
        tensors: Optimizer, scheduler and random state: tensors and plain containers only.

    Raises:
        CheckpointError: the disk is full or not writable; the old checkpoint is still there.
    """
    partial, old = folder.with_name(folder.name + ".partial"), _before(folder)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        weights = {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()}
        save_file(weights, partial / "model.safetensors")
        if tensors is not None:
            torch.save(dict(tensors), partial / "optimizer.pt")
        write_text(partial / "state.json", json.dumps(dict(state), indent=1))
        if folder.exists():  # else the old one is all there is: a crash came between the renames
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{folder}: the checkpoint could not be written: {error}. "
            "Make room or choose another --run-dir, then go on with --resume."
        ) from error


def load_checkpoint(folder: Path, model: torch.nn.Module) -> dict[str, Any]:
    """Put a checkpoint's weights into ``model``; returns its state.

    Raises:
        CheckpointError: missing, cut short, or of another model.
    """
    folder = _whole(folder)
    try:
        weights = load_file(folder / "model.safetensors")
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
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


def load_training_state(folder: Path) -> dict[str, Any]:
    """Optimizer, scheduler and random state of a checkpoint.

    Raises:
        CheckpointError: missing or damaged.
    """
    path = _whole(folder) / "optimizer.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler meets in a damaged file, it raises
        raise CheckpointError(f"{path}: the optimizer state is damaged: {error!r}.") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: the optimizer state is damaged: it is no dictionary.")
    return state


def _before(folder: Path) -> Path:
    """Where the checkpoint before lies while a new one takes its place."""
    return folder.with_name(folder.name + ".old")


def _whole(folder: Path) -> Path:
    """The checkpoint, or the one before it if a crash came between the two renames."""
    old = _before(folder)
    if not folder.exists() and old.exists():
        return old
    if not folder.exists():
        raise CheckpointError(
            f"{folder}: there is no checkpoint. Is this a run directory, and has it begun?"
        )
    return folder


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
    """Settings and data report of a run directory.

    Raises:
        CheckpointError: it is none, or of a format that this version cannot read.
    """
    if not run.config.is_file() or not run.data.is_file():
        raise CheckpointError(
            f"{run.path}: not a run directory: expected config.yaml and data.json in it. "
            "Name what `seqtrain train -o` made."
        )
    try:
        data = json.loads(run.data.read_text(encoding="utf-8"))
        config = read_run_config(run.config)
    except (ValueError, OSError, ConfigError) as error:
        raise CheckpointError(f"{run.path}: the run directory is damaged: {error}") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"{run.data}: expected format {FORMAT}, found {found!r}. "
            "Use the seqtrain version that wrote it."
        )
    return config, data


def read_state(run: RunDir) -> dict[str, Any]:
    """Where the last checkpoint stands, and the threads it was made with; empty without one.

    Raises:
        CheckpointError: it is damaged.
    """
    if not run.has_checkpoint("last"):
        return {}
    path = _whole(run.checkpoint("last")) / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: the checkpoint is damaged: {error}.") from error
    return state if isinstance(state, dict) else {}


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
    try:
        tokenizer = Tokenizer.from_dict(data["tokenizer"])
        codec = LabelCodec.from_dict(data["labels"])
        model = build_model(config, tokenizer, codec)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise CheckpointError(
            f"{run.path}: settings, tokenizer or labels are damaged: {error!r}."
        ) from error
    state = load_checkpoint(run.checkpoint(checkpoint), model)
    loaded = LoadedRun(model.eval(), config, tokenizer, codec, data, state)
    if checkpoint != "best" or not run.calibration.exists():
        return loaded
    try:
        saved = json.loads(run.calibration.read_text(encoding="utf-8"))
        return loaded.calibrated(Calibration.from_dict(saved))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{run.calibration}: is damaged: {error!r}.") from error


class RunLock:
    """Keeps a second process out of a run directory; the system lets go when a process dies."""

    def __init__(self, run: RunDir):
        self.path = run.path / ".lock"

    def __enter__(self) -> "RunLock":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w")
        except OSError as error:
            raise CheckpointError(
                f"{self.path.parent}: cannot be written: {error.strerror}. "
                "Choose another --run-dir."
            ) from error
        with suppress(ImportError):  # no fcntl on Windows: there is no lock then
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._file.close()
                raise CheckpointError(
                    f"{self.path.parent}: another process is training in this run directory. "
                    "Wait for it, or choose another --run-dir."
                ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
