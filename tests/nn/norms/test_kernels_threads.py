"""The compiled norm of the CPU: threads, processes, and where its machine code is kept."""

import copy
import subprocess
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cpu_kernels import finely, made, some_input, train
from oracles import batch_norm_by_channel
from torch import Tensor, nn

from seqtrain.nn.norms import MaskedBatchNorm1d
from seqtrain.nn.norms.kernels import compiled, loops


@pytest.fixture
def large() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    return made(24, torch.float32, channel_dim=-1), *some_input(
        (8, 160, 24), "ragged", torch.float32, 1
    )


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, expected[name]) for name, value in found.items())


def test_bits_do_not_depend_on_threads(
    large: tuple[nn.Module, Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    finely(monkeypatch, "machine code")
    norm, *batch = large
    expected = train(copy.deepcopy(norm), *batch)
    try:
        for count in (2, 3, 2, 5) * 3:
            torch.set_num_threads(count)
            assert same(train(copy.deepcopy(norm), *batch), expected)
    finally:
        torch.set_num_threads(1)


def test_bits_do_not_depend_on_padding(
    large: tuple[nn.Module, Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles are of real rows: padded or packed in one row, they are alike."""
    finely(monkeypatch, "machine code")
    norm, x, mask, grad = large
    padded = train(copy.deepcopy(norm), x, mask, grad)
    real = mask.new_ones(1, int(mask.sum()))
    packed = train(copy.deepcopy(norm), x[mask][None], real, grad[mask][None])
    for name, value in packed.items():
        expected = padded[name]
        assert torch.equal(value, expected[mask][None] if expected.ndim == 3 else expected), name


@pytest.mark.usefixtures("threads")
def test_two_threads_train_at_once(
    large: tuple[nn.Module, Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    finely(monkeypatch, "machine code")
    norm, *batch = large
    expected = train(copy.deepcopy(norm), *batch)
    wrong: list[int] = []

    def steps() -> None:
        for step in range(30):
            if not same(train(copy.deepcopy(norm), *batch), expected):
                wrong.append(step)

    at_once = [threading.Thread(target=steps) for _ in range(3)]
    for thread in at_once:
        thread.start()
    for thread in at_once:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong


@pytest.mark.usefixtures("threads")
def test_a_thread_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    finely(monkeypatch, "machine code")
    asked: list[int] = []
    monkeypatch.setattr(compiled, "call", lambda helpers, work: asked.append(helpers))
    x = torch.randn(1, 600, 200)
    norm = MaskedBatchNorm1d(200, channel_dim=-1, affine=False)
    out = norm(x, torch.ones(1, 600, dtype=torch.bool))
    assert asked == [1]
    wanted, *_ = batch_norm_by_channel(x, torch.ones_like(x, dtype=torch.bool))
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("threads")
def test_a_thread_that_comes_late_finds_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    finely(monkeypatch, "machine code")
    late: list[Callable[[], None]] = []
    monkeypatch.setattr(compiled, "call", lambda helpers, work: late.append(work))
    x, mask = torch.randn(1, 600, 200), torch.ones(1, 600, dtype=torch.bool)
    out = MaskedBatchNorm1d(200, channel_dim=-1)(x, mask)
    before = out.clone()
    for work in late:
        work()
    assert torch.equal(out, before)


@pytest.mark.usefixtures("threads")
def test_few_chunks_are_not_worth_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(compiled, "call", lambda helpers, work: asked.append(helpers))
    monkeypatch.setattr(compiled, "compiled", lambda loop: loop)
    for num_chunks in (1, 4, 7):
        compiled.run(lambda counters, leads: None, num_chunks)
    assert asked == []
    compiled.run(lambda counters, leads: None, 8)
    assert asked == [1]


@pytest.mark.parametrize("threads_at_once", [1, 4])
def test_counters_lose_nothing(threads_at_once: int) -> None:
    """Compiled here and now, not taken from disk."""
    numba = compiled.find_numba()
    assert numba is not None
    compiled._teach(numba)
    add, read = loops.add, loops.read

    @numba.njit(nogil=True)
    def count(counters: np.ndarray, times: int) -> int:
        for _ in range(times):
            add(counters, 2)
        return read(counters, 2)

    counters = np.zeros(loops.COUNTERS, np.int64)
    count(counters, 0)
    threads = [
        threading.Thread(target=count, args=(counters, 10**6)) for _ in range(threads_at_once)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.tolist() == [0, 0, threads_at_once * 10**6, 0]
    assert count(counters, 1) == threads_at_once * 10**6 + 1


FORKED = """
import os, signal, sys, torch
from seqtrain.nn.norms import MaskedBatchNorm1d
from seqtrain.nn import crew
from seqtrain.nn.norms.kernels import compiled, rows_cpu
norm, x = MaskedBatchNorm1d(4, channel_dim=-1), torch.randn(2, 200, 4)
mask = torch.ones(2, 200, dtype=torch.bool)
norm(x[:, :10], mask[:, :10])
assert "numba" not in sys.modules, "loaded for nothing"
rows_cpu.SMALLEST, rows_cpu.TILES_PER_CHUNK, compiled.WORTH_WAKING = 0, 1, 1
torch.set_num_threads(2)
out = norm(x, mask)
child = os.fork()
signal.alarm(60)
assert torch.equal(norm(x, mask), out)
assert len(crew._crew(os.getpid())[1]) == 1
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_fork_has_threads_of_its_own_and_numba_is_loaded_when_needed() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_without_numba_the_numbers_are_the_same(
    large: tuple[nn.Module, Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    norm, *batch = large
    fused = train(copy.deepcopy(norm), *batch)
    compiled.find_numba.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "numba", None)
        assert compiled.find_numba() is None
        plain = train(copy.deepcopy(norm), *batch)
    compiled.find_numba.cache_clear()
    assert compiled.find_numba() is not None
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-4, atol=1e-4)
    assert any(not torch.equal(fused[name], value) for name, value in plain.items())


def test_machine_code_that_cannot_be_kept_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(loop: Callable[..., None], nogil: bool, cache: bool = False) -> Callable[..., None]:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return loop

    monkeypatch.setattr(compiled, "find_numba", lambda: SimpleNamespace(njit=njit))
    monkeypatch.setattr(compiled, "_teach", lambda numba: None)
    assert compiled.compiled.__wrapped__(loops.transform).__name__ == "transform"


@pytest.mark.usefixtures("threads")
def test_machine_code_that_a_full_disk_does_not_keep_still_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finely(monkeypatch, "python")
    plain, failed = loops.normalize, []

    def full(*call: object) -> None:
        if len(failed) < 2:
            failed.append(call)
            raise OSError(28, "No space left on device")
        plain(*call)

    monkeypatch.setattr(loops, "normalize", full)
    x, mask = torch.randn(1, 600, 200), torch.ones(1, 600, dtype=torch.bool)
    monkeypatch.setattr(compiled, "call", lambda helpers, work: None)
    failed.append(())
    out = MaskedBatchNorm1d(200, channel_dim=-1, affine=False)(x, mask)
    wanted, *_ = batch_norm_by_channel(x, torch.ones_like(x, dtype=torch.bool))
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)
    assert len(failed) == 2


class Called(NamedTuple):
    """The arrays of one call of the loops, two chunks of eight rows."""

    counters: np.ndarray
    forward: tuple[object, ...]
    backward: tuple[object, ...]
    statistics: np.ndarray
    out: np.ndarray
    sums: np.ndarray
    counted: np.ndarray


def a_call() -> Called:
    rng = np.random.default_rng(0)
    x, grad = rng.normal(size=(2, 16, 3))
    rows, one, zero = np.arange(16), np.ones(3), np.zeros(3)
    table, moving = np.zeros((2, 2, 3)), np.zeros((2, 3))
    statistics, factors, out = np.ones((3, 3)), np.ones((3, 3)), np.zeros((16, 3))
    affine, counted = (one, zero, None, 1e-5), np.zeros(1, np.int64)
    running = (*moving, counted, 0.1)
    forward = (8, 4, rows, x, None, *affine, *running, *table, statistics, factors, out)
    sums = np.full((2, 3), 7.0)
    backward = (8, 4, rows, x, grad, statistics, factors, None, *table, *sums, out, None)
    counters = np.zeros(loops.COUNTERS, np.int64)
    return Called(counters, forward, backward, statistics, out, sums, counted)


def test_who_does_not_lead_leaves_results_to_who_does() -> None:
    call = a_call()
    call.counters[:] = 2  # all is taken and done
    loops.normalize(call.counters, False, *call.forward)
    loops.differentiate(call.counters, False, *call.backward)
    assert (call.statistics == 1).all()
    assert (call.sums == 7).all()
    assert not call.out.any()
    assert not call.counted


@pytest.mark.parametrize("counter", [1, 3])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_who_leads_waits_for_chunks_that_others_have_taken(direction: str, counter: int) -> None:
    call = a_call()
    call.counters[:] = 2
    call.counters[counter] = 1  # one is still being worked at
    loop = loops.normalize if direction == "forward" else loops.differentiate
    arguments = call.forward if direction == "forward" else call.backward
    leader = threading.Thread(target=loop, args=(call.counters, True, *arguments))
    leader.start()
    leader.join(0.1)
    assert leader.is_alive()
    loops.add(call.counters, counter)
    leader.join(60)
    assert not leader.is_alive()
