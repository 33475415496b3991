"""`seqtrain compare-norms`: the same training with one norm after the other."""

import csv
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqtrain.cli import completion, options
from seqtrain.cli.startup import load_torch
from seqtrain.errors import ConfigError, DataError
from seqtrain.escaping import print

if TYPE_CHECKING:
    from seqtrain.compare.analysis import Analysis
    from seqtrain.compare.budget import Fit
    from seqtrain.compare.plan import Arm, Comparison
    from seqtrain.compare.run import Result

DEFAULT_NORMS = "masked_batch,batch,leaky_batch,masked_layer,layer,none"
BUNDLED_CONFIG = "compare"
BUNDLED_RECORDS = 800
DEFAULT_JOBS = 2
BUDGET_FILE = "budget.json"
OWN_OPTION = {
    "norm": "--norms",
    "norm.name": "--norms",
    "batching.kind": "--batching",
    "trainer.seed": "--seeds (arms have the seeds 0, 1, ...)",
}
"""Settings that differ between arms."""


def compare_norms(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for arms, tables, figures and report.")
    ],
    overrides: options.Overrides = None,
    train: options.TrainFiles = None,
    valid: options.ValidFiles = None,
    test: options.TestFiles = None,
    labels: options.LabelFiles = None,
    splits: options.SplitFiles = None,
    label_column: options.LabelColumn = None,
    id_column: options.IdColumn = None,
    split_column: options.SplitColumn = None,
    on_error: options.OnMissing = None,
    config_name: options.ConfigName = "config",
    config_dir: options.ConfigDir = None,
    norms: Annotated[
        str, typer.Option(help="Norms, separated by commas; the first is the reference.")
    ] = DEFAULT_NORMS,
    batching: Annotated[
        str, typer.Option(help="random, bucketed, packed: one or several, separated by commas.")
    ] = "random",
    encoders: Annotated[
        str | None, typer.Option(help="cnn, transformer or both; the config's if not given.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings per condition.")] = 5,
    records: Annotated[
        int | None, typer.Option(min=1, help="Train on so many records at most, by chance.")
    ] = None,
    clusters: Annotated[
        Path | None,
        typer.Option(help="TSV of record id and cluster id: whole clusters are resampled."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time such as 30m or 4h: epochs and seeds are cut to fit.")
    ] = None,
    launcher: Annotated[
        str,
        typer.Option(
            help="local (one after the other), processes or slurm.",
            autocompletion=completion.one_of("local", "processes", "slurm"),
        ),
    ] = "local",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Arms at a time, unless local; 2 if not given.")
    ] = None,
    resources: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Resources of one arm, over those of conf/launcher; repeatable: mem_gb=16.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished arms.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Train with each norm from the same weights on the same batches, and report what differs.

    With nothing but --output it compares small models on part of the bundled data in a few
    minutes. Read report.html first; docs/compare.md says how everything is measured.
    """
    load_torch()
    from seqtrain.compare.run import open_comparison
    from seqtrain.reporting import to_json
    from seqtrain.training.run_dir import write_text

    files = (train, valid, test, labels, splits, overrides, config_dir, records)
    notes: list[str] = []
    if config_name == "config" and not any(files):
        config_name, records = BUNDLED_CONFIG, BUNDLED_RECORDS
        notes.append(
            f"Bundled default: a small model trained briefly on at most {records} of the bundled "
            "records, chosen by chance. Name your own files for numbers that mean something to you."
        )
    named = options.DataOptions(
        train, valid, test, labels, splits, label_column, id_column, split_column, on_error
    )
    values = options.data_values(named, overrides)
    own = options.with_own_data(overrides, train)
    settings = (config_name, own, config_dir, values)
    names = (_names(norms, "norms"), _names(batching, "batching"))
    comparison = _comparison(
        *settings, *names, encoders, seeds, records, output, clusters, here=launcher == "local"
    )
    groups = None
    if clusters is not None:
        groups, note = _read_clusters(clusters, comparison)
        notes.append(note)
    if launcher not in ("local", "processes", "slurm"):
        raise ConfigError(f"--launcher: expected local, processes or slurm, found {launcher!r}.")
    for option, value in (("--resources", resources), ("--jobs", jobs)):
        if launcher == "local" and value:
            raise ConfigError(f"{option}: needs --launcher processes or slurm; local runs no jobs.")
    jobs = jobs or DEFAULT_JOBS
    given = _resources(launcher, config_dir, resources or [])
    if budget is not None:
        num_jobs = jobs if launcher != "local" else 1
        comparison, fit, note = _fit(comparison, budget, output, num_jobs)
        notes.append(note)
    open_comparison(comparison, output, resume=resume)
    if budget is not None:
        # --resume keeps what was chosen: timing an arm anew would choose something else.
        write_text(output / BUDGET_FILE, to_json(dataclasses.asdict(fit)) + "\n")
    for warning in next(iter(comparison.plans.values())).data.report["warnings"]:
        _say(f"warning: {warning}", quiet)
    for note in notes:
        _say(note, quiet)
    try:
        results = _run(comparison, output, launcher, jobs, given, quiet)
    except KeyboardInterrupt:
        print(
            "seqtrain: interrupted; finished arms are kept: give the same command with --resume.",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    _report(comparison, results, output, groups, notes, quiet)


def _comparison(
    config_name: str,
    overrides: list[str],
    config_dir: Path | None,
    values: dict[str, Any],
    norms: list[str],
    batchings: list[str],
    encoders: str | None,
    seeds: int,
    records: int | None,
    output: Path,
    clusters: Path | None,
    *,
    here: bool,
) -> "Comparison":
    """Every plan over the same data, read once; ``here`` is trained on this machine."""
    from seqtrain.compare.plan import Arm, Comparison, conditions_of, limit_records
    from seqtrain.compose import load_config
    from seqtrain.config import BatchingConfig, NormConfig
    from seqtrain.data.outputs import check_folder
    from seqtrain.data.uniform import is_uniform
    from seqtrain.defaults import choose_settings
    from seqtrain.pipeline import plan_run
    from seqtrain.training.machine import check_machine

    for override in overrides:
        key = override.lstrip("+").partition("=")[0]
        if key in OWN_OPTION:
            raise ConfigError(f"{override}: is what is compared. Use {OWN_OPTION[key]} instead.")
    for name in norms:
        NormConfig(name=name)
    for name in batchings:
        BatchingConfig(kind=name)

    def load(extra: list[str]) -> Any:
        all_of_it = [*overrides, *extra]
        config = load_config(config_name, all_of_it, config_dir=config_dir, values=values)
        if config.encoder.pretrained is not None:
            raise ConfigError(
                "encoder.pretrained: arms of a comparison differ in their norms and begin with the "
                "same random weights. Leave it out."
            )
        return config

    chosen = [None] if encoders is None else [f"encoder={e}" for e in _names(encoders, "encoders")]
    configs = [load([item] if item else []) for item in chosen]
    read = [path for config in configs for path in options.input_files(config, config_dir)]
    check_folder("--output", output, [*read, *([clusters] if clusters else [])], names=None)
    for config in configs if here else []:  # a cluster's jobs may find what is missing here
        check_machine(config)
    first = plan_run(configs[0], given=options.given_keys(values, overrides))
    first.data.report["warnings"] += options.replaced_files(
        values, config_name, config_dir, overrides
    )
    if records is not None:
        first = limit_records(first, records)
    plans = {}
    for config in configs:
        data = first.data
        resolved, choices = choose_settings(
            config,
            data.train.lengths,
            data.codec.task,
            data.tokenizer.alphabet.name,
            is_uniform(data.valid, data.codec),
        )
        plans[resolved.encoder.name] = dataclasses.replace(first, config=resolved, choices=choices)
    comparison = Comparison(plans, conditions_of(norms, batchings, plans), seeds)
    for condition in comparison.conditions:
        comparison.plan(Arm(condition, 0)).config.check_widths()
    return comparison


def _names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"--{option}: expected names separated by commas, found {text!r}.")
    return names


def _fit(
    comparison: "Comparison", budget: str, output: Path, jobs: int
) -> tuple["Comparison", "Fit", str]:
    """The comparison with fewer epochs and seeds, what was chosen, and what to say of it."""
    import json

    from seqtrain.compare.budget import Fit, fit_budget, parse_duration, time_one_arm

    try:
        seconds = parse_duration(budget)
    except ValueError as error:
        raise ConfigError(f"--budget: {error}.") from error
    wanted = max(plan.config.trainer.max_epochs or 1 for plan in comparison.plans.values())
    kept = output / BUDGET_FILE
    chosen = f"--budget {budget}"
    if kept.exists():
        chosen = "As chosen for the budget before"
        fit = Fit(**json.loads(kept.read_text(encoding="utf-8")))
    else:
        epoch, beside = time_one_arm(comparison)
        most = Fit(wanted, comparison.num_seeds, seconds)
        fit = fit_budget(seconds * jobs, epoch, beside, len(comparison.conditions), most)
    for plan in comparison.plans.values():
        plan.config.trainer.max_epochs = min(fit.epochs, plan.config.trainer.max_epochs or 1)
    note = (
        f"{chosen}: {fit.epochs} of {wanted} epochs and {fit.seeds} of "
        f"{comparison.num_seeds} seeds, about {fit.seconds / jobs / 60:.1f} minutes."
    )
    if fit.seconds > seconds * jobs:
        note += " It does not fit: this is the least that can be compared."
    return dataclasses.replace(comparison, num_seeds=fit.seeds), fit, note


def _read_clusters(path: Path, comparison: "Comparison") -> tuple[dict[str, str], str]:
    """Cluster ids by record id, and how many of the scored records have one."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file, delimiter="\t") if row]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    for number, row in enumerate(rows, 1):
        if len(row) < 2:
            raise DataError(
                f"{path}: line {number}: expected a record id, a tab and a cluster id, "
                f"found {row[0]!r}."
            )
    found = {row[0]: row[1] for row in rows}
    data = next(iter(comparison.plans.values())).data
    scored = (data.valid if data.test is None else data.test).ids
    number = len(found.keys() & set(scored))
    if not number:
        raise DataError(
            f"{path}: names none of the {len(scored):,} records that are scored, such as "
            f"{scored[0]!r}. Expected their ids in its first column."
        )
    note = (
        f"Resampled by the clusters of {path.name}: {number:,} of {len(scored):,} scored records "
        "have one, the others count alone."
    )
    return found, note


def _run(
    comparison: "Comparison",
    output: Path,
    launcher: str,
    jobs: int,
    resources: dict[str, Any],
    quiet: bool,
) -> "list[Result]":
    from seqtrain.compare.run import run_arms

    def tell(arm: "Arm", number: int, total: int, left: float | None) -> None:
        when = "" if left is None else f", about {_minutes(left)} left"
        _say(f"arm {number}/{total}: {arm.name}{when}", quiet)

    if launcher == "local":
        return run_arms(comparison, output, tell)
    from seqtrain.compare.launch import launch_arms

    return launch_arms(comparison, output, launcher, num_jobs=jobs, resources=resources, tell=tell)


def _resources(launcher: str, config_dir: Path | None, items: list[str]) -> dict[str, Any]:
    """Those of ``conf/launcher``, then the given ones; values as YAML reads them."""
    import yaml

    from seqtrain.compare.launch import read_resources

    found = {} if launcher == "local" else read_resources(launcher, config_dir)
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--resources {item}: expected KEY=VALUE.")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--resources {item}: the value is no YAML: {error}") from error
    return found


def _report(
    comparison: "Comparison",
    results: "list[Result]",
    output: Path,
    clusters: dict[str, str] | None,
    notes: list[str],
    quiet: bool,
) -> None:
    from seqtrain.compare.analysis import analyse
    from seqtrain.compare.report import condition_rows, text_of, write_report
    from seqtrain.errors import TrainingError
    from seqtrain.reporting import stdout_console, table

    failed = [r for r in results if r["status"] != "ok"]
    for r in failed:
        message = r.get("error", "not trained; see jobs/")
        print(
            f"failed: {r['norm']}-{r['batching']}-{r['encoder']}-seed{r['seed']}: {message}",
            file=sys.stderr,
        )
    if len(failed) == len(results):
        raise TrainingError(f"{output}: every arm failed; the first: {failed[0].get('error')}")
    words = ["seqtrain", *sys.argv[1:]]
    analysis: Analysis = analyse(
        comparison, results, output, clusters=clusters, notes=notes, command=words
    )
    write_report(analysis, output)
    rows = condition_rows(analysis)
    cells = [[text_of(value) for value in row.values()] for row in rows]
    keep = [i for i, name in enumerate(rows[0]) if not name.startswith("residues to")]
    columns = [list(rows[0])[i] for i in keep]
    title = f"{analysis.part} part, means over seeds"
    stdout_console().print(table(title, columns, [[row[i] for i in keep] for row in cells]))
    print(analysis.conclusion)
    _say(f"report: {output / 'report.html'}", quiet)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)
