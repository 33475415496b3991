"""Run directories: whole after any crash, refused when damaged, harmless from a stranger."""

import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CODECS, TOKENIZER, tiny_config, tiny_model
from tiny_training import assert_same_weights, weights

from seqtrain.config import RunConfig
from seqtrain.errors import CheckpointError
from seqtrain.training import checkpoint as room
from seqtrain.training.checkpoint import load_checkpoint, load_run, read_run, save_checkpoint
from seqtrain.training.guard import RunLock
from seqtrain.training.restore import load_training_state
from seqtrain.training.run_dir import RunDir, create_run, write_text
from seqtrain.training.sums import write_listed


def resolved() -> RunConfig:
    config = tiny_config()
    config.batching.max_tokens = 64
    return config


def made_run(folder: Path, seed: int = 0) -> RunDir:
    """A run directory with a best checkpoint, as training leaves it."""
    run = RunDir(folder)
    data = {"tokenizer": TOKENIZER.to_dict(), "labels": CODECS["classification"].to_dict()}
    create_run(run, resolved(), data)
    save_checkpoint(run.checkpoint("best"), tiny_model(seed=seed), {"progress": {"epoch": 3}})
    return run


def training_state() -> dict[str, Any]:
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}


def load_all(folder: Path) -> None:
    load_checkpoint(folder, tiny_model())
    load_training_state(folder)


def state_of(folder: Path) -> int:
    step: int = load_checkpoint(folder, tiny_model())["step"]
    return step


class TestSaving:
    def test_weights_buffers_and_state_come_back(self, tmp_path: Path) -> None:
        model = tiny_model(seed=1)
        save_checkpoint(tmp_path / "last", model, {"step": 7, "value": None})
        other = tiny_model(seed=2)
        assert load_checkpoint(tmp_path / "last", other) == {"step": 7, "value": None}
        assert_same_weights(weights(other), weights(model))

    def test_a_model_narrower_than_float32_comes_back_as_it_is(self, tmp_path: Path) -> None:
        model = tiny_model().to(torch.bfloat16)
        save_checkpoint(tmp_path / "last", model, {})
        other = tiny_model(seed=2).to(torch.bfloat16)
        load_checkpoint(tmp_path / "last", other)
        assert_same_weights(weights(other), weights(model))

    def test_the_training_state_comes_back(self, tmp_path: Path) -> None:
        state = training_state()
        save_checkpoint(tmp_path / "last", tiny_model(), {}, state)
        found = load_training_state(tmp_path / "last")
        assert torch.equal(found["rng"], state["rng"])
        for key, values in state["optimizer"]["state"].items():
            for name, value in values.items():
                assert torch.equal(found["optimizer"]["state"][key][name], value)

    def test_only_the_newest_is_left(self, tmp_path: Path) -> None:
        for step in range(3):
            save_checkpoint(tmp_path / "last", tiny_model(), {"step": step})
        assert [path.name for path in tmp_path.iterdir()] == ["last"]
        assert state_of(tmp_path / "last") == 2

    def test_nothing_is_pickled_but_the_optimizer_state(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "last", tiny_model(), {}, training_state())
        names = {path.name for path in (tmp_path / "last").iterdir()}
        assert names == {"model.safetensors", "optimizer.pt", "state.json", "SHA256SUMS"}


class TestCrash:
    """What lies on disk when a process dies at each file operation of a save."""

    @pytest.mark.parametrize("survived", range(12))
    def test_a_crash_at_any_moment_leaves_the_old_or_the_new_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
    ) -> None:
        folder = tmp_path / "checkpoints" / "last"
        save_checkpoint(folder, tiny_model(), {"step": 1}, training_state())
        self.crash_after(survived, monkeypatch, folder, {"step": 2})
        assert state_of(folder) in (1, 2)
        assert load_training_state(folder)

    @pytest.mark.parametrize("second", range(12))
    def test_a_second_crash_leaves_one_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: int
    ) -> None:
        """The first came between the two renames, so that only the old one was there."""
        folder = tmp_path / "checkpoints" / "last"
        save_checkpoint(folder, tiny_model(), {"step": 1}, training_state())
        folder.rename(folder.with_name("last.old"))
        run = RunDir(tmp_path)
        assert run.has_checkpoint("last")
        assert run.holds_run()
        assert state_of(folder) == 1
        self.crash_after(second, monkeypatch, folder, {"step": 2})
        assert state_of(folder) in (1, 2)
        save_checkpoint(folder, tiny_model(), {"step": 3})
        assert state_of(folder) == 3
        assert [path.name for path in folder.parent.iterdir()] == ["last"]

    def crash_after(
        self, survived: int, monkeypatch: pytest.MonkeyPatch, folder: Path, state: dict[str, int]
    ) -> None:
        """Save, and die before the file operation number ``survived``."""

        class DeadError(BaseException):
            pass

        left = survived

        def counted(function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                if left == 0:
                    raise DeadError
                left -= 1
                return function(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(room.shutil, "rmtree", counted(room.shutil.rmtree))
            patch.setattr(room, "save", counted(room.save))
            patch.setattr(torch, "save", counted(torch.save))
            patch.setattr(room, "write_synced", counted(room.write_synced))
            patch.setattr(Path, "rename", counted(Path.rename))
            try:
                save_checkpoint(folder, tiny_model(), state, training_state())
            except DeadError:
                pass
            else:
                assert left > 0 or survived >= 6

    def test_a_full_disk_is_told_and_leaves_the_old_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "last"
        save_checkpoint(folder, tiny_model(), {"step": 1})

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", full)
            with pytest.raises(CheckpointError, match=r"No space left.*--resume"):
                save_checkpoint(folder, tiny_model(), {"step": 2}, {})
        assert state_of(folder) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["last"]

    def test_a_text_is_written_whole_or_not_at_all(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "summary.json"
        write_text(path, "old")

        def dead(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dead)
            with pytest.raises(KeyboardInterrupt):
                write_text(path, "new")
        assert path.read_text() == "old"


class TestDamage:
    def test_a_checkpoint_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            load_checkpoint(tmp_path / "last", tiny_model())

    @pytest.mark.parametrize("name", ["model.safetensors", "state.json", "optimizer.pt"])
    @pytest.mark.parametrize("kept", [0, 1, 7, 0.3, 0.5, 0.99])
    def test_a_file_cut_short_is_told(self, tmp_path: Path, name: str, kept: float) -> None:
        folder = tmp_path / "last"
        state = {"progress": {"epoch": 3, "best": 0.123456789, "best_epoch": 3, "done": False}}
        save_checkpoint(folder, tiny_model(), state, training_state())
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: int(kept if kept >= 1 else len(raw) * kept)])
        with pytest.raises(CheckpointError, match="damaged"):
            load_all(folder)

    @pytest.mark.parametrize("name", ["model.safetensors", "state.json", "optimizer.pt"])
    def test_a_missing_file_is_told(self, tmp_path: Path, name: str) -> None:
        folder = tmp_path / "last"
        save_checkpoint(folder, tiny_model(), {}, {})
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=rf"{name}: is missing"):
            load_all(folder)

    def test_flipped_bytes_never_end_in_another_error(self, tmp_path: Path) -> None:
        folder = tmp_path / "last"
        save_checkpoint(folder, tiny_model(), {}, training_state())
        path = folder / "optimizer.pt"
        raw, rng = path.read_bytes(), random.Random(0)
        refused = 0
        for _ in range(150):
            spoilt = bytearray(raw)
            for _ in range(rng.choice([1, 5, 50])):
                spoilt[rng.randrange(3000)] = rng.randrange(256)
            path.write_bytes(spoilt)
            try:
                load_training_state(folder)
            except CheckpointError:
                refused += 1
        assert refused > 75

    def test_a_pickle_bomb_is_not_executed(self, tmp_path: Path) -> None:
        target = tmp_path / "executed"

        class Bomb:
            def __reduce__(self) -> Any:
                return Path.touch, (target,)

        folder = tmp_path / "last"
        save_checkpoint(folder, tiny_model(), {}, {"optimizer": {}})
        torch.save({"optimizer": Bomb()}, folder / "optimizer.pt")
        with pytest.raises(CheckpointError):
            load_training_state(folder)
        (folder / "optimizer.pt").write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(CheckpointError):
            load_training_state(folder)
        (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(CheckpointError):
            load_checkpoint(folder, tiny_model())
        assert not target.exists()
        pickle.loads(pickle.dumps(Bomb()))
        assert target.exists()  # the bomb was live

    def test_weights_of_another_model_are_refused(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "last", tiny_model("transformer"), {})
        with pytest.raises(CheckpointError, match="another model"):
            load_checkpoint(tmp_path / "last", tiny_model("cnn"))


class TestLoading:
    def test_a_run_comes_back_ready_to_answer(self, tmp_path: Path) -> None:
        run = made_run(tmp_path / "run", seed=4)
        loaded = load_run(run.path)
        assert not loaded.model.training
        assert_same_weights(weights(loaded.model), weights(tiny_model(seed=4)))
        assert loaded.tokenizer == TOKENIZER
        assert loaded.codec == CODECS["classification"]
        assert loaded.config == resolved()
        assert loaded.state == {"progress": {"epoch": 3}}

    @pytest.mark.parametrize("path", ["", "none", "file"])
    def test_what_is_no_run_is_named(self, tmp_path: Path, path: str) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(CheckpointError, match="not a run directory"):
            load_run(tmp_path / path)

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "3", '{"format": 1', '{"format": 1}', '{"format": 2}', "{}", "null", "\x00"],
    )
    def test_damaged_data_are_told(self, tmp_path: Path, text: str) -> None:
        run = made_run(tmp_path)
        write_listed(run.data, text)
        with pytest.raises(CheckpointError):
            load_run(run.path)

    @pytest.mark.parametrize(
        ("section", "key", "value"),
        [
            ("labels", "task", "dance"),
            ("labels", "classes", None),
            ("labels", "age", 3),
            ("tokenizer", "alphabet", 7),
            ("tokenizer", "gap", None),
        ],
    )
    def test_strange_labels_or_tokenizers_are_told(
        self, tmp_path: Path, section: str, key: str, value: Any
    ) -> None:
        run = made_run(tmp_path)
        data = json.loads(run.data.read_text())
        data[section][key] = value
        write_listed(run.data, json.dumps(data))
        with pytest.raises(Exception, match=str(tmp_path) + "|tokenizer") as caught:
            load_run(run.path)
        assert type(caught.value).__module__ == "seqtrain.errors"

    @pytest.mark.parametrize(
        "change",
        [
            ("embed_dim: 8", "embed_dim: null"),
            ("embed_dim: 8", "embed_dim: 16"),
            ("pooling: mean_max", "pooling: null"),
            ("pooling: mean_max", "pooling: deep"),
            ("name: cnn", "name: transformer"),
            ("data:", "code: {_target_: os.system}\ndata:"),
        ],
    )
    def test_strange_settings_are_told(self, tmp_path: Path, change: tuple[str, str]) -> None:
        run = made_run(tmp_path)
        text = run.config.read_text()
        assert change[0] in text
        write_listed(run.config, text.replace(*change, 1))
        with pytest.raises(CheckpointError):
            load_run(run.path)

    def test_a_newer_format_asks_for_the_version_that_wrote_it(self, tmp_path: Path) -> None:
        run = made_run(tmp_path)
        text = run.data.read_text().replace('"format": 1', '"format": 9')
        write_listed(run.data, text)
        with pytest.raises(CheckpointError, match=r"found 9.*version that wrote it"):
            read_run(run)

    def test_an_empty_folder_holds_no_run(self, tmp_path: Path) -> None:
        assert not RunDir(tmp_path).holds_run()
        assert not RunDir(tmp_path / "none").holds_run()
        assert made_run(tmp_path).holds_run()

    def test_a_place_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(CheckpointError, match="cannot be written"):
            create_run(RunDir(tmp_path / "file" / "run"), resolved(), {})


HOLDER = """
import sys
from pathlib import Path
from seqtrain.training.guard import RunLock
with RunLock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


class TestLock:
    def test_another_process_is_kept_out_until_the_first_dies(self, tmp_path: Path) -> None:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(CheckpointError, match="another process"), RunLock(tmp_path):
            pass
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
        with RunLock(tmp_path):
            pass

    def test_it_is_let_go_after_an_error(self, tmp_path: Path) -> None:
        for _ in range(2):
            with pytest.raises(ValueError, match="inside"), RunLock(tmp_path):
                raise ValueError("inside")

    def test_a_place_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with (
            pytest.raises(CheckpointError, match="cannot be written"),
            RunLock(tmp_path / "file" / "run"),
        ):
            pass


def test_the_optimizer_state_is_a_plain_archive(tmp_path: Path) -> None:
    """Of tensors: no class of ours is needed to read it."""
    save_checkpoint(tmp_path / "last", tiny_model(), {}, training_state())
    with zipfile.ZipFile(tmp_path / "last" / "optimizer.pt") as archive:
        assert b"seqtrain" not in archive.read("archive/data.pkl")
