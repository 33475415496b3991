"""A bundle says what the run says, anywhere, and notices when it was changed."""

import dataclasses
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CODECS, draw_tokens
from tiny_runs import random_fasta, tiny_run
from typer.testing import CliRunner

from seqtrain.cli.main import app
from seqtrain.errors import CheckpointError, ExportError
from seqtrain.export.bundle import (
    open_run,
    opened,
    read_training_part,
    verify_bundle,
    write_bundle,
)
from seqtrain.export.card import model_card
from seqtrain.training.calibration import Calibration
from seqtrain.training.sums import listed_file, write_listed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def bundle(run: Path, tmp_path: Path) -> Path:
    write_bundle(run, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.parametrize("task", CODECS)
@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_a_bundle_gives_the_logits_of_its_run(task: str, name: str, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", task, encoder="transformer")
    write_bundle(run, tmp_path / name)
    loaded = open_run(tmp_path / name)
    tokens, lengths = draw_tokens([5, 1, 9])
    assert torch.equal(loaded.model(tokens, lengths), open_run(run).model(tokens, lengths))
    assert not loaded.model.training
    assert loaded.codec == CODECS[task]
    assert verify_bundle(tmp_path / name).passed


@pytest.mark.parametrize("name", ["b", "b.zip"])
def test_a_bundle_is_calibrated_as_its_run(run: Path, tmp_path: Path, name: str) -> None:
    calibrated = tmp_path / "run"
    shutil.copytree(run, calibrated)
    calibration = Calibration((2.5,), "valid", 10, 0.2, 0.1)
    (calibrated / "calibration.json").write_text(calibration.to_json())
    write_bundle(calibrated, tmp_path / name)
    loaded = open_run(tmp_path / name)
    tokens, lengths = draw_tokens([5, 9])
    logits = loaded.model(tokens, lengths)
    assert loaded.calibration == calibration
    assert torch.allclose(loaded.model.head.readout(logits), (logits / 2.5).softmax(-1))
    assert verify_bundle(tmp_path / name).passed
    plain = open_run(tmp_path / name, calibrated=False)
    assert plain.calibration is None
    assert torch.allclose(plain.model.head.readout(logits), logits.softmax(-1))
    with opened(tmp_path / name) as root:
        assert "calibrated by temperature scaling (T = 2.5" in (root / "README.md").read_text()


def write_manifest(bundle: Path, saved: dict[str, object]) -> None:
    """As if it had been exported so."""
    write_listed(bundle / "bundle.json", json.dumps(saved))


def test_a_bundle_from_before_calibration_is_uncalibrated(bundle: Path) -> None:
    saved = json.loads((bundle / "bundle.json").read_text())
    assert saved.pop("calibration") is None
    write_manifest(bundle, saved)
    assert open_run(bundle).calibration is None
    assert "as trained, not calibrated" in (bundle / "README.md").read_text()


def test_a_damaged_calibration_is_told(run: Path, tmp_path: Path) -> None:
    for number, text in enumerate(['{"method": "magic"}', "", '{"method": "temperature scaling"}']):
        broken = tmp_path / str(number)
        shutil.copytree(run, broken)
        (broken / "calibration.json").write_text(text)
        with pytest.raises(CheckpointError, match="calibration"):
            open_run(broken)


def test_a_bundle_of_a_bundle_is_the_same_bundle(bundle: Path, tmp_path: Path) -> None:
    write_bundle(bundle, tmp_path / "a.zip")
    write_bundle(tmp_path / "a.zip", tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read("bundle.json") == (bundle / "bundle.json").read_bytes()


def test_a_bundle_names_no_folder_of_the_machine_it_was_made_on(bundle: Path) -> None:
    texts = [file.read_bytes() for file in bundle.iterdir()]
    assert not any(b"somebody" in text for text in texts)
    assert any(b"train.fasta" in text for text in texts)


def test_sha256sum_accepts_the_checksums(bundle: Path) -> None:
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=bundle, check=True)


def test_a_bundle_is_read_without_hydra(bundle: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from seqtrain.export.bundle import open_run; "
        f"open_run(Path({str(bundle)!r})); assert not {{'hydra', 'omegaconf'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["model.safetensors", "bundle.json", "README.md"])
def test_a_changed_file_fails_the_verification(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    place = -1 if name == "model.safetensors" else content.index(b"e")
    content[place] = ord("a") if name != "bundle.json" else content[place]
    (bundle / name).write_bytes(content + (b"\n" if name == "bundle.json" else b""))
    found = verify_bundle(bundle)
    assert found.files[name] == "changed"
    assert not found.passed


def test_a_missing_and_a_foreign_file_fail_the_verification(bundle: Path) -> None:
    (bundle / "README.md").unlink()
    (bundle / "more.txt").write_text("x")
    found = verify_bundle(bundle)
    assert found.files["README.md"] == "missing"
    assert found.files["more.txt"] == "not listed"
    assert not found.passed


def test_other_results_of_the_examples_fail_the_verification(bundle: Path) -> None:
    examples = json.loads((bundle / "examples.json").read_text())
    examples[2]["expected"][0] += 0.01
    (bundle / "examples.json").write_text(json.dumps(examples))
    found = verify_bundle(bundle).examples
    assert found.id == examples[2]["id"]
    assert found.worst == pytest.approx(0.01, rel=1e-3)
    assert not found.passed


def test_examples_differ_from_record_to_record(bundle: Path) -> None:
    examples = json.loads((bundle / "examples.json").read_text())
    assert len({tuple(example["expected"]) for example in examples}) == len(examples)
    assert {len(example["sequence"]) for example in examples} == {1, 4, 30, 90}


def test_settings_that_only_training_reads_may_be_unknown(bundle: Path) -> None:
    saved = json.loads((bundle / "bundle.json").read_text())
    saved["settings"]["trainer"]["of_another_version"] = 1
    write_manifest(bundle, saved)
    assert open_run(bundle).config.trainer.seed == 0


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format", 2, "expected a bundle of format 1 or before, found 2"),
        ("vocab", ["<pad>", "A"], "gives other tokens"),
        ("labels", None, "damaged"),
    ],
)
def test_a_bundle_that_cannot_be_read_says_why(
    bundle: Path, key: str, value: object, said: str
) -> None:
    saved = json.loads((bundle / "bundle.json").read_text())
    saved[key] = value
    write_manifest(bundle, saved)
    with pytest.raises(CheckpointError, match=said):
        open_run(bundle)


def test_an_unknown_setting_of_the_encoder_is_refused(bundle: Path) -> None:
    saved = json.loads((bundle / "bundle.json").read_text())
    saved["settings"]["encoder"]["gate"] = True
    write_manifest(bundle, saved)
    with pytest.raises(CheckpointError, match=r"does not know 'gate'"):
        open_run(bundle)


def test_changed_weights_and_foreign_files_are_told(bundle: Path, tmp_path: Path) -> None:
    weights = bundle / "model.safetensors"
    whole = weights.read_bytes()
    for changed in (whole[:-8], whole[:-8] + bytes(8)):
        weights.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: is damaged or was edited"):
            open_run(bundle)
    with listed_file(weights) as partial:
        partial.write_bytes(whole[:-8])
    with pytest.raises(CheckpointError, match="cut short"):
        open_run(bundle)
    (tmp_path / "x.zip").write_text("no archive")
    with pytest.raises(CheckpointError, match="not a bundle"):
        open_run(tmp_path / "x.zip")
    with pytest.raises(CheckpointError, match="not a run directory"):
        open_run(tmp_path / "nowhere")


def test_nothing_is_overwritten(run: Path, bundle: Path) -> None:
    with pytest.raises(ExportError, match="exists already"):
        write_bundle(run, bundle)


def test_lengths_and_targets_of_the_training_part_come_along(run: Path, tmp_path: Path) -> None:
    write_bundle(run, tmp_path / "b.zip")
    assert np.array_equal(read_training_part(tmp_path / "b.zip").lengths, [4, 30, 90])


def test_every_verb_takes_a_bundle_for_a_run(run: Path, tmp_path: Path) -> None:
    fasta = random_fasta(tmp_path / "x.fasta", [3, 20, 7], label="a")
    bundle = tmp_path / "b.zip"
    said = CliRunner().invoke(app, ["export", str(run), "--format", "bundle", "-o", str(bundle)])
    assert said.exit_code == 0, said.output
    for verb, *options in (["predict"], ["eval", "-q"], ["info", "--json"]):
        files = [] if verb == "info" else [str(fasta)]
        outputs = []
        for source in (run, bundle):
            table = tmp_path / f"{verb}.tsv"
            kept = [] if verb == "info" else ["-o", str(table)]
            command = [verb, str(source), *files, *options, *kept]
            said = CliRunner().invoke(app, command, catch_exceptions=False)
            assert said.exit_code == 0, said.output
            outputs.append(table.read_text() if kept else json.loads(said.stdout)["num_parameters"])
        assert outputs[0] == outputs[1]


def test_info_verify_exits_with_one_when_something_changed(bundle: Path) -> None:
    command = ["info", str(bundle), "--verify", "--json"]
    said = CliRunner().invoke(app, command, catch_exceptions=False)
    assert json.loads(said.stdout)["passed"]
    (bundle / "README.md").write_text("")
    said = CliRunner().invoke(app, command)
    assert isinstance(said.exception, CheckpointError)
    assert json.loads(said.stdout)["files"]["README.md"] == "changed"


def test_the_card_shows_names_and_warnings_as_text(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>`x`|[a](b) \x1b[31m"
    run = tiny_run(tmp_path / "run")
    loaded = open_run(run)
    codec = dataclasses.replace(loaded.codec, classes=(name, "plain", *loaded.codec.classes[2:]))
    report = {**loaded.data, "warnings": [name]}
    card = model_card(dataclasses.replace(loaded, codec=codec, data=report), None)
    assert "<img" not in card
    assert "\x1b" not in card
    assert card.count("&lt;img src=x onerror=alert(1)&gt;\\`x\\`\\|\\[a\\](b)") == 2
    assert "`plain`" in card


def test_the_card_of_many_classes_names_some(tmp_path: Path) -> None:
    loaded = open_run(tiny_run(tmp_path / "run"))
    classes = tuple(f"c{i}" for i in range(1200))
    codec = dataclasses.replace(loaded.codec, classes=classes)
    card = model_card(dataclasses.replace(loaded, codec=codec), None)
    assert "`c99` and 1,100 more" in card
