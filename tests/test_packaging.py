"""The wheel, installed where neither the checkout nor the network is: it brings all it needs."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import seqtrain

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; its own message when it fails."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bin_dir(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of a new environment: the wheel's own files, this one's dependencies.

    The dependencies come by a ``.pth`` file, whose folder is only appended to the path: editable
    installs in it are not followed, so nothing of the checkout is importable.
    """
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, symlinks=os.name != "nt")
    paths = sysconfig.get_paths("venv", vars={"base": str(home), "platbase": str(home)})
    dependencies = Path(paths["purelib"]) / "dependencies.pth"
    dependencies.write_text(sysconfig.get_path("purelib") + "\n")
    python = Path(paths["scripts"]) / "python"
    install = ("install", "--quiet", "--no-index", "--no-deps", "--ignore-installed", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=home)
    return python.parent


def files_under(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("source", "target"), [("conf", "conf"), ("data", "bundled")])
def test_the_wheel_holds_every_file_of_a_data_folder(wheel: Path, source: str, target: str) -> None:
    prefix = f"seqtrain/{target}/"
    names = zipfile.ZipFile(wheel).namelist()
    held = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    assert held == files_under(ROOT / source)
    assert held


def test_the_wheel_holds_nothing_but_the_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"seqtrain", f"seqtrain-{seqtrain.__version__}.dist-info"}


def test_the_installed_package_is_imported_from_the_wheel(bin_dir: Path, tmp_path: Path) -> None:
    printed = run(
        bin_dir / "python", "-c", "import seqtrain; print(seqtrain.__file__)", cwd=tmp_path
    )
    assert Path(printed.strip()).is_relative_to(bin_dir.parent)


def test_the_installed_command_prints_its_version(bin_dir: Path, tmp_path: Path) -> None:
    assert run(bin_dir / "seqtrain", "--version", cwd=tmp_path).split() == [
        "seqtrain",
        seqtrain.__version__,
    ]


def test_the_installed_command_lists_every_experiment(bin_dir: Path, tmp_path: Path) -> None:
    listed = run(bin_dir / "seqtrain", "config", "list", cwd=tmp_path)
    experiments = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
    assert experiments
    assert {name for name in experiments if name not in listed} == set()


def test_the_installed_command_finds_the_bundled_data(bin_dir: Path, tmp_path: Path) -> None:
    printed = run(bin_dir / "seqtrain", "train", "--dry-run", cwd=tmp_path)
    lines = (ROOT / "data/motifs/train.fasta").read_text().splitlines()
    residues = sum(len(line) for line in lines if not line.startswith(">"))
    assert str(residues) in printed.replace(",", "")
    assert list(tmp_path.iterdir()) == []
