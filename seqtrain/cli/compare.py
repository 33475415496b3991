"""`seqtrain compare-norms`: the same training with one norm after the other."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seqtrain.cli import options
from seqtrain.errors import CheckpointError

if TYPE_CHECKING:
    from seqtrain.compare.run import Arm


def compare_norms(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for runs and tables.")],
    overrides: options.Overrides = None,
    train: options.TrainFiles = None,
    valid: options.ValidFiles = None,
    test: options.TestFiles = None,
    labels: options.LabelFiles = None,
    label_column: options.LabelColumn = None,
    id_column: options.IdColumn = None,
    split_column: options.SplitColumn = None,
    config_name: options.ConfigName = "config",
    config_dir: options.ConfigDir = None,
    norms: Annotated[
        str, typer.Option(help="Names of norms, separated by commas.")
    ] = "masked_batch,batch",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings per norm.")] = 3,
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished arms.")] = False,
) -> None:
    """Train with each norm from the same weights on the same batches, and tabulate.

    The spread is the standard deviation over seeds. The padding shift is the largest change of a
    logit when a record is padded to twice its length: zero if results do not depend on padding.
    """
    from seqtrain.compare.run import compare_norms as run_comparison
    from seqtrain.compare.run import summarize_rows
    from seqtrain.config import NormConfig, load_config
    from seqtrain.pipeline import plan_run
    from seqtrain.reporting import stdout_console, table
    from seqtrain.training.metrics import primary_metric

    names = [NormConfig(name=name.strip()).name for name in norms.split(",")]
    if output.exists() and any(output.iterdir()) and not resume:
        raise CheckpointError(
            f"{output}: is not empty. Go on with --resume, or choose another --output."
        )
    values = options.data_values(train, valid, test, labels, label_column, id_column, split_column)
    own = options.with_own_data(overrides, train)
    plan = plan_run(load_config(config_name, own, config_dir=config_dir, values=values))

    def tell(arm: "Arm", number: int, total: int) -> None:
        print(f"arm {number}/{total}: {arm.name}", file=sys.stderr, flush=True)

    rows = run_comparison(plan, names, seeds, output, resume=resume, tell=tell)
    metric = primary_metric(plan.data.codec.task)
    columns = ("norm", "seeds", metric, "spread", "loss", "padding shift", "seconds")
    title = f"{rows[0]['part']} part, means over seeds"
    stdout_console().print(table(title, columns, summarize_rows(rows, metric)))
    print(f"every arm: {output / 'results.csv'}", file=sys.stderr)
