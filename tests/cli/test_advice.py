"""Messages propose what the verb that prints them takes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from prepared_data import Folder, peptides
from typer.testing import CliRunner

from seqtrain.cli.main import app
from seqtrain.errors import SeqtrainError

SETTING = ("tokenizer.", "data.", "task=", "trainer.")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def refusal(*arguments: str) -> str:
    """What a verb says that it ends with."""
    with pytest.raises(SeqtrainError) as caught:
        CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    return str(caught.value)


def odd_letters(folder: Folder) -> str:
    return folder.fasta(
        "odd.fasta",
        {f"d{n} label={'ab'[n % 2]}": "ACGT" * 9 for n in range(9)} | {"x label=a": "ACGTE"},
    )


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        (lambda path, out: ["train", "--train", path, "-o", out], "set tokenizer.other=unknown to"),
        (lambda path, out: ["data", "tokenize", path, "-o", out], "give --other unknown to"),
    ],
)
def test_verbs_with_policies_for_letters_say_how_to_set_them(
    folder: Folder, verb: Callable[[str, str], list[str]], said: str
) -> None:
    assert said in refusal(*verb(odd_letters(folder), str(folder.path / "out")))


@pytest.mark.parametrize(
    "verb",
    [
        lambda path, out: ["data", "check", path],
        lambda path, out: ["data", "split", path, "-o", out],
        lambda path, out: ["data", "audit", path],
    ],
)
def test_verbs_without_settings_propose_none(
    folder: Folder, verb: Callable[[str, str], list[str]]
) -> None:
    odd = odd_letters(folder)
    bare = folder.fasta("bare.fasta", peptides(30))
    few = folder.fasta("few.fasta", {"a label=x": "MKV", "b label=y": "MKVL"})
    for path in (odd, bare, few):
        command = verb(path, str(folder.path / "out"))
        if path == odd or command[1] == "audit":
            message = refusal(*command)
            assert not any(word in message for word in SETTING), message


def test_a_model_proposes_no_setting_of_its_training(run_dir: Path, folder: Folder) -> None:
    odd = folder.fasta("odd.fasta", {"a label=x": "MKV1"})
    ambiguous = folder.fasta("dna.fasta", {"a label=x": "MKV\u00e9"})
    for verb in (["predict"], ["eval"], ["embed", "-o", str(folder.path / "e.npz")]):
        for path in (odd, ambiguous):
            message = refusal(verb[0], str(run_dir), path, *verb[1:])
            assert not any(word in message for word in SETTING), message
