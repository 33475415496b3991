"""Run directories as after a training, made without one."""

from pathlib import Path

import numpy as np
from tiny_models import CODECS, TOKENIZER, tiny_config, tiny_model

from seqtrain.data.labels import is_residue
from seqtrain.evaluation.score import TrainingPart
from seqtrain.training.checkpoint import save_checkpoint
from seqtrain.training.run_dir import RunDir, create_run
from seqtrain.training.sums import listed_file

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def tiny_run(
    folder: Path,
    task: str = "classification",
    encoder: str = "cnn",
    norm: str = "masked_batch",
    pooling: str = "mean_max",
) -> Path:
    """A run directory with a model in which every weight matters; returns ``folder``."""
    run = RunDir(folder)
    config = tiny_config(encoder, norm, None if is_residue(task) else pooling)
    config.batching.max_tokens = 512
    config.data.train = ["/home/somebody/secret/train.fasta"]
    lengths = {"min": 4.0, "median": 30.0, "max": 90.0}
    report = {
        "tokenizer": TOKENIZER.to_dict(),
        "labels": CODECS[task].to_dict(),
        "fingerprints": {"train": "0" * 64},
        "files": {"train": [{"path": "/home/somebody/secret/train.fasta", "sha256": "1" * 64}]},
        "parts": {"train": {"records": 3, "residues": 124, "lengths": lengths}},
        "warnings": [],
    }
    create_run(run, config, report)
    progress = {"epoch": 1, "best_epoch": 1}
    model = tiny_model(encoder, norm, pooling, task)
    save_checkpoint(run.checkpoint("best"), model, {"progress": progress})
    targets = np.arange(3) if task == "classification" else np.array([1.0, 2.0, 3.0])
    with listed_file(run.training_part) as partial:
        TrainingPart(np.array([4, 30, 90]), targets).write(partial)
    return folder


def random_fasta(path: Path, lengths: list[int], seed: int = 0, label: str | None = None) -> Path:
    """Random records called r0, r1, ...; with ``label=...`` in the headers if given."""
    draw = np.random.default_rng(seed)
    note = "" if label is None else f" label={label}"
    records = (
        f">r{i}{note}\n{''.join(draw.choice(list(LETTERS), n))}\n" for i, n in enumerate(lengths)
    )
    path.write_text("".join(records))
    return path
