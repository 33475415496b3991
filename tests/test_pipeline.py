"""One run, from files to final numbers, without the words on the screen."""

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import assert_same_weights, weights

from seqtrain.compose import load_config
from seqtrain.config import RunConfig
from seqtrain.errors import CheckpointError, ConfigError, TrainingError
from seqtrain.evaluation.applicability import TrainingRange
from seqtrain.evaluation.runs import calibrate, evaluate_run
from seqtrain.evaluation.score import TrainingPart
from seqtrain.pipeline import (
    Plan,
    build_objective,
    build_trainer,
    count_parameters,
    estimate_memory,
    flatten,
    plan_run,
    train_run,
)
from seqtrain.reporting import to_json
from seqtrain.training.calibration import calibration_error
from seqtrain.training.checkpoint import load_run, read_run
from seqtrain.training.events import EpochEvent, Observer, StepEvent
from seqtrain.training.objective import Objective
from seqtrain.training.outputs import predict_outputs
from seqtrain.training.run_dir import RunDir

LETTERS = "ACDEFGHIKLMNPQRSTVY"
TASKS = [
    "classification",
    "multilabel",
    "regression",
    "residue_classification",
    "residue_regression",
    "mlm",
]
SMALL = (
    "data=files",
    "encoder.embed_dim=8",
    "encoder.num_layers=2",
    "trainer.max_epochs=2",
    "trainer.num_threads=1",
    "trainer.device=cpu",
    "batching.max_tokens=256",
    "data.test_fraction=0.2",
)


def label(task: str, sequence: str) -> str:
    match task:
        case "classification":
            return "yes" if "W" in sequence else "no"
        case "multilabel":
            names = [name for name in ("W", "C", "K") if name in sequence]
            return "|".join(names or ["none", "other"])
        case "regression":
            return f"{sequence.count('W') + len(sequence) / 100:.3f}"
        case "residue_regression":
            return ",".join(f"{ord(letter) / 100}" for letter in sequence[:-1]) + ",NA"
    return "".join(
        "h" if letter in "AW" else "e" if letter in "CDEF" else "c" for letter in sequence
    )


def write_files(folder: Path, task: str, num_records: int = 60) -> dict[str, Any]:
    """FASTA and labels; returns what ``load_config`` takes as values."""
    folder.mkdir(exist_ok=True)
    rng = random.Random(0)
    sequences = {}
    for i in range(num_records):
        letters = rng.choices(LETTERS, k=rng.randint(4, 50))
        if i % 2:
            letters[rng.randrange(len(letters))] = "W"
        sequences[f"r{i}"] = "".join(letters)
    fasta = "".join(f">{name}\n{text}\n" for name, text in sequences.items())
    (folder / "x.fasta").write_text(fasta)
    if task == "mlm":
        return {"data.train": [str(folder / "x.fasta")], "task.name": "mlm"}
    if task == "residue_classification":
        labels = folder / "labels.fasta"
        labels.write_text("".join(f">{n}\n{label(task, s)}\n" for n, s in sequences.items()))
    else:
        labels = folder / "labels.tsv"
        rows = [f"{name}\t{label(task, text)}" for name, text in sequences.items()]
        labels.write_text("id\tlabel\n" + "\n".join(rows) + "\n")
    return {"data.train": [str(folder / "x.fasta")], "data.labels": [str(labels)]}


def small_plan(folder: Path, task: str = "classification", *overrides: str) -> Plan:
    values = write_files(folder, task)
    return plan_run(load_config("config", [*SMALL, *overrides], values=values))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Plan, RunDir, Any]]:
    """Plan, run directory and summary of a finished training of each task."""
    made: dict[str, tuple[Plan, RunDir, Any]] = {}

    def get(task: str) -> tuple[Plan, RunDir, Any]:
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            plan, run = small_plan(folder, task), RunDir(folder / "run")
            made[task] = plan, run, train_run(plan, run)
        return made[task]

    return get


Runs = Callable[[str], tuple[Plan, RunDir, Any]]


def read_table(path: Path) -> list[dict[str, str]]:
    lines = path.read_text().splitlines()[1:]
    return list(csv.DictReader(lines, delimiter="\t"))


class TestPlan:
    @pytest.mark.parametrize("task", TASKS[:-1])
    def test_the_task_is_told_from_the_labels(self, tmp_path: Path, task: str) -> None:
        plan = small_plan(tmp_path, task)
        assert plan.config.task.name == plan.data.codec.task == task
        assert "task.name" in [choice.key for choice in plan.choices]
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []

    def test_bundled_paths_lie_in_the_bundled_data(self) -> None:
        plan = plan_run(load_config())
        assert plan.config.data.train == ["bundled:motifs/train.fasta"]
        assert plan.data.test is not None

    @pytest.mark.parametrize(
        ("task", "monitor"),
        [
            ("classification", "r2"),
            ("classification", "macro_auroc"),
            ("classification", "accurracy"),
            ("regression", "mcc"),
            ("residue_classification", "auroc"),
            ("mlm", "auroc"),
            ("classification", "perplexity"),
        ],
    )
    def test_a_metric_that_will_not_be_there_is_refused_before_training(
        self, tmp_path: Path, task: str, monitor: str
    ) -> None:
        with pytest.raises(ConfigError, match=f"trainer.monitor={monitor}: .* loss"):
            small_plan(tmp_path, task, f"trainer.monitor={monitor}")

    @pytest.mark.parametrize(
        ("task", "monitor"),
        [
            ("classification", "auroc"),
            ("multilabel", "macro_auprc"),
            ("regression", "spearman"),
            ("residue_classification", "accuracy"),
            ("mlm", "accuracy"),
            ("classification", "loss"),
        ],
    )
    def test_any_metric_of_the_task_can_be_watched(
        self, tmp_path: Path, task: str, monitor: str
    ) -> None:
        plan = small_plan(tmp_path, task, f"trainer.monitor={monitor}", "trainer.max_epochs=1")
        summary = train_run(plan, RunDir(tmp_path / "run"))
        assert summary["monitor"] == monitor


class TestRun:
    @pytest.mark.parametrize("task", TASKS)
    def test_the_summary_says_how_good_the_best_checkpoint_is(self, runs: Runs, task: str) -> None:
        plan, run, summary = runs(task)
        assert plan.data.test is not None
        written = json.loads(run.summary.read_text())
        assert written == json.loads(to_json(summary))
        loaded = load_run(run.path)
        training = TrainingPart.of(plan.data.train, plan.data.codec.num_outputs)
        scored, _ = evaluate_run(loaded, plan.data.test, training)
        del written["test"]["alarms"]
        assert json.loads(to_json(scored.to_dict())) == written["test"]
        assert summary["task"] == task
        assert summary["epochs"] == 2
        assert summary["num_parameters"] == sum(p.numel() for p in loaded.model.parameters())

    @pytest.mark.parametrize("task", TASKS)
    def test_probabilities_are_calibrated_on_the_validation_part(
        self, runs: Runs, task: str
    ) -> None:
        plan, run, summary = runs(task)
        loaded = load_run(run.path)
        if task.endswith("regression"):
            assert "calibration" not in summary
            assert not run.calibration.exists()
            return
        assert loaded.calibration == calibrate(loaded.calibrated(None), plan.data.valid)
        loaded = load_run(run.path)
        errors = summary["calibration"]["error"]
        assert loaded.calibration is not None
        # The likeliest temperature need not be the one of the smallest error.
        assert errors["valid"]["as_trained"] == pytest.approx(loaded.calibration.error_before)
        assert errors["valid"]["calibrated"] == pytest.approx(loaded.calibration.error_after)
        assert plan.data.test is not None
        assert plan.data.test.targets is not None
        _, outputs = evaluate_run(loaded, plan.data.test, None)
        wanted = calibration_error(task, outputs.values, plan.data.test.targets)
        assert errors["test"]["calibrated"] == pytest.approx(wanted)
        _, outputs = evaluate_run(loaded.calibrated(None), plan.data.test, None)
        wanted = calibration_error(task, outputs.values, plan.data.test.targets)
        assert errors["test"]["as_trained"] == pytest.approx(wanted, abs=1e-5)
        heading = (run.predictions / "test.tsv").read_text().splitlines()[0]
        assert "calibrated by" in heading

    @pytest.mark.parametrize("task", TASKS)
    def test_a_run_knows_what_its_training_records_were_like(self, runs: Runs, task: str) -> None:
        plan, run, _ = runs(task)
        known = TrainingRange.from_report(json.loads(run.data.read_text()))
        assert known == TrainingRange.of(plan.data.train, plan.data.tokenizer.vocab_size)

    @pytest.mark.parametrize("task", TASKS)
    def test_prediction_tables_hold_both_parts_with_their_truth(
        self, runs: Runs, task: str
    ) -> None:
        plan, run, summary = runs(task)
        for name, part in (("valid", plan.data.valid), ("test", plan.data.test)):
            assert part is not None
            rows = read_table(run.predictions / f"{name}.tsv")
            assert [row["id"] for row in rows] == list(part.ids)
            assert [int(row["length"]) for row in rows] == part.lengths.tolist()
            wanted = [plan.data.codec.decode(part.target(i)) for i in range(len(part))]
            if task == "regression":
                assert [float(row["target"]) for row in rows] == pytest.approx(wanted, rel=1e-5)
                error = [
                    abs(float(row["prediction"]) - t) for row, t in zip(rows, wanted, strict=True)
                ]
                mae = summary[name]["metrics"]["mae"]["value"]
                assert np.mean(error) == pytest.approx(mae, rel=1e-4)
            else:
                assert [row["target"] for row in rows] == wanted
            if task in ("classification", "multilabel"):
                right = np.mean(
                    [row["prediction"] == t for row, t in zip(rows, wanted, strict=True)]
                )
                accuracy = summary[name]["metrics"]["accuracy"]["value"]
                assert right == pytest.approx(accuracy)

    def test_a_run_holds_what_the_contract_says(self, runs: Runs) -> None:
        plan, run, _ = runs("classification")
        config, data = read_run(run)
        assert config == plan.config
        assert data["fingerprints"]["train"] == plan.data.train.fingerprint()
        assert {choice["key"] for choice in data["choices"]} == {c.key for c in plan.choices}
        assert data["parts"]["train"]["records"] == len(plan.data.train)
        splits = dict(
            line.split("\t") for line in (run.path / "splits.tsv").read_text().split("\n")[1:-1]
        )
        assert splits == dict(plan.data.splits())
        assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == [
            "best",
            "last",
        ]
        assert not list(run.path.rglob("*.partial"))

    def test_a_run_is_a_function_of_its_seed(self, tmp_path: Path) -> None:
        found = []
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            plan = small_plan(tmp_path, "classification", f"trainer.seed={seed}")
            train_run(plan, RunDir(tmp_path / name))
            found.append(weights(load_run(tmp_path / name, "last").model))
        assert_same_weights(found[0], found[1])
        name = "encoder.blocks.0.conv.weight"
        assert not torch.equal(found[0][name], found[2][name])

    @pytest.mark.parametrize("override", ["trainer.device=cuda:7", "trainer.precision=float16"])
    def test_a_machine_that_cannot_do_it_leaves_no_run_behind(
        self, tmp_path: Path, override: str
    ) -> None:
        run = RunDir(tmp_path / "run")
        with pytest.raises(ConfigError):
            train_run(small_plan(tmp_path, "classification", override), run)
        assert not run.holds_run()

    def test_observers_are_closed_however_training_ends(self, tmp_path: Path) -> None:
        closed = []

        class Fails:
            def on_step(self, event: StepEvent) -> None:
                raise TrainingError("stop")

            def on_epoch(self, event: EpochEvent) -> None:
                pass

            def close(self) -> None:
                closed.append(True)

        def observers(*_: Any) -> Sequence[Observer]:
            return [Fails()]

        with pytest.raises(TrainingError):
            train_run(small_plan(tmp_path), RunDir(tmp_path / "run"), make_observers=observers)
        assert closed == [True]


class Stop:
    """Ends the process, as it seems, after so many steps."""

    def __init__(self, step: int):
        self.step = step

    def __call__(self, *_: Any) -> Sequence[Observer]:
        return [self]

    def on_step(self, event: StepEvent) -> None:
        if event.step == self.step:
            raise KeyboardInterrupt

    def on_epoch(self, event: EpochEvent) -> None:
        pass

    def close(self) -> None:
        pass


class TestResume:
    def cut(self, folder: Path, step: int) -> tuple[Plan, RunDir]:
        plan = small_plan(folder, "classification", "trainer.checkpoint_minutes=0")
        run = RunDir(folder / "run")
        with pytest.raises(KeyboardInterrupt):
            train_run(plan, run, make_observers=Stop(step))
        return plan, run

    @pytest.fixture
    def whole(self, tmp_path: Path) -> dict[str, torch.Tensor]:
        plan = small_plan(tmp_path, "classification", "trainer.checkpoint_minutes=0")
        train_run(plan, RunDir(tmp_path / "whole"))
        return weights(load_run(tmp_path / "whole", "last").model)

    @pytest.mark.parametrize("step", [1, 2, 5])
    def test_it_ends_as_if_nothing_had_happened(
        self, tmp_path: Path, whole: dict[str, torch.Tensor], step: int
    ) -> None:
        _, run = self.cut(tmp_path, step)
        train_run(plan_run(read_run(run)[0]), run, resume=True)
        assert_same_weights(weights(load_run(run.path, "last").model), whole)
        summaries = [
            json.loads((tmp_path / n / "summary.json").read_text()) for n in ("run", "whole")
        ]
        for summary in summaries:
            summary.pop("seconds")
        assert summaries[0] == summaries[1]

    def test_a_crash_between_the_two_renames_loses_no_step(
        self, tmp_path: Path, whole: dict[str, torch.Tensor]
    ) -> None:
        plan, run = self.cut(tmp_path, 4)
        last = run.checkpoint("last")
        last.rename(last.with_name("last.old"))
        began = []

        def begin(run: RunDir, plan: Plan, step: int) -> Sequence[Observer]:
            began.append(step)
            return []

        train_run(plan, run, resume=True, make_observers=begin)
        assert began == [3]
        assert_same_weights(weights(load_run(run.path, "last").model), whole)

    @pytest.mark.parametrize("missing", ["splits.tsv", "training_part.npz", "checkpoints"])
    def test_what_a_kill_left_unwritten_is_written_then(
        self, tmp_path: Path, whole: dict[str, torch.Tensor], missing: str
    ) -> None:
        plan, run = self.cut(tmp_path, 1)
        path = run.path / missing
        if path.is_file():
            path.unlink()
        train_run(plan, run, resume=True)
        assert path.exists()
        assert_same_weights(weights(load_run(run.path, "last").model), whole)

    def test_other_data_are_refused_by_the_name_of_their_part(self, tmp_path: Path) -> None:
        _, run = self.cut(tmp_path, 3)
        path = tmp_path / "x.fasta"
        records = path.read_text()
        first = records.index("\n") + 1
        path.write_text(records[:first] + "Y" + records[first + 1 :])
        with pytest.raises(CheckpointError, match=r"\(\w+ changed; the contents of .*x.fasta"):
            train_run(plan_run(read_run(run)[0]), run, resume=True)

    def test_a_second_interrupt_in_the_evaluation_only_delays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, torch.Tensor]
    ) -> None:
        """Training is done; the best checkpoint is about to be loaded for the summary."""
        plan, run = small_plan(tmp_path), RunDir(tmp_path / "run")

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("seqtrain.pipeline.load_run", interrupted)
            with pytest.raises(KeyboardInterrupt):
                train_run(plan, run)
        assert not run.summary.exists()
        summary = train_run(plan, run, resume=True)
        assert summary["epochs"] == 2
        assert_same_weights(weights(load_run(run.path, "last").model), whole)


class TestEvaluation:
    @pytest.mark.parametrize("task", TASKS)
    @pytest.mark.parametrize("max_tokens", [1, 100_000])
    def test_numbers_do_not_depend_on_the_batch_size(
        self, runs: Runs, task: str, max_tokens: int
    ) -> None:
        plan, run, summary = runs(task)
        assert plan.data.test is not None
        scored, _ = evaluate_run(load_run(run.path), plan.data.test, None, max_tokens=max_tokens)
        for name, interval in scored.metrics.items():
            wanted = summary["test"]["metrics"][name]["value"]
            assert interval.value == pytest.approx(wanted, rel=1e-3, abs=1e-4), name

    @pytest.mark.parametrize("kind", ["mse", "huber"])
    def test_the_loss_of_a_regression_is_that_of_training(self, tmp_path: Path, kind: str) -> None:
        plan = small_plan(tmp_path, "regression", f"task.loss={kind}", "trainer.max_epochs=1")
        run = RunDir(tmp_path / "run")
        summary = train_run(plan, run)
        loaded = load_run(run.path)
        wanted = predict_outputs(
            loaded.model,
            plan.data.valid,
            Objective("regression", regression_loss=kind),
            max_tokens=100,
        )
        assert summary["valid"]["metrics"]["loss"]["value"] == pytest.approx(wanted.loss, rel=1e-4)

    def test_alarms_tell_a_model_that_learnt_nothing(self, tmp_path: Path) -> None:
        plan = small_plan(tmp_path, "classification", "optim.lr=1e-12", "trainer.max_epochs=1")
        summary = train_run(plan, RunDir(tmp_path / "run"))
        assert any("no better than" in alarm for alarm in summary["test"]["alarms"])


class TestParts:
    def test_balanced_weights_come_from_the_training_part(self, tmp_path: Path) -> None:
        plan = small_plan(tmp_path, "classification", "task.class_weights=balanced")
        objective = build_objective(plan.config, plan.data)
        targets = plan.data.train.targets
        assert targets is not None
        assert objective.class_weights is not None
        counts = np.bincount(targets)
        wanted = len(targets) / (2 * counts)
        np.testing.assert_allclose(objective.class_weights.numpy(), wanted, rtol=1e-6)

    def test_the_objective_takes_the_settings_of_the_task(self, tmp_path: Path) -> None:
        plan = small_plan(tmp_path, "classification", "task.label_smoothing=0.25")
        assert build_objective(plan.config, plan.data) == Objective("classification", None, 0.25)
        plan = small_plan(tmp_path / "r", "regression", "task.loss=huber")
        assert build_objective(plan.config, plan.data).regression_loss == "huber"

    def test_a_trainer_has_the_settings_of_its_plan(self, tmp_path: Path) -> None:
        overrides = [
            "trainer.accumulate=3",
            "optim.clip_norm=0.5",
            "optim.warmup_fraction=0.25",
            "trainer.patience=4",
            "batching.kind=random",
            "batching.max_sequences=5",
            "trainer.precision=bfloat16",
            "trainer.seed=9",
            "trainer.checkpoint_minutes=7",
        ]
        settings = build_trainer(
            small_plan(tmp_path, "classification", *overrides), RunDir(tmp_path)
        )
        assert vars(settings.settings) == {
            "max_epochs": 2,
            "patience": 4,
            "monitor": "mcc",
            "batching": "random",
            "max_tokens": 256,
            "max_sequences": 5,
            "num_classes": 2,
            "accumulate": 3,
            "clip_norm": 0.5,
            "warmup_fraction": 0.25,
            "precision": torch.bfloat16,
            "checkpoint_minutes": 7.0,
            "seed": 9,
        }

    def test_the_number_of_threads_is_set(self, tmp_path: Path) -> None:
        before = torch.get_num_threads()
        try:
            build_trainer(
                small_plan(tmp_path, "classification", "trainer.num_threads=2"), RunDir(tmp_path)
            )
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)

    def test_nested_settings_become_dotted_names(self) -> None:
        assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {
            "a.b.c": 1,
            "a.d": [2],
            "e": None,
        }

    @pytest.mark.parametrize("encoder", ["cnn", "transformer"])
    def test_more_of_anything_needs_more_memory(self, encoder: str) -> None:
        def needed(longest: int = 100, **changes: int) -> int:
            config: RunConfig = load_config("config", [f"encoder={encoder}"])
            config.batching.max_tokens, config.encoder.embed_dim = 1000, 64
            config.encoder.num_layers = 6
            for name, value in changes.items():
                setattr(config.batching if name == "max_tokens" else config.encoder, name, value)
            return estimate_memory(config, 10_000, longest)

        base = needed()
        assert needed(max_tokens=2000) > base
        assert needed(embed_dim=128) > base
        assert needed(num_layers=20) > base
        assert needed(longest=5000) > base
        assert needed(longest=999) == base

    def test_only_what_is_trained_is_counted(self, runs: Runs) -> None:
        _, run, _ = runs("classification")
        model = load_run(run.path).model
        count = count_parameters(model)
        model.head.requires_grad_(False)
        assert count_parameters(model) == count - sum(p.numel() for p in model.head.parameters())


class TestFamilies:
    def test_variants_of_one_sequence_are_told_with_what_to_try(self, tmp_path: Path) -> None:
        rows, records = ["id\ttarget"], []
        for i in range(40):
            letters = list("MKVLAAGIVGLLALAGCSSW" * 3)
            letters[i] = "D"
            records.append(f">v{i}\n{''.join(letters)}\n")
            rows.append(f"v{i}\t{i / 7:.3f}")
        (tmp_path / "v.fasta").write_text("".join(records))
        (tmp_path / "v.tsv").write_text("\n".join(rows) + "\n")
        values = {
            "data.train": [str(tmp_path / "v.fasta")],
            "data.labels": [str(tmp_path / "v.tsv")],
        }
        plan = plan_run(load_config("config", ["data=files"], values=values))
        (hint,) = (w for w in plan.data.report["warnings"] if "variants of one sequence" in w)
        assert "(1 of 60 residues differ)" in hint
        overrides = ["data=files", *hint.split("; ")[1].split(" gives")[0].split()]
        tried = plan_run(load_config("config", overrides, values=values))
        assert tried.config.task.pooling == "position"
        assert not any("variants of one" in w for w in tried.data.report["warnings"])
