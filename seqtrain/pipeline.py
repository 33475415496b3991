"""One run, from files to final numbers: read, choose, build, fit, evaluate.

Everything that `seqtrain train` does but the words on the screen; a comparison runs it many times.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seqtrain.build import build_model, build_optimizer
from seqtrain.compose import config_to_yaml, package_dir
from seqtrain.config import DataConfig, RunConfig, TransformerConfig
from seqtrain.data.corruption import Corruption, restored
from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.families import find_family
from seqtrain.data.labels import is_regression
from seqtrain.data.leaks import leak_warnings
from seqtrain.data.prepare import PreparedData, prepare_data
from seqtrain.data.uniform import is_uniform
from seqtrain.defaults import NARROWEST, Choice, choose_settings
from seqtrain.errors import CheckpointError, ConfigError
from seqtrain.evaluation.applicability import TrainingRange, alphabet_warning
from seqtrain.evaluation.predict import fingerprint
from seqtrain.evaluation.runs import (
    calibrate,
    calibration_errors,
    evaluate_run,
    write_outputs,
)
from seqtrain.evaluation.score import TrainingPart, alarms
from seqtrain.nn.model import SequenceModel
from seqtrain.reporting import to_json
from seqtrain.training.checkpoint import LoadedRun, load_run, read_run
from seqtrain.training.device import (
    choose_device,
    choose_training_precision,
    compile_blocks,
)
from seqtrain.training.events import Observer
from seqtrain.training.losses import class_weights_from_counts
from seqtrain.training.memory import (
    MOST,
    available_memory,
    forward_bytes,
    longest_in_one_pass,
)
from seqtrain.training.objective import Objective
from seqtrain.training.outputs import Outputs, score_outputs
from seqtrain.training.pretrained import check_fits, load_encoder
from seqtrain.training.restore import newest_whole
from seqtrain.training.run_dir import WEIGHTS, RunDir, create_run, list_files
from seqtrain.training.sums import listed_file, write_listed
from seqtrain.training.trainer import Progress, Trainer, TrainerSettings
from seqtrain.training.weights import check_weights

BUNDLED = "bundled:"


@dataclass(frozen=True, eq=False)
class Plan:
    """A run that is ready to begin: nothing is open any more, nothing is written yet."""

    config: RunConfig
    choices: list[Choice]
    data: PreparedData
    pretrained: LoadedRun | None = None
    """Whose encoder training begins with; None: with random weights, or from a checkpoint."""

    def origin(self) -> dict[str, Any] | None:
        """Path, task and fingerprint of the pretrained model; None without one."""
        if self.pretrained is None:
            return None
        return {
            "path": self.config.encoder.pretrained,
            "task": self.pretrained.codec.task,
            "model": fingerprint([self.pretrained]),
        }


def plan_run(
    config: RunConfig, pretrained: LoadedRun | None = None, given: Collection[str] = ()
) -> Plan:
    """Read the data and choose what the user left open.

    Args:
        config: The settings.
        pretrained: What ``encoder.pretrained`` names. Not needed to go on from a checkpoint.
        given: Dotted names of the settings that were given; those that differ from their default
            are known without.

    Raises:
        DataError: the files cannot be used as they are.
        ConfigError: a setting does not apply, or does not fit the pretrained encoder.
    """
    part, letters = config.data, config.tokenizer
    data = prepare_data(
        train=_resolve(part.train),
        valid=_resolve(part.valid),
        test=_resolve(part.test),
        labels=_resolve(part.labels),
        splits=_resolve(part.splits),
        id_column=part.id_column,
        label_column=part.label_column,
        split_column=part.split_column,
        task=config.task.name,
        alphabet=letters.alphabet,
        ambiguous=letters.ambiguous,
        gap=letters.gap,
        stop=letters.stop,
        other=letters.other,
        ignore_labels=part.ignore_labels,
        decimal=part.decimal,
        on_error=part.on_error,
        unseen=part.unseen,
        max_length=part.max_length,
        overlong=part.overlong,
        valid_fraction=part.valid_fraction,
        test_fraction=part.test_fraction,
        split_method=part.split_method,
        seed=config.trainer.seed,
        asked={
            field.name
            for field in dataclasses.fields(part)
            if f"data.{field.name}" in given
            or getattr(part, field.name) != getattr(DataConfig(), field.name)
        },
        most=_most_residues(config),
    )
    alphabet = data.tokenizer.alphabet.name
    resolved, choices = choose_settings(
        config,
        data.train.lengths,
        data.codec.task,
        alphabet,
        is_uniform(data.valid, data.codec),
    )
    _check_monitor(resolved, data)
    _check_room(resolved, data)
    data.report["warnings"] += _part_warnings(data)
    if config.task.pooling is None and not data.train.per_residue:
        data.report["warnings"] += _family_hint(data.train)
    if pretrained is not None:
        check_fits(resolved, data.tokenizer, pretrained)
    return Plan(resolved, choices, data, pretrained)


def _family_hint(train: SequenceDataset) -> list[str]:
    """A hint where single changes would drown in a mean over all residues."""
    family = find_family(train)
    if family is None:
        return []
    return [
        f"the training records are {family}. Mean and maximum over all residues drown single "
        "changes; task.pooling=position encoder.num_layers=1 encoder.dropout=0 gives each position "
        "weights of its own"
    ]


def _part_warnings(data: PreparedData) -> list[str]:
    """Warnings about the parts beside each other, or about one of them."""
    mask_token = data.tokenizer.vocab_size
    given = {"train": data.train, "valid": data.valid, "test": data.test}
    parts = {name: restored(part, mask_token) for name, part in given.items() if part is not None}
    said = [alphabet_warning(p, data.tokenizer, f"{name} records") for name, p in parts.items()]
    if all(said):  # of all records the report says so
        said = []
    return [text for text in said if text is not None] + leak_warnings(parts)


def _most_residues(config: RunConfig) -> int | None:
    """Residues that even the narrowest model cannot read in one piece; None if memory is unknown.

    Known before the data are, so that a huge record is refused as soon as it is read;
    :func:`_check_room` asks again once the model is chosen.
    """
    width = config.encoder.embed_dim or NARROWEST
    narrowest = dataclasses.replace(config.encoder, embed_dim=width)
    return longest_in_one_pass(narrowest, device=choose_device(config.trainer.device))


def _check_room(config: RunConfig, data: PreparedData) -> None:
    """Refuse a record that does not fit into memory, before the first step is tried.

    Raises:
        ConfigError: says which one, and how to cut or leave out such records.
    """
    device = choose_device(config.trainer.device)
    available = available_memory(device)
    if available is None:
        return
    training, outputs = estimate_memory(config, 0, 10**9) / 1e9, data.codec.num_outputs
    needs = {"train": training, **dict.fromkeys(("valid", "test"), 0.0)}
    parts = {"train": data.train, "valid": data.valid, "test": data.test}
    for name, part in parts.items():
        if part is None:
            continue
        per_residue = needs[name] or forward_bytes(
            config.encoder, outputs if part.per_residue else 0
        )
        most, place = int(MOST * available / per_residue), int(part.lengths.argmax())
        if (longest := int(part.lengths[place])) > most:
            raise ConfigError(
                f"{name} record {part.ids[place]!r}: {longest:,} residues need about "
                f"{longest * per_residue / 1e9:,.1f} GB in one piece; "
                f"{available / 1e9:,.1f} GB are free, enough for {most:,} residues. Cut longer "
                f"records with data.max_length={most} data.overlong=truncate, or leave them out "
                "with data.overlong=skip."
            )


def _check_monitor(config: RunConfig, data: PreparedData) -> None:
    """Refuse a metric that scoring the validation part will not give, before the first epoch."""
    rows = len(data.valid.tokens) if data.valid.per_residue else len(data.valid)
    shape = (rows,) if is_regression(data.codec.task) else (rows, data.codec.num_outputs)
    nothing = Outputs(np.zeros(shape, np.float32), 0.0)
    names = score_outputs(nothing, data.valid, data.codec.task, data.codec.num_outputs)
    if config.trainer.monitor not in names:
        raise ConfigError(
            f"trainer.monitor={config.trainer.monitor}: the metrics of this task are "
            f"{', '.join(names)}."
        )


def _resolve(paths: Sequence[str]) -> list[str]:
    """Paths with ``bundled:`` turned into the folder of the bundled data."""
    folder = package_dir("data")
    return [
        str(folder / path.removeprefix(BUNDLED)) if path.startswith(BUNDLED) else path
        for path in paths
    ]


def train_run(
    plan: Plan,
    run: RunDir,
    *,
    resume: bool = False,
    make_observers: Callable[[RunDir, Plan, int], Sequence[Observer]] = lambda *_: (),
) -> dict[str, Any]:
    """Train, evaluate on the test part if there is one, and write the run directory.

    Args:
        plan: From :func:`plan_run`.
        run: Where everything goes; the caller holds its lock.
        resume: Go on from the last checkpoint; the data must still be the same.
        make_observers: Called once the step from which training goes on is known.

    Returns:
        What ``summary.json`` holds.

    Raises:
        CheckpointError: the run cannot be resumed, or not be written.
        TrainingError: the loss was not finite.
        ValueError: the pretrained encoder that the settings name is wanted and not given.
    """
    config, data = plan.config, plan.data
    report = {
        "tokenizer": data.tokenizer.to_dict(),
        "labels": data.codec.to_dict(),
        "fingerprints": fingerprints(data),
        "choices": [dataclasses.asdict(choice) for choice in plan.choices],
        "training_range": TrainingRange.of(data.train, data.tokenizer.vocab_size).to_dict(),
        "pretrained": plan.origin(),
        **data.report,
    }
    goes_on = resume and run.has_progress()
    if goes_on:
        _check_size(run, config, data)
    if config.encoder.pretrained is not None and plan.pretrained is None and not goes_on:
        raise ValueError("encoder.pretrained is set: plan_run needs the run that it names")
    trainer = build_trainer(plan, run)  # first: a device that is missing leaves no run behind
    if resume:
        _check_same_data(run, report)
        list_files(run)
        if plan.pretrained is not None:
            _check_same_origin(run, report["pretrained"])
    else:
        create_run(run, config, report)
    # Again when resumed: the run may have been killed before these were written.
    _write_splits(run, data)
    with listed_file(run.training_part) as partial:
        TrainingPart.of(data.train, data.codec.num_outputs).write(partial)
    if goes_on:
        trainer.resume()
        _check_goes_on(run, trainer)
    if resume:
        _update_run(run, config, report, trainer.progress)
    if not goes_on and plan.pretrained is not None:
        trainer.save()  # from here on the run needs the pretrained one no longer
    trainer.observers = make_observers(run, plan, trainer.progress.step)
    try:
        progress = trainer.fit()
    finally:
        for observer in trainer.observers:
            observer.close()
    summary = summarize(plan, run, progress)
    write_listed(run.summary, to_json(summary, indent=1) + "\n")
    return summary


def _check_size(run: RunDir, config: RunConfig, data: PreparedData) -> None:
    """Refuse settings of another size than the weights, before a model of theirs is built."""
    try:
        check_weights(newest_whole(run) / WEIGHTS, config, data.tokenizer, data.codec)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run.path}: the checkpoint is damaged: {error}.") from error


def fingerprints(data: PreparedData) -> dict[str, str]:
    """SHA-256 of each part, as tokens and targets."""
    parts = {"train": data.train, "valid": data.valid, "test": data.test}
    return {name: part.fingerprint() for name, part in parts.items() if part is not None}


def _check_same_data(run: RunDir, now: dict[str, Any]) -> None:
    """Refuse other records, residues, labels or splits; the same may lie in other files."""
    saved = read_run(run)[1]
    before, found = saved.get("fingerprints") or {}, now["fingerprints"]
    if before == found:
        return
    parts = sorted(k for k in before | found if before.get(k) != found.get(k))
    files = _other_files(saved.get("files") or {}, now["files"])
    raise CheckpointError(
        f"{run.path}: the data are not those that this run began with ({', '.join(parts)} changed"
        + "".join(f"; {name}" for name in files)
        + "). Put the old files back, or begin a new run in another --run-dir."
    )


def _other_files(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each file whose contents are not those of the file that had its place, in words."""
    found = []
    for name in before | now:
        old, new = before.get(name, []), now.get(name, [])
        if len(old) != len(new):
            found.append(f"data.{name} had {len(old)} files, found {len(new)}")
        found += [
            f"the contents of {theirs['path']} are others"
            for ours, theirs in zip(old, new, strict=False)
            if ours.get("sha256") != theirs.get("sha256")
        ]
    return found


def _update_run(run: RunDir, config: RunConfig, report: dict[str, Any], progress: Progress) -> None:
    """Keep where files lie now, how long the run is to be, and what is said of its going on.

    Results of a run that trains on are taken away: they are those of before.
    """
    saved_config, saved = read_run(run)
    warnings = [*dict.fromkeys([*saved.get("warnings", []), *report["warnings"]])]
    now = {**saved, "files": report["files"], "warnings": warnings}
    if not progress.done:
        tables = (run.predictions / f"{part}.tsv" for part in ("valid", "test"))
        for path in (run.summary, run.calibration, *tables):
            path.unlink(missing_ok=True)
    if now != saved:
        write_listed(run.data, json.dumps(now, indent=1))
    if config != saved_config:
        write_listed(run.config, config_to_yaml(config))


def _check_goes_on(run: RunDir, trainer: Trainer) -> None:
    """Refuse to train on where patience has run out: more epochs alone would change nothing."""
    progress, settings = trainer.progress, trainer.settings
    if progress.done and progress.epoch < settings.max_epochs and run.summary.exists():
        raise CheckpointError(
            f"{run.path}: training stopped after epoch {progress.epoch}, because "
            f"{settings.monitor} was best in epoch {progress.best_epoch} and trainer.patience="
            f"{settings.patience}. To train on, give a larger trainer.patience too, or 0: never "
            "stop early."
        )


def _check_same_origin(run: RunDir, now: dict[str, Any]) -> None:
    before = read_run(run)[1].get("pretrained") or {}
    if before.get("model") != now["model"]:
        raise CheckpointError(
            f"{run.path}: was to begin with model {before.get('model')}, and {now['path']} holds "
            f"{now['model']} by now. Put the old one back, or begin anew by --overwrite."
        )


def _write_splits(run: RunDir, data: PreparedData) -> None:
    lines = (f"{record}\t{split}\n" for record, split in data.splits())
    write_listed(run.splits, "id\tsplit\n" + "".join(lines))


def build_trainer(plan: Plan, run: RunDir) -> Trainer:
    """Model, loss, optimizer and trainer of a plan, seeded."""
    config, data = plan.config, plan.data
    settings = config.trainer
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    device = choose_device(settings.device)
    torch.manual_seed(settings.seed)
    model = build_model(config, data.tokenizer, data.codec)
    if plan.pretrained is not None:
        load_encoder(model, plan.pretrained.model)
    model.to(device)
    if settings.compile:
        compile_blocks(model, device)
    assert settings.max_epochs is not None
    assert settings.patience is not None
    assert settings.monitor is not None
    assert config.batching.max_tokens is not None
    return Trainer(
        model,
        build_objective(config, data).to(device),
        build_optimizer(config.optim, model),
        TrainerSettings(
            max_epochs=settings.max_epochs,
            patience=settings.patience,
            monitor=settings.monitor,
            batching=config.batching.kind,
            max_tokens=config.batching.max_tokens,
            max_sequences=config.batching.max_sequences,
            num_classes=data.codec.num_outputs,
            accumulate=settings.accumulate,
            clip_norm=config.optim.clip_norm,
            warmup_fraction=config.optim.warmup_fraction,
            precision=choose_training_precision(settings.precision, device),
            checkpoint_minutes=settings.checkpoint_minutes,
            seed=settings.seed,
        ),
        data.train,
        data.valid,
        run,
        corruption=build_corruption(config, data),
    )


def build_corruption(config: RunConfig, data: PreparedData) -> Corruption | None:
    """What hides residues of the training records; None for tasks that read them as they are."""
    if data.codec.task != "mlm":
        return None
    fraction, seed = config.task.mask_fraction, config.trainer.seed
    return Corruption.for_training(data.tokenizer, fraction, seed)


def build_objective(config: RunConfig, data: PreparedData) -> Objective:
    """The loss of a task; class weights come from the training part."""
    weights = None
    if config.task.class_weights != "none":
        assert data.train.targets is not None
        counted = data.train.targets[data.train.targets >= 0]
        counts = np.bincount(counted, minlength=data.codec.num_outputs)
        weights = class_weights_from_counts(torch.from_numpy(counts), config.task.class_weights)
    return Objective(data.codec.task, weights, config.task.label_smoothing, config.task.loss)


def summarize(plan: Plan, run: RunDir, progress: Progress) -> dict[str, Any]:
    """The final numbers, from the best checkpoint; writes the predictions of the test part."""
    best = load_run(run.path)
    device = choose_device(plan.config.trainer.device)
    best.model.to(device)
    best = best.calibrated(calibrate(best, plan.data.valid))
    training = TrainingPart.of(plan.data.train, plan.data.codec.num_outputs)
    summary: dict[str, Any] = {
        "task": plan.data.codec.task,
        "epochs": progress.epoch,
        "steps": progress.step,
        "best_epoch": progress.best_epoch,
        "monitor": plan.config.trainer.monitor,
        "seconds": round(progress.seconds, 1),
        "num_parameters": count_parameters(best.model),
        "warnings": list(plan.data.report["warnings"]),
    }
    if best.calibration is not None:
        write_listed(run.calibration, best.calibration.to_json())
        summary["calibration"] = {"words": best.calibration.words(), "error": {}}
    parts = {"valid": plan.data.valid, "test": plan.data.test}
    for name, part in parts.items():
        if part is None:
            continue
        scored, outputs = evaluate_run(best, part, training)
        found = alarms(
            {k: v.value for k, v in scored.metrics.items()}, scored.baselines, outputs, scored.task
        )
        summary[name] = {**scored.to_dict(), "alarms": found}
        if best.calibration is not None:
            summary["calibration"]["error"][name] = calibration_errors(best, part, outputs)
        write_outputs(run.predictions / f"{name}.tsv", outputs, part, best)
    return summary


def count_parameters(model: SequenceModel) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def estimate_memory(config: RunConfig, num_parameters: int, longest: int) -> int:
    """Estimated extra memory for training, in bytes: weights, Adam's moments, activations.

    What a block keeps for the backward pass and works with is counted in units of one float32 per
    position and channel, as the growth of the resident memory showed it on a CPU: 13 to 17 in a
    convolution block, 36 in a transformer block. Attention keeps no square of the length.
    """
    encoder = config.encoder
    assert encoder.embed_dim is not None
    assert encoder.num_layers is not None
    assert config.batching.max_tokens is not None
    kept = 24 + 3 * encoder.ffn_ratio if isinstance(encoder, TransformerConfig) else 15
    positions = max(config.batching.max_tokens, longest)
    activations = positions * encoder.embed_dim * encoder.num_layers * kept * 4
    return int(num_parameters * 16 + activations)


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
