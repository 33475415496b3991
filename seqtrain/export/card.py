"""The model card: what a bundle says of itself, in Markdown with Hugging Face front matter."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from seqtrain.data.labels import is_regression
from seqtrain.escaping import code_for_markdown, for_markdown
from seqtrain.training.checkpoint import LoadedRun
from seqtrain.words import counted

MAX_LISTED = 100
"""Classes that the card names."""

_PIPELINES = {
    "classification": "text-classification",
    "multilabel": "text-classification",
    "residue_classification": "token-classification",
    "residue_regression": "token-classification",
    "mlm": "fill-mask",
}


def model_card(loaded: LoadedRun, summary: Mapping[str, Any] | None) -> str:
    """The text of a bundle's README.md.

    Args:
        loaded: The model and what it was trained on.
        summary: What ``summary.json`` holds; None for a run that never ended.
    """
    sections = [
        _front_matter(loaded),
        _purpose(loaded),
        _use(loaded),
        _results(summary or {}),
        _calibration(loaded, summary or {}),
        _data(loaded.data),
        _files(),
    ]
    return "\n".join(sections)


def _front_matter(loaded: LoadedRun) -> str:
    tags = [
        "biology",
        loaded.tokenizer.alphabet.name,
        loaded.codec.task,
        loaded.config.encoder.name,
    ]
    fields: dict[str, Any] = {"library_name": "seqtrain", "tags": tags}
    if loaded.codec.task in _PIPELINES:
        fields["pipeline_tag"] = _PIPELINES[loaded.codec.task]
    # JSON is YAML, and quotes whatever needs it.
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---", ""])


def _purpose(loaded: LoadedRun) -> str:
    codec, config = loaded.codec, loaded.config
    alphabet = loaded.tokenizer.alphabet.name
    unit = (
        "in the unit of the training targets "
        f"(their mean is {codec.mean:.6g}, their standard deviation {codec.std:.6g})"
    )
    answers = {
        "classification": f"one of {len(codec.classes)} classes, with a probability for each",
        "multilabel": f"any of {len(codec.classes)} classes, with a probability for each",
        "regression": f"one number, {unit}",
        "residue_regression": f"one number for each residue, {unit}",
        "residue_classification": f"one of {len(codec.classes)} classes for each residue",
        "mlm": "the letter of each residue, also of one that is hidden behind token "
        f"{loaded.tokenizer.vocab_size}",
    }
    title = "masked_language_model" if codec.task == "mlm" else codec.task
    lines = [
        f"# {title.replace('_', ' ').capitalize()} of {alphabet} sequences",
        "",
        f"Reads {alphabet} sequences of any length and predicts {answers[codec.task]}. "
        f"The encoder is a {config.encoder.name} with {config.encoder.embed_dim} channels and "
        f"{config.encoder.num_layers} layers; its norm is `{config.norm.name}`.",
        "",
    ]
    if codec.classes:
        lines += ["Classes: " + _listed(codec.classes), ""]
    if config.norm.name == "leaky_batch":
        lines += ["Results depend on the padding: this norm is a control for comparisons.", ""]
    return "\n".join(lines)


def _listed(classes: Sequence[str]) -> str:
    names = ", ".join(map(code_for_markdown, classes[:MAX_LISTED]))
    rest = len(classes) - MAX_LISTED
    return names if rest <= 0 else f"{names} and {rest:,} more, in `bundle.json`"


def _use(loaded: LoadedRun) -> str:
    example = loaded.tokenizer.alphabet.letters[:12]
    return f"""## Use

    seqtrain predict THIS_FOLDER sequences.fasta -o predictions.tsv
    seqtrain info --verify THIS_FOLDER

or from Python:

    from seqtrain import load_model
    model = load_model("THIS_FOLDER")
    model.predict(["{example}"])
"""


def _results(summary: Mapping[str, Any]) -> str:
    parts = {name: summary[name] for name in ("valid", "test") if summary.get(name)}
    if not parts:
        return "## Results\n\nNot evaluated.\n"
    rows = [
        f"| {part} | {for_markdown(name)} | {found['value']:.4f} | "
        f"{found['low']:.4f} to {found['high']:.4f} |"
        for part, scored in parts.items()
        for name, found in scored["metrics"].items()
    ]
    head = ["## Results", "", "| part | metric | value | 95 % interval |", "|---|---|---|---|"]
    alarms = [
        f"- {part}: {for_markdown(alarm)}"
        for part, scored in parts.items()
        for alarm in scored.get("alarms", [])
    ]
    return "\n".join([*head, *rows, "", *(["Alarms:", "", *alarms, ""] if alarms else [])])


def _calibration(loaded: LoadedRun, summary: Mapping[str, Any]) -> str:
    if is_regression(loaded.codec.task):
        return ""
    if loaded.calibration is None:
        return "Probabilities are as trained, not calibrated.\n"
    errors = summary.get("calibration", {}).get("error", {})
    parts = [
        f"{part}: {error['as_trained']:.4f} as trained, {error['calibrated']:.4f} calibrated"
        for part, error in errors.items()
    ]
    said = f" Expected calibration error: {'; '.join(parts)}." if parts else ""
    return f"Probabilities are {loaded.calibration.words()}.{said}\n"


def _data(report: Mapping[str, Any]) -> str:
    lines = ["## Training data", ""]
    for part, facts in report.get("parts", {}).items():
        if facts:
            fingerprint = code_for_markdown(report["fingerprints"].get(part, "none")[:16])
            lines.append(f"- {for_markdown(part)}: {_facts(facts)}, fingerprint {fingerprint}")
    return "\n".join([*lines, "", *_applicability(report)])


def _facts(facts: Mapping[str, Any]) -> str:
    lengths = facts.get("lengths") or {}
    span = f", {lengths['min']:.0f} to {lengths['max']:.0f} long" if lengths else ""
    return f"{counted(facts['records'], 'record')}{span}"


def _applicability(report: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "Sequences of other lengths, families or composition than these are outside what was "
        "measured; `seqtrain predict --warnings` marks other lengths and compositions."
    )
    yield from (f"- {for_markdown(warning)}" for warning in report.get("warnings", []))
    yield ""


def _files() -> str:
    return """## Files

- `model.safetensors`: weights, with the norms' running statistics
- `bundle.json`: settings, tokenizer, labels, target scaling, fingerprints of the data
- `summary.json`: the metrics in full
- `training_part.npz`: lengths, targets and hashes of the training records; no sequence
- `examples.json`: random sequences and what the model says of them
- `SHA256SUMS`: for `sha256sum -c`
"""
