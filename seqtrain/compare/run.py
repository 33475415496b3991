"""Train and measure the arms of a comparison; finished ones are kept."""

import dataclasses
import json
import shutil
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqtrain.board import TensorBoard, write_final
from seqtrain.build import build_model
from seqtrain.compare.measures import (
    calibration_error,
    metric_by,
    padded_outputs,
    padding_shift,
    running_statistics_error,
    train_eval_losses,
)
from seqtrain.compare.plan import (
    Arm,
    Comparison,
    Condition,
    Witness,
    check_same_start,
    check_same_training,
)
from seqtrain.config import config_to_dict
from seqtrain.errors import CheckpointError
from seqtrain.nn.model import SequenceModel
from seqtrain.pipeline import (
    Plan,
    build_corruption,
    build_objective,
    fingerprints,
    flatten,
    train_run,
)
from seqtrain.reporting import JsonLines, to_json
from seqtrain.training.checkpoint import load_checkpoint
from seqtrain.training.device import choose_device
from seqtrain.training.events import EpochEvent, Guarded, Observer, StepEvent
from seqtrain.training.guard import RunLock
from seqtrain.training.metrics import primary_metric
from seqtrain.training.outputs import predict_outputs, score_outputs
from seqtrain.training.run_dir import RunDir, write_text
from seqtrain.training.sums import SUMS

OUTPUTS = "outputs.npy"

Result = dict[str, Any]
Tell = Callable[[Arm, int, int, float | None], None]


def open_comparison(comparison: Comparison, folder: Path, *, resume: bool) -> None:
    """Make the folder of a comparison, or make sure that it is the one to go on with.

    Raises:
        CheckpointError: it holds something else, or a comparison of other data or settings.
    """
    file = folder / "comparison.json"
    now = json.loads(to_json(_identity(comparison)))
    if file.exists() and resume:
        keys = _differing(_read_identity(file), now)
        if keys:
            raise CheckpointError(
                f"{folder}: --resume needs the settings and data of before, but these differ: "
                f"{', '.join(keys)}. Give the same, or choose another --output."
            )
    elif folder.exists() and any(folder.iterdir()):
        way = "Continue with --resume, or" if file.exists() else "It holds no comparison;"
        raise CheckpointError(f"{folder}: is not empty. {way} choose another --output.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, to_json(now, indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error.strerror}.") from error


def _read_identity(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: is damaged ({error}). Choose another --output.") from error
    return found


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Keys of what differs. Where files lie does not count: their contents are in ``data``."""
    old, new = flatten(before), flatten(now)
    places = tuple(f".data.{key}" for key in ("train", "valid", "test", "labels"))
    return sorted(
        key for key in old | new if old.get(key) != new.get(key) and not key.endswith(places)
    )


def _identity(comparison: Comparison) -> dict[str, Any]:
    """What must stay the same for arms to be comparable; norms and seeds may be added."""
    first = next(iter(comparison.plans.values()))
    settings = {}
    for name, plan in comparison.plans.items():
        settings[name] = config_to_dict(plan.config)
        settings[name]["batching"].pop("kind")
        settings[name]["norm"].pop("name")
    return {"settings": settings, "data": fingerprints(first.data)}


def run_arms(comparison: Comparison, folder: Path, tell: Tell = lambda *_: None) -> list[Result]:
    """Every arm, one after the other; a failed one is recorded and the rest go on.

    Args:
        comparison: What to train.
        folder: From :func:`open_comparison`; finished arms in it are kept.
        tell: Called before each arm that is trained with its number, the number of all, and
            the seconds left if they can be told.
    """
    arms = comparison.arms()
    todo = [arm for arm in arms if not is_finished(folder, arm)]
    began = time.monotonic()
    for seed in sorted({arm.seed for arm in todo}):
        check_same_start(comparison, seed)
    for done, arm in enumerate(todo):
        left = (time.monotonic() - began) / done * (len(todo) - done) if done else None
        tell(arm, arms.index(arm) + 1, len(arms), left)
        run_arm(comparison.plan(arm), arm, folder)
    return collect(comparison, folder)


def is_finished(folder: Path, arm: Arm) -> bool:
    """True if an arm was trained and measured without an error, and its outputs are whole."""
    if _read(folder / arm.name / "arm.json").get("status") != "ok":
        return False
    try:
        np.load(folder / arm.name / OUTPUTS, mmap_mode="r")
    except (OSError, ValueError):
        return False
    return True


def run_arm(plan: Plan, arm: Arm, folder: Path) -> Result:
    """Train one arm from its beginning and measure it; writes ``arm.json`` and ``outputs.npy``.

    An error ends this arm alone and is written down. Only an interruption is let through.
    """
    run = RunDir(folder / arm.name)
    with RunLock(run.path):
        run.check_links()
        for name in ("checkpoints", "tensorboard", "predictions"):
            shutil.rmtree(run.path / name, ignore_errors=True)
        for file in (run.path / "arm.json", *run.listed, run.path / SUMS):
            file.unlink(missing_ok=True)
        head: Result = {**vars(arm.condition), "seed": arm.seed}
        try:
            result = {**head, "status": "ok", **_train_and_measure(plan, run)}
        except Exception as error:  # whatever it is, the other arms are worth having
            message = f"{type(error).__name__}: {error}"
            trace = traceback.format_exc()
            result = {**head, "status": "failed", "error": message, "traceback": trace}
        write_text(run.path / "arm.json", to_json(result, indent=1) + "\n")
    return result


def collect(comparison: Comparison, folder: Path) -> list[Result]:
    """What is known of every arm, in order; those that saw other batches are failed ones.

    The first finished arm of a seed, batching and encoder is what the others are held against.
    """
    results = []
    witnesses: dict[tuple[str, str, int], Sequence[Mapping[str, str]]] = {}
    for arm in comparison.arms():
        result = _read(folder / arm.name / "arm.json")
        result = result or {**vars(arm.condition), "seed": arm.seed, "status": "missing"}
        if result["status"] == "ok":
            key = (arm.condition.batching, arm.condition.encoder, arm.seed)
            try:
                check_same_training(
                    arm.name, result["witness"], witnesses.setdefault(key, result["witness"])
                )
            except ValueError as error:
                result |= {"status": "failed", "error": str(error)}
        results.append(result)
    return results


def outputs_of(folder: Path, condition: Condition, seed: int) -> np.ndarray:
    """The outputs of a finished arm on the part that it is scored on."""
    values: np.ndarray = np.load(folder / Arm(condition, seed).name / OUTPUTS)
    return values


def _read(path: Path) -> Result:
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result


class _Curve:
    """An observer that keeps the learning curve and the speed."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.points: list[dict[str, Any]] = []
        self.speeds: list[float] = []

    def on_step(self, event: StepEvent) -> None:
        self.speeds.append(event.residues_per_second)

    def on_epoch(self, event: EpochEvent) -> None:
        self.points.append(
            {
                "epoch": event.epoch,
                "step": event.step,
                "train_loss": event.train_loss,
                "valid_loss": event.valid["loss"],
                "value": event.valid[self.metric],
                "padding_share": event.padding_share,
            }
        )

    def close(self) -> None:
        pass


class _Board(TensorBoard):
    """Without the picture of the confusions, a good part of a small arm's time."""

    def on_epoch(self, event: EpochEvent) -> None:
        super().on_epoch(dataclasses.replace(event, confusion=None))


def _train_and_measure(plan: Plan, run: RunDir) -> Result:
    """Train as ``seqtrain train`` does, so that an arm's folder is a run like any other."""
    config = plan.config
    curve, witness = _Curve(primary_metric(plan.data.codec.task)), Witness()
    settings = {key: str(value) for key, value in flatten(config_to_dict(config)).items()}

    warn = plan.data.report.setdefault("warnings", []).append

    def observers(*_: object) -> list[Observer]:
        lines = JsonLines(run.metrics)
        if config.logger.name == "none":
            return [lines, curve, witness]
        board = Guarded(lambda: _Board(run.tensorboard, settings, ()), "TensorBoard", warn)
        return [lines, board, curve, witness]

    with witness.watching():
        summary = train_run(plan, run, make_observers=observers)
    if config.logger.name != "none":
        write_final(run.tensorboard, settings, summary, warn)
    return {
        **_measure(plan, run),
        "best_epoch": summary["best_epoch"],
        "curve": curve.points,
        "witness": witness.epochs,
        "steps": summary["steps"],
        "residues": summary["epochs"] * len(plan.data.train.tokens),
        "seconds": summary["seconds"],
        "microseconds_per_residue": 1e6 / max(statistics.median(curve.speeds), 1e-9),
        "padding_share": curve.points[-1]["padding_share"],
    }


def _best_model(plan: Plan, run: RunDir) -> SequenceModel:
    """The best checkpoint as it was trained: a calibrated one would hide what norms do to that."""
    model = build_model(plan.config, plan.data.tokenizer, plan.data.codec)
    load_checkpoint(run.checkpoint("best"), model)
    return model.eval().to(choose_device(plan.config.trainer.device))


def _measure(plan: Plan, run: RunDir) -> Result:
    """Everything about the best checkpoint; writes its outputs."""
    config, data = plan.config, plan.data
    task, num_classes = data.codec.task, data.codec.num_outputs
    scored = data.test if data.test is not None else data.valid
    model = _best_model(plan, run)
    budget, metric = config.batching.max_tokens, primary_metric(task)
    assert budget is not None
    objective = build_objective(config, data).plain()
    is_packed = config.batching.kind == "packed"
    outputs = predict_outputs(model, scored, objective, max_tokens=budget, packed=is_packed)
    np.save(run.path / OUTPUTS, outputs.values)
    metrics = score_outputs(outputs, scored, task, num_classes)
    corruption = build_corruption(config, data)
    train = data.train if corruption is None else corruption(data.train)
    padded, shares = padded_outputs(model, scored, budget, config.batching.max_sequences)
    in_training, in_evaluation = train_eval_losses(
        model,
        train,
        objective,
        batching=config.batching.kind,
        max_tokens=budget,
        max_sequences=config.batching.max_sequences,
        seed=config.trainer.seed,
    )
    shift = padding_shift(model, scored)
    return {
        "metric": metric,
        "metrics": metrics,
        "padding_shift": {name: values.tolist() for name, values in shift.items()},
        "running_statistics": running_statistics_error(model, train, budget),
        "loss_as_in_training": in_training,
        "loss_as_in_evaluation": in_evaluation,
        "calibration_error": calibration_error(outputs, scored, task),
        "by_length": metric_by(scored.lengths, outputs, scored, task, num_classes, metric),
        "by_padding": metric_by(shares, padded, scored, task, num_classes, metric),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "device": str(next(model.parameters()).device),
        "torch": torch.__version__,
    }
