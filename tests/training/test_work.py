"""What a packed training step costs, counted rather than timed: the same on every machine."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from tiny_training import tiny_dataset, tiny_trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqtrain.config import ENCODERS
from seqtrain.data.batching import collate, plan_batches
from seqtrain.nn.layout import ROW_QUANTUM, Layout, packed_layout
from seqtrain.training.losses import sequence_loss

LENGTHS = [60, 41, 30, 30, 7, 1]
CHANNELS = 8  # of the tiny models
STATES = sum(LENGTHS) * CHANNELS
CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """What other threads do is not seen by who counts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Calls(TorchDispatchMode):
    """Counts operations, and separately those whose result is as large as the hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.all: Counter[str] = Counter()
        self.large: Counter[str] = Counter()
        self.shapes: dict[str, list[torch.Size]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.all[name] += 1
        if isinstance(out, Tensor) and out.numel() >= STATES:
            self.large[name] += 1
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if name == "_local_scalar_dense" and first is not None and first.is_floating_point():
            self.all["number read"] += 1
        self.shapes.setdefault(name, []).append(torch.Size() if first is None else first.shape)
        return out


def packed_step(model: torch.nn.Module, device: torch.device) -> None:
    tokens = torch.randint(1, 20, (1, sum(LENGTHS)), device=device)
    targets = torch.randint(0, 3, (len(LENGTHS),), device=device)
    logits = model(tokens, torch.tensor(LENGTHS), True)
    total, count = sequence_loss("classification", logits, targets)
    (total / count).backward()


@pytest.mark.parametrize("norm", ["masked_batch", "layer", "masked_group", "masked_layer"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_packed_step_never_waits_for_the_device(encoder: str, norm: str) -> None:
    """Meta tensors have no values: whatever would fetch one from a GPU fails here."""
    packed_step(tiny_model(encoder, norm).train().to(META), META)


@contextmanager
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    reads: Counter[str] = Counter()

    def counting(name: str) -> Callable[[Tensor], Any]:
        plain = getattr(Tensor, name)

        def read(self: Tensor) -> Any:
            reads[name] += self.is_floating_point()  # whole numbers are lengths, on the host
            return plain(self)

        return read

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__float__", "__bool__", "numpy", "cpu"):
            patch.setattr(Tensor, name, counting(name))
        yield reads


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_trainer_reads_from_the_device_once_a_step(
    accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_trainer(tmp_path, batching="packed")
    batches = [collate(trainer.train, np.arange(4), packed=True) for _ in range(accumulate)]
    trainer.model.train()
    with counted_reads(monkeypatch) as reads, Calls() as calls:
        trainer.step(batches)
    assert +reads == Counter(tolist=1)
    assert calls.all["number read"] == 0


@pytest.mark.parametrize("encoder", ENCODERS)
def test_no_operation_fills_or_copies_all_states_once_per_sequence(encoder: str) -> None:
    """The gradient of a slice fills everything it was cut from: 32 sequences, 32 fills."""
    model = tiny_model(encoder, "masked_batch" if encoder == "cnn" else "layer").train()
    with Calls() as calls:
        packed_step(model, CPU)
    for name in ("slice_backward", "select_backward", "index_put", "_index_put_impl_"):
        assert calls.large[name] == 0, name
    # While operations are watched a norm takes its plain form, which gathers rows once.
    norms = len(model.encoder.blocks) if encoder == "cnn" else 0
    assert calls.large["index_add"] <= norms
    copies = sum(calls.large[name] for name in ("clone", "copy_", "_to_copy", "fill_", "zero_"))
    # A convolution's gradient of the kernel cuts its row in pieces; a norm's plain form fills one.
    assert copies <= 2 * norms


def test_a_convolution_computes_gaps_and_less_than_a_quantum_more() -> None:
    model = tiny_model("cnn").train()
    with Calls() as calls:
        packed_step(model, CPU)
    widths = [shape[-1] for shape in calls.shapes["convolution"]]
    assert len(widths) == len(model.encoder.blocks)
    needed = sum(LENGTHS) + (len(LENGTHS) - 1) * model.encoder.reach
    for width in widths:
        assert needed <= width < needed + ROW_QUANTUM


def test_a_row_is_opened_and_closed_once_for_all_convolutions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    def counting(name: str) -> Callable[[Layout, Tensor], Tensor]:
        plain = getattr(Layout, name)

        def counted(self: Layout, x: Tensor) -> Tensor:
            done.append(name)
            return plain(self, x)

        return counted

    for name in ("open", "close"):
        monkeypatch.setattr(Layout, name, counting(name))
    packed_step(tiny_model("cnn").train(), CPU)
    assert done == ["open", "close"]


def test_an_epoch_of_packed_rows_comes_in_few_widths() -> None:
    """oneDNN compiles a convolution for each; gaps as wide as kernels of the default CNN reach."""
    lengths = np.random.default_rng(0).lognormal(np.log(180), 0.7, 4000).clip(30, 1000)
    lengths = lengths.astype(np.int64)
    plan = plan_batches(lengths, "packed", max_tokens=8192)
    layouts = (packed_layout(torch.from_numpy(lengths[batch]), CPU) for batch in plan)
    widths = {len(layout.with_gaps(48).sequences) for layout in layouts}
    assert len(plan) > 100
    assert len(widths) <= 10


def test_attention_computes_the_squares_of_the_lengths_and_nothing_else() -> None:
    model = tiny_model("transformer", "layer").train()
    with Calls() as calls:
        packed_step(model, CPU)
    found = calls.shapes["_scaled_dot_product_flash_attention_for_cpu"]
    squares = sum(shape[2] ** 2 for shape in found)
    assert squares == len(model.encoder.blocks) * sum(length**2 for length in LENGTHS)


def test_the_plain_forms_compute_what_the_plan_says() -> None:
    """Positions of the padded batches of one epoch, and of packed ones."""
    dataset = tiny_dataset(num_records=200)
    for kind in ("packed", "bucketed", "random"):
        plan = plan_batches(dataset.lengths, kind, max_tokens=300)
        batches = [collate(dataset, index, packed=kind == "packed") for index in plan]
        positions = sum(batch.tokens.numel() for batch in batches)
        longest = sum(len(index) * int(dataset.lengths[index].max()) for index in plan)
        assert positions == (len(dataset.tokens) if kind == "packed" else longest)
