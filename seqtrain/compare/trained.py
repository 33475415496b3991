"""An account of what a comparison trained, for the top of its report."""

import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import seqtrain
from seqtrain.compare.plan import Comparison
from seqtrain.config import RunConfig
from seqtrain.data.dataset import SequenceDataset
from seqtrain.pipeline import Plan
from seqtrain.words import counted

Fact = tuple[str, str]
"""The subject, and the statement."""


def trained_facts(
    comparison: Comparison,
    results: Sequence[dict[str, Any]],
    command: Sequence[str] | None = None,
    now: datetime | None = None,
) -> list[Fact]:
    """Data, model, settings, seeds, versions, date and command of a comparison.

    Args:
        comparison: What was trained.
        results: From ``run.collect``: parameters, epochs and devices are those of finished arms.
        command: The words of the command line; None where another program asked for it.
        now: The date of the report; the clock's if not given.
    """
    plans = list(comparison.plans.values())
    done = [r for r in results if r["status"] == "ok"]
    date = (now or datetime.now().astimezone()).isoformat(" ", "seconds")
    facts = [
        *_data_facts(plans[0]),
        ("model", "; ".join(_model(name, comparison, done) for name in comparison.plans)),
        ("training", "; ".join(dict.fromkeys(_training(plan.config) for plan in plans))),
        ("epochs trained", _span(r["curve"][-1]["epoch"] for r in done if r["curve"])),
        ("seeds", f"{comparison.num_seeds} (0 to {comparison.num_seeds - 1})"),
        ("device", _listed(r["device"] for r in done if "device" in r)),
        (
            "versions",
            ", ".join(
                [
                    f"seqtrain {seqtrain.__version__}",
                    *sorted({f"torch {r['torch']}" for r in done if "torch" in r}),
                ]
            ),
        ),
        ("report written", date),
        ("command", shlex.join(command) if command is not None else ""),
    ]
    return [(name, text) for name, text in facts if text]


def _data_facts(plan: Plan) -> list[Fact]:
    """Files, and the records and residues of each part as they were trained on or scored."""
    data = plan.data
    parts = {"train": data.train, "valid": data.valid, "test": data.test}
    sizes = [_size(name, part) for name, part in parts.items() if part is not None]
    return [
        ("task", f"{data.codec.task} of {data.tokenizer.alphabet.name} sequences"),
        *(
            (f"{name} files", ", ".join(map(_file, files)))
            for name, files in data.report["files"].items()
        ),
        ("records", "; ".join(sizes)),
    ]


def _file(facts: dict[str, Any]) -> str:
    """Name, size and the beginning of the checksum; a pipe has only the first."""
    name = Path(facts["path"]).name or facts["path"]
    if "bytes" not in facts:
        return name
    return f"{name} ({facts['bytes']:,} bytes, SHA-256 {facts['sha256'][:12]}…)"


def _size(name: str, part: SequenceDataset) -> str:
    lengths = part.lengths
    return (
        f"{name} {len(part):,} with {int(lengths.sum()):,} residues, "
        f"{lengths.min():,} to {lengths.max():,} each"
    )


def _model(name: str, comparison: Comparison, done: Sequence[dict[str, Any]]) -> str:
    encoder = comparison.plans[name].config.encoder
    sizes = [r["num_parameters"] for r in done if r["encoder"] == name and "num_parameters" in r]
    weights = f", {_span(sizes)} parameters" if sizes else ""
    return f"{name}, {encoder.num_layers} layers of {encoder.embed_dim} channels{weights}"


def _training(config: RunConfig) -> str:
    trainer, optim = config.trainer, config.optim
    stop = f"patience {trainer.patience}" if trainer.patience else "no early stopping"
    epochs = counted(trainer.max_epochs or 0, "epoch")
    return (
        f"at most {epochs}, {stop}, checkpoint of the best {trainer.monitor}; AdamW, learning "
        f"rate {optim.lr:g}, weight decay {optim.weight_decay:g}; batches of at most "
        f"{config.batching.max_tokens:,} positions"
    )


def _span(numbers: Iterable[int]) -> str:
    """``few to many``, or the one number that all are."""
    found = sorted(set(numbers))
    return " to ".join(f"{number:,}" for number in dict.fromkeys([*found[:1], *found[-1:]]))


def _listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))
