"""`seqtrain train`: load settings, read records, choose, build, fit, evaluate."""

import re
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqtrain.cli import options
from seqtrain.cli.startup import load_torch
from seqtrain.errors import CheckpointError, ConfigError
from seqtrain.escaping import print

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seqtrain.config import RunConfig
    from seqtrain.pipeline import Plan
    from seqtrain.training.checkpoint import LoadedRun
    from seqtrain.training.events import Observer
    from seqtrain.training.run_dir import RunDir

_ENCODER_SETTING = re.compile(r"[+~]*encoder\.(?!pretrained=)")


def train(
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
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", "-o", help="Folder for the run; runs/TIME if not given."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --run-dir.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run in --run-dir first.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show settings, data, model and memory; train nothing."),
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Profile a few training steps; their trace goes to profile/ in the run.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Train an encoder on FASTA files with labels, and score it on the test part.

    Without labels, task=mlm trains it on the sequences themselves; encoder.pretrained=RUN begins
    another task with such an encoder.

    Without files it trains on the bundled data. Settings that you do not give are chosen from the
    data, printed, and kept with the run.
    """
    named = options.DataOptions(
        train, valid, test, labels, splits, label_column, id_column, split_column, on_error
    )
    values = options.data_values(named, overrides)
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other.")
    if profile and dry_run:
        raise typer.BadParameter("--profile needs a training, and --dry-run trains nothing.")
    if resume and run_dir is None:
        raise typer.BadParameter("--resume needs --run-dir: the run to continue.")
    load_torch()
    from seqtrain.training.guard import RunLock
    from seqtrain.training.run_dir import RunDir

    run = RunDir(run_dir or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}")
    given = bool(values or overrides or config_name != "config" or config_dir)
    if not dry_run:
        _check_place(run, resume=resume, overwrite=overwrite)
    own = options.with_own_data(overrides, train)
    plan = _plan(run, given, resume, config_name, own, config_dir, values)
    if dry_run:
        return _show_plan(plan, json)
    with RunLock(run.path):
        # Once more: another process may have held the lock until a moment ago.
        _check_place(run, resume=resume, overwrite=overwrite)
        if overwrite and run.holds_run():
            _remove_run(run)
        return _train(plan, run, resume, quiet, json, profile)


def _plan(
    run: "RunDir",
    given: bool,
    resume: bool,
    config_name: str,
    overrides: list[str],
    config_dir: Path | None,
    values: dict[str, Any],
) -> "Plan":
    """The plan of the settings given; a resumed run must keep its own."""
    from seqtrain.cli.resume import check_files, resumed_config, trains_on, warnings_of
    from seqtrain.compose import load_config
    from seqtrain.data.outputs import check_folder
    from seqtrain.pipeline import plan_run
    from seqtrain.training.checkpoint import read_run
    from seqtrain.training.machine import check_machine, machine_warnings

    def load(said: list[str], like: "RunConfig | None" = None) -> "RunConfig":
        found = load_config(config_name, said, config_dir=config_dir, values=values, like=like)
        if found.encoder.pretrained is not None:
            found.encoder.pretrained = options.absolute(found.encoder.pretrained)
        return found

    def check(config: "RunConfig") -> None:
        check_folder("--run-dir", run.path, options.input_files(config, config_dir))

    if not resume:
        names_one = any("encoder.pretrained=" in item for item in overrides)
        # Settings of its encoder may be none of the default one's: left out until it is known.
        config = load([o for o in overrides if not (names_one and _ENCODER_SETTING.match(o))])
        pretrained = _pretrained(config)
        if names_one or pretrained is not None:
            config = load(overrides, None if pretrained is None else pretrained.config)
            _refuse_itself(config, run)
        check(config)
        config.norm.check_applies()
        check_machine(config)
        plan = plan_run(config, pretrained, options.given_keys(values, overrides))
        replaced = options.replaced_files(values, config_name, config_dir, overrides)
        plan.data.report["warnings"] += [
            *replaced,
            *machine_warnings(config),
            *_beyond_the_end(config, plan),
        ]
        return plan
    saved, _ = read_run(run)
    check(saved)
    pretrained = None if run.has_progress() else _pretrained(saved)
    config = saved
    if given:
        like = saved if saved.encoder.pretrained else None
        # Files given leave out the bundled data: what that brings along is nothing given.
        plain = load_config(overrides=[o for o in overrides if o == "data=files"], like=like)
        config = resumed_config(run, saved, load(overrides, like), plain, overrides)
    if run.summary.exists() and not trains_on(config, saved):
        raise CheckpointError(
            f"{run.path}: this run is complete; its numbers are in summary.json. To train on, give "
            f"trainer.max_epochs=N above {saved.trainer.max_epochs} too, or begin a new run in "
            "another --run-dir."
        )
    check_files(run, config, saved)
    check_machine(config)
    warnings = [*machine_warnings(config), *warnings_of(run, config, saved)]
    plan = plan_run(config, pretrained)
    plan.data.report["warnings"] += warnings
    return plan


def _beyond_the_end(config: "RunConfig", plan: "Plan") -> list[str]:
    """Settings that were given and cannot come to anything in so short a training."""
    patience, epochs = config.trainer.patience, plan.config.trainer.max_epochs
    found = []
    if patience and epochs and patience >= epochs:
        found.append(
            f"trainer.patience={patience} never ends this training, which is over after "
            f"trainer.max_epochs={epochs}"
        )
    assert plan.config.batching.max_tokens is not None
    batches = -(-len(plan.data.train.tokens) // plan.config.batching.max_tokens)
    if config.trainer.accumulate > batches:
        found.append(
            f"trainer.accumulate={config.trainer.accumulate}: an epoch has about {batches} "
            "batches, so that it is a single step"
        )
    return found


def _pretrained(config: "RunConfig") -> "LoadedRun | None":
    """The run or bundle whose encoder is to begin with."""
    from seqtrain.export.bundle import open_run
    from seqtrain.training.run_dir import RunDir

    path = config.encoder.pretrained
    if path is None:
        return None
    try:
        found = open_run(Path(path))
    except CheckpointError as error:
        raise CheckpointError(f"encoder.pretrained: {error}") from error
    if Path(path).is_dir() and not RunDir(Path(path)).summary.exists():
        print(
            f"warning: {path} has not ended; its encoder is taken as the best epoch so far left it",
            file=sys.stderr,
        )
    return found


def _refuse_itself(config: "RunConfig", run: "RunDir") -> None:
    path = config.encoder.pretrained
    if path is not None and Path(path).resolve() == run.path.resolve():
        raise ConfigError(
            f"encoder.pretrained={path}: is the run directory itself. Choose another --run-dir."
        )


def _check_place(run: "RunDir", *, resume: bool, overwrite: bool) -> None:
    run.check_links()
    if resume and not run.holds_run():
        raise CheckpointError(f"{run.path}: there is no run to resume. Leave --resume out.")
    if run.holds_run() and not (resume or overwrite):
        raise CheckpointError(
            f"{run.path}: already contains a run. Continue it with --resume, replace it with "
            "--overwrite, or choose another --run-dir."
        )
    if run.holds_run() and not run.data.exists():
        raise CheckpointError(
            f"{run.path}: holds a config.yaml or checkpoints, but no data.json: seqtrain did not "
            "make them. Choose another --run-dir."
        )
    if run.path.exists() and not run.path.is_dir():
        raise CheckpointError(
            f"{run.path}: is a file, expected a folder. Choose another --run-dir."
        )
    if not overwrite and (foreign := run.foreign_files()):
        raise CheckpointError(
            f"{foreign[0]}: would be replaced by the run's own {foreign[0].name}, and no run made "
            "it. Move it away, choose another --run-dir, or replace it with --overwrite."
        )


def _remove_run(run: "RunDir") -> None:
    """Delete what a run consists of, and nothing else that lies in the folder."""
    for name in ("checkpoints", "tensorboard", "predictions", "profile"):
        shutil.rmtree(run.path / name, ignore_errors=True)
    for path in (run.config, run.data, run.metrics, run.summary, run.calibration):
        path.unlink(missing_ok=True)
    for name in ("splits.tsv", "training_part.npz", "SHA256SUMS"):
        (run.path / name).unlink(missing_ok=True)


def _train(
    plan: "Plan", run: "RunDir", resume: bool, quiet: bool, json: bool, profile: bool
) -> None:
    from seqtrain.pipeline import train_run

    def make_observers(run: "RunDir", plan: "Plan", step: int) -> "Sequence[Observer]":
        return _observers(run, plan, step, quiet, profile)

    if not quiet:
        _say_plan(plan)
    try:
        summary = train_run(plan, run, resume=resume, make_observers=make_observers)
    except KeyboardInterrupt:
        how = f"; continue with: seqtrain train --resume -o {run.path}" if run.holds_run() else "."
        print(f"seqtrain: interrupted{how}", file=sys.stderr)
        raise typer.Exit(130) from None
    if plan.config.logger.name == "tensorboard":
        _write_final(run, plan, summary)
    _print_summary(run, summary, json)
    epochs, trainer = summary["epochs"], plan.config.trainer
    if trainer.max_epochs is not None and epochs < trainer.max_epochs:
        print(
            f"stopped early: after epoch {epochs} of at most {trainer.max_epochs}, because "
            f"{summary['monitor']} was best in epoch {summary['best_epoch']} "
            f"(trainer.patience={trainer.patience})",
            file=sys.stderr,
        )
    if plan.config.logger.name == "tensorboard" and not json:
        print(f"tensorboard: tensorboard --logdir {run.tensorboard}")


def _observers(
    run: "RunDir", plan: "Plan", step: int, quiet: bool, profile: bool
) -> "Sequence[Observer]":
    """The run's own record, and those whose errors must not end the training."""
    from seqtrain.reporting import JsonLines, PlainLines, ProgressBar, stderr_console
    from seqtrain.training.events import Guarded

    def warn(sentence: str) -> None:
        plan.data.report.setdefault("warnings", []).append(sentence)
        print(f"warning: {sentence}", file=sys.stderr)

    def progress() -> "Observer":
        console = stderr_console()
        return ProgressBar(console, step) if console.is_terminal else PlainLines()

    observers: list[Observer] = [JsonLines(run.metrics, step)]
    if plan.config.logger.name == "tensorboard":
        observers.append(Guarded(lambda: _board(run, plan, step), "TensorBoard", warn))
    if not quiet:
        observers.append(Guarded(progress, "the progress display", warn))
    if profile:
        observers.append(Guarded(lambda: _profiler(run, plan), "the profile", warn))
    return observers


def _board(run: "RunDir", plan: "Plan", step: int) -> "Observer":
    from seqtrain.board import TensorBoard

    return TensorBoard(run.tensorboard, _flat_settings(plan), plan.data.codec.classes, step)


def _flat_settings(plan: "Plan") -> dict[str, str]:
    from seqtrain.config import config_to_dict
    from seqtrain.pipeline import flatten

    return {k: str(v) for k, v in flatten(config_to_dict(plan.config)).items()}


def _write_final(run: "RunDir", plan: "Plan", summary: dict[str, Any]) -> None:
    from seqtrain.board import write_final

    def warn(sentence: str) -> None:
        print(f"warning: {sentence}", file=sys.stderr)

    write_final(run.tensorboard, _flat_settings(plan), summary, warn)


def _profiler(run: "RunDir", plan: "Plan") -> "Observer":
    from seqtrain.reporting import profile_table, stderr_console
    from seqtrain.training.device import choose_device
    from seqtrain.training.profiling import StepProfile, StepProfiler

    def tell(found: StepProfile) -> None:
        stderr_console().print(profile_table(found))
        print(f"trace: {found.trace} (open it at https://ui.perfetto.dev)", file=sys.stderr)

    on_gpu = choose_device(plan.config.trainer.device).type == "cuda"
    return StepProfiler(run.profile, tell, on_gpu)


def _say_plan(plan: "Plan") -> None:
    options.say_labels(plan.data.report)
    _say_warnings(plan)
    parts = {"train": plan.data.train, "valid": plan.data.valid, "test": plan.data.test}
    counts = ", ".join(f"{len(part):,} {name}" for name, part in parts.items() if part is not None)
    print(f"records: {counts}", file=sys.stderr)
    if origin := plan.origin():
        print(_origin_words(origin), file=sys.stderr)
    for choice in plan.choices:
        print(f"chosen: {choice.key} = {choice.value} ({choice.reason})", file=sys.stderr)


def _say_warnings(plan: "Plan") -> None:
    for warning in plan.data.report.get("warnings", []):
        print(f"warning: {warning}", file=sys.stderr)


def _origin_words(origin: dict[str, Any]) -> str:
    found = f"{origin['path']} ({origin['task']}, model {origin['model']})"
    return f"encoder: begins as that of {found}"


def _show_plan(plan: "Plan", as_json: bool) -> None:
    """The dry run: everything that is known before the first step."""
    import torch

    from seqtrain.build import build_model
    from seqtrain.compose import config_to_yaml
    from seqtrain.config import config_to_dict
    from seqtrain.pipeline import count_parameters, estimate_memory
    from seqtrain.reporting import stdout_console, table, to_json
    from seqtrain.training.device import choose_device, choose_training_precision

    data, config = plan.data, plan.config
    options.say_labels(data.report)
    _say_warnings(plan)
    choose_training_precision(config.trainer.precision, choose_device(config.trainer.device))
    torch.manual_seed(config.trainer.seed)
    model = build_model(config, data.tokenizer, data.codec)
    parameters = count_parameters(model)
    longest = int(max(part.lengths.max() for part in (data.train, data.valid)))
    memory = estimate_memory(config, parameters, longest)
    if as_json:
        shown: dict[str, Any] = {"config": config_to_dict(config), "data": data.report}
        shown |= {"pretrained": plan.origin(), "num_parameters": parameters}
        print(to_json({**shown, "memory_bytes": memory}, indent=1))
        return
    console = stdout_console()
    console.print(config_to_yaml(config), markup=False)
    parts = {"train": data.train, "valid": data.valid, "test": data.test}
    rows = [
        (
            name,
            len(part),
            int(part.lengths.min()),
            int(sorted(part.lengths)[len(part) // 2]),
            int(part.lengths.max()),
            int(part.lengths.sum()),
        )
        for name, part in parts.items()
        if part is not None
    ]
    console.print(
        table("data", ("part", "records", "shortest", "median", "longest", "residues"), rows)
    )
    modules = [
        (name or "model", type(module).__name__, sum(p.numel() for p in module.parameters()))
        for name, module in model.named_modules()
        if name.count(".") <= 1
    ]
    console.print(table("model", ("module", "kind", "parameters"), modules))
    if origin := plan.origin():
        console.print(_origin_words(origin), markup=False, soft_wrap=True)
    for choice in plan.choices:
        console.print(f"chosen: {choice.key} = {choice.value} ({choice.reason})", markup=False)
    console.print(
        f"parameters: {parameters:,}; estimated extra memory for training: {memory / 1e6:,.0f} MB"
    )


def _print_summary(run: "RunDir", summary: dict[str, Any], as_json: bool) -> None:
    from seqtrain.cli.evaluate import print_evaluation
    from seqtrain.reporting import stdout_console, to_json

    if as_json:
        print(to_json(summary, indent=1))
        return
    console = stdout_console()
    name = "test" if "test" in summary else "valid"
    print_evaluation(console, summary[name], f"{name} part")
    for part in ("valid", "test"):
        where = "" if part == name else f" ({part}.baselines in {run.summary})"
        for alarm in summary.get(part, {}).get("alarms", []):
            print(f"ALARM ({part} part): {alarm}{where}", file=sys.stderr)
    console.print(
        f"best epoch {summary['best_epoch']} of {summary['epochs']}, "
        f"{summary['steps']:,} steps, {summary['seconds']:.0f} s, "
        f"{summary['num_parameters']:,} parameters"
    )
    console.print(f"run:         {run.path}", markup=False, soft_wrap=True)
    console.print(f"predictions: {run.predictions / (name + '.tsv')}", markup=False, soft_wrap=True)
