"""Training: that it learns, adds up, stops, and goes on as if nothing had happened."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import (
    IGNORED,
    Recorder,
    assert_same_weights,
    tiny_dataset,
    tiny_trainer,
    weights,
)

from seqtrain.data.batching import Batch
from seqtrain.data.dataset import SequenceDataset
from seqtrain.errors import CheckpointError, TrainingError
from seqtrain.nn.model import SequenceModel
from seqtrain.reporting import JsonLines
from seqtrain.training.checkpoint import load_checkpoint
from seqtrain.training.events import EpochEvent, StepEvent
from seqtrain.training.losses import sequence_loss
from seqtrain.training.objective import Objective
from seqtrain.training.optim import warmup_cosine
from seqtrain.training.outputs import predict_outputs, score_outputs
from seqtrain.training.sums import listed_file, write_listed
from seqtrain.training.trainer import Trainer

TASKS = ["classification", "multilabel", "regression", "residue_classification", "mlm"]
CLOCK = {"seconds", "residues_per_second"}


def logged(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file without what a clock says."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


class StopAt:
    """Asks the process to stop as Ctrl-C does, after so many steps."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGINT):
        self.step, self.number = step, number

    def on_step(self, event: StepEvent) -> None:
        if event.step == self.step:
            os.kill(os.getpid(), self.number)

    def on_epoch(self, event: EpochEvent) -> None:
        pass

    def close(self) -> None:
        pass


class TestLearning:
    @pytest.mark.parametrize("encoder", ["cnn", "transformer"])
    # Without mlm: what is hidden in random sequences cannot be told from the rest.
    @pytest.mark.parametrize("task", TASKS[:-1])
    def test_it_overfits_eight_sequences(self, tmp_path: Path, task: str, encoder: str) -> None:
        train = tiny_dataset(task, 8, seed=3)
        trainer = tiny_trainer(
            tmp_path,
            task,
            encoder=encoder,
            dropout=0.0,
            train=train,
            valid=train,
            max_epochs=80,
            max_tokens=1000,
        )
        begin = predict_outputs(trainer.model, train, trainer.objective, max_tokens=1000).loss
        trainer.fit()
        end = predict_outputs(trainer.model, train, trainer.objective, max_tokens=1000).loss
        assert end < 0.05 * begin

    def test_a_recorded_loss_curve_holds(self, tmp_path: Path) -> None:
        """The first losses follow from ln 3 for three classes and a head that begins neutral."""
        recorder = Recorder()
        tiny_trainer(tmp_path, dropout=0.0, observers=[recorder], max_epochs=1).fit()
        assert recorder.steps[0].loss == pytest.approx(np.log(3), abs=1e-6)

    def test_validation_leaves_no_trace_in_training(self, tmp_path: Path) -> None:
        """Other validation records change neither weights nor statistics nor random numbers."""
        found = []
        for num_records in (3, 30):
            valid = tiny_dataset(num_records=num_records, seed=num_records)
            trainer = tiny_trainer(tmp_path / str(num_records), valid=valid)
            trainer.fit()
            found.append(weights(trainer.model))
        assert_same_weights(*found)

    def test_observers_are_told_every_step_and_epoch(self, tmp_path: Path) -> None:
        recorder = Recorder()
        trainer = tiny_trainer(tmp_path, observers=[recorder], max_epochs=3)
        progress = trainer.fit()
        assert [e.step for e in recorder.steps] == list(range(1, progress.step + 1))
        assert [e.epoch for e in recorder.epochs] == [1, 2, 3]
        assert {e.num_steps for e in recorder.steps} == {trainer.num_steps}
        for event in recorder.epochs:
            assert event.confusion is not None
            assert event.confusion.sum() == len(trainer.valid)

    def test_the_learning_rate_told_is_that_of_the_next_step(self, tmp_path: Path) -> None:
        recorder = Recorder()
        trainer = tiny_trainer(tmp_path, observers=[recorder], warmup_fraction=0.25, lr=0.5)
        trainer.fit()
        steps = trainer.num_steps
        wanted = [
            0.5 * warmup_cosine(step, steps, round(0.25 * steps)) for step in range(1, steps + 1)
        ]
        assert [e.lr for e in recorder.steps] == pytest.approx(wanted)

    def test_the_padding_share_is_that_of_the_epoch(self, tmp_path: Path) -> None:
        recorder = Recorder()
        train = tiny_dataset(lengths=[10, 10, 5, 5])
        tiny_trainer(
            tmp_path,
            train=train,
            observers=[recorder],
            max_epochs=1,
            batching="random",
            max_tokens=1000,
        ).fit()
        assert recorder.epochs[0].padding_share == pytest.approx(10 / 40)

    @pytest.mark.parametrize("batching", ["packed", "bucketed", "random"])
    @pytest.mark.parametrize("norm", ["masked_batch", "batch", "leaky_batch"])
    def test_a_batch_of_one_residue_is_trained_on(
        self, tmp_path: Path, norm: str, batching: str
    ) -> None:
        train = tiny_dataset(lengths=[1, 1, 40])
        trainer = tiny_trainer(tmp_path, norm=norm, train=train, batching=batching, max_tokens=1)
        progress = trainer.fit()
        assert progress.step == 6
        assert all(value.isfinite().all() for value in weights(trainer.model).values())

    def test_bfloat16_trains_with_statistics_in_float32(self, tmp_path: Path) -> None:
        trainer = tiny_trainer(tmp_path, precision=torch.bfloat16)
        trainer.fit()
        assert {v.dtype for v in weights(trainer.model).values() if v.is_floating_point()} == {
            torch.float32
        }


class TestGradient:
    def gradient_of_whole(
        self, trainer: Trainer, task: str, train: SequenceDataset
    ) -> list[torch.Tensor]:
        """The gradient of the mean loss over all records, one by one, by plain autograd."""
        model = trainer.model.train()
        totals, counts = [], []
        for i in range(len(train)):
            tokens = torch.from_numpy(train.residues(i).astype(np.int64))[None]
            logits = model(tokens, torch.tensor([tokens.shape[1]]))
            target = torch.as_tensor(np.asarray(train.target(i)))[None]
            if task == "regression":
                target = model.head.scale(target)
            total, count = sequence_loss(task, logits, target)
            totals.append(total)
            counts.append(count)
        loss = torch.stack(totals).sum() / torch.stack(counts).sum()
        return list(torch.autograd.grad(loss, list(model.parameters())))

    @pytest.mark.parametrize("task", TASKS)
    @pytest.mark.parametrize("norm", ["none", "layer"])
    @pytest.mark.parametrize("batching", ["packed", "bucketed"])
    def test_accumulated_batches_give_the_gradient_of_one_large_batch(
        self, tmp_path: Path, task: str, norm: str, batching: str
    ) -> None:
        """Weighted by what each batch counts: records, labels, or residues not ignored."""
        train = tiny_dataset(task, lengths=[3, 30, 9, 1, 25, 2, 14])
        if task == "residue_classification":
            assert train.targets is not None
            train.targets[: train.offsets[1]] = IGNORED
        shared: dict[str, Any] = {"norm": norm, "dropout": 0.0, "train": train, "clip_norm": 0.0}
        trainer = tiny_trainer(
            tmp_path, task, **shared, batching=batching, max_tokens=30, accumulate=100
        )
        with torch.no_grad():
            torch.nn.init.normal_(trainer.model.head.linear.weight)
        if trainer.corruption is not None:
            train = trainer.corruption(train, 0)
        wanted = self.gradient_of_whole(trainer, task, train)
        trainer._fit_epoch()
        assert trainer.progress.step == 1
        found = [p.grad for p in trainer.model.parameters()]
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)

    def test_class_weights_are_divided_out_over_all_batches(self, tmp_path: Path) -> None:
        train = tiny_dataset(lengths=[3, 30, 9, 1, 25, 2, 14])
        objective = Objective("classification", torch.tensor([0.1, 1.0, 10.0]))
        losses = []
        for accumulate, max_tokens in ((100, 30), (1, 10_000)):
            recorder = Recorder()
            trainer = tiny_trainer(
                tmp_path / str(accumulate),
                norm="none",
                dropout=0.0,
                train=train,
                objective=objective,
                observers=[recorder],
                max_tokens=max_tokens,
                accumulate=accumulate,
                max_epochs=1,
            )
            trainer.fit()
            assert len(recorder.steps) == 1
            losses.append((recorder.steps[0].loss, recorder.steps[0].grad_norm))
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    def test_clipping_bounds_the_step_and_tells_the_norm_before(self, tmp_path: Path) -> None:
        recorder = Recorder()
        trainer = tiny_trainer(tmp_path, clip_norm=1e-3, observers=[recorder], dropout=0.0)
        trainer._fit_epoch()
        norm = torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters()])
        assert float(norm) <= 1e-3 * (1 + 1e-4)
        assert recorder.steps[-1].grad_norm > 1e-2

    def test_a_batch_with_nothing_but_ignored_labels_moves_no_weight_astray(
        self, tmp_path: Path
    ) -> None:
        task = "residue_classification"
        train = tiny_dataset(task, lengths=[8])
        assert train.targets is not None
        train.targets[:] = IGNORED
        trainer = tiny_trainer(tmp_path, task, train=train, max_epochs=1)
        trainer.fit()
        assert all(value.isfinite().all() for value in weights(trainer.model).values())


class TestNonFinite:
    def spoil(self, model: SequenceModel) -> None:
        """The weights that only one token reads."""
        with torch.no_grad():
            model.encoder.embedding.weight[7] = torch.nan

    def dataset(self) -> SequenceDataset:
        dataset = tiny_dataset(num_records=6)
        tokens = dataset.tokens.copy()
        tokens[tokens == 7] = 8
        tokens[dataset.offsets[4]] = 7
        return SequenceDataset(dataset.ids, tokens, dataset.offsets, dataset.targets)

    def test_a_non_finite_loss_names_step_and_records_before_any_update(
        self, tmp_path: Path
    ) -> None:
        trainer = tiny_trainer(
            tmp_path, train=self.dataset(), norm="none", max_tokens=1, max_sequences=1
        )
        self.spoil(trainer.model)
        before: dict[str, torch.Tensor] = {}

        class Keep(Recorder):
            def on_step(self, event: StepEvent) -> None:
                super().on_step(event)
                before.update(weights(trainer.model))

        keep = Keep()
        trainer.observers = [keep]
        with pytest.raises(TrainingError) as caught:
            trainer.fit()
        message = str(caught.value)
        assert f"step {len(keep.steps) + 1}:" in message
        assert "s0-4" in message
        assert "s0-3" not in message
        after = weights(trainer.model)
        for name, value in before.items():
            torch.testing.assert_close(after[name], value, equal_nan=True, rtol=0, atol=0)

    def test_a_non_finite_gradient_of_a_finite_loss_stops_too(self, tmp_path: Path) -> None:
        class Cliff(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
                return grad * torch.inf

        class Steep(Objective):
            def __call__(self, model: SequenceModel, batch: Batch, logits: torch.Tensor) -> Any:
                total, count = super().__call__(model, batch, logits)
                return Cliff.apply(total), count

        trainer = tiny_trainer(tmp_path, norm="none", objective=Steep("classification"))
        before = weights(trainer.model)
        with pytest.raises(TrainingError, match="step 1: the norm of the gradient"):
            trainer.fit()
        assert_same_weights(weights(trainer.model), before)

    def test_the_checkpoint_before_is_still_there(self, tmp_path: Path) -> None:
        trainer = tiny_trainer(tmp_path, max_epochs=1)
        trainer.fit()
        trainer.settings = trainer.settings.__class__(**{**vars(trainer.settings), "max_epochs": 5})
        trainer.progress.done = False
        self.spoil(trainer.model)
        with pytest.raises(TrainingError):
            trainer.fit()
        fresh = tiny_trainer(tmp_path)
        load_checkpoint(trainer.run.checkpoint("last"), fresh.model)
        assert all(value.isfinite().all() for value in weights(fresh.model).values())


class TestStopping:
    class Scripted(Trainer):
        """Validation says what the script says."""

        script: list[float]

        def _validate(self) -> tuple[dict[str, float], np.ndarray | None]:
            value = self.script[self.progress.epoch]
            return {"loss": value, "accuracy": value}, None

    def run_script(
        self, folder: Path, script: list[float], monitor: str, patience: int
    ) -> tuple[Trainer, Recorder]:
        recorder = Recorder()
        trainer = tiny_trainer(
            folder,
            observers=[recorder],
            max_epochs=len(script),
            patience=patience,
            monitor=monitor,
        )
        trainer.__class__ = self.Scripted
        assert isinstance(trainer, self.Scripted)
        trainer.script = script
        trainer.fit()
        return trainer, recorder

    def test_training_stops_after_so_many_epochs_without_a_better_value(
        self, tmp_path: Path
    ) -> None:
        script = [0.5, 0.6, 0.6, 0.55, 0.9, 0.9, 0.9]
        trainer, _ = self.run_script(tmp_path, script, "accuracy", patience=2)
        assert trainer.progress.epoch == 4
        assert (trainer.progress.best, trainer.progress.best_epoch) == (0.6, 2)
        assert trainer.progress.done

    def test_patience_0_never_stops(self, tmp_path: Path) -> None:
        trainer, _ = self.run_script(tmp_path, [0.9] + [0.1] * 6, "accuracy", patience=0)
        assert trainer.progress.epoch == 7

    @pytest.mark.parametrize(("monitor", "best"), [("accuracy", 4), ("loss", 2)])
    def test_the_best_checkpoint_is_that_of_the_best_value(
        self, tmp_path: Path, monitor: str, best: int
    ) -> None:
        script = [0.5, 0.2, 0.4, 0.9, 0.3]
        trainer, recorder = self.run_script(tmp_path, script, monitor, patience=0)
        model = tiny_trainer(tmp_path).model
        state = load_checkpoint(trainer.run.checkpoint("best"), model)
        assert state["progress"]["best_epoch"] == best
        assert state["progress"]["epoch"] == best
        assert state["valid"][monitor] == script[best - 1]
        assert [e.epoch for e in recorder.epochs if e.is_best][-1] == best

    def test_the_best_checkpoint_holds_the_weights_of_that_epoch(self, tmp_path: Path) -> None:
        seen = []

        class Keep(Recorder):
            def on_epoch(self, event: EpochEvent) -> None:
                super().on_epoch(event)
                seen.append(weights(event.model))

        keep = Keep()
        trainer = tiny_trainer(tmp_path, observers=[keep], max_epochs=6, lr=0.3)
        trainer.fit()
        losses = [event.valid["loss"] for event in keep.epochs]
        model = tiny_trainer(tmp_path).model
        load_checkpoint(trainer.run.checkpoint("best"), model)
        assert_same_weights(weights(model), seen[int(np.argmin(losses))])

    def test_nan_never_beats_a_number(self, tmp_path: Path) -> None:
        nan = float("nan")
        trainer, _ = self.run_script(tmp_path, [nan, 0.3, nan, 0.2], "accuracy", patience=0)
        assert (trainer.progress.best, trainer.progress.best_epoch) == (0.3, 2)

    def test_while_the_metric_is_not_defined_the_newest_weights_are_kept(
        self, tmp_path: Path
    ) -> None:
        trainer, _ = self.run_script(tmp_path, [float("nan")] * 5, "accuracy", patience=2)
        assert (trainer.progress.epoch, trainer.progress.best_epoch) == (5, 5)

    def test_metrics_told_are_those_of_the_validation_part(self, tmp_path: Path) -> None:
        recorder = Recorder()
        trainer = tiny_trainer(tmp_path, observers=[recorder], max_epochs=1)
        trainer.fit()
        outputs = predict_outputs(
            trainer.model, trainer.valid, Objective("classification"), max_tokens=80
        )
        wanted = score_outputs(outputs, trainer.valid, "classification", 3)
        assert recorder.epochs[0].valid == pytest.approx(wanted, rel=1e-5, nan_ok=True)

    def test_validation_is_scored_without_class_weights_and_smoothing(self, tmp_path: Path) -> None:
        objective = Objective("classification", torch.tensor([0.1, 1.0, 10.0]), 0.3)
        recorder = Recorder()
        trainer = tiny_trainer(tmp_path, objective=objective, observers=[recorder], max_epochs=1)
        trainer.fit()
        plain = predict_outputs(
            trainer.model, trainer.valid, Objective("classification"), max_tokens=80
        )
        assert recorder.epochs[0].valid["loss"] == pytest.approx(plain.loss, rel=1e-5)


def fit_until(trainer: Trainer, folder: Path, step: int | None) -> None:
    """Train, log, and perhaps be interrupted at a step."""
    lines = JsonLines(folder / "metrics.jsonl", trainer.progress.step)
    trainer.observers = [lines, *([StopAt(step)] if step else [])]
    try:
        if step is None:
            trainer.fit()
        else:
            with pytest.raises(KeyboardInterrupt):
                trainer.fit()
    finally:
        lines.close()


class TestResume:
    @pytest.mark.parametrize("batching", ["packed", "bucketed", "random"])
    @pytest.mark.parametrize("accumulate", [1, 3])
    @pytest.mark.parametrize("stop", [1, 2, 4, 7])
    def test_an_interrupted_run_goes_on_bit_for_bit(
        self, tmp_path: Path, batching: str, accumulate: int, stop: int
    ) -> None:
        """Weights, optimizer, and every logged line; at the first step, within and at the end."""
        options: dict[str, Any] = {
            "batching": batching,
            "accumulate": accumulate,
            "max_epochs": 4,
            "max_tokens": 40,
        }
        whole = tiny_trainer(tmp_path / "whole", **options)
        fit_until(whole, self.made(tmp_path / "whole"), None)
        assert whole.steps_per_epoch > 2
        first = tiny_trainer(tmp_path / "cut", **options)
        fit_until(first, self.made(tmp_path / "cut"), stop)
        assert first.progress.step == stop
        second = tiny_trainer(tmp_path / "cut", model_seed=99, **options)
        second.resume()
        fit_until(second, tmp_path / "cut", None)
        assert_same_weights(weights(second.model), weights(whole.model))
        files = [tmp_path / name / "metrics.jsonl" for name in ("whole", "cut")]
        assert logged(files[0]) == logged(files[1])
        for name in ("last", "best"):
            paths = [t.run.checkpoint(name) / "model.safetensors" for t in (whole, second)]
            assert paths[0].read_bytes() == paths[1].read_bytes()

    def made(self, folder: Path) -> Path:
        folder.mkdir()
        return folder

    def test_twice_n_epochs_equal_n_a_checkpoint_and_n(self, tmp_path: Path) -> None:
        """The checkpoint of a finished epoch, without any signal."""
        whole = tiny_trainer(tmp_path / "whole", max_epochs=4)
        whole.fit()
        first = tiny_trainer(tmp_path / "cut", max_epochs=4)
        for _ in range(2):
            first._fit_epoch()
            first._end_epoch()
        second = tiny_trainer(tmp_path / "cut", model_seed=5, max_epochs=4)
        second.resume()
        assert second.progress.epoch == 2
        second.fit()
        assert_same_weights(weights(second.model), weights(whole.model))

    @pytest.mark.parametrize("task", TASKS)
    @pytest.mark.parametrize("encoder", ["cnn", "transformer"])
    def test_every_task_and_encoder_resumes(self, tmp_path: Path, task: str, encoder: str) -> None:
        whole = tiny_trainer(tmp_path / "whole", task, encoder=encoder, batching="packed")
        fit_until(whole, self.made(tmp_path / "whole"), None)
        first = tiny_trainer(tmp_path / "cut", task, encoder=encoder, batching="packed")
        fit_until(first, self.made(tmp_path / "cut"), 2)
        second = tiny_trainer(tmp_path / "cut", task, encoder=encoder, batching="packed")
        second.resume()
        second.fit()
        assert_same_weights(weights(second.model), weights(whole.model))

    def test_timed_checkpoints_within_an_epoch_change_nothing(self, tmp_path: Path) -> None:
        seldom = tiny_trainer(tmp_path / "a")
        seldom.fit()
        always = tiny_trainer(tmp_path / "b", checkpoint_minutes=0.0)
        always.fit()
        assert_same_weights(weights(always.model), weights(seldom.model))

    def test_a_killed_run_goes_on_from_the_timed_checkpoint(self, tmp_path: Path) -> None:
        """A kill is an exception that nobody expects, after a checkpoint within the epoch."""

        class KilledError(Exception):
            pass

        class Kill(Recorder):
            def on_step(self, event: StepEvent) -> None:
                if event.step == 6:
                    raise KilledError

        options: dict[str, Any] = {"checkpoint_minutes": 0.0, "max_epochs": 3}
        whole = tiny_trainer(tmp_path / "whole", **options)
        fit_until(whole, self.made(tmp_path / "whole"), None)
        first = tiny_trainer(tmp_path / "cut", **options)
        lines = JsonLines(self.made(tmp_path / "cut") / "metrics.jsonl")
        first.observers = [lines, Kill()]
        with pytest.raises(KilledError):
            first.fit()
        # Not closed: what was not written by then is lost, as in a killed process.
        second = tiny_trainer(tmp_path / "cut", **options)
        second.resume()
        assert second.progress.step in (4, 5)
        fit_until(second, tmp_path / "cut", None)
        lines.close()
        assert_same_weights(weights(second.model), weights(whole.model))
        files = [tmp_path / name / "metrics.jsonl" for name in ("whole", "cut")]
        assert logged(files[0]) == logged(files[1])

    def test_a_finished_run_has_nothing_left_to_do(self, tmp_path: Path) -> None:
        tiny_trainer(tmp_path).fit()
        again = tiny_trainer(tmp_path, observers=[recorder := Recorder()])
        again.resume()
        assert again.fit().done
        assert not recorder.steps

    def test_without_a_checkpoint_there_is_nothing_to_resume(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no checkpoint"):
            tiny_trainer(tmp_path).resume()

    def test_a_checkpoint_of_another_model_is_refused(self, tmp_path: Path) -> None:
        tiny_trainer(tmp_path, max_epochs=1).fit()
        with pytest.raises(CheckpointError, match="another model"):
            tiny_trainer(tmp_path, encoder="transformer").resume()

    @pytest.mark.parametrize("state", ["{}", '{"progress": {"epoch": 1, "age": 3}}', "[]", "nul"])
    def test_a_damaged_state_is_refused(self, tmp_path: Path, state: str) -> None:
        trainer = tiny_trainer(tmp_path, max_epochs=1)
        trainer.fit()
        write_listed(trainer.run.checkpoint("last") / "state.json", state)
        shutil.rmtree(trainer.run.checkpoint("best"))
        with pytest.raises(CheckpointError, match="damaged"):
            tiny_trainer(tmp_path).resume()

    def test_an_optimizer_state_of_another_model_is_refused(self, tmp_path: Path) -> None:
        trainer = tiny_trainer(tmp_path, max_epochs=1)
        trainer.fit()
        with listed_file(trainer.run.checkpoint("last") / "optimizer.pt") as partial:
            torch.save({"optimizer": {}}, partial)
        with pytest.raises(CheckpointError, match="damaged"):
            tiny_trainer(tmp_path).resume()


class TestInterrupt:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_the_step_is_finished_and_saved(
        self, tmp_path: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
    ) -> None:
        trainer = tiny_trainer(tmp_path, observers=[StopAt(3, number)])
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        assert "once more stops at once" in capfd.readouterr().err
        assert trainer.progress.step == 3
        fresh = tiny_trainer(tmp_path, model_seed=4)
        fresh.resume()
        assert fresh.progress.step == 3
        assert_same_weights(weights(fresh.model), weights(trainer.model))

    def test_one_during_the_last_validation_is_not_forgotten(self, tmp_path: Path) -> None:
        class StopInEpoch(Recorder):
            def on_epoch(self, event: EpochEvent) -> None:
                os.kill(os.getpid(), signal.SIGINT)

        trainer = tiny_trainer(tmp_path, observers=[StopInEpoch()], max_epochs=1)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        fresh = tiny_trainer(tmp_path, max_epochs=1)
        fresh.resume()
        assert fresh.progress.done

    def test_a_second_one_does_not_wait(self, tmp_path: Path) -> None:
        class Twice(Recorder):
            def on_step(self, event: StepEvent) -> None:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

        trainer = tiny_trainer(tmp_path, observers=[Twice()])
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        assert not trainer.run.checkpoint("last").exists()

    def test_handlers_are_put_back(self, tmp_path: Path) -> None:
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        tiny_trainer(tmp_path, max_epochs=1).fit()
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
