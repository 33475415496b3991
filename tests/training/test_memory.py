"""Memory of this machine, and how long a record fits into it."""

from pathlib import Path

import pytest

from seqtrain.config import CnnConfig, TransformerConfig
from seqtrain.training import memory
from seqtrain.training.memory import available_memory, forward_bytes, longest_in_one_pass


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB free, without a limit of a control group."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    return tmp_path


def test_what_the_system_has_available(machine: Path) -> None:
    assert available_memory() == 8_000_000 * 1024


def test_a_limit_of_a_container_counts(machine: Path) -> None:
    (machine / "memory.max").write_text("max\n")
    (machine / "memory.current").write_text("1000000000\n")
    assert available_memory() == 8_000_000 * 1024
    (machine / "memory.max").write_text("3000000000\n")
    assert available_memory() == 2_000_000_000


def test_without_these_files_the_pages_are_asked_for(machine: Path) -> None:
    (machine / "meminfo").write_text("nothing known\n")
    found = available_memory()
    assert found is None or found > 10**7


def test_more_channels_need_more(machine: Path) -> None:
    small, large = CnnConfig(embed_dim=16), CnnConfig(embed_dim=64)
    assert forward_bytes(small) < forward_bytes(large) < forward_bytes(large, 30)
    assert forward_bytes(large) < forward_bytes(TransformerConfig(embed_dim=64))
    longest = longest_in_one_pass(large)
    assert longest is not None
    assert longest * forward_bytes(large) <= available_memory() * memory.MOST
    assert longest > 1_000_000
