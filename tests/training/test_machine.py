"""What this machine cannot do is told before any data are read."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from seqtrain.build import build_model
from seqtrain.cli.main import app
from seqtrain.compose import load_config
from seqtrain.data.alphabet import PROTEIN
from seqtrain.data.labels import LabelCodec
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import ConfigError
from seqtrain.training import machine
from seqtrain.training.machine import (
    check_machine,
    count_weights,
    free_memory,
    machine_warnings,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("verb", ["train", "compare-norms"])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["encoder.embed_dim=50000"], "encoder.embed_dim=50000: a model of"),
        (["trainer.compile=true", "trainer.device=cpu"], "trainer.compile: expected a CUDA device"),
        (["trainer.device=cuda:99"], "device cuda:99: torch"),
        (["trainer.device=cpu", "trainer.precision=float16"], "trainer.precision=float16"),
    ],
)
def test_it_is_refused_before_the_files_are_looked_for(
    tmp_path: Path, verb: str, given: list[str], words: str
) -> None:
    command = [verb, "--train", tmp_path / "none.fasta", *given, "-o", tmp_path / "run"]
    with pytest.raises(ConfigError) as error:
        CliRunner().invoke(app, [*map(str, command)], catch_exceptions=False)
    assert words in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoder", ["cnn", "transformer"])
def test_weights_are_counted_without_being_made(encoder: str) -> None:
    overrides = [f"encoder={encoder}", "encoder.embed_dim=16", "task.pooling=mean"]
    config = load_config(overrides=[*overrides, "encoder.num_layers=2"])
    config.task.positions = 1
    model = build_model(config, Tokenizer(PROTEIN), LabelCodec("classification", ("a", "b")))
    assert count_weights(config) == sum(p.numel() for p in model.parameters())
    config.encoder.embed_dim = 65_536
    assert count_weights(config) > 10**10


def test_a_model_that_just_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(overrides=["encoder.embed_dim=64", "trainer.device=cpu"])
    needed = count_weights(config) * machine.BYTES_PER_WEIGHT
    monkeypatch.setattr(machine, "free_memory", lambda device: needed)
    check_machine(config)
    monkeypatch.setattr(machine, "free_memory", lambda device: needed - 1)
    with pytest.raises(ConfigError, match=r"Set encoder\.embed_dim lower"):
        check_machine(config)
    monkeypatch.setattr(machine, "free_memory", lambda device: None)
    check_machine(config)


def test_the_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = free_memory(CPU)
    assert free is None or free > 10**7
    (tmp_path / "max").write_text("12345\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(machine, "_MEMORY_LIMITS", (str(tmp_path / "none"),))
    assert (free_memory(CPU) is None) == (free is None)
    monkeypatch.setattr(machine, "_MEMORY_LIMITS", (str(tmp_path / "max"),))
    assert free_memory(CPU) == (None if free is None else 12345)
    assert free_memory(torch.device("mps")) is None


def test_more_threads_than_cpus_are_said() -> None:
    config = load_config(overrides=["trainer.num_threads=1000"])
    assert "trainer.num_threads=1000: this machine has" in machine_warnings(config)[0]
    config.trainer.num_threads = 1
    assert machine_warnings(config) == []
