"""Whole comparisons over a dozen records: trained, measured, kept, gone on with."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compare.comparisons import tiny_comparison, tiny_comparison_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import seqtrain
from seqtrain.compare import run as run_module
from seqtrain.compare.analysis import analyse, statistics_error, worst_shift
from seqtrain.compare.plan import Arm, Comparison, limit_records
from seqtrain.compare.report import write_report
from seqtrain.compare.run import is_finished, open_comparison, run_arms
from seqtrain.errors import CheckpointError, TrainingError

NORMS = ["masked_batch", "batch", "leaky_batch", "layer"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """Four norms, two seeds."""
    folder = tmp_path_factory.mktemp("comparison")
    comparison = tiny_comparison(folder, NORMS, num_seeds=2)
    open_comparison(comparison, folder / "out", resume=False)
    run_arms(comparison, folder / "out")
    return comparison, folder / "out"


def _by_norm(finished: tuple[Comparison, Path]) -> dict[str, dict]:  # type: ignore[type-arg]
    comparison, folder = finished
    results = run_module.collect(comparison, folder)
    assert [r.get("error") for r in results] == [None] * 8
    return {r["norm"]: r for r in results if r["seed"] == 0}


def test_arms_of_a_seed_saw_the_same_batches_and_draws(
    finished: tuple[Comparison, Path],
) -> None:
    results = _by_norm(finished)
    assert len(results["batch"]["witness"]) == 2
    assert all(r["witness"] == results["masked_batch"]["witness"] for r in results.values())


def test_only_the_leaky_norm_moves_logits_when_padded(finished: tuple[Comparison, Path]) -> None:
    shifts = {norm: worst_shift(result) for norm, result in _by_norm(finished).items()}
    assert shifts.pop("leaky_batch") > 1e-4
    assert max(shifts.values()) < 1e-5


def test_padding_spoils_the_running_statistics_of_plain_norms(
    finished: tuple[Comparison, Path],
) -> None:
    results = _by_norm(finished)
    masked = statistics_error(results["masked_batch"])
    # After an epoch of three steps even masked ones trail far behind the weights.
    assert statistics_error(results["batch"]) > 1.1 * masked
    assert np.isnan(statistics_error(results["layer"]))


def test_its_report_is_written_and_pairs_every_norm_with_the_first(
    finished: tuple[Comparison, Path], tmp_path: Path
) -> None:
    comparison, folder = finished
    results = run_module.collect(comparison, folder)
    analysis = analyse(comparison, results, folder, num_draws=50)
    assert [c.condition.norm for c in analysis.contrasts] == NORMS[1:]
    assert all(c.num_seeds == 2 for c in analysis.contrasts)
    each = {(r["norm"], r["seed"]): r["metrics"][analysis.metric] for r in results}
    difference = np.mean([each["batch", s] - each["masked_batch", s] for s in range(2)])
    assert analysis.contrasts[0].difference.value == pytest.approx(difference)
    write_report(analysis, tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 50_000


def test_one_cluster_of_all_records_leaves_nothing_to_resample(
    finished: tuple[Comparison, Path],
) -> None:
    comparison, folder = finished
    results = run_module.collect(comparison, folder)
    clusters = {f"test{i}": "one" for i in range(12)}
    analysis = analyse(comparison, results, folder, clusters=clusters, num_draws=20)
    assert all(c.p_value == 1 for c in analysis.contrasts)


def test_resuming_trains_only_what_is_missing(finished: tuple[Comparison, Path]) -> None:
    comparison, folder = finished
    missing = Arm(comparison.conditions[1], 1)
    kept = {arm: (folder / arm.name / "arm.json").stat().st_mtime_ns for arm in comparison.arms()}
    (folder / missing.name / "arm.json").unlink()
    open_comparison(comparison, folder, resume=True)
    told = []
    run_arms(comparison, folder, lambda arm, *_: told.append(arm))
    assert told == [missing]
    now = {arm: (folder / arm.name / "arm.json").stat().st_mtime_ns for arm in comparison.arms()}
    assert {arm for arm in now if now[arm] != kept[arm]} == {missing}


def test_a_used_folder_is_refused_and_other_settings_cannot_be_resumed(
    finished: tuple[Comparison, Path], tmp_path: Path
) -> None:
    comparison, folder = finished
    with pytest.raises(CheckpointError, match="--resume"):
        open_comparison(comparison, folder, resume=False)
    other = tiny_comparison(tmp_path, NORMS, num_seeds=2)
    other.plans["cnn"].config.optim.lr = 0.5
    with pytest.raises(CheckpointError, match=r"settings\.cnn\.optim\.lr"):
        open_comparison(other, folder, resume=True)


def test_a_folder_of_something_else_and_a_damaged_one_are_not_gone_on_with(
    finished: tuple[Comparison, Path], tmp_path: Path
) -> None:
    comparison, _ = finished
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="holds no comparison; choose another --output"):
            open_comparison(comparison, other, resume=resume)
    (other / "comparison.json").write_text('{"settings": {"cnn"')
    with pytest.raises(CheckpointError, match=r"comparison\.json: is damaged"):
        open_comparison(comparison, other, resume=True)
    assert (other / "thesis.txt").read_text() == "mine"


def test_the_same_data_at_another_path_are_resumed_and_other_data_are_not(
    finished: tuple[Comparison, Path], tmp_path: Path
) -> None:
    _, folder = finished
    moved = tiny_comparison(tmp_path, NORMS, num_seeds=2)
    open_comparison(moved, folder, resume=True)
    fewer = limit_records(moved.plans["cnn"], 20)
    with pytest.raises(CheckpointError, match=r"these differ: data\.train\."):
        open_comparison(replace(moved, plans={"cnn": fewer}), folder, resume=True)


def test_the_losses_of_an_arm_have_no_smoothing(tmp_path: Path) -> None:
    """With it none could fall below the entropy of the smoothed targets."""
    comparison = tiny_comparison(tmp_path, ["none"], num_seeds=1)
    config = comparison.plans["cnn"].config
    config.task.label_smoothing, config.optim.lr, config.trainer.max_epochs = 0.5, 0.05, 10
    open_comparison(comparison, tmp_path / "out", resume=False)
    (result,) = run_arms(comparison, tmp_path / "out")
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert result["metrics"]["loss"] < entropy
    assert result["loss_as_in_training"] < entropy
    assert result["loss_as_in_evaluation"] < entropy


def test_a_failed_arm_is_recorded_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = tiny_comparison(tmp_path, ["none", "layer"])
    comparison.plans["cnn"].config.trainer.max_epochs = 1
    train = run_module.train_run

    def failing(plan, run, **options):  # type: ignore[no-untyped-def]
        if plan.config.norm.name == "none":
            raise TrainingError("the loss is nan")
        return train(plan, run, **options)

    monkeypatch.setattr(run_module, "train_run", failing)
    open_comparison(comparison, tmp_path / "out", resume=False)
    none, layer = run_arms(comparison, tmp_path / "out")
    assert (none["status"], layer["status"]) == ("failed", "ok")
    assert none["error"] == "TrainingError: the loss is nan"
    assert not is_finished(tmp_path / "out", comparison.arms()[0])


def test_an_arm_that_saw_other_batches_does_not_count(finished: tuple[Comparison, Path]) -> None:
    comparison, folder = finished
    path = folder / Arm(comparison.conditions[3], 0).name / "arm.json"
    before = path.read_text()
    result = json.loads(before)
    result["witness"][1]["batches"] = "others"
    path.write_text(json.dumps(result))
    layer = run_module.collect(comparison, folder)[3]
    path.write_text(before)
    assert layer["status"] == "failed"
    assert "from epoch 2 on its batches" in layer["error"]


@pytest.mark.parametrize(
    ("task", "encoder", "metric"),
    [
        ("regression", "transformer", "r2"),
        ("residue_classification", "cnn", "macro_f1"),
        ("mlm", "cnn", "perplexity"),
    ],
)
def test_other_tasks_and_encoders_are_compared_too(
    tmp_path: Path, task: str, encoder: str, metric: str
) -> None:
    comparison = tiny_comparison_of(tmp_path, task, encoder)
    comparison.plans[encoder].config.trainer.max_epochs = 1
    open_comparison(comparison, tmp_path / "out", resume=False)
    results = run_arms(comparison, tmp_path / "out")
    assert [r.get("error") for r in results] == [None, None]
    analysis = analyse(comparison, results, tmp_path / "out", num_draws=30)
    assert analysis.metric == metric
    score = [r["metrics"][metric] for r in results]
    assert analysis.contrasts[0].difference.value == pytest.approx(score[1] - score[0], abs=1e-6)
    assert max(map(worst_shift, results)) < 1e-4
    assert np.isfinite(statistics_error(results[0]))
    is_class = task in ("residue_classification", "mlm")
    assert np.isfinite([r["calibration_error"] or np.nan for r in results]).all() == is_class
    write_report(analysis, tmp_path)
    facts = dict(analysis.trained)
    assert facts["task"].startswith(task)
    assert facts["train files"].startswith("train.fasta (")
    assert facts["records"].startswith("train 12 with")
    assert f"{results[0]['num_parameters']:,}" in facts["model"]
    assert "at most 1 epoch," in facts["training"]
    assert facts["epochs trained"] == "1"
    assert seqtrain.__version__ in facts["versions"]
    quarters = results[0]["by_length"]
    assert all(row["low"] <= row["median"] <= row["high"] for row in quarters)


def test_tensorboard_shows_the_settings_and_the_score_of_every_arm(
    finished: tuple[Comparison, Path],
) -> None:
    comparison, folder = finished
    seen = set()
    for arm in comparison.arms():
        events = EventAccumulator(str(folder / arm.name / "tensorboard"))
        events.Reload()
        data = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        settings = HParamsPluginData.FromString(data).session_start_info.hparams
        seen.add((settings["norm.name"].string_value, settings["trainer.seed"].string_value))
        metrics = json.loads((folder / arm.name / "arm.json").read_text())["metrics"]
        final = events.Scalars("final/mcc")
        assert [e.value for e in final] == pytest.approx([metrics["mcc"]], abs=1e-6)
    assert seen == {(norm, str(seed)) for norm in NORMS for seed in range(2)}
