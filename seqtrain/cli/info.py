"""`seqtrain info`: what a run directory or a bundle holds."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from seqtrain.cli import options
from seqtrain.cli.startup import load_torch
from seqtrain.escaping import print


def info(
    run: options.RunPath,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="For a bundle: compare all files with their checksums, and what the model says "
            "of the example records with what it said when it was exported.",
        ),
    ] = False,
) -> None:
    """Show the model, its data, its settings and its final numbers."""
    if verify:
        _verify(run, json)
        return
    load_torch()
    from seqtrain.config import config_to_dict
    from seqtrain.data.labels import is_regression
    from seqtrain.evaluation.applicability import TrainingRange
    from seqtrain.export.bundle import open_run, read_summary
    from seqtrain.pipeline import count_parameters, flatten
    from seqtrain.reporting import stdout_console, table, to_json
    from seqtrain.training.calibration import calibration_words

    loaded = open_run(run)
    summary = read_summary(run)
    parameters = count_parameters(loaded.model)
    settings = flatten(config_to_dict(loaded.config))
    if json:
        print(
            to_json(
                {
                    "task": loaded.codec.task,
                    "classes": loaded.codec.classes,
                    "alphabet": loaded.tokenizer.alphabet.name,
                    "num_parameters": parameters,
                    "progress": loaded.state["progress"],
                    "calibration": loaded.calibration and asdict(loaded.calibration),
                    "config": config_to_dict(loaded.config),
                    "data": loaded.data,
                    "summary": summary,
                },
                indent=1,
            )
        )
        return
    console = stdout_console()
    facts = [
        ("task", loaded.codec.task),
        ("classes", ", ".join(loaded.codec.classes) or "–"),
        ("alphabet", loaded.tokenizer.alphabet.name),
        ("parameters", parameters),
        ("best epoch", loaded.state["progress"].get("best_epoch", "–")),
        ("complete", "yes" if summary else "no"),
    ]
    if not is_regression(loaded.codec.task):
        facts.append(("probabilities", calibration_words([loaded.calibration])))
    if began := loaded.data.get("pretrained"):
        facts.append(("encoder began as", f"{began['path']} ({began['task']}, {began['model']})"))
    if known := TrainingRange.from_report(loaded.data):
        facts.append(("trained on lengths", f"{known.shortest:,} to {known.longest:,}"))
    for part in ("valid", "test"):
        for name, metric in ((summary or {}).get(part) or {}).get("metrics", {}).items():
            facts.append((f"{part} {name}", metric["value"]))
    console.print(table(str(run), ("", "value"), facts))
    console.print(
        table("settings", ("setting", "value"), [(k, str(v)) for k, v in settings.items()])
    )
    if not summary:
        console.print(f"not complete: {_how_to_go_on(run)}", markup=False, soft_wrap=True)


def _how_to_go_on(run: Path) -> str:
    from seqtrain.export.bundle import is_bundle

    if is_bundle(run):
        return "exported before its run had ended; finish the run and export it again"
    return f"continue with seqtrain train --resume -o {run}"


def _verify(bundle: Path, as_json: bool) -> None:
    from seqtrain.errors import CheckpointError
    from seqtrain.export.bundle import verify_bundle
    from seqtrain.reporting import stdout_console, table, to_json

    found = verify_bundle(bundle)
    if as_json:
        facts = {"passed": found.passed, "files": found.files, "examples": found.examples._asdict()}
        print(to_json(facts, indent=1))
    else:
        rows = [*found.files.items(), ("largest difference of the examples", found.examples.worst)]
        stdout_console().print(table(str(bundle), ("", "state"), rows))
    if not found.passed:
        raise CheckpointError(
            f"{bundle}: is not what was exported: see the table. Copy it again, or export anew."
        )
