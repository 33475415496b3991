"""DDP and FSDP2 around a model with masked norms: two processes are one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from wrapper_rank import Model, state, train


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict]]:
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("wrapper_rank.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), "2", str(folder)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    messages = [process.communicate(timeout=300)[1] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(messages)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("wrapper", ["DDP", "FSDP2"])
def test_two_ranks_train_as_one_process_on_both_batches(
    ranks: list[dict[str, dict]], wrapper: str
) -> None:
    model = Model()
    before = state(model)
    train(model, [0, 1])
    for name, expected in state(model).items():
        # A bias before a batch norm has no gradient.
        assert name == "layers.0.bias" or not torch.equal(expected, before[name])
        for found in ranks:
            torch.testing.assert_close(found[wrapper][name], expected, rtol=1e-4, atol=1e-5)
