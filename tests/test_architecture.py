"""The house: who may import whom, and through which door a library comes in."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "seqtrain"

ROOMS = (
    "errors",
    "escaping",
    "words",
    "masking",
    "data",
    "nn",
    "config",
    "overrides",
    "compose",
    "build",
    "training",
    "defaults",
    "evaluation",
    "reporting",
    "board",
    "pipeline",
    "export",
    "api",
    "compare",
    "bench",
    "cli",
    "__main__",
)
"""In import order: a file imports from rooms before its own, or from its own."""

DOORS = {
    "Bio": ("data/fasta.py", "api.py"),
    "hydra": ("compose.py",),
    "omegaconf": ("compose.py",),
    "safetensors": ("training/checkpoint.py", "export/bundle.py"),
    "rich": ("reporting.py", "cli/evaluate.py"),
    "tensorboard": ("board.py",),
    "typer": ("cli/",),
    "onnx": ("export/",),
    "onnxruntime": ("export/",),
    "submitit": ("compare/",),
}

FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            yield str(node.module)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return
    assert own in ROOMS, f"{path.name}: a new room needs a place in the order"
    for name in imports(path):
        if name.startswith("seqtrain."):
            other = name.split(".")[1]
            assert ROOMS.index(other) <= ROOMS.index(own), f"{own} may not import {name}"


@pytest.mark.parametrize("library", DOORS)
def test_each_library_comes_in_by_its_door(library: str) -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if any(name.split(".")[0] == library for name in imports(path))
    }
    strangers = {user for user in users if not user.startswith(DOORS[library])}
    assert not strangers


def test_configs_cannot_name_code() -> None:
    for path in (PACKAGE.parent / "conf").rglob("*.yaml"):
        assert "_target_" not in path.read_text(encoding="utf-8"), path


def test_help_loads_no_heavy_library() -> None:
    heavy = ("torch", "sklearn", "scipy", "matplotlib", "hydra", "pyarrow", "Bio", "tensorboard")
    code = f"import sys, seqtrain.cli.main; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
