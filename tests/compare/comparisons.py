"""Tiny comparisons: real ones over a dozen records, and made-up results for reports."""

from pathlib import Path
from typing import Any

import numpy as np

from seqtrain.compare.analysis import Analysis, Contrast, conclude
from seqtrain.compare.plan import Comparison, Condition, conditions_of
from seqtrain.compose import load_config
from seqtrain.evaluation.statistics import Difference
from seqtrain.pipeline import plan_run

OVERRIDES = [
    "data=files",
    "encoder.embed_dim=8",
    "encoder.num_layers=2",
    "encoder.max_dilation=2",
    "trainer.max_epochs=2",
    "trainer.num_threads=1",
    "trainer.device=cpu",
    "batching.max_tokens=256",
]


def tiny_comparison(
    folder: Path, norms: list[str], num_seeds: int = 1, batchings: tuple[str, ...] = ("random",)
) -> Comparison:
    """Two classes told apart by one letter, lengths from 10 to 60."""
    rng = np.random.default_rng(0)
    for part, size in {"train": 24, "valid": 8, "test": 12}.items():
        lines = []
        for i in range(size):
            letters = rng.choice(list("ACDEFGHIKL"), rng.integers(10, 60)).tolist()
            letters[3:7] = "WWWW" if i % 2 else "AAAA"
            lines.append(f">{part}{i} label={'ab'[i % 2]}\n{''.join(letters)}\n")
        (folder / f"{part}.fasta").write_text("".join(lines))
    values = {f"data.{p}": [str(folder / f"{p}.fasta")] for p in ("train", "valid", "test")}
    plan = plan_run(load_config("config", OVERRIDES, values=values))
    return Comparison({"cnn": plan}, conditions_of(norms, batchings, ["cnn"]), num_seeds)


def tiny_comparison_of(folder: Path, task: str, encoder: str) -> Comparison:
    """Two norms, one seed, another task or encoder, a dozen records."""
    rng = np.random.default_rng(0)
    table = ["id\tlabel"]
    for part, size in {"train": 12, "valid": 6, "test": 8}.items():
        records, residues = [], []
        for i in range(size):
            letters = "".join(rng.choice(list("ACDEFGHIKL"), rng.integers(10, 40)))
            labels = "".join("h" if letter in "AC" else "c" for letter in letters)
            records.append(f">{part}{i}\n{letters}\n")
            residues.append(f">{part}{i}\n{labels}\n")
            table.append(f"{part}{i}\t{letters.count('A') / len(letters):.4f}")
        (folder / f"{part}.fasta").write_text("".join(records))
        with (folder / "labels.fasta").open("a") as file:
            file.writelines(residues)
    (folder / "labels.tsv").write_text("\n".join(table) + "\n")
    values = {f"data.{p}": [str(folder / f"{p}.fasta")] for p in ("train", "valid", "test")}
    labels = "labels.fasta" if task == "residue_classification" else "labels.tsv"
    values["data.labels"] = [] if task == "mlm" else [str(folder / labels)]
    chosen = [o for o in OVERRIDES if encoder == "cnn" or "dilation" not in o]
    plan = plan_run(
        load_config("config", [*chosen, f"encoder={encoder}", f"task={task}"], values=values)
    )
    return Comparison(
        {encoder: plan}, conditions_of(["masked_batch", "none"], ["random"], [encoder]), 1
    )


def made_up_result(norm: str, seed: int, shift: float, failed: bool = False) -> dict[str, Any]:
    """What an arm writes, with numbers that depend on the norm and the seed."""
    head = {"norm": norm, "batching": "random", "encoder": "cnn", "seed": seed}
    if failed:
        return {**head, "status": "failed", "error": "TrainingError: the loss is nan & <bad>"}
    rng = np.random.default_rng([seed, len(norm)])
    ends = np.sort(rng.uniform(0.2, 0.9, 6))
    curve = [{"epoch": e + 1, "step": 10 * (e + 1), "value": float(v)} for e, v in enumerate(ends)]
    bins = [
        {
            "low": 20.0 * b,
            "median": 20.0 * b + 4,
            "high": 20.0 * b + 20,
            "n": 9,
            "value": float(ends[b]),
            "from": float(ends[b]) - 0.1,
            "to": float(ends[b]) + 0.05,
        }
        for b in range(4)
    ]
    shares = [b | {key: b[key] / 100 for key in ("low", "median", "high")} for b in bins]
    layers = [{"layer": "0", "mean": 0.02 + shift, "log_var": 0.05 + shift}]
    return {
        **head,
        "status": "ok",
        "metric": "mcc",
        "metrics": {"loss": 0.5, "mcc": float(ends[-1])},
        "curve": curve,
        "padding_shift": {
            way: (shift * rng.uniform(0.5, 1, 12)).tolist()
            for way in ("padded_2x", "padded_4x", "neighbours")
        },
        "running_statistics": layers if norm.endswith("batch") else [],
        "loss_as_in_training": 0.4,
        "loss_as_in_evaluation": 0.5,
        "calibration_error": 0.03,
        "by_length": bins,
        "by_padding": shares,
        "steps": 60,
        "residues": 6000,
        "seconds": 3.0,
        "microseconds_per_residue": 2.0 + rng.uniform(),
        "padding_share": 0.4,
        "best_epoch": 6,
    }


def made_up_contrast(norm: str, value: float, half_width: float, p: float = 0.01) -> Contrast:
    """Against ``masked_batch``."""
    difference = Difference(value, value - half_width, value + half_width, half_width / 2)
    condition, reference = (Condition(n, "random", "cnn") for n in (norm, "masked_batch"))
    return Contrast(condition, reference, 3, difference, p, p, 1.2, 1.4 * half_width)


TRAINED = [
    ("train files", "train.fasta (1,234 bytes, SHA-256 0123456789ab…)"),
    ("model", "cnn, 3 layers of 24 channels, 12,345 to 12,789 parameters"),
    ("command", "seqtrain compare-norms --train 'a <b>.fasta' -o out"),
]


def made_up_analysis(contrasts: list[Contrast] | None = None) -> Analysis:
    """Six norms, three seeds, one failed arm; ``leaky_batch`` is lower and moves with padding."""
    shifts = {"masked_batch": 1e-7, "batch": 1e-7, "leaky_batch": 0.8}
    shifts |= {"masked_layer": 1e-7, "layer": 0.0, "none": 0.0}
    results = [
        made_up_result(norm, seed, shift, failed=norm == "none" and seed == 1)
        for seed in range(3)
        for norm, shift in shifts.items()
    ]
    if contrasts is None:
        contrasts = [
            made_up_contrast(norm, 0.01, 0.05, 0.6) for norm in shifts if "leaky" not in norm
        ]
        contrasts[0] = made_up_contrast("leaky_batch", -0.2, 0.1)
    analysis = Analysis(
        "mcc", "classification", "test", 600, 3, results, contrasts, 0.5, "", ["A note."], TRAINED
    )
    return Analysis(**{**vars(analysis), "conclusion": conclude(analysis)})
