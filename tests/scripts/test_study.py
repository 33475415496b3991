"""The study: its parts can be run, and its table says what the reports say."""

import csv
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from compare.comparisons import made_up_analysis

from seqtrain.compare.report import write_report
from seqtrain.compose import load_config

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def scripts() -> Iterator[tuple[ModuleType, ModuleType]]:
    """(study, study_figures), which import each other from their folder."""
    before = sys.path.copy()
    sys.path.insert(0, str(SCRIPTS))
    yield import_module("study"), import_module("study_figures")
    sys.path[:] = before


def test_parts_name_its_settings_as_the_program_takes_them(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    study, _ = scripts
    parts = study.parts()
    assert len({part.name for part in parts}) == len(parts)
    for part in parts[::3]:
        words = part.command(tmp_path, tmp_path, 3)
        config = load_config("study", [word for word in words if "=" in word])
        assert config.encoder.name == part.encoder
        assert config.batching.max_sequences == part.batch_size
        assert config.batching.max_tokens == part.batch_size * part.longest
        assert words[words.index("--seeds") + 1] == "3"


def test_parts_and_seeds_are_taken_as_asked_and_in_that_order(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, _ = scripts
    ran: list[list[str]] = []
    done = subprocess.CompletedProcess[str]([], 0)
    monkeypatch.setattr(study.subprocess, "run", lambda words: ran.append(words) or done)
    names = [part.name for part in study.parts()]
    asked = [str(tmp_path), str(tmp_path), "--seeds", "2", names[3], names[0]]
    assert study.main(asked) == 0
    assert [Path(words[words.index("--output") + 1]).name for words in ran] == [names[3], names[0]]
    assert {words[words.index("--seeds") + 1] for words in ran} == {"2"}
    ran.clear()
    study.main([str(tmp_path), str(tmp_path)])
    assert len(ran) == 2 * len(names)  # three seeds of all, then five of all


def test_small_and_large_batches_both_encoders_and_all_sets_are_in_the_study(
    scripts: tuple[ModuleType, ModuleType],
) -> None:
    parts = scripts[0].parts()
    for data in ("nrc_ncrna13", "amplify_amp", "wheat_coding_potential", "tmbed_topology"):
        mine = [part for part in parts if part.data == data]
        assert {part.encoder for part in mine} == {"cnn", "transformer"}
        assert {4, 64} <= {part.batch_size for part in mine if part.encoder == "cnn"}
    padded = {part.batch_size for part in parts if part.data.startswith("controlled-spread-1")}
    assert {2, 4, 8, 64} <= padded


def test_the_table_repeats_the_differences_of_the_reports(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, figures = scripts
    name = "controlled-common-cnn-4"
    (tmp_path / "results" / name).mkdir(parents=True)
    analysis = made_up_analysis()
    write_report(analysis, tmp_path / "results" / name)
    figures.main(tmp_path / "results", tmp_path / "out")
    lines = [line for line in capsys.readouterr().out.splitlines() if name in line]
    assert len(lines) == 2  # batch norms, and the others
    line = "".join(lines)
    for contrast in analysis.contrasts:
        d = contrast.difference
        text = f"{d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f})"
        assert (f"**{text}**" if contrast.is_found else text) in line
    assert line.count("**") == 2
    copied = list(csv.DictReader((tmp_path / "out" / f"{name}.csv").read_text().splitlines()))
    assert len(copied) == 18
    for figure in ("differences", "mechanism", "scores", "ladder"):
        assert (tmp_path / "out" / f"{figure}.png").stat().st_size > 5000
    figures.draw_ladder(figures.read(tmp_path / "results"))
    points = [line.get_ydata() for line in figures.plt.gcf().axes[0].lines]
    figures.plt.close()
    drawn = [float(values[0]) for values in points if len(values) == 1]
    plain = [c.difference.value for c in analysis.contrasts if c.condition.norm in figures.PLAIN]
    assert sorted(drawn) == pytest.approx(sorted(plain), abs=5e-4)


def test_a_controlled_set_is_made_once_and_whole(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    study, _ = scripts
    folder = tmp_path / "data" / "set"
    study.make_controlled(folder, study.CONTROLLED["none"])
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [
        "labels.tsv",
        "test.fasta",
        "train.fasta",
        "valid.fasta",
    ]
    before = [file.stat().st_mtime_ns for file in files]
    study.make_controlled(folder, study.CONTROLLED["none"])
    assert [file.stat().st_mtime_ns for file in files] == before
    assert list(folder.parent.iterdir()) == [folder]
