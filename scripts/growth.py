"""Draw how time and memory grow with records, residues and lengths.

    python scripts/growth.py [DOCS] [--largest 1000000]

Each point is a process of its own, so that its peak memory is its own. Shown is what it took beyond
the loaded program, without the pages of mapped files, which the system takes back when it wants to.
Writes growth-records.png and growth-lengths.png. A quarter of an hour on one core.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RECORDS = (1_000, 10_000, 100_000, 1_000_000)
LENGTHS = (100, 316, 1_000, 3_162, 10_000, 31_623, 100_000)
TOKENS = (2_048, 4_096, 8_192, 16_384, 32_768, 65_536)
TOKENS_OF_LENGTHS = 100_000
"""Residues of a step at every length: many short sequences, or one long."""
LONGEST_ATTENTION = 3_162
"""Beyond it a step of the transformer takes a minute and more."""
EMBED_DIM, NUM_LAYERS = 32, 3

Point = dict[str, Any]


def memory() -> float:
    """``RssAnon`` of this process, in MB; Linux only."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


class MostMemory(threading.Thread):
    """The most memory seen, every 10 ms, since it was started."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.megabytes = memory()
        self.start()

    def run(self) -> None:
        """Until the process ends."""
        while True:
            self.megabytes = max(self.megabytes, memory())
            time.sleep(0.01)


def measure(kind: str, size: int, folder: Path) -> Point:
    """One point, in this process: seconds, and MB beyond the loaded program."""
    import torch

    torch.set_num_threads(1)
    load_program(folder)
    before, most = memory(), MostMemory()
    point = MEASURES[kind](kind, size, folder)
    return {"kind": kind, "size": size, **point, "megabytes": most.megabytes - before}


def load_program(folder: Path) -> None:
    """All that a step and a prediction load and compile."""
    import numpy as np

    from seqtrain.bench.synthetic import draw_dataset
    from seqtrain.data.batching import collate

    for module in ("data.prepare", "evaluation.predict", "evaluation.writing"):
        importlib.import_module(f"seqtrain.{module}")
    trainer = trainer_on(draw_dataset(64), "cnn", 8192, folder)
    trainer.step([collate(trainer.train, np.arange(64), packed=True)])


def trainer_on(dataset: Any, encoder: str, max_tokens: int, folder: Path) -> Any:
    from seqtrain.bench.synthetic import CLASSES, CODEC, TOKENIZER
    from seqtrain.bench.trainers import packed_config
    from seqtrain.build import build_model, build_optimizer
    from seqtrain.training.objective import Objective
    from seqtrain.training.run_dir import RunDir
    from seqtrain.training.trainer import Trainer, TrainerSettings

    config = packed_config(encoder)
    config.encoder.embed_dim, config.encoder.num_layers = EMBED_DIM, NUM_LAYERS
    model = build_model(config, TOKENIZER, CODEC)
    settings = TrainerSettings(1, 0, "loss", "packed", max_tokens, None, len(CLASSES))
    optimizer = build_optimizer(config.optim, model)
    objective = Objective("classification")
    return Trainer(model, objective, optimizer, settings, dataset, dataset, RunDir(folder))


def quickest_step(trainer: Any, batches: Sequence[Any]) -> float:
    """Seconds per residue of the step least disturbed by other work; the first one is left out."""
    from seqtrain.data.batching import collate

    seconds = []
    for index in batches:
        began = time.perf_counter()
        trainer.step([collate(trainer.train, index, packed=True)])
        seconds.append((time.perf_counter() - began) / int(trainer.train.lengths[index].sum()))
    return min(seconds[1:])


def train_records(kind: str, size: int, folder: Path) -> Point:
    """From files and a table of labels: all that comes before training, and a step."""
    from seqtrain.data.batching import plan_batches
    from seqtrain.data.prepare import prepare_data

    began = time.perf_counter()
    suffix = "arrow" if kind == "store" else "fasta"
    parts = {part: [str(path)] for part, path in input_paths(folder, size, suffix).items()}
    dataset = prepare_data(**parts, labels=[str(labels_path(folder, size))]).train
    read = time.perf_counter() - began
    began = time.perf_counter()
    plan = plan_batches(dataset.lengths, "packed", max_tokens=8192)
    planned = time.perf_counter() - began
    trainer = trainer_on(dataset, "cnn", 8192, folder)
    step = 8192 * quickest_step(trainer, plan[:21])
    return {"seconds": step, "plan_seconds": planned, "read_seconds": read}


def tokenize_records(_kind: str, size: int, folder: Path) -> Point:
    """From FASTA files to their stores."""
    from seqtrain.data.check import tokenizer_for
    from seqtrain.data.store import write_store
    from seqtrain.data.tokenized import tokenize_fasta

    began = time.perf_counter()
    for path in input_paths(folder, size, "fasta").values():
        write_store(
            path.with_suffix(".arrow"), *tokenize_fasta([str(path)], tokenizer_for, folder=folder)
        )
    return {"seconds": time.perf_counter() - began}


def predict_records(_kind: str, size: int, folder: Path) -> Point:
    """From a FASTA file to a table."""
    from seqtrain.bench.synthetic import CODEC, TOKENIZER
    from seqtrain.bench.trainers import packed_config
    from seqtrain.build import build_model
    from seqtrain.data.fasta import scan_fasta
    from seqtrain.evaluation.predict import Predictor
    from seqtrain.evaluation.tables import Table
    from seqtrain.evaluation.writing import write_predictions

    config = packed_config("cnn")
    config.encoder.embed_dim, config.encoder.num_layers = EMBED_DIM, NUM_LAYERS
    predictor = Predictor([build_model(config, TOKENIZER, CODEC).eval()], TOKENIZER, CODEC, 8192)
    began = time.perf_counter()
    entries = scan_fasta(list(input_paths(folder, size, "fasta").values()))
    number = write_predictions(folder / "out.tsv", predictor(entries), Table(CODEC))
    if number != size:
        raise RuntimeError(f"{number} predictions for {size} records")
    return {"seconds": (time.perf_counter() - began) / size}


def step_at_length(kind: str, size: int, folder: Path) -> Point:
    """A step of equally long records, always as many residues."""
    return step_of(kind, TOKENS_OF_LENGTHS // size, size, folder)


def step_of_tokens(_kind: str, size: int, folder: Path) -> Point:
    """A step of the CNN of so many residues."""
    return step_of("cnn", size // 256, 256, folder)


def step_of(encoder: str, number: int, length: int, folder: Path) -> Point:
    import numpy as np

    from seqtrain.bench.synthetic import draw_dataset

    dataset = draw_dataset(number, length=length)
    trainer = trainer_on(dataset, encoder, number * length, folder)
    num_steps = 6 if encoder == "cnn" else 2
    per_residue = quickest_step(trainer, [np.arange(number)] * num_steps)
    return {"seconds": number * length * per_residue}


MEASURES: dict[str, Callable[[str, int, Path], Point]] = {
    "train": train_records,
    "tokenize": tokenize_records,
    "store": train_records,
    "predict": predict_records,
    "cnn": step_at_length,
    "transformer": step_at_length,
    "tokens": step_of_tokens,
}


def labels_path(folder: Path, size: int) -> Path:
    return folder / f"{size}.tsv"


def input_paths(folder: Path, size: int, suffix: str) -> dict[str, Path]:
    return {part: folder / f"{part}{size}.{suffix}" for part in ("train", "valid")}


def write_inputs(folder: Path, size: int) -> None:
    """FASTA files, a tenth of the records for validation, their stores, and a table of labels."""
    import numpy as np

    from seqtrain.bench.synthetic import CLASSES, draw_dataset, write_fasta

    dataset = draw_dataset(size)
    records = np.arange(size)
    first = {"train": size // 10, "valid": 0}
    parts = {"train": records[first["train"] :], "valid": records[: first["train"]]}
    for part, path in input_paths(folder, size, "fasta").items():
        write_fasta(path, dataset.subset(parts[part]), first[part])
    with labels_path(folder, size).open("w", encoding="utf-8") as file:
        file.write("id\tlabel\n")
        classes = [CLASSES[dataset.target(i)] for i in range(size)]
        file.writelines(f"{i}\t{label}\n" for i, label in zip(dataset.ids, classes, strict=True))
    tokenize_records("", size, folder)


def in_a_process(*arguments: str) -> str:
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure_all(folder: Path, largest: int) -> list[Point]:
    sizes = [size for size in RECORDS if size <= largest]
    for size in sizes:
        in_a_process("--write", str(size), "--folder", str(folder))
    asked = [
        *((kind, size) for kind in ("train", "tokenize", "store", "predict") for size in sizes),
        *(("cnn", length) for length in LENGTHS),
        *(("transformer", length) for length in LENGTHS if length <= LONGEST_ATTENTION),
        *(("tokens", tokens) for tokens in TOKENS),
    ]
    points = []
    for kind, size in asked:
        told = in_a_process("--measure", kind, str(size), "--folder", str(folder))
        points.append(json.loads(told))
        print(points[-1], flush=True)
    return points


def draw(points: list[Point], docs: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def of(kind: str, field: str) -> tuple[list[float], list[float]]:
        chosen = [point for point in points if point["kind"] == kind]
        return [point["size"] for point in chosen], [point[field] for point in chosen]

    def line(axis: Any, kind: str, field: str, label: str, colour: str, scale: float = 1) -> None:
        sizes, values = of(kind, field)
        axis.plot(sizes, [scale * v for v in values], "o-", color=colour, label=label, markersize=4)

    blue, orange, green, purple, grey = "#2f6fab", "#d0702f", "#3a8f5c", "#7a5aa6", "#5b6770"
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    line(axes[0], "train", "read_seconds", "FASTA read and tokenized (s)", purple)
    line(axes[0], "store", "read_seconds", "their stores read (s)", grey)
    line(axes[0], "train", "plan_seconds", "plan of an epoch (s)", green)
    line(axes[0], "train", "seconds", "training step (s)", blue)
    line(axes[0], "predict", "seconds", "predict, per record (s)", orange)
    line(axes[1], "train", "megabytes", "train, from FASTA and a table", blue)
    line(axes[1], "store", "megabytes", "train, from stores and a table", grey)
    line(axes[1], "tokenize", "megabytes", "data tokenize", purple)
    line(axes[1], "predict", "megabytes", "predict, from FASTA", orange)
    _finish(axes, "records", ("seconds", "MB beyond the program"))
    figure.savefig(docs / "growth-records.png", dpi=130)

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for axis, field in zip(axes, ("seconds", "megabytes"), strict=False):
        line(axis, "cnn", field, "CNN", blue)
        line(axis, "transformer", field, "transformer", orange)
    label = f"length of each sequence ({TOKENS_OF_LENGTHS:,} residues a step)"
    _finish(axes[:2], label, ("seconds of a step", "MB beyond the program"))
    line(axes[2], "tokens", "seconds", "CNN", blue)
    sizes, seconds = of("tokens", "seconds")
    if sizes:
        slope = seconds[-1] / sizes[-1]
        proportional = [slope * size for size in sizes]
        axes[2].plot(sizes, proportional, "--", color="0.6", label="proportional", linewidth=1)
    _finish(axes[2:], "residues of a step", ("seconds of a step",))
    figure.savefig(docs / "growth-lengths.png", dpi=130)


def _finish(axes: Any, xlabel: str, ylabels: Sequence[str]) -> None:
    from matplotlib.ticker import NullFormatter

    for axis, ylabel in zip(axes, ylabels, strict=True):
        stays = ylabel.startswith("MB") and xlabel != "records"
        axis.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
        axis.set(yscale="linear" if stays else "log", ylim=(0, None) if stays else None)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("docs", nargs="?", type=Path, default=Path(__file__).parents[1] / "docs")
    parser.add_argument("--largest", type=int, default=RECORDS[-1], help="most records")
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "SIZE"), help="one point only")
    parser.add_argument("--write", type=int, metavar="RECORDS", help="inputs only")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.measure:
        kind, size = asked.measure
        print(json.dumps(measure(kind, int(size), asked.folder)))
    elif asked.write:
        write_inputs(asked.folder, asked.write)
    else:
        with tempfile.TemporaryDirectory() as folder:
            draw(measure_all(Path(folder), asked.largest), asked.docs)


if __name__ == "__main__":
    main()
