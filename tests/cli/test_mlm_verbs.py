"""A masked language model by the installed program: train, score, use, export, begin others."""

import csv
import json
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from small_program import SMALL, Program, interrupt

pytestmark = pytest.mark.slow

Done = subprocess.CompletedProcess[str]


def refused(done: Done, *said: str) -> None:
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    for words in said:
        assert words in done.stderr


def read_table(path: Path) -> tuple[str, list[dict[str, str]]]:
    heading, *lines = path.read_text().splitlines()
    return heading, list(csv.DictReader(lines, delimiter="\t"))


@pytest.fixture(scope="session")
def mlm_options(files: Path) -> list[str]:
    parts = ["--train", str(files / "train.fasta"), "--test", str(files / "test.fasta")]
    return ["-n", "mlm", *parts, *SMALL]


@pytest.fixture(scope="session")
def mlm_run(
    tmp_path_factory: pytest.TempPathFactory, program: Program, mlm_options: list[str]
) -> Path:
    """A finished run without labels; tests read it and change nothing."""
    folder = tmp_path_factory.mktemp("runs") / "mlm"
    done = program("train", *mlm_options, "-o", folder)
    assert done.returncode == 0, done.stderr
    assert "valid perplexity" in done.stderr
    assert "unigram" in done.stdout
    return folder


def test_the_run_says_what_it_was_and_shows_it(program: Program, mlm_run: Path) -> None:
    config = (mlm_run / "config.yaml").read_text()
    assert "mask_fraction: 0.15" in config
    assert "monitor: perplexity" in config
    found = json.loads(program("info", mlm_run, "--json").stdout)
    assert (found["task"], found["data"]["task"]["how"]) == ("mlm", "given")
    assert found["classes"] == list("ACDEFGHIKLMNPQRSTVWY")
    assert "test perplexity" in program("info", mlm_run).stdout


def test_eval_agrees_with_its_table_and_with_the_run(
    program: Program, mlm_run: Path, files: Path, tmp_path: Path
) -> None:
    ask = ("eval", mlm_run, files / "test.fasta")
    done = program(*ask, "-o", tmp_path / "p.tsv", "--json", tmp_path / "e.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "e.json").read_text())
    summary = json.loads((mlm_run / "summary.json").read_text())["test"]
    assert found["metrics"] == summary["metrics"]
    assert found["baselines"] == summary["baselines"]
    _, rows = read_table(tmp_path / "p.tsv")
    pairs = [
        (p, t)
        for row in rows
        for p, t in zip(row["prediction"], row["target"], strict=True)
        if t != "-"
    ]
    accuracy = np.mean([p == t for p, t in pairs])
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(accuracy)
    loss = found["metrics"]["loss"]["value"]
    assert found["metrics"]["perplexity"]["value"] == pytest.approx(np.exp(loss))
    alone = program(*ask, "--batch-size", "1", "--json", tmp_path / "alone.json")
    assert alone.returncode == 0, alone.stderr
    again = json.loads((tmp_path / "alone.json").read_text())
    value = again["metrics"]["perplexity"]["value"]
    assert value == pytest.approx(found["metrics"]["perplexity"]["value"], rel=1e-4)
    refused(program(*ask, "--labels", files / "labels.tsv"), "the task mlm takes no labels")
    (tmp_path / "x.fasta").write_text(">x\nXXXX\n")
    refused(program("eval", mlm_run, tmp_path / "x.fasta"), "holds no letter to hide")


def test_predict_reads_with_nothing_hidden(program: Program, mlm_run: Path, tmp_path: Path) -> None:
    text = ">a\nACDEFX-W*\n>b\nA\n>odd\nAC1\n"
    options = ("--on-error", "skip", "-o", tmp_path / "p.tsv")
    done = program("predict", mlm_run, "-", *options, stdin=text)
    assert done.returncode == 0, done.stderr
    heading, rows = read_table(tmp_path / "p.tsv")
    assert "with none hidden" in heading
    assert [row["status"] == "ok" for row in rows] == [True, True, False]
    assert (len(rows[0]["prediction"]), rows[0]["length"]) == (9, "7")
    assert rows[0]["prediction"][6] == rows[0]["prediction"][8] == "-"


def test_embed_gives_a_vector_for_each_residue_or_record(
    program: Program, mlm_run: Path, files: Path, tmp_path: Path
) -> None:
    for name, options in (("r.npz", ["--per-residue"]), ("m.npz", [])):
        ask = ("embed", mlm_run, files / "test.fasta", "-o", tmp_path / name, *options)
        done = program(*ask)
        assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "r.npz") as residues, np.load(tmp_path / "m.npz") as means:
        assert residues["embeddings"].shape == (residues["lengths"].sum(), 8)
        assert means["embeddings"].shape == (20, 8)


@pytest.mark.parametrize("form", ["bundle", "onnx", "torch"])
def test_every_export_gives_the_same(
    program: Program, mlm_run: Path, files: Path, tmp_path: Path, form: str
) -> None:
    target = tmp_path / {"bundle": "b.zip", "onnx": "m.onnx", "torch": "m.pt2"}[form]
    check = ("--check", files / "test.fasta")
    done = program("export", mlm_run, "--format", form, "-o", target, *check)
    assert done.returncode == 0, done.stderr
    if form == "bundle":
        tables = [tmp_path / "run.tsv", tmp_path / "bundle.tsv"]
        for model, table in zip((mlm_run, target), tables, strict=True):
            done = program("predict", model, files / "test.fasta", "-o", table)
            assert done.returncode == 0, done.stderr
        assert tables[0].read_text() == tables[1].read_text()


def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    program: Program, mlm_options: list[str], tmp_path: Path
) -> None:
    longer = [*mlm_options, "trainer.max_epochs=12", "trainer.checkpoint_minutes=0"]
    whole = program("train", *longer, "-o", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    run = tmp_path / "cut"
    status, _ = interrupt(signal.SIGINT, "epoch 3/", "train", *longer, "-o", run)
    assert status == 130
    resumed = program("train", "--resume", "-o", run)
    assert resumed.returncode == 0, resumed.stderr
    final = "checkpoints/last/model.safetensors"
    assert (run / final).read_bytes() == (tmp_path / "whole" / final).read_bytes()


def test_norms_are_compared_by_perplexity(
    program: Program, mlm_options: list[str], tmp_path: Path
) -> None:
    ask = ("--norms", "masked_batch,layer", "--seeds", "1", "-o", tmp_path / "c")
    done = program("compare-norms", *mlm_options, *ask)
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout


class TestPretrained:
    def options(self, files: Path, pretrained: Path, *more: str) -> list[str]:
        """Of a training of another task, nothing said of the encoder."""
        parts = ["--train", str(files / "train.fasta"), "--labels", str(files / "labels.tsv")]
        begin = f"encoder.pretrained={pretrained}"
        return [*parts, begin, "trainer.num_threads=1", "trainer.max_epochs=3", *more]

    @pytest.mark.parametrize("form", ["run", "bundle"])
    def test_another_task_begins_with_it_and_needs_it_no_longer(
        self, program: Program, mlm_run: Path, files: Path, tmp_path: Path, form: str
    ) -> None:
        pretrained = tmp_path / "pretrained"
        if form == "run":
            shutil.copytree(mlm_run, pretrained)
        else:
            done = program("export", mlm_run, "--format", "bundle", "-o", pretrained)
            assert done.returncode == 0, done.stderr
        run = tmp_path / "run"
        done = program("train", *self.options(files, pretrained), "-o", run)
        assert done.returncode == 0, done.stderr
        assert f"begins as that of {pretrained} (mlm, model " in done.stderr
        found = json.loads(program("info", run, "--json").stdout)
        assert found["config"]["encoder"]["num_layers"] == 2
        assert found["config"]["encoder"]["embed_dim"] == 8
        assert found["data"]["pretrained"]["task"] == "mlm"
        assert str(pretrained) in program("info", run).stdout.replace("\n", "")
        shutil.rmtree(pretrained)
        done = program("predict", run, files / "test.fasta", "-o", tmp_path / "p.tsv")
        assert done.returncode == 0, done.stderr
        exported = program("export", run, "--format", "bundle", "-o", tmp_path / "b")
        assert exported.returncode == 0, exported.stderr
        assert str(tmp_path) not in (tmp_path / "b" / "bundle.json").read_text()

    def test_a_run_killed_in_its_first_step_goes_on_without_it(
        self, program: Program, mlm_run: Path, files: Path, tmp_path: Path
    ) -> None:
        pretrained = tmp_path / "pretrained"
        shutil.copytree(mlm_run, pretrained)
        options = self.options(files, pretrained)
        done = program("train", *options, "-o", tmp_path / "whole")
        assert done.returncode == 0, done.stderr
        run = tmp_path / "cut"
        longer = [*options, "trainer.checkpoint_minutes=9"]
        interrupt(signal.SIGKILL, "(?:.*step|epoch) 1/", "train", *longer, "-o", run)
        shutil.rmtree(pretrained)
        resumed = program("train", "--resume", "-o", run)
        assert resumed.returncode == 0, resumed.stderr
        final = "checkpoints/last/model.safetensors"
        assert (run / final).read_bytes() == (tmp_path / "whole" / final).read_bytes()

    def test_resume_with_the_same_settings_is_taken_and_with_others_refused(
        self, program: Program, mlm_run: Path, files: Path, tmp_path: Path
    ) -> None:
        options, run = self.options(files, mlm_run), tmp_path / "run"
        assert program("train", *options, "-o", run).returncode == 0
        (run / "summary.json").unlink()
        same = [*options, f"encoder.pretrained={mlm_run.name}"]
        done = program("train", *same, "-o", run, "--resume", cwd=mlm_run.parent)
        assert done.returncode == 0, done.stderr
        (run / "summary.json").unlink()
        done = program("train", *options, "encoder.num_layers=3", "-o", run, "--resume")
        refused(done, "encoder.num_layers")

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("encoder.embed_dim=16", "encoder.embed_dim=16: the encoder of"),
            ("encoder=transformer", "Set encoder=cnn"),
            ("norm=layer", "Set norm=masked_batch"),
            ("tokenizer.ambiguous=keep", "Set tokenizer.ambiguous=unknown"),
        ],
    )
    def test_what_does_not_fit_is_refused_before_anything_is_written(
        self, program: Program, mlm_run: Path, files: Path, tmp_path: Path, override: str, said: str
    ) -> None:
        done = program("train", *self.options(files, mlm_run, override), "-o", tmp_path / "run")
        refused(done, said)
        assert len(done.stderr.strip().splitlines()) == 1
        assert list(tmp_path.iterdir()) == []

    def test_what_is_no_run_is_refused(
        self, program: Program, mlm_run: Path, files: Path, tmp_path: Path
    ) -> None:
        done = program("train", *self.options(files, tmp_path), "--dry-run")
        refused(done, "encoder.pretrained", "not a run directory")
        compared = program("compare-norms", *self.options(files, mlm_run), "-o", tmp_path / "c")
        refused(compared, "encoder.pretrained: arms of a comparison")

    def test_it_is_not_the_run_itself(
        self, program: Program, mlm_run: Path, files: Path, tmp_path: Path
    ) -> None:
        itself = shutil.copytree(mlm_run, tmp_path / "itself")
        done = program("train", *self.options(files, itself), "-o", itself, "--overwrite")
        refused(done, "is the run directory itself")
        assert (itself / "summary.json").exists()
        empty = program("train", "encoder.pretrained=", "-o", tmp_path / "run")
        refused(empty, "encoder.pretrained: expected a run or bundle")

    def test_sequences_of_another_alphabet_are_refused(
        self, program: Program, mlm_run: Path, tmp_path: Path
    ) -> None:
        rows = (f">r{i} label={'ab'[i % 2]}\n{'ACGT' * 20}{'G' * i}\n" for i in range(40))
        (tmp_path / "dna.fasta").write_text("".join(rows))
        done = program(
            *("train", "--train", tmp_path / "dna.fasta", f"encoder.pretrained={mlm_run}"),
            *("-o", tmp_path / "run"),
        )
        refused(done, "tokenizer.alphabet=dna: the encoder of", "was trained with protein")

    def test_settings_of_its_own_encoder_are_taken(
        self, program: Program, files: Path, tmp_path: Path
    ) -> None:
        """Though the default encoder has none of that name."""
        options = self.options(files, tmp_path / "transformer")
        small = ["encoder=transformer", "encoder.num_heads=2", "encoder.embed_dim=8"]
        done = program(
            *("train", *options[:4], *small, "encoder.num_layers=1", "trainer.max_epochs=1"),
            *("-o", tmp_path / "transformer"),
        )
        assert done.returncode == 0, done.stderr
        done = program("train", *options, "encoder.num_heads=2", "--dry-run", "--json")
        assert json.loads(done.stdout)["config"]["encoder"]["num_heads"] == 2

    def test_an_unfinished_one_is_told_and_another_in_its_place_refused(
        self, program: Program, mlm_run: Path, files: Path, tmp_path: Path
    ) -> None:
        pretrained = shutil.copytree(mlm_run, tmp_path / "pretrained")
        (pretrained / "summary.json").unlink()
        run = tmp_path / "run"
        done = program("train", *self.options(files, pretrained), "-o", run)
        assert f"warning: {pretrained} has not ended" in done.stderr
        shutil.rmtree(run / "checkpoints")  # as if killed before the first one
        (run / "summary.json").unlink()
        other = program("train", *self.options(files, mlm_run), "-o", tmp_path / "other")
        assert other.returncode == 0, other.stderr
        shutil.rmtree(pretrained)
        shutil.copytree(tmp_path / "other", pretrained)
        refused(program("train", "--resume", "-o", run), "was to begin with model")

    def test_a_dry_run_says_so(
        self, program: Program, mlm_run: Path, files: Path, tmp_path: Path
    ) -> None:
        options = self.options(files, mlm_run)
        done = program("train", *options, "--dry-run", cwd=tmp_path)
        assert "encoder: begins as that of" in done.stdout
        found = json.loads(program("train", *options, "--dry-run", "--json").stdout)
        assert found["pretrained"]["task"] == "mlm"


def test_without_labels_mlm_is_offered_and_with_labels_refused(
    program: Program, files: Path, tmp_path: Path
) -> None:
    ask = ("train", "--train", files / "train.fasta", "-o", tmp_path / "run")
    refused(program(*ask), "task=mlm")
    refused(program(*ask, "task=mlm", "--labels", files / "labels.tsv"), "takes no labels")
    refused(program("train", "task=mlm", "-o", tmp_path / "run"), "takes no labels")
    refused(program(*ask, "task=mlm", "task.mask_fraction=1.5"), "task.mask_fraction")
