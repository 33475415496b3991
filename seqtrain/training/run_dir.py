"""A run directory: its files, how they are written so that a crash loses nothing, and checked."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtrain.compose import config_to_yaml
from seqtrain.config import RunConfig
from seqtrain.data.files import whole_file
from seqtrain.errors import CheckpointError, SeqtrainWarning
from seqtrain.training.guard import refuse_links
from seqtrain.training.sums import SUMS, check_sums, digest, read_sums, write_listed, write_sums

FORMAT = 1
"""Raised when a run directory of before can no longer be read as it is."""

WEIGHTS, STATE, TRAINING = "model.safetensors", "state.json", "optimizer.pt"
FIX = (
    "Copy the run directory anew, or train again; settings of a trained run cannot be edited, "
    "give them to a new one."
)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


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
        """Temperatures for the probabilities of the best checkpoint; absent in older runs."""
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

    @property
    def splits(self) -> Path:
        """The part of each record."""
        return self.path / "splits.tsv"

    @property
    def training_part(self) -> Path:
        """Lengths and targets of the training part, for baselines."""
        return self.path / "training_part.npz"

    @property
    def listed(self) -> tuple[Path, ...]:
        """Files that the checksums of the run cover; those of a checkpoint lie in its folder."""
        known = (self.data, self.config, self.splits, self.training_part)
        return (*known, self.calibration, self.summary)

    def checkpoint(self, name: str) -> Path:
        """The folder of the ``last`` or the ``best`` checkpoint."""
        return self.path / "checkpoints" / name

    def has_checkpoint(self, name: str) -> bool:
        """True if there is a checkpoint, be it the one before a crash."""
        folder = self.checkpoint(name)
        return folder.exists() or before(folder).exists()

    def has_progress(self) -> bool:
        """True if training can continue from a checkpoint, or could if that were not damaged."""
        best = self.checkpoint("best")
        has_state = any((each / TRAINING).exists() for each in (best, before(best)))
        return self.has_checkpoint("last") or has_state

    def holds_run(self) -> bool:
        """True if a run was ever started here."""
        return self.config.exists() or self.has_checkpoint("last")

    def check_links(self) -> None:
        """Refuse links in the directory, which opening the run would refuse after the training.

        Raises:
            CheckpointError: Names the first one.
        """
        if self.path.is_dir():
            refuse_links(self.path)

    def foreign_files(self) -> list[Path]:
        """Files named as a run's own in a directory where none was started: not made by one."""
        if self.holds_run() or _is_own(self.data):
            return []
        tables = (self.predictions / "valid.tsv", self.predictions / "test.tsv")
        own = (*self.listed, self.metrics, self.path / SUMS, *tables)
        return [path for path in own if path.exists()]


def _is_own(data: Path) -> bool:
    """True if a data.json is the first file of a run."""
    return data.is_file() and data.read_bytes()[:16].split()[:2] == [b"{", b'"format":']


def create_run(run: RunDir, config: RunConfig, data: Mapping[str, Any]) -> None:
    """Write what is known before the first step.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        if not run.config.exists():
            (run.path / SUMS).unlink(missing_ok=True)
        write_listed(run.data, json.dumps({"format": FORMAT, **data}, indent=1))
        write_listed(run.config, config_to_yaml(config))
    except OSError as error:
        raise CheckpointError(f"{run.path}: cannot be written: {error.strerror}.") from error


def before(folder: Path) -> Path:
    """Folder of the previous checkpoint while a new one takes its place."""
    return folder.with_name(folder.name + ".old")


def existing(folder: Path) -> Path:
    """The checkpoint, or the one before it if a crash came between the two renames."""
    old = before(folder)
    if not folder.exists() and old.exists():
        return old
    if not folder.exists():
        raise CheckpointError(
            f"{folder}: there is no checkpoint. Is this a run directory, and has it begun?"
        )
    return folder


def check_listed(run: RunDir) -> None:
    """Compare the files of a run, checkpoints aside, with its checksums."""
    sums = read_sums(run.path)
    if sums is None:
        warnings.warn(
            f"{run.path}: has no {SUMS}, as runs of seqtrain 0.1 have none: damage to its files "
            "cannot be found.",
            SeqtrainWarning,
            stacklevel=3,
        )
        return
    check_sums(run.path, sums, FIX, [run.config.name, run.data.name])
    # Of a run that has not ended, what comes last may be listed before it is there.
    check_sums(run.path, sums, FIX, may_miss=not run.summary.exists())


def list_files(run: RunDir) -> None:
    """Give checksums to a run directory and checkpoints that have none, as they are now.

    Raises:
        CheckpointError: they cannot be read or written.
    """
    folders = [run.checkpoint(name) for name in ("last", "best")]
    try:
        for folder in (folder for folder in folders if folder.is_dir()):
            if read_sums(folder) is None:
                write_sums(folder, {file.name: [digest(file)] for file in folder.iterdir()})
        if read_sums(run.path) is None:
            files = [file for file in run.listed if file.is_file()]
            write_sums(run.path, {file.name: [digest(file)] for file in files})
    except OSError as error:
        raise CheckpointError(f"{run.path}: cannot be written: {error.strerror}.") from error


def check_format(path: Path, data: Any) -> None:
    """Refuse a data report of another format than this version reads.

    Raises:
        CheckpointError: Names both.
    """
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT or isinstance(found, bool):
        raise CheckpointError(
            f"{path}: expected format {FORMAT}, found {found!r}. "
            "Use the seqtrain version that wrote it."
        )
