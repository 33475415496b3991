"""`seqtrain info`: what a run directory holds."""

from typing import Annotated

import typer

from seqtrain.cli import options


def info(
    run: options.RunPath,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show the model, its data, its settings and its final numbers."""
    import json as json_library

    from seqtrain.config import config_to_dict
    from seqtrain.pipeline import count_parameters, flatten
    from seqtrain.reporting import stdout_console, table, to_json
    from seqtrain.training.checkpoint import RunDir, load_run

    loaded = load_run(run)
    path = RunDir(run).summary
    summary = json_library.loads(path.read_text(encoding="utf-8")) if path.exists() else None
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
        ("best epoch", loaded.state["progress"]["best_epoch"]),
        ("complete", "yes" if summary else "no: go on with seqtrain train --resume"),
    ]
    for part in ("valid", "test"):
        for name, metric in ((summary or {}).get(part) or {}).get("metrics", {}).items():
            facts.append((f"{part} {name}", metric["value"]))
    console.print(table(str(run), ("", "value"), facts))
    console.print(
        table("settings", ("setting", "value"), [(k, str(v)) for k, v in settings.items()])
    )
