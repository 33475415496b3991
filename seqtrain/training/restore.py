"""Puts a training back to where a checkpoint left it, from the newest one that is whole."""

import io
import math
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from seqtrain.data.schema import read_json
from seqtrain.errors import CheckpointError, SeqtrainWarning
from seqtrain.training.checkpoint import check_checkpoint
from seqtrain.training.run_dir import STATE, TRAINING, RunDir, before, existing
from seqtrain.training.saved import check_state


def newest_whole(run: RunDir) -> Path:
    """The folder of the checkpoint to resume from.

    That is ``last``; where it is damaged the newest of those that are whole, which is told.

    Raises:
        CheckpointError: None is whole, or ``best`` is damaged, which the run needs at its end.
    """
    found: list[tuple[int, Path]] = []
    problems: dict[str, str] = {}
    for folder in _candidates(run):
        try:
            check_checkpoint(folder, fix="")
            if not (folder / TRAINING).is_file():
                raise CheckpointError(f"{folder / TRAINING}: is missing.")
            found.append((_read_state(folder)["progress"].get("step", 0), folder))
        except CheckpointError as error:
            problems[folder.name] = str(error).strip()
    if not found:
        said = next(iter(problems.values()), f"{run.path}: there is no checkpoint.")
        raise CheckpointError(
            f"{said} No other checkpoint is whole, so that the run cannot be resumed. Copy the run "
            "directory anew, or train again with --overwrite."
        )
    newest = max(found, key=lambda each: (each[1].name == "last", each[0]))[1]
    if "last" in problems or newest.name.startswith("best"):
        _tell(newest, problems.get("last", f"{run.checkpoint('last')}: is missing."))
    _check_best(run, newest)
    return newest


def read_state(run: RunDir) -> dict[str, Any]:
    """State of the checkpoint to resume from; empty where training has not begun.

    Raises:
        CheckpointError: None is whole.
    """
    return _read_state(newest_whole(run)) if run.has_progress() else {}


def _candidates(run: RunDir) -> Iterator[Path]:
    for name in ("last", "best"):
        folder = run.checkpoint(name)
        yield from (each for each in (folder, before(folder)) if each.is_dir())


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = read_json(folder / STATE)
        check_state(state)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / STATE}: is damaged: {error}.") from error
    return state


def _tell(newest: Path, problem: str) -> None:
    epoch = _read_state(newest)["progress"].get("epoch", 0)
    warnings.warn(
        f"{problem} Resuming from checkpoints/{newest.name}, epoch {epoch}.",
        SeqtrainWarning,
        stacklevel=3,
    )


def _check_best(run: RunDir, newest: Path) -> None:
    """Training until the end is in vain if the best checkpoint cannot be read then."""
    if _read_state(newest)["progress"].get("best_epoch", 0):
        try:
            check_checkpoint(existing(run.checkpoint("best")))
        except CheckpointError as error:
            raise CheckpointError(
                f"{error} The best epoch is lost. Copy the run directory anew, or train again with "
                "--overwrite."
            ) from error


def remove_leftovers(run: RunDir) -> None:
    """Delete what a crash in the middle of a save left, where the checkpoint itself is there."""
    for name in ("last", "best"):
        folder = run.checkpoint(name)
        shutil.rmtree(folder.with_name(name + ".partial"), ignore_errors=True)
        if folder.exists():
            shutil.rmtree(before(folder), ignore_errors=True)


def load_training_state(folder: Path) -> dict[str, Any]:
    """Optimizer, scheduler and random state of a checkpoint.

    Raises:
        CheckpointError: missing or damaged.
    """
    path = existing(folder) / TRAINING
    try:
        content = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("expected no compressed entries")  # torch would unpack any size
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    except Exception as error:  # whatever the unpickler meets in a damaged file, it raises
        raise CheckpointError(f"{path}: the optimizer state is damaged: {error!r}.") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: the optimizer state is damaged: it is no dictionary.")
    return state


def check_optimizer(optimizer: torch.optim.Optimizer, saved: Any) -> None:
    """Refuse a saved state that this optimizer cannot take, before a step meets it.

    Raises:
        ValueError: A group, a number or a shape is another.
        KeyError: Something is missing.
    """
    check_alike(optimizer.state_dict()["param_groups"], saved["param_groups"], "param_groups")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    for index, parameter in zip(indices, parameters, strict=True):
        for name, value in saved["state"].get(index, {}).items():
            shape = torch.Size([]) if name == "step" else parameter.shape
            if not isinstance(value, torch.Tensor) or value.shape != shape:
                raise ValueError(f"state {index}.{name}: expected a tensor of shape {tuple(shape)}")


def check_alike(now: Any, saved: Any, where: str) -> None:
    """Refuse values of another kind than those that they replace.

    Raises:
        ValueError: Names the place.
    """
    if isinstance(now, Mapping) and isinstance(saved, Mapping):
        for key in now.keys() & saved.keys():
            check_alike(now[key], saved[key], f"{where}.{key}")
    elif isinstance(now, list | tuple) and isinstance(saved, list | tuple):
        for old, new in zip(now, saved, strict=True):
            check_alike(old, new, where)
    elif not (_is_number(now) and _is_number(saved)) and type(now) is not type(saved):
        raise ValueError(f"{where}: expected {type(now).__name__}, found {type(saved).__name__}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
