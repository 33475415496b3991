"""Training in real residues per second: seqtrain's step beside that of plain torch."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64

from seqtrain.bench.plain import bucketed_batches, random_batches
from seqtrain.bench.report import Figure, Report, describe_machine
from seqtrain.bench.synthetic import CLASSES, draw_dataset
from seqtrain.bench.timing import ModelClock, seconds_of
from seqtrain.bench.trainers import (
    BATCH_SIZE,
    EMBED_DIM,
    KERNEL_SIZE,
    NUM_LAYERS,
    packed_trainer,
    plain_trainer,
)
from seqtrain.board import TensorBoard
from seqtrain.data.batching import collate
from seqtrain.data.dataset import SequenceDataset
from seqtrain.nn.products import HAS_ONEDNN, linear
from seqtrain.reporting import JsonLines
from seqtrain.training.device import compile_blocks
from seqtrain.training.events import EpochEvent, StepEvent
from seqtrain.training.run_dir import RunDir

Batches = Sequence[Int64[np.ndarray, " _"]]


@dataclass(frozen=True)
class TrainBench:
    """How training is measured."""

    encoder: str = "cnn"
    """``cnn`` or ``transformer``."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: torch.dtype = torch.float32
    compile: bool = False
    """Compile the blocks of the packed model, as ``trainer.compile`` does on a GPU."""
    repetitions: int = 7
    num_batches: int = 8
    """Batches of each kind in a repetition."""
    num_records: int = 2048
    """From which batches are drawn; sorted by length they are to be even."""
    curve_steps: int = 80
    """Steps of the learning curves; 0 draws none."""
    curve_seeds: int = 3


def bench_train(settings: TrainBench) -> Report:
    """Rates of packed, random and bucketed training, what else a step costs, and what is learnt."""
    dataset = draw_dataset(settings.num_records)
    figures = measure_rates(settings, dataset)
    if settings.device.type == "cuda":
        figures += measure_memory(settings, dataset)
    figures += measure_overhead(settings, dataset)
    if settings.curve_steps:
        figures += compare_curves(settings, dataset)
    described = {
        "encoder": settings.encoder,
        "embed_dim": EMBED_DIM,
        "num_layers": NUM_LAYERS[settings.encoder],
        "sequences_per_batch": BATCH_SIZE,
        "precision": str(settings.precision).removeprefix("torch."),
        "compile": settings.compile,
        "repetitions": settings.repetitions,
        "batches_per_repetition": settings.num_batches,
        "mean_length": round(float(dataset.lengths.mean()), 1),
    }
    return Report("train", described, figures, describe_machine(settings.device))


def measure_rates(settings: TrainBench, dataset: SequenceDataset) -> list[Figure]:
    """Real residues per second of each form, step by step in turn.

    Packed and random batches hold the same records, bucketed ones come evenly from the shortest
    to the longest.
    """
    batches = draw_batches(dataset, settings.num_batches)
    seconds = {name: np.empty((settings.repetitions, settings.num_batches)) for name in batches}
    rows = [int(dataset.lengths[b].sum()) for b in batches["packed"]]
    multiply = matrix_products(settings, rows)
    products = {name: np.empty(settings.repetitions) for name in multiply}
    peak = np.empty(settings.repetitions)
    square, square_flops = square_product(settings)
    with tempfile.TemporaryDirectory() as folder:
        steps = training_steps(settings, dataset, Path(folder))
        for repetition in range(-1, settings.repetitions):  # one to warm up
            for number in range(settings.num_batches):
                for name, step in steps.items():
                    run = partial(step, batches[name][number])
                    seconds[name][repetition, number] = seconds_of(run, settings.device)
            for name, product in multiply.items():
                products[name][repetition] = seconds_of(product, settings.device)
            peak[repetition] = square_flops / seconds_of(square, settings.device)
    residues = {name: sum(int(dataset.lengths[b].sum()) for b in batches[name]) for name in batches}
    rates = {name: residues[name] / seconds[name].sum(axis=1) for name in batches}
    ours = seconds["packed"].sum(axis=1)
    shares = {name: float(np.median(taken / ours)) for name, taken in products.items()}
    flops = sum(rows) * 2 * np.prod(product_shape(settings.encoder)) * num_products(settings)
    of_peak = float(np.median(flops / ours / peak))
    return _rate_figures(settings.encoder, rates, shares, of_peak)


def draw_batches(dataset: SequenceDataset, number: int) -> dict[str, Batches]:
    """Batches of each form: those of one random order twice, and bucketed ones of all lengths."""
    shuffled = random_batches(len(dataset), BATCH_SIZE)[:number]
    in_order = bucketed_batches(dataset.lengths, BATCH_SIZE)
    # From the middle of equal stretches, so that neither end weighs more.
    places = ((np.arange(number) + 0.5) * len(in_order) / number).astype(int)
    evenly = [in_order[place] for place in places]
    return {"packed": shuffled, "random": shuffled, "bucketed": evenly}


def training_steps(
    settings: TrainBench, dataset: SequenceDataset, folder: Path
) -> dict[str, Callable[[Int64[np.ndarray, " B"]], object]]:
    """One step of each form, collation included, on the records given."""
    device, precision = settings.device, settings.precision
    ours = packed_trainer(
        settings.encoder, dataset, dataset, folder, device=device, precision=precision
    )
    if settings.compile:
        compile_blocks(ours.model, device)
    plain = plain_trainer(settings.encoder, dataset, device=device, precision=precision)
    return {
        "packed": lambda index: ours.step([collate(dataset, index, packed=True)]),
        "random": plain.step,
        "bucketed": plain.step,
    }


def product_shape(encoder: str) -> tuple[int, int]:
    """Columns of what a layer multiplies and of what comes out.

    Those of the convolutions, or of all linear layers together: attention's own products, which
    depend on each length, are left out.
    """
    if encoder == "transformer":
        return EMBED_DIM, 12 * EMBED_DIM
    return KERNEL_SIZE * EMBED_DIM, EMBED_DIM


def num_products(settings: TrainBench) -> int:
    """Of a step: forward, gradient of the input and of the weight are one each."""
    return 3 * NUM_LAYERS[settings.encoder]


def matrix_products(settings: TrainBench, rows: Sequence[int]) -> dict[str, Callable[[], None]]:
    """What multiplies matrices of the flops of one step for each number of residues, by library.

    Args:
        settings: Device, precision and encoder.
        rows: Residues of each batch.
    """
    inner, outer = product_shape(settings.encoder)
    device, dtype = settings.device, settings.precision
    left = torch.randn(max(rows), inner, device=device, dtype=dtype)
    right = torch.randn(inner, outer, device=device, dtype=dtype)
    weight, bias = right.T.contiguous(), right.new_zeros(outer)
    out = torch.empty(max(rows), outer, device=device, dtype=dtype)

    def repeat(multiply: Callable[[int], object]) -> Callable[[], None]:
        def all_of_them() -> None:
            for number in rows:
                for _ in range(num_products(settings)):
                    multiply(number)

        return all_of_them

    forms = {"torch.mm": repeat(lambda n: torch.mm(left[:n], right, out=out[:n]))}
    if device.type == "cpu" and dtype == torch.float32 and HAS_ONEDNN:
        forms["oneDNN"] = repeat(lambda n: linear(left[:n], weight, bias))
    return forms


def square_product(settings: TrainBench) -> tuple[Callable[[], object], float]:
    """A product as large as the device is fastest at, and its flops."""
    size = 8192 if settings.device.type == "cuda" else 2048
    left = torch.randn(size, size, device=settings.device, dtype=settings.precision)
    bias = left.new_zeros(size)
    return lambda: linear(left, left, bias), 2.0 * size**3


def _rate_figures(
    encoder: str, rates: dict[str, Float[np.ndarray, " R"]], shares: dict[str, float], peak: float
) -> list[Figure]:
    def ratio(other: str) -> float:
        return float(np.median(rates["packed"] / rates[other]))

    return [
        *(
            Figure(f"{name}: real residues", float(np.median(rate)), "per second")
            for name, rate in rates.items()
        ),
        Figure("packed over plain random", ratio("random"), "ratio", 3.0),
        Figure("packed over plain bucketed", ratio("bucketed"), "ratio", 1.3),
        *(
            Figure(
                f"packed over matrix products of the same flops, by {name}",
                share,
                "ratio",
                # Over the faster library: the other's says little about the machine.
                0.7 if encoder == "cnn" and share == min(shares.values()) else None,
            )
            for name, share in shares.items()
        ),
        Figure("packed: matrix flops over those of a large square product", peak, "share"),
    ]


def measure_memory(settings: TrainBench, dataset: SequenceDataset) -> list[Figure]:
    """Peak memory of a step on a GPU, packed beside padded, on the same records."""
    with tempfile.TemporaryDirectory() as folder:
        steps = training_steps(settings, dataset, Path(folder))
        index = random_batches(len(dataset), BATCH_SIZE)[0]
        peaks = {}
        for name in ("packed", "random"):
            steps[name](index)
            torch.cuda.reset_peak_memory_stats(settings.device)
            steps[name](index)
            peaks[name] = torch.cuda.max_memory_allocated(settings.device)
    return [Figure("peak memory, packed over padded", peaks["packed"] / peaks["random"], "ratio")]


def measure_overhead(settings: TrainBench, dataset: SequenceDataset) -> list[Figure]:
    """Share of an epoch that is not the model: plan, data, logging, metrics, checkpoints."""
    clock = ModelClock(settings.device)
    _fit(settings, dataset.subset(range(BATCH_SIZE)), clock)  # loads and compiles what there is
    clock.seconds = 0.0
    seconds = _fit(settings, dataset, clock)
    share = 1 - clock.seconds / seconds
    return [Figure("share of training that is not the model", share, "share", 0.05, at_most=True)]


def _fit(settings: TrainBench, train: SequenceDataset, clock: ModelClock) -> float:
    """Seconds of an epoch as `seqtrain train` has it, watched and validated."""
    valid = train.subset(range(len(train) // 8))
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        trainer = packed_trainer(
            settings.encoder,
            train,
            valid,
            run.path,
            device=settings.device,
            precision=settings.precision,
            max_epochs=1,
        )
        trainer.observers = [JsonLines(run.metrics), TensorBoard(run.tensorboard, {}, CLASSES)]
        with clock.watching(trainer.model, trainer.optimizer):
            seconds = seconds_of(trainer.fit, settings.device)
        for observer in trainer.observers:
            observer.close()
    return seconds


def compare_curves(settings: TrainBench, dataset: SequenceDataset) -> list[Figure]:
    """Loss in the second half of a short training, of both, from several seeds.

    On the same bucketed batches, where the plain norm counts hardly any padding: on random ones it
    is another norm, which begins with larger activations.
    """
    steps, half = settings.curve_steps, settings.curve_steps // 2
    device, precision = settings.device, settings.precision
    means: dict[str, list[float]] = {"packed": [], "plain": []}
    for seed in range(settings.curve_seeds):
        batches = bucketed_batches(dataset.lengths, BATCH_SIZE)
        turns = np.random.default_rng(seed).permutation(len(batches))
        order = [batches[turns[i % len(turns)]] for i in range(steps)]
        torch.manual_seed(seed)
        plain = plain_trainer(settings.encoder, dataset, device=device, precision=precision)
        for parameter in plain.model.head.parameters():  # seqtrain's begins so
            torch.nn.init.zeros_(parameter)
        means["plain"].append(float(np.mean([plain.step(index) for index in order][half:])))
        torch.manual_seed(seed)
        with tempfile.TemporaryDirectory() as folder:
            ours = packed_trainer(
                settings.encoder,
                dataset,
                dataset,
                Path(folder),
                device=device,
                precision=precision,
            )
            ours.observers = [curve := Losses()]
            for index in order:
                ours.step([collate(dataset, index, packed=True)])
        means["packed"].append(float(np.mean(curve.losses[half:])))
    spread = float(np.sqrt(np.mean([np.var(values, ddof=1) for values in means.values()])))
    return [
        *(
            Figure(f"{name}: mean loss of steps {half} to {steps}", float(np.mean(values)), "nats")
            for name, values in means.items()
        ),
        Figure("spread of that loss over seeds", spread, "nats"),
    ]


class Losses:
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step(self, event: StepEvent) -> None:
        """Keep it."""
        self.losses.append(event.loss)

    def on_epoch(self, event: EpochEvent) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing is open."""
