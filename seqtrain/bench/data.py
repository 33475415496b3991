"""From file to batches and from file to predictions, beside what a user would write."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from seqtrain.bench.plain import PlainModel, pad_batch
from seqtrain.bench.report import Figure, Report, describe_machine
from seqtrain.bench.synthetic import CODEC, TOKENIZER, draw_dataset, draw_lengths, write_fasta
from seqtrain.bench.timing import ModelClock, alternate, paired_ratio
from seqtrain.bench.trainers import BATCH_SIZE, packed_model, plain_model
from seqtrain.data.batching import collate, plan_batches
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.fasta import Record, scan_fasta
from seqtrain.data.tokenizer import PAD
from seqtrain.evaluation.predict import Predictor
from seqtrain.evaluation.tables import Table
from seqtrain.evaluation.writing import write_predictions

PLANNED = 1_000_000
"""Records of the plans that are timed."""


@dataclass(frozen=True)
class DataBench:
    """How data and predictions are measured."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: torch.dtype = torch.float32
    repetitions: int = 3
    num_records: int = 2000


def bench_data(settings: DataBench) -> Report:
    """Rates of reading, tokenizing, planning and collating, and predictions beside a plain loop."""
    dataset = draw_dataset(settings.num_records)
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder) / "records.fasta"
        write_fasta(fasta, dataset)
        figures = measure_data(settings, dataset, fasta) + measure_predict(settings, dataset, fasta)
    described = {
        "records": settings.num_records,
        "residues": len(dataset.tokens),
        "precision": str(settings.precision).removeprefix("torch."),
        "repetitions": settings.repetitions,
    }
    return Report("data", described, figures, describe_machine(settings.device))


def measure_data(settings: DataBench, dataset: SequenceDataset, fasta: Path) -> list[Figure]:
    """What lies between a file and a batch; all of it runs on the CPU."""
    records = [entry for entry in scan_fasta([fasta]) if isinstance(entry, Record)]
    batches = plan_batches(dataset.lengths, "packed", max_tokens=8192)
    many = draw_lengths(PLANNED)
    seconds = alternate(
        {
            "read": lambda: list(scan_fasta([fasta])),
            "tokenize": lambda: [TOKENIZER.encode(record.sequence) for record in records],
            "plan": lambda: plan_batches(many, "packed", max_tokens=8192),
            "collate": lambda: [collate(dataset, index, packed=True) for index in batches],
            "pad": lambda: [pad_batch(dataset, index) for index in batches],
        },
        settings.repetitions,
        torch.device("cpu"),
        warm_up=1,
    )
    residues = len(dataset.tokens)
    rates = {name: residues / float(np.median(seconds[name])) for name in seconds}
    return [
        Figure("read FASTA: residues", rates["read"], "per second"),
        Figure("tokenize: residues", rates["tokenize"], "per second"),
        Figure(
            "plan packed batches: records",
            PLANNED / float(np.median(seconds["plan"])),
            "per second",
        ),
        Figure("collate packed: residues", rates["collate"], "per second"),
        Figure(
            "collate packed over pad_sequence",
            paired_ratio(seconds["pad"], seconds["collate"]),
            "ratio",
        ),
    ]


def measure_predict(settings: DataBench, dataset: SequenceDataset, fasta: Path) -> list[Figure]:
    """From a FASTA file to a table: `seqtrain predict` beside a padded loop in file order."""
    device = settings.device
    model = packed_model("cnn").to(device).eval()
    plain = plain_model("cnn", int(dataset.lengths.max())).to(device).eval()
    budget = BATCH_SIZE * round(float(dataset.lengths.mean()))
    predictor = Predictor([model], TOKENIZER, CODEC, budget, settings.precision)
    clock, tables = ModelClock(device), fasta.with_suffix(".tsv")

    def ours() -> None:
        with clock.watching(model):
            write_predictions(tables, predictor(scan_fasta([fasta])), Table(CODEC))

    cases: dict[str, Callable[[], object]] = {
        "ours": ours,
        "loop": partial(padded_loop, plain, fasta, fasta.with_suffix(".plain.tsv"), settings),
    }
    seconds = alternate(cases, settings.repetitions, device, warm_up=0)
    _check_order(tables, dataset)
    rate = len(dataset.tokens) / float(np.median(seconds["ours"]))
    return [
        Figure("predict: real residues", rate, "per second"),
        Figure(
            "predict over a padded loop in file order",
            paired_ratio(seconds["loop"], seconds["ours"]),
            "ratio",
            3.0,
        ),
        Figure(
            "share of predict that is the model",
            clock.seconds / float(seconds["ours"].sum()),
            "share",
            0.8,
        ),
    ]


@torch.inference_mode()
def padded_loop(model: PlainModel, fasta: Path, table: Path, settings: DataBench) -> None:
    """The usual script: some records at a time in file order, padded to the longest, one by one."""
    tokens_of = {letter: number for number, letter in enumerate(TOKENIZER.vocab)}
    with table.open("w", encoding="utf-8") as file:
        records = _plain_records(fasta)
        while chunk := list(islice(records, BATCH_SIZE)):
            rows = [torch.tensor([tokens_of[letter] for letter in text]) for _, text in chunk]
            tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
            with torch.autocast(
                settings.device.type,
                settings.precision,
                enabled=settings.precision != torch.float32,
            ):
                logits = model(tokens.to(settings.device))
            for (name, _), values in zip(chunk, logits.float().softmax(1).tolist(), strict=True):
                file.write("\t".join([name, *(f"{value:.7g}" for value in values)]) + "\n")


def _plain_records(fasta: Path) -> Iterator[tuple[str, str]]:
    """Names and sequences of a FASTA file."""
    name, lines = "", list[str]()
    with fasta.open(encoding="ascii") as file:
        for line in file:
            if not line.startswith(">"):
                lines.append(line.strip())
                continue
            if name:
                yield name, "".join(lines)
            name, lines = line[1:].strip(), []
    yield name, "".join(lines)


def _check_order(table: Path, dataset: SequenceDataset) -> None:
    """A rate of predictions that came in another order would mean nothing."""
    rows = table.read_text(encoding="utf-8").splitlines()[2:]
    found = [row.split("\t", 1)[0] for row in rows]
    if found != list(dataset.ids):
        raise RuntimeError("predictions are not in the order of the input")
