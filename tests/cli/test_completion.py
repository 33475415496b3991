"""What the shell completes, asked as bash asks it."""

import pytest
from typer.testing import CliRunner

from seqtrain.cli.main import app
from seqtrain.config import NORMS


def completed(*words: str) -> list[str]:
    asked = {
        "_SEQTRAIN_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["seqtrain", *words]),
        "COMP_CWORD": str(len(words)),
    }
    return CliRunner().invoke(app, [], env=asked, prog_name="seqtrain").stdout.split()


@pytest.mark.parametrize(
    ("words", "some"),
    [
        (("train", "-n", "pep"), {"peptide"}),
        (("train", "encoder=c"), {"encoder=cnn"}),
        (("train", "optim.l"), {"optim.lr="}),
        (("train", "norm", "=", "masked_l"), {"masked_layer"}),
        (("export", "run", "--format", "o"), {"onnx"}),
        (("compare-norms", "--launcher", "s"), {"slurm"}),
        (("eval", "run", "x.fasta", "--overlong", "t"), {"truncate"}),
    ],
)
def test_values_are_completed(words: tuple[str, ...], some: set[str]) -> None:
    assert set(completed(*words)) == some


def test_every_norm_is_offered_once() -> None:
    assert sorted(completed("train", "norm=")) == sorted(f"norm={name}" for name in NORMS)


def test_a_config_folder_that_is_missing_leaves_the_bundled_ones() -> None:
    assert "peptide" in completed("train", "-d", "/nowhere/at/all", "-n", "")
