"""Run directories and bundles that were damaged, or that somebody made to do harm."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny_runs import tiny_run
from typer.testing import CliRunner

from seqtrain.cli.main import app
from seqtrain.errors import CheckpointError, SeqtrainWarning
from seqtrain.evaluation.score import TrainingPart
from seqtrain.export.bundle import open_run, read_summary, verify_bundle, write_bundle
from seqtrain.training.run_dir import RunDir
from seqtrain.training.sums import write_listed


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_run(tmp_path_factory.mktemp("run") / "run")
    write_listed(folder / "splits.tsv", "id\tsplit\n")
    write_bundle(folder, folder.parent / "bundle")
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original.parent / "bundle", tmp_path / "bundle"))


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "data.json",
        "splits.tsv",
        "training_part.npz",
        "SHA256SUMS",
        "checkpoints/best/model.safetensors",
        "checkpoints/best/state.json",
        "checkpoints/best/SHA256SUMS",
    ],
)
def test_a_flipped_bit_is_found_and_its_file_named(run: Path, name: str) -> None:
    raw = (run / name).read_bytes()
    for place in np.random.default_rng(0).integers(0, 8 * len(raw), 4).tolist():
        flipped = bytearray(raw)
        flipped[place // 8] ^= 1 << place % 8
        (run / name).write_bytes(flipped)
        with pytest.raises(CheckpointError) as caught:
            open_run(run)
        assert "SHA256SUMS" in str(caught.value)
        assert name in str(caught.value) or name.endswith("SHA256SUMS")


def test_a_run_of_before_opens_with_a_word(run: Path) -> None:
    for folder in (run, run / "checkpoints" / "best"):
        (folder / "SHA256SUMS").unlink()
    with pytest.warns(SeqtrainWarning, match="damage to its files cannot be found"):
        open_run(run)


def test_a_file_that_may_not_be_read_is_told_as_such(run: Path) -> None:
    weights = run / "checkpoints" / "best" / "model.safetensors"
    assert weights.stat().st_mode & 0o777 == (run / "data.json").stat().st_mode & 0o777
    if os.geteuid() == 0:
        pytest.skip("the superuser may read everything")
    weights.chmod(0)
    with pytest.raises(CheckpointError, match="Permission denied"):
        open_run(run)


@pytest.mark.parametrize("name", ["splits.tsv", "metrics.jsonl", ".lock", "tensorboard"])
@pytest.mark.parametrize("verb", ["info", "resume", "overwrite"])
def test_links_in_a_run_are_refused_and_not_written_through(
    run: Path, tmp_path: Path, name: str, verb: str
) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target)
    command = ["info", str(run)] if verb == "info" else ["train", f"--{verb}", "-o", str(run)]
    said = CliRunner().invoke(app, command)
    assert isinstance(said.exception, CheckpointError)
    assert f"{name}: is a link" in str(said.exception)
    assert target.read_text() == "precious"


def test_a_run_may_be_reached_through_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run)
    assert open_run(tmp_path / "link").state["progress"]["epoch"] == 1


ODD_EXAMPLE = [{"id": "a", "sequence": "ACD", "expected": [0.5, {"a": 1}, 0.5]}]
Change = Callable[[dict[str, Any]], None]

SETTINGS: dict[str, Change] = {
    "embed_dim: null": lambda c: c["encoder"].update(embed_dim=None),
    "embed_dim: 50000": lambda c: c["encoder"].update(embed_dim=50000),
    "num_layers: 1e9": lambda c: c["encoder"].update(num_layers=10**9),
    "ffn_ratio": lambda c: c["encoder"].update(ffn_ratio=1e9),
    "max_tokens: null": lambda c: c["batching"].update(max_tokens=None),
    "pooling: null": lambda c: c["task"].update(pooling=None),
    "norm: list": lambda c: c["norm"].update(name=["batch"]),
    "unknown": lambda c: c["data"].update(unknown=1),
    "no encoder": lambda c: c.pop("encoder"),
    "list": lambda c: c.update(data=[]),
}
REPORTS: dict[str, Change] = {
    "integer classes": lambda d: d["labels"].update(classes=[1, 2, 3]),
    "classes twice": lambda d: d["labels"].update(classes=["a", "a", "b"]),
    "many classes": lambda d: d["labels"].update(classes=list(map(str, range(100_000)))),
    "surrogate": lambda d: d["labels"].update(classes=["a", "b", "\ud800"]),
    "std": lambda d: d["labels"].update(std=float("nan")),
    "task": lambda d: d["labels"].update(task="regression"),
    "no labels": lambda d: d.pop("labels"),
    "tokenizer": lambda d: d["tokenizer"].update(gap=3),
    "range": lambda d: d.update(training_range={"shortest": "x"}),
    "range of others": lambda d: d.update(
        training_range={"shortest": 1, "longest": 2, "composition": [0.5]}
    ),
    "lengths": lambda d: d["parts"]["train"].update(lengths=[3]),
    "huge": lambda d: d["parts"]["train"].update(records=10**400),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_are_checked_before_use(run: Path, bundle: Path, case: str) -> None:
    saved = yaml.safe_load((run / "config.yaml").read_text())
    SETTINGS[case](saved)
    write_listed(run / "config.yaml", yaml.safe_dump(saved))
    manifest = json.loads((bundle / "bundle.json").read_text())
    SETTINGS[case](manifest["settings"])
    write_listed(bundle / "bundle.json", json.dumps(manifest))
    for place in (run, bundle):
        with pytest.raises(CheckpointError) as caught:
            open_run(place)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", REPORTS)
def test_labels_and_reports_are_checked_before_use(run: Path, bundle: Path, case: str) -> None:
    data = json.loads((run / "data.json").read_text())
    REPORTS[case](data)
    write_listed(run / "data.json", json.dumps(data))
    manifest = json.loads((bundle / "bundle.json").read_text())
    merged = {**manifest["data"], **{key: manifest[key] for key in ("labels", "tokenizer")}}
    REPORTS[case](merged)
    found = {key: merged.pop(key, None) for key in ("labels", "tokenizer")}
    write_listed(bundle / "bundle.json", json.dumps({**manifest, **found, "data": merged}))
    for place in (run, bundle):
        with pytest.raises(CheckpointError):
            open_run(place)


@pytest.mark.parametrize(
    ("key", "value"),
    [("state", None), ("data", None), ("state", {"progress": {"epoch": -1}}), ("format", -1)],
)
def test_a_bundle_of_other_fields_is_refused(bundle: Path, key: str, value: Any) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    write_listed(bundle / "bundle.json", json.dumps({**manifest, key: value}))
    with pytest.raises(CheckpointError):
        open_run(bundle)


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, "\x00", '{"format": 1e400}', "1" * 5000])
@pytest.mark.parametrize("name", ["data.json", "calibration.json", "summary.json"])
def test_json_of_any_kind_ends_in_one_error(run: Path, name: str, text: str) -> None:
    if name == "summary.json" and text.startswith("{"):
        pytest.skip("another version may say more")
    write_listed(run / name, text)
    with pytest.raises(CheckpointError, match=r"damaged|format"):
        read_summary(run) if name == "summary.json" else open_run(run)


def test_a_yaml_of_aliases_is_refused_at_once(run: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghi")]
    write_listed(run / "config.yaml", "\n".join(lines))
    with pytest.raises(CheckpointError, match="anchor or alias"):
        open_run(run)
    write_listed(run / "config.yaml", "a: " + "[" * 5000)
    with pytest.raises(CheckpointError):
        open_run(run)


def test_a_bundle_needs_its_checksums(bundle: Path) -> None:
    (bundle / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match="has no SHA256SUMS"):
        open_run(bundle)
    (bundle / "SHA256SUMS").write_text("junk\n")
    with pytest.raises(CheckpointError, match="line 1"):
        open_run(bundle)


@pytest.mark.parametrize(
    "examples", [[], 3, [{"id": 1}], [{"id": "a", "sequence": "!", "expected": "x"}], ODD_EXAMPLE]
)
def test_strange_examples_end_in_one_error(bundle: Path, examples: Any) -> None:
    write_listed(bundle / "examples.json", json.dumps(examples))
    with pytest.raises(CheckpointError, match="examples"):
        verify_bundle(bundle)


def packed(bundle: Path, path: Path, more: Callable[[zipfile.ZipFile], None]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in bundle.iterdir():
            archive.write(file, file.name)
        more(archive)
    return path


def link(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("notes")
    entry.external_attr = 0o120777 << 16
    archive.writestr(entry, "/etc/passwd")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (link, "is a link"),
        (lambda a: a.writestr("../up", "x"), "lies in a folder"),
        (lambda a: a.writestr("zeros", bytes(60 << 20)), "would unpack to"),
    ],
)
def test_archives_hold_few_plain_files_of_likely_size(
    bundle: Path, tmp_path: Path, more: Callable[[zipfile.ZipFile], None], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        open_run(packed(bundle, tmp_path / "b.zip", more))


def test_archives_cut_short_end_in_one_error(original: Path, tmp_path: Path) -> None:
    write_bundle(original, tmp_path / "b.zip")
    raw = (tmp_path / "b.zip").read_bytes()
    for size in (0, 10, len(raw) // 2, len(raw) - 30):
        (tmp_path / "cut.zip").write_bytes(raw[:size])
        with pytest.raises(CheckpointError):
            open_run(tmp_path / "cut.zip")


def test_a_training_part_of_other_arrays_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part.npz"
    for arrays in ({"lengths": np.array(["a"]), "targets": np.ones(1)}, {"lengths": np.ones(2)}):
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match="damaged"):
            TrainingPart.read(path)


def test_a_link_is_refused_before_there_is_a_run(tmp_path: Path) -> None:
    """Opening the run at its end would refuse any, when the training is done."""
    run = RunDir(tmp_path / "new")
    run.check_links()
    (run.path / "data").mkdir(parents=True)
    run.check_links()
    (run.path / "data" / "notes").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="is a link"):
        run.check_links()


@pytest.mark.parametrize("name", ["data.json", "splits.tsv", "SHA256SUMS", "predictions/test.tsv"])
def test_files_that_no_run_made_are_foreign(tmp_path: Path, name: str) -> None:
    run = RunDir(tmp_path)
    assert run.foreign_files() == []
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert run.foreign_files() == [tmp_path / name]
    run.data.write_text('{\n "format": 1}')  # a run began here: its first file
    assert run.foreign_files() == []
