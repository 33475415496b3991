"""Training resumes from the newest whole checkpoint, and stays in its own place."""

import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import assert_same_weights, tiny_trainer, weights

from seqtrain.data.files import whole_file
from seqtrain.errors import CheckpointError, SeqtrainWarning
from seqtrain.training.guard import Place, RunLock
from seqtrain.training.restore import newest_whole
from seqtrain.training.run_dir import RunDir


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("trained") / "run"
    trainer = tiny_trainer(folder, max_epochs=3)
    trainer.fit()
    return folder, weights(trainer.model)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("how", ["emptied", "cut", "removed", "flipped"])
def test_a_damaged_last_checkpoint_falls_back_to_the_best(
    tmp_path: Path, trained: tuple[Path, dict[str, torch.Tensor]], name: str, how: str
) -> None:
    folder = Path(shutil.copytree(trained[0], tmp_path / "run"))
    path = folder / "checkpoints" / "last" / name
    raw = path.read_bytes()
    flipped = raw[:50] + bytes([raw[50] ^ 4]) + raw[51:]
    path.write_bytes(
        {"emptied": b"", "cut": raw[: len(raw) // 2], "flipped": flipped}.get(how, b"")
    )
    if how == "removed":
        path.unlink()
    if (name, how) == ("SHA256SUMS", "removed"):  # as in runs of before
        assert newest_whole(RunDir(folder)).name == "last"
        return
    trainer = tiny_trainer(folder, max_epochs=3)
    with pytest.warns(SeqtrainWarning, match=r"Resuming from checkpoints/best, epoch \d"):
        trainer.resume()
    trainer.fit()
    assert_same_weights(weights(trainer.model), trained[1])


def test_without_a_whole_checkpoint_it_is_said_what_can_be_done(
    tmp_path: Path, trained: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    folder = Path(shutil.copytree(trained[0], tmp_path / "run"))
    for name in ("last", "best"):
        (folder / "checkpoints" / name / "optimizer.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt: is damaged.*--overwrite"):
        newest_whole(RunDir(folder))


def test_a_damaged_best_checkpoint_is_told_before_training_goes_on(
    tmp_path: Path, trained: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    folder = Path(shutil.copytree(trained[0], tmp_path / "run"))
    (folder / "checkpoints" / "best" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="The best epoch is lost"):
        newest_whole(RunDir(folder))


@pytest.mark.parametrize("how", ["renamed", "deleted", "replaced"])
def test_a_run_that_is_moved_while_training_ends_with_one_message(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "run"

    class Mover:
        def on_step(self, event: Any) -> None:
            if event.step == 2:
                folder.rename(tmp_path / "moved")
                if how == "deleted":
                    shutil.rmtree(tmp_path / "moved")
                if how == "replaced":
                    folder.mkdir()

        def on_epoch(self, event: Any) -> None:
            pass

        def close(self) -> None:
            pass

    with pytest.raises(CheckpointError, match="deleted, renamed or replaced while training"):
        tiny_trainer(folder, observers=[Mover()]).fit()
    assert how == "replaced" or not folder.exists()


def test_a_file_system_without_locks_is_no_second_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without_locks)
    with pytest.warns(SeqtrainWarning, match="has no locks"), RunLock(tmp_path):
        pass


def test_place_sees_only_moves(tmp_path: Path) -> None:
    place = Place(tmp_path / "a")
    (tmp_path / "a" / "file").write_text("x")
    place.check()
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(CheckpointError):
        place.check()


def test_files_are_on_disk_before_they_take_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(descriptor: int) -> None:
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def noted_replace(source: Any, target: Any) -> None:
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    with whole_file(tmp_path / "x") as partial:
        partial.write_text("x")
    assert done == ["x.partial", "replace", tmp_path.name]


def test_a_link_in_the_place_of_a_partial_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "x.partial").symlink_to(tmp_path / "target")
    with whole_file(tmp_path / "x") as partial:
        partial.write_text("x")
    assert (tmp_path / "target").read_text() == "precious"
    assert not (tmp_path / "x").is_symlink()
