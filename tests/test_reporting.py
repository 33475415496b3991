"""What a run says of itself: lines, events, words."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import tiny_model

from seqtrain import reporting
from seqtrain.board import MAX_PICTURED, TensorBoard, confusion_figure, write_final
from seqtrain.reporting import (
    JsonLines,
    PlainLines,
    ProgressBar,
    confusion_table,
    table,
    to_json,
)
from seqtrain.training.events import EpochEvent, Guarded, Observer, StepEvent


def step_event(step: int, **changes: Any) -> StepEvent:
    fields: dict[str, Any] = {
        "num_steps": 20,
        "epoch": 1 + (step - 1) // 10,
        "loss": 1 / step,
        "lr": 0.1,
        "grad_norm": 2.0,
        "residues_per_second": 12345.6,
        "padding_share": 0.25,
    }
    return StepEvent(step=step, **{**fields, **changes})


def epoch_event(epoch: int, **changes: Any) -> EpochEvent:
    fields: dict[str, Any] = {
        "num_epochs": 2,
        "step": 10 * epoch,
        "train_loss": 0.5,
        "valid": {"loss": 0.25, "mcc": 0.75},
        "monitor": "mcc",
        "is_best": epoch == 1,
        "best": 0.75,
        "residues_per_second": 12345.6,
        "padding_share": 0.25,
        "seconds": 61.0,
        "model": tiny_model(),
        "confusion": np.array([[3, 1], [0, 4]]),
    }
    return EpochEvent(epoch=epoch, **{**fields, **changes})


@contextmanager
def watching(observer: Observer) -> Iterator[Observer]:
    try:
        yield observer
    finally:
        observer.close()


def two_epochs(observer: Observer) -> None:
    for epoch in (1, 2):
        for step in range(10 * epoch - 9, 10 * epoch + 1):
            observer.on_step(step_event(step))
        observer.on_epoch(epoch_event(epoch))


class TestJson:
    def test_numbers_that_json_lacks_become_null(self) -> None:
        value = {"a": float("nan"), "b": [float("inf"), -float("inf"), 1.5], "c": (1, None)}
        text = to_json(value)
        assert json.loads(text) == {"a": None, "b": [None, None, 1.5], "c": [1, None]}
        assert "NaN" not in text
        assert "Infinity" not in text

    def test_numpy_scalars_become_plain_numbers(self) -> None:
        value = {np.int64(3): np.float32(0.5), "b": np.bool_(True), "c": np.float64("nan")}
        assert json.loads(to_json(value)) == {"3": 0.5, "b": True, "c": None}


class TestJsonLines:
    def lines(self, path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    def test_every_step_and_epoch_is_a_line(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        with watching(JsonLines(path)) as observer:
            two_epochs(observer)
        lines = self.lines(path)
        assert [line["kind"] for line in lines] == (["step"] * 10 + ["epoch"]) * 2
        assert lines[0] == {"kind": "step", **vars(step_event(1))}
        assert lines[10]["valid"] == {"loss": 0.25, "mcc": 0.75}
        assert not {"model", "confusion"} & set(lines[10])

    def test_a_line_is_on_disk_as_soon_as_it_is_told(self, tmp_path: Path) -> None:
        """A checkpoint may follow at once, and a kill after that."""
        path = tmp_path / "metrics.jsonl"
        with watching(JsonLines(path)) as observer:
            observer.on_step(step_event(1))
            assert len(self.lines(path)) == 1

    def test_going_on_drops_what_will_be_made_again(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        with watching(JsonLines(path)) as observer:
            two_epochs(observer)
        whole = path.read_text()
        with watching(JsonLines(path, step=13)) as observer:
            assert [line["step"] for line in self.lines(path)] == [*range(1, 11), 10, 11, 12, 13]
            for step in range(14, 21):
                observer.on_step(step_event(step))
            observer.on_epoch(epoch_event(2))
        assert path.read_text() == whole

    @pytest.mark.parametrize("damage", ['{"kind": "step", "ste', "\x00\x00", "[1]", "3", "{}", ""])
    def test_a_line_cut_short_is_dropped(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "metrics.jsonl"
        with watching(JsonLines(path)) as observer:
            observer.on_step(step_event(1))
        whole = path.read_text()
        path.write_text(whole + damage)
        JsonLines(path, step=1).close()
        assert path.read_text() == whole

    def test_a_new_run_begins_with_no_line(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text(json.dumps({"kind": "step", "step": 1}) + "\n")
        JsonLines(path).close()
        assert path.read_text() == ""


SETTINGS = {"optim.lr": "0.1", "encoder.name": "cnn"}


class TestTensorBoard:
    def written(self, folder: Path) -> EventAccumulator:
        accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        accumulator.Reload()
        return accumulator

    def test_scalars_histograms_and_the_confusion_matrix_are_written(self, tmp_path: Path) -> None:
        with watching(TensorBoard(tmp_path, SETTINGS, ["a", "b"])) as observer:
            two_epochs(observer)
        found = self.written(tmp_path)
        tags = found.Tags()
        names = ("loss", "lr", "grad_norm", "residues_per_second", "padding_share")
        assert {f"train/{name}" for name in names} <= set(tags["scalars"])
        assert [e.step for e in found.Scalars("train/loss")] == list(range(1, 21))
        assert [e.value for e in found.Scalars("valid/mcc")] == [0.75, 0.75]
        assert "final/mcc" not in tags["scalars"]  # not known before the run is scored
        assert tags["images"] == ["valid/confusion"]
        histograms = tags["histograms"]
        model = tiny_model()
        running = [n for n, _ in model.named_buffers() if n.endswith(("_mean", "_var"))]
        assert sorted(histograms) == sorted(f"norms/{name}" for name in running)

    @pytest.mark.parametrize("parts", [("valid",), ("valid", "test")])
    def test_final_scores_are_those_of_the_summary(
        self, tmp_path: Path, parts: tuple[str, ...]
    ) -> None:
        scores = dict(zip(("valid", "test"), (0.25, 0.5), strict=True))
        summary: dict[str, Any] = {"steps": 20}
        summary |= {part: {"metrics": {"mcc": {"value": scores[part]}}} for part in parts}
        write_final(tmp_path, SETTINGS, summary, pytest.fail)
        found = self.written(tmp_path)
        assert [(e.step, e.value) for e in found.Scalars("final/mcc")] == [(20, scores[parts[-1]])]
        assert "_hparams_/experiment" in found.summary_metadata

    def test_final_scores_that_cannot_be_written_are_told(self) -> None:
        said: list[str] = []
        summary = {"steps": 1, "valid": {"metrics": {"mcc": {"value": 0.5}}}}
        write_final(Path("/dev/null/x"), SETTINGS, summary, said.append)
        assert len(said) == 1

    def test_going_on_hides_the_events_that_will_be_made_again(self, tmp_path: Path) -> None:
        for first in (1, 6):
            observer = TensorBoard(tmp_path, SETTINGS, [], step=first - 1)
            for step in range(first, 11):
                observer.on_step(step_event(step, loss=float(first)))
            observer.close()
        values = [(e.step, e.value) for e in self.written(tmp_path).Scalars("train/loss")]
        assert values == [(s, 1.0) for s in range(1, 6)] + [(s, 6.0) for s in range(6, 11)]

    def test_a_task_without_classes_has_no_confusion_matrix(self, tmp_path: Path) -> None:
        with watching(TensorBoard(tmp_path, SETTINGS, [])) as observer:
            observer.on_epoch(epoch_event(1, confusion=None))
        assert self.written(tmp_path).Tags()["images"] == []

    def test_an_undefined_metric_is_written_too(self, tmp_path: Path) -> None:
        with watching(TensorBoard(tmp_path, SETTINGS, [])) as observer:
            observer.on_epoch(epoch_event(1, valid={"loss": 1.0, "mcc": math.nan}))
        assert math.isnan(self.written(tmp_path).Scalars("valid/mcc")[0].value)

    def test_running_statistics_that_overflowed_do_not_end_the_run(self, tmp_path: Path) -> None:
        model = tiny_model()
        model.encoder.blocks[0].norm.running_var.fill_(math.inf)
        with watching(TensorBoard(tmp_path, SETTINGS, [])) as observer:
            observer.on_epoch(epoch_event(1, model=model))
        histograms = self.written(tmp_path).Tags()["histograms"]
        assert "norms/encoder.blocks.0.norm.running_var" not in histograms
        assert "norms/encoder.blocks.1.norm.running_var" in histograms


class TestConfusionFigure:
    def test_cells_hold_counts_and_colours_are_shares_of_the_true_class(self) -> None:
        counts = np.array([[3, 1], [0, 0]])
        figure = confusion_figure(counts, ["first", "second"])
        axes = figure.axes[0]
        np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0, 0]])
        texts = {t.get_position(): t.get_text() for t in axes.texts}
        assert texts == {(0, 0): "3", (1, 0): "1"}
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
        assert [t.get_text() for t in axes.get_yticklabels()] == ["first", "second"]

    @pytest.mark.parametrize("name", ["$x", r"a $\foo$", r"$\frac{1}{0", "_y [red]", "\x1b[31m"])
    def test_strange_names_are_drawn(self, name: str) -> None:
        figure = confusion_figure(np.eye(2, dtype=int), [name, "b"])
        figure.canvas.draw()

    def test_of_many_classes_those_that_are_confused_most_are_shown(self) -> None:
        counts = np.diag(np.full(1600, 5))
        counts[700, 1500] = 3
        figure = confusion_figure(counts, [f"c{i}" for i in range(1600)])
        names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert len(names) == MAX_PICTURED
        assert {"c700", "c1500"} <= set(names)
        assert "30 of 1,600 classes" in figure.axes[0].get_title()
        assert max(figure.get_size_inches()) < 20


class TestGuarded:
    class Broken:
        def __init__(self, where: str) -> None:
            self.where, self.calls = where, 0

        def _meet(self, what: str) -> None:
            self.calls += 1
            if what == self.where:
                raise OSError(28, "No space left on device")

        def on_step(self, event: StepEvent) -> None:
            self._meet("step")

        def on_epoch(self, event: EpochEvent) -> None:
            self._meet("epoch")

        def close(self) -> None:
            self._meet("close")

    @pytest.mark.parametrize(("where", "calls"), [("step", 2), ("epoch", 12), ("close", 24)])
    def test_the_first_error_is_told_and_the_observer_left_alone(
        self, where: str, calls: int
    ) -> None:
        said: list[str] = []
        broken = self.Broken(where)
        with watching(Guarded(lambda: broken, "TensorBoard", said.append)) as observer:
            two_epochs(observer)
        assert len(said) == 1
        assert said[0].startswith("TensorBoard is left out from here on: ")
        assert "No space left on device" in said[0]
        assert broken.calls == calls

    def test_one_that_cannot_be_made_is_told_too(self) -> None:
        said: list[str] = []
        with watching(Guarded(lambda: TensorBoard(Path("/dev/null/x"), {}, []), "it", said.append)):
            pass
        assert len(said) == 1

    def test_an_interrupt_passes(self) -> None:
        def interrupt() -> Observer:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Guarded(interrupt, "it", [].append)


class TestConfusionTable:
    def drawn(self, names: list[str], counts: np.ndarray) -> str:
        console = Console(file=StringIO(), width=100)
        console.print(confusion_table(names, counts, 100))
        assert isinstance(console.file, StringIO)
        return console.file.getvalue()

    def test_a_small_matrix_is_shown_whole(self) -> None:
        drawn = self.drawn(["helix", "sheet"], np.array([[31, 1], [2, 42]]))
        assert all(text in drawn for text in ("helix", "sheet", "31", "42"))

    def test_of_a_wide_one_the_most_frequent_confusions_with_names_in_full(self) -> None:
        names = [f"Intracellular compartment {i:03d}" for i in range(150)]
        counts = np.diag(np.full(150, 6))
        counts[3, 77], counts[80, 1] = 2, 4
        drawn = self.drawn(names, counts)
        rows = [line for line in drawn.splitlines() if "Intracellular" in line]
        assert len(rows) == 2
        assert all(text in rows[0] for text in (names[80], names[1], "4", "40%"))
        assert all(text in rows[1] for text in (names[3], names[77], "2", "25%"))


def test_names_in_a_crowded_table_are_not_cut() -> None:
    names = ["masked_batch", "masked_batch_renorm"]
    console = Console(file=StringIO(), width=90)
    columns = ["condition", *(f"a wide measure {i}" for i in range(10))]
    console.print(table("title", columns, [[name, *[0.123456] * 10] for name in names]))
    assert isinstance(console.file, StringIO)
    drawn = console.file.getvalue()
    assert all(f" {name} " in drawn for name in names)
    assert "…" not in drawn


class TestPlainLines:
    def test_an_epoch_is_a_line_with_every_number_named(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with watching(PlainLines()) as observer:
            two_epochs(observer)
        said = capsys.readouterr()
        assert said.out == ""
        first, second = said.err.splitlines()
        for words in (
            "epoch 1/2",
            "train loss 0.5000",
            "valid loss 0.2500",
            "valid mcc 0.7500 *",
            "12,346 residues/s",
            "padding 25%",
            "1 min 01 s",
        ):
            assert words in first
        assert "*" not in second

    def test_a_long_epoch_gives_a_sign_of_life(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = 0.0
        monkeypatch.setattr(reporting.time, "monotonic", lambda: clock)
        observer = PlainLines()
        for step in range(5, 11):  # a resumed run: four steps were done before
            clock += 6
            observer.on_step(step_event(step))
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 3
        # Two steps took 12 s and 14 are left.
        assert "step 6/20" in lines[0]
        assert "at most 1 min 24 s left" in lines[0]

    def test_a_first_step_that_took_long_tells_nothing_of_the_others(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = 0.0
        monkeypatch.setattr(reporting.time, "monotonic", lambda: clock)
        observer = PlainLines()
        for step, seconds in ((1, 60), (2, 10)):
            clock += seconds
            observer.on_step(step_event(step))
        first, second = capsys.readouterr().err.splitlines()
        assert "step 1/20" in first
        assert "left" not in first
        assert "at most 3 min 00 s left" in second


class TestProgressBar:
    def test_nothing_is_said_of_steps_before_the_first(self) -> None:
        console = Console(file=StringIO(), force_terminal=True, width=160)
        with watching(ProgressBar(console)) as observer:
            observer._progress.refresh()
        assert "None" not in console.file.getvalue()

    def test_a_terminal_shows_loss_metric_speed_padding_and_time_left(self) -> None:
        console = Console(file=StringIO(), force_terminal=True, width=160)
        with watching(ProgressBar(console)) as observer:
            two_epochs(observer)
            observer._progress.refresh()
        written = console.file.getvalue()
        for words in ("epoch 2", "step 20/20", "loss 0.0500", "residues/s", "padding 25%"):
            assert words in written
        assert "valid mcc 0.7500 *" in written


class TestTable:
    def drawn(self, *arguments: Any) -> str:
        console = Console(file=StringIO(), width=100)
        console.print(table(*arguments))
        return console.file.getvalue()

    def test_numbers_are_rounded_for_reading(self) -> None:
        numbers = (0.0, 0.123456, -0.00001234, 12.3456, 12345.6, 1234567)
        text = self.drawn("t", ("a", "b"), [("x", number) for number in numbers])
        cells = [line.split("│")[2].strip() for line in text.splitlines() if "│" in line]
        assert cells == ["0.000", "0.123", "-1.23e-05", "12.35", "12,346", "1,234,567"]

    def test_what_is_not_defined_is_a_dash(self) -> None:
        assert "–" in self.drawn("t", ("a", "b"), [("x", math.nan)])

    def test_names_from_users_are_no_markup(self) -> None:
        """A class may be called ``[red]`` or ``[/b]``."""
        text = self.drawn("file[1].fa", ("[bold]", "[/b]"), [("[red]", "[/]")])
        assert all(part in text for part in ("file[1].fa", "[bold]", "[/b]", "[red]", "[/]"))
