"""Checks of the JSON files of a run directory or a bundle, field by field."""

from collections.abc import Mapping
from typing import Any

from seqtrain.config import RunConfig
from seqtrain.data.labels import LabelCodec, is_residue
from seqtrain.data.schema import (
    anything,
    boolean,
    integer,
    list_of,
    mapping,
    number,
    optional,
    record,
    text,
)
from seqtrain.data.tokenizer import Tokenizer

_MOST_RESIDUES = 2**53
_any_number = optional(number(finite=False))
_lengths = record(
    {"min": number(0, _MOST_RESIDUES), "max": number(0, _MOST_RESIDUES)},
    {"median": number(0, _MOST_RESIDUES)},
)
_range = {
    "shortest": integer(0, _MOST_RESIDUES),
    "longest": integer(0, _MOST_RESIDUES),
    "composition": list_of(number(0, 1), most=256),
    "overdispersion": number(0),
    "farthest": number(0),
}
_report = record(
    {"tokenizer": mapping(text), "labels": mapping(anything)},
    {
        "fingerprints": optional(mapping(text)),
        "files": mapping(list_of(record({"path": text}))),
        "parts": mapping(optional(record({"records": integer()}, {"lengths": optional(_lengths)}))),
        "training_range": optional(
            record({name: _range[name] for name in ("shortest", "longest", "composition")}, _range)
        ),
        "warnings": list_of(text),
        "choices": list_of(record({"key": text})),
        "pretrained": optional(record({"path": text, "task": text, "model": text})),
    },
)
_progress = {
    **dict.fromkeys(("epoch", "batch", "step", "best_epoch", "residues", "positions"), integer()),
    **dict.fromkeys(("loss_sum", "loss_count", "seconds"), number()),
    "best": _any_number,
    "done": boolean,
}
_state = record(
    {"progress": record({}, _progress)}, {"valid": mapping(_any_number), "threads": integer(1)}
)
_interval = record({"value": _any_number, "low": _any_number, "high": _any_number})
_scored = optional(
    record({}, {"metrics": mapping(_interval), "alarms": list_of(text), "n": integer()})
)
_errors = record({"as_trained": _any_number, "calibrated": _any_number})
_summary = record(
    {},
    {
        **dict.fromkeys(("epochs", "steps", "best_epoch", "num_parameters"), integer()),
        **dict.fromkeys(("task", "monitor"), text),
        "seconds": number(0),
        "calibration": record({}, {"words": text, "error": mapping(_errors)}),
        "valid": _scored,
        "test": _scored,
        "warnings": list_of(text),
    },
)


def check_report(report: Any) -> tuple[Tokenizer, LabelCodec]:
    """The tokenizer and label codec of a data report whose fields are as they should be.

    Raises:
        ValueError: Names a field that is missing, of the wrong type or out of range.
        ConfigError: A policy, alphabet or task is not known.
    """
    _report(report, "data.json")
    if report.get("parts") and not report.get("fingerprints"):
        raise ValueError("data.json: 'fingerprints' is missing")
    tokenizer = Tokenizer.from_dict(report["tokenizer"])
    codec = LabelCodec.from_dict(report["labels"])
    if found := report.get("training_range"):
        strange = sorted(found.keys() - _range.keys())
        if strange:
            raise ValueError(f"data.json.training_range: this version does not know {strange[0]!r}")
        if len(found["composition"]) not in (0, tokenizer.vocab_size - 1):
            raise ValueError(
                "data.json.training_range.composition: expected a number for each of "
                f"{tokenizer.vocab_size - 1} tokens, found {len(found['composition'])}"
            )
    return tokenizer, codec


def check_state(state: Any) -> None:
    """Refuse the state of a checkpoint with a field that is not as it should be.

    Raises:
        ValueError: Names the field.
    """
    _state(state, "state.json")
    strange = sorted(state["progress"].keys() - _progress.keys())
    if strange:
        raise ValueError(f"state.json.progress: this version does not know {strange[0]!r}")


def check_summary(summary: Any) -> Mapping[str, Any]:
    """The final numbers of a run, whose fields are as they should be.

    Raises:
        ValueError: Names a field of the wrong type or out of range.
    """
    _summary(summary, "summary.json")
    checked: Mapping[str, Any] = summary
    return checked


def check_resolved(config: RunConfig, task: str) -> None:
    """Refuse saved settings in which something is open that a trained model has.

    Raises:
        ValueError: Names the setting.
    """
    wanted: dict[str, Any] = {
        "encoder.embed_dim": config.encoder.embed_dim,
        "encoder.num_layers": config.encoder.num_layers,
        "batching.max_tokens": config.batching.max_tokens,
    }
    if not is_residue(task):
        wanted["task.pooling"] = config.task.pooling
    if config.task.pooling == "position":
        wanted["task.positions"] = config.task.positions
    for name, value in wanted.items():
        if value is None:
            raise ValueError(f"{name}: expected a value, found none")
