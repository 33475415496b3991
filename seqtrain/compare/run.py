"""Train every arm of a comparison and tabulate what differs."""

import copy
import csv
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqtrain.data.batching import collate
from seqtrain.data.store import SequenceDataset
from seqtrain.pipeline import Plan, train_run
from seqtrain.training.checkpoint import RunDir, RunLock, load_run
from seqtrain.training.metrics import primary_metric

SHIFT_RECORDS = 64


@dataclass(frozen=True)
class Arm:
    """One condition of the comparison."""

    norm: str
    seed: int

    @property
    def name(self) -> str:
        """The folder of its run."""
        return f"{self.norm}-seed{self.seed}"


def compare_norms(
    plan: Plan,
    norms: Sequence[str],
    num_seeds: int,
    folder: Path,
    *,
    resume: bool = False,
    tell: Callable[[Arm, int, int], None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """One row per arm; ``results.csv`` holds them too.

    Data, splits and chosen settings are those of ``plan`` in every arm. Within a seed all arms
    begin with the same weights (norms begin as constants and draw none), and see the same batches
    in the same order.

    Args:
        plan: From ``plan_run``.
        norms: Names of norms.
        num_seeds: Seeds 0, 1, ...
        folder: Where the runs go.
        resume: Keep finished arms, go on with the unfinished.
        tell: Called before each arm with its number and the number of all.
    """
    arms = [Arm(norm, seed) for seed in range(num_seeds) for norm in norms]
    rows = []
    for number, arm in enumerate(arms, 1):
        tell(arm, number, len(arms))
        run = RunDir(folder / arm.name)
        with RunLock(run):
            rows.append(_row(arm, _train_arm(plan, arm, run, resume), run, plan))
    _write_csv(folder / "results.csv", rows)
    return rows


def _train_arm(plan: Plan, arm: Arm, run: RunDir, resume: bool) -> dict[str, Any]:
    if resume and run.summary.exists():
        finished: dict[str, Any] = json.loads(run.summary.read_text(encoding="utf-8"))
        return finished
    config = copy.deepcopy(plan.config)
    config.norm.name = arm.norm
    config.trainer.seed = arm.seed
    arm_plan = dataclasses.replace(plan, config=config)
    return train_run(arm_plan, run, resume=resume and run.holds_run())


def _row(arm: Arm, summary: dict[str, Any], run: RunDir, plan: Plan) -> dict[str, Any]:
    part = "test" if plan.data.test is not None else "valid"
    dataset = plan.data.test if plan.data.test is not None else plan.data.valid
    metric = primary_metric(summary["task"])
    return {
        "norm": arm.norm,
        "seed": arm.seed,
        "part": part,
        metric: summary[part]["metrics"][metric]["value"],
        "loss": summary[part]["metrics"]["loss"]["value"],
        "padding_shift": padding_shift(run.path, dataset),
        "best_epoch": summary["best_epoch"],
        "seconds": summary["seconds"],
    }


@torch.inference_mode()
def padding_shift(run: Path, dataset: SequenceDataset, factor: int = 2) -> float:
    """How far a record's logits move when padding is added: the largest difference.

    The first records are each computed alone, and again padded to ``factor`` times their length.
    """
    model = load_run(run).model
    shift = 0.0
    for i in range(min(SHIFT_RECORDS, len(dataset))):
        alone = collate(dataset, np.array([i]))
        padded = collate(dataset, np.array([i]), pad_to=factor * alone.tokens.shape[1])
        a = model(alone.tokens, alone.lengths)
        b = model(padded.tokens, padded.lengths)
        if dataset.per_residue:
            b = b[:, : a.shape[1]]
        shift = max(shift, float((a - b).abs().max()))
    return shift


def summarize_rows(rows: Sequence[dict[str, Any]], metric: str) -> list[tuple[Any, ...]]:
    """One row per norm: seeds, mean and spread of the metric, loss, padding shift, seconds."""
    table = []
    for norm in dict.fromkeys(row["norm"] for row in rows):
        mine = [row for row in rows if row["norm"] == norm]
        values = np.array([row[metric] for row in mine])
        spread = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        table.append(
            (
                norm,
                len(mine),
                float(values.mean()),
                spread,
                float(np.mean([row["loss"] for row in mine])),
                f"{max(row['padding_shift'] for row in mine):.1e}",
                float(np.mean([row["seconds"] for row in mine])),
            )
        )
    return table


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
