"""Where to compute and how wide."""

import pytest
import torch
from tiny_models import tiny_model

from seqtrain.errors import ConfigError
from seqtrain.training.device import (
    autocast,
    choose_device,
    choose_precision,
    choose_training_precision,
    compile_blocks,
)

CPU = torch.device("cpu")


class TestDevice:
    def pretend(self, monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    @pytest.mark.parametrize(
        ("cuda", "mps", "wanted"),
        [(0, False, "cpu"), (0, True, "mps"), (1, False, "cuda"), (2, True, "cuda")],
    )
    def test_auto_takes_cuda_then_mps_then_the_cpu(
        self, monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, wanted: str
    ) -> None:
        self.pretend(monkeypatch, cuda=cuda, mps=mps)
        assert choose_device("auto") == torch.device(wanted)

    def test_a_device_that_is_there_is_taken_by_its_name(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.pretend(monkeypatch, cuda=2, mps=True)
        for name in ("cpu", "cuda", "cuda:1", "mps"):
            assert choose_device(name) == torch.device(name)

    @pytest.mark.parametrize(
        ("name", "cuda"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2), ("mps", 1)]
    )
    def test_a_device_that_is_not_there_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, name: str, cuda: int
    ) -> None:
        self.pretend(monkeypatch, cuda=cuda)
        with pytest.raises(ConfigError, match=f"{name}: .*Use auto or cpu"):
            choose_device(name)

    @pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:-1", "xpu", "cpu:9", "CPU", "meta"])
    def test_what_is_no_device_is_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match="expected auto, cpu, mps, cuda or cuda:N"):
            choose_device(name)


class TestPrecision:
    def test_auto_is_float32_on_a_cpu(self) -> None:
        assert choose_precision("auto", CPU) == torch.float32

    @pytest.mark.parametrize("has_bfloat16", [True, False])
    def test_auto_is_bfloat16_where_a_gpu_computes_it(
        self, monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bfloat16)
        wanted = torch.bfloat16 if has_bfloat16 else torch.float32
        assert choose_precision("auto", torch.device("cuda")) == wanted

    def test_a_name_is_taken_at_its_word(self) -> None:
        assert choose_training_precision("bfloat16", CPU) == torch.bfloat16
        assert choose_training_precision("float32", torch.device("cuda")) == torch.float32
        assert choose_training_precision("float16", torch.device("cuda")) == torch.float16

    def test_a_cpu_does_not_train_in_float16(self) -> None:
        with pytest.raises(ConfigError, match=r"float16.*Use bfloat16 or float32"):
            choose_training_precision("float16", CPU)

    def test_what_was_trained_in_float16_is_evaluated_on_a_cpu_all_the_same(self) -> None:
        assert choose_precision("float16", CPU) == torch.float32


def test_only_narrow_precisions_are_autocast() -> None:
    x = torch.ones(2, 2)
    with autocast(CPU, torch.float32):
        assert (x @ x).dtype == torch.float32
    with autocast(CPU, torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16


def test_blocks_are_compiled_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    with pytest.raises(ConfigError, match=r"trainer\.compile: expected a CUDA device, found cpu"):
        compile_blocks(model, torch.device("cpu"))
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **how: compiled.append((self, how))
    )
    compile_blocks(model, torch.device("cuda"))
    assert compiled == [(block, {"dynamic": True}) for block in model.encoder.blocks]
