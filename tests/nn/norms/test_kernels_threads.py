"""The compiled norm of the CPU: threads, processes, and where its machine code is kept."""

import copy
import ctypes
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cpu_kernels import finely, made, some_input, train
from oracles import batch_norm_by_channel
from torch import Tensor, nn

from seqtrain.nn.norms import MaskedBatchNorm1d
from seqtrain.nn.norms.kernels import compiled, intrinsics, loops, machine, waiting

Work = Callable[[], None]


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


def on_python_threads(patch: pytest.MonkeyPatch, call: Callable[[int, Work], None]) -> None:
    """As where the C library has no semaphores for the others."""
    finely(patch, "machine code")
    patch.setattr(compiled, "_crew", lambda: None)
    patch.setattr(compiled, "call", call)


def normalizes(norm: nn.Module) -> bool:
    x = torch.randn(1, 600, 200)
    wanted, *_ = batch_norm_by_channel(x, torch.ones_like(x, dtype=torch.bool))
    out = norm(x, torch.ones(1, 600, dtype=torch.bool))
    return torch.allclose(out.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("threads")
def test_a_thread_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    on_python_threads(monkeypatch, lambda helpers, work: asked.append(helpers))
    assert normalizes(MaskedBatchNorm1d(200, channel_dim=-1))
    assert asked == [1]


@pytest.mark.usefixtures("threads")
def test_a_thread_that_comes_late_finds_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[Work] = []
    on_python_threads(monkeypatch, lambda helpers, work: late.append(work))
    x, mask = torch.randn(1, 600, 200), torch.ones(1, 600, dtype=torch.bool)
    out = MaskedBatchNorm1d(200, channel_dim=-1)(x, mask)
    before = out.clone()
    for work in late:
        work()
    assert torch.equal(out, before)


@pytest.mark.usefixtures("threads")
def test_what_a_late_thread_reads_is_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """All memory of a job, both ways, or it would read and write somebody else's."""
    late: list[Work] = []
    on_python_threads(monkeypatch, lambda helpers, work: late.append(work))
    x = torch.randn(1, 600, 200, requires_grad=True)
    mask, norm = torch.ones(1, 600, dtype=torch.bool), MaskedBatchNorm1d(200, channel_dim=-1)
    norm(x, mask, residual=x * 2, relu=True).backward(x.detach() * 3)
    assert len(late) == 2
    for work in late:
        _, place, kept = work.args
        job = loops.job_at(place)
        flat = kept + tuple(field for item in kept if isinstance(item, tuple) for field in item)
        held = [t.untyped_storage() for t in flat if isinstance(t, Tensor)]
        held += [t.untyped_storage() for t in norm.buffers()]
        numbers = {"K", "chunk", "tile", "n", "N", "C", "eps", "momentum"}
        for name in set(loops.Job._fields) - numbers:
            at = getattr(job, name)
            assert not at or any(0 <= at - s.data_ptr() < s.nbytes() for s in held), name


class Nobody(waiting.Crew):
    """Boxes at which no thread waits."""

    def _hire(self, helpers: int) -> None:
        self._threads += [threading.current_thread()] * (helpers - len(self._threads))


def word(crew: waiting.Crew, at: int) -> ctypes.c_int64:
    return ctypes.c_int64.from_address(crew._boxes + at)


@pytest.mark.usefixtures("threads")
def test_a_job_that_nobody_begins_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    finely(monkeypatch, "machine code")
    crew = Nobody()
    monkeypatch.setattr(compiled, "_crew", lambda: crew)
    assert normalizes(MaskedBatchNorm1d(200, channel_dim=-1))
    assert word(crew, waiting.LOOP).value
    assert not word(crew, waiting.JOB).value


@pytest.mark.usefixtures("threads")
def test_a_thread_that_is_at_work_for_another_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finely(monkeypatch, "machine code")
    crew = Nobody()
    monkeypatch.setattr(compiled, "_crew", lambda: crew)
    word(crew, waiting.JOB).value = 4711
    assert normalizes(MaskedBatchNorm1d(200, channel_dim=-1))
    assert word(crew, waiting.JOB).value == 4711
    assert not word(crew, waiting.LOOP).value


def test_who_leads_waits_for_a_thread_that_has_begun() -> None:
    """Its job's memory may be gone afterwards."""
    numba = machine.find_numba()
    assert numba is not None
    load = intrinsics.load

    @numba.cfunc(numba.void(numba.intp, numba.intp))
    def until_told(place: int, leads: int) -> None:
        while load(load(place)) == 0:
            pass

    crew, told = Nobody(), np.zeros(1, np.int64)
    job, box = struct.pack("q", told.ctypes.data), word(crew, waiting.JOB)
    leader = threading.Thread(target=crew.lead, args=(1, until_told, job))
    leader.start()
    while box.value <= 0:
        time.sleep(0.001)
    box.value |= 1  # as a thread does that begins
    told[0] = 1
    leader.join(0.2)
    assert leader.is_alive()
    box.value = 0
    leader.join(60)
    assert not leader.is_alive()


def test_a_waiting_thread_does_its_part() -> None:
    """Who leads waits here for what the other one writes."""
    numba = machine.find_numba()
    assert numba is not None
    load, store, fetch_add = intrinsics.load, intrinsics.store, intrinsics.fetch_add

    @numba.cfunc(numba.void(numba.intp, numba.intp))
    def meet(place: int, leads: int) -> None:
        if leads == 0:
            store(load(place), 1)
        while load(load(place)) == 0 and fetch_add(load(place) + 8) < 10**10:
            pass

    crew, met = waiting.Crew(), np.zeros(2, np.int64)
    for _ in range(3):
        met[:] = 0
        crew.lead(1, meet, struct.pack("q", met.ctypes.data))
        assert met[0] == 1


def test_threads_that_ask_first_at_once_have_one_crew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_crews", {})
    found: list[waiting.Crew] = []
    start = threading.Barrier(6)

    def ask() -> None:
        start.wait()
        found.append(compiled._crew())

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert not found[0]._threads


def test_machine_code_of_other_sources_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba looks at the file of a function alone, not at what it calls in others."""
    word = ctypes.c_ssize_t

    def hits() -> int:
        return machine.machine_code(share_of_tests, word).kept.cache_hits

    def share_of_tests(place: int) -> None:
        pass

    for version in ("one", "two"):
        monkeypatch.setattr(machine, "_version", lambda version=version: version)
        before = hits()
        assert hits() == 1
        kept = list(Path(__file__).parent.glob(f"__pycache__/*share_of_tests-{version}*"))
        assert kept
        for file in kept:
            file.unlink()
        assert before == 0


@pytest.mark.usefixtures("threads")
def test_a_waiting_thread_works_and_sleeps_again(monkeypatch: pytest.MonkeyPatch) -> None:
    finely(monkeypatch, "machine code")
    crew = waiting.Crew()
    monkeypatch.setattr(compiled, "_crew", lambda: crew)
    norm, x = MaskedBatchNorm1d(200, channel_dim=-1), torch.randn(20, 600, 200)
    mask = torch.ones(20, 600, dtype=torch.bool)
    norm(x, mask)
    (thread,) = crew._threads

    def seconds_of_thread() -> float:
        return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))

    before = seconds_of_thread()
    for _ in range(200):
        norm(x, mask)
    worked = seconds_of_thread() - before
    assert worked > 0
    time.sleep(0.3)
    assert seconds_of_thread() - before - worked < 0.05


@pytest.mark.usefixtures("threads")
def test_few_chunks_are_not_worth_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    on_python_threads(monkeypatch, lambda helpers, work: asked.append(helpers))
    monkeypatch.setattr(compiled, "WORTH_WAKING", 4)
    monkeypatch.setattr(compiled, "compiled", lambda make: lambda place, leads: None)
    job = loops.Job(*range(12))
    for num_chunks in (1, 4, 7):
        compiled.run(loops.normalize, (), job._replace(K=num_chunks))
    assert asked == []
    compiled.run(loops.normalize, (), job._replace(K=8))
    assert asked == [1]


@pytest.mark.parametrize("threads_at_once", [1, 4])
def test_counters_lose_nothing(threads_at_once: int) -> None:
    """Compiled here and now, not taken from disk."""
    numba = machine.find_numba()
    assert numba is not None
    compiled._teach()
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
assert len(compiled._crew()._threads) == 1
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
    machine.find_numba.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "numba", None)
        assert machine.find_numba() is None
        plain = train(copy.deepcopy(norm), *batch)
    machine.find_numba.cache_clear()
    assert machine.find_numba() is not None
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-4, atol=1e-4)
    assert any(not torch.equal(fused[name], value) for name, value in plain.items())


@pytest.mark.parametrize(
    "error",
    [RuntimeError("cannot cache function: no locator available"), OSError(28, "No space left")],
)
def test_machine_code_that_cannot_be_kept_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    numba = machine.find_numba()
    assert numba is not None
    asked: list[bool] = []

    def cfunc(signature: object, cache: bool = False) -> Callable[..., object]:
        asked.append(cache)
        if cache:
            raise error
        return numba.cfunc(signature)

    patched = SimpleNamespace(cfunc=cfunc, void=numba.void, intp=numba.intp, carray=numba.carray)
    monkeypatch.setattr(machine, "find_numba", lambda: patched)

    def double(place: int) -> None:
        cell = carray(pointer(place), 1, np.int64)
        cell[0] *= 2

    carray, pointer = numba.carray, intrinsics.pointer
    cell = np.array([21])
    machine.machine_code(double, ctypes.c_ssize_t)(cell.ctypes.data)
    assert cell.tolist() == [42]
    assert asked == [True, False]


class Called(NamedTuple):
    """One job of the loops, two chunks of eight rows, and its memory."""

    job: loops.Job
    counters: np.ndarray
    memory: dict[str, np.ndarray]


def a_call() -> Called:
    rng = np.random.default_rng(0)
    counters, rows = np.zeros(loops.COUNTERS, np.int64), np.arange(16)
    x, grad = rng.normal(size=(2, 16, 3))
    memory = {"counters": counters, "table": np.zeros((2, 2, 3)), "rows": rows, "x": x}
    memory |= {"grad": grad, "weight": np.ones(3), "bias": np.zeros(3), "out": np.zeros((16, 3))}
    memory |= {"statistics": np.ones((3, 3)), "factors": np.ones((3, 3))}
    memory |= {"running_mean": np.zeros(3, np.float32), "running_var": np.zeros(3, np.float32)}
    memory |= {"num_batches": np.zeros(1, np.int64)}
    memory |= {"of_weight": np.full(3, 7.0), "of_bias": np.full(3, 7.0)}
    addresses = {name: array.ctypes.data for name, array in memory.items()}
    cut = {"K": 2, "chunk": 8, "tile": 4, "n": 16, "N": 16, "C": 3}
    return Called(loops.Job(**cut, **addresses, eps=1e-5, momentum=0.1), counters, memory)


def loop_of(direction: str) -> Callable[[bytes, bool], None]:
    if direction == "forward":
        return loops.normalize(np.float64, False, False)
    return loops.differentiate(np.float64, False, True, False)


def test_who_does_not_lead_leaves_results_to_who_does() -> None:
    job, counters, memory = a_call()
    counters[:] = 2  # all is taken and done
    before = {name: array.copy() for name, array in memory.items()}
    for direction in ("forward", "backward"):
        loop_of(direction)(loops.packed(job), False)
    for name in set(memory) - {"counters"}:
        assert np.array_equal(memory[name], before[name]), name


@pytest.mark.parametrize("counter", [1, 3])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_who_leads_waits_for_chunks_that_others_have_taken(direction: str, counter: int) -> None:
    job, counters, _memory = a_call()
    counters[:] = 2
    counters[counter] = 1  # one is still being worked at
    leader = threading.Thread(target=loop_of(direction), args=(loops.packed(job), True))
    leader.start()
    leader.join(0.1)
    assert leader.is_alive()
    loops.add(counters, counter)
    leader.join(60)
    assert not leader.is_alive()
