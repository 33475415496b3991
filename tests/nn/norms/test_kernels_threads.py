"""The compiled norm of the CPU: threads, processes, and where its machine code is kept."""

import copy
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import torch
from cpu_kernels import finely, made, some_input, train
from torch import Tensor, nn

from seqtrain.nn.norms.kernels import cpu, cpu_loops


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
        for count in (*range(2, 17), 2):
            torch.set_num_threads(count)
            assert same(train(copy.deepcopy(norm), *batch), expected)
            assert torch.get_num_threads() == count
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
def test_the_callers_numbers_of_threads_stay(
    large: tuple[nn.Module, Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may use Numba for itself."""
    finely(monkeypatch, "machine code")
    norm, *batch = large
    used: list[int] = []
    parallel = cpu_loops.normalize._parallel

    def watched(*arguments: object) -> None:
        used.append(numba.get_num_threads())
        parallel(*arguments)

    monkeypatch.setattr(cpu_loops.normalize, "_parallel", watched)
    monkeypatch.setattr(cpu_loops, "usable_threads", lambda: 2)
    numba.set_num_threads(1)
    try:
        train(norm, *batch)
        assert used == [2]
        assert (numba.get_num_threads(), torch.get_num_threads()) == (1, 2)
    finally:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("rows", "expected"), [(10, 1), (1999, 1), (2000, 2), (9000, 2)])
def test_few_rows_are_not_worth_a_thread(
    rows: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    loops = SimpleNamespace(
        usable_threads=lambda: 16, rescale=lambda threads, *rest: used.append(threads)
    )
    monkeypatch.setattr(cpu, "find_loops", lambda: cpu.Loops(loops, loops))
    monkeypatch.setattr(cpu, "WORTH_A_THREAD", 1000)
    real = cpu.Real(torch.arange(rows), rows, None, -1)
    cpu._run("rescale", real, torch.zeros(rows, 1))
    assert used == [expected]


def test_one_thread_where_numba_has_no_pool_that_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    for layer, found in (("omp", 7), ("tbb", 7), ("workqueue", 1), (None, 1)):
        monkeypatch.setattr(cpu_loops, "_threading_layer", lambda layer=layer: layer)
        monkeypatch.setattr(cpu_loops.numba.config, "NUMBA_NUM_THREADS", 7)
        assert cpu_loops.usable_threads() == found


def test_where_no_thread_can_be_started_one_does_the_work(
    large: tuple[nn.Module, Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    finely(monkeypatch, "machine code")
    norm, *batch = large
    expected = train(copy.deepcopy(norm), *batch)

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(cpu_loops, "_threading_layer", cpu_loops._threading_layer.__wrapped__)
    for loop in (cpu_loops.normalize, cpu_loops.differentiate, cpu_loops.rescale):
        monkeypatch.setattr(loop, "_compiled", set())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    torch.set_num_threads(2)
    try:
        assert same(train(copy.deepcopy(norm), *batch), expected)
    finally:
        torch.set_num_threads(1)


IN_A_NEW_PROCESS = """
import os, signal, sys, threading, torch
from seqtrain.nn.norms import MaskedBatchNorm1d
from seqtrain.nn.norms.kernels import cpu
norm, x = MaskedBatchNorm1d(4, channel_dim=-1), torch.randn(2, 200, 4)
mask = torch.ones(2, 200, dtype=torch.bool)
norm(x[:, :10], mask[:, :10])
assert "numba" not in sys.modules, "loaded for nothing"
cpu.SMALLEST, cpu.TILE, cpu.WORTH_A_THREAD = 0, 1, 1
torch.set_num_threads(2)
out = norm(x, mask)
assert torch.get_num_threads() == 2
"""

FORKED = """
assert cpu.find_loops().rows._threading_layer.cache_info().currsize == 1
child = os.fork()
signal.alarm(60)
assert torch.equal(norm(x, mask), out)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""

AT_ONCE = """
wrong = []
def work():
    for _ in range(50):
        if not torch.equal(norm(x, mask), out):
            wrong.append(1)
threads = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not wrong
assert cpu.find_loops().rows.usable_threads() == 1
"""


@pytest.mark.parametrize(
    ("layer", "then"), [("default", FORKED), ("workqueue", AT_ONCE), ("tbb", AT_ONCE)]
)
def test_a_process_that_forks_or_has_another_pool_of_threads(layer: str, then: str) -> None:
    """OpenMP ends a forked process that uses it, and Numba's own pool one that has two callers.

    TBB, which is not installed with this package, stands for a pool that is asked for in vain.
    """
    command = [sys.executable, "-W", "ignore", "-c", IN_A_NEW_PROCESS + then]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"NUMBA_THREADING_LAYER": layer},
    )
    assert done.returncode == 0, done.stderr


def test_without_numba_the_numbers_are_the_same(
    large: tuple[nn.Module, Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    norm, *batch = large
    fused = train(copy.deepcopy(norm), *batch)
    name = cpu_loops.__name__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "find_loops", cpu.find_loops.__wrapped__)
        patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "numba", None)
        assert cpu.find_loops() is None
        plain = train(copy.deepcopy(norm), *batch)
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-4, atol=1e-4)
    assert any(not torch.equal(fused[name], value) for name, value in plain.items())


def test_where_numba_compiles_nothing_the_plain_form_does_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else every row would be read by the interpreter."""
    monkeypatch.setattr(cpu_loops.numba.config, "DISABLE_JIT", 1)
    assert cpu.find_loops.__wrapped__() is None


def a_loop() -> cpu_loops.Loop:
    """A new one, which is not compiled, and need not be."""

    def add_one(rows: np.ndarray, x: np.ndarray) -> None:
        for i in rows:
            x[i] += 1

    return cpu_loops.Loop(add_one)


def test_a_loop_has_two_forms_of_different_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """On disk, where Numba finds machine code by the name of its function."""
    asked: list[tuple[str, dict[str, object]]] = []

    def njit(**options: object) -> Callable[[Callable[..., None]], Callable[..., None]]:
        return lambda function: asked.append((function.__qualname__, options)) or function

    monkeypatch.setattr(cpu_loops.numba, "njit", njit)
    a_loop()
    assert [(name, options["parallel"], options["cache"]) for name, options in asked] == [
        ("add_one_serial", False, True),
        ("add_one_parallel", True, True),
    ]


class Slow:
    """A form that waits until the user was told, or for as long as it is to."""

    def __init__(self, is_compiled: bool, told: threading.Event, seconds: float) -> None:
        self.stats = SimpleNamespace(cache_misses={} if is_compiled else {"signature": 1})
        self.told, self.seconds = told, seconds

    def __call__(self, rows: np.ndarray, x: np.ndarray) -> None:
        self.told.wait(self.seconds)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the user is told something."""
    event = threading.Event()
    monkeypatch.setattr(cpu_loops, "PATIENCE", 0.001)
    monkeypatch.setattr(cpu_loops, "_kept", cpu_loops.KEPT)
    monkeypatch.setattr(cpu_loops, "print", lambda *a, **k: (print(*a, **k), event.set()), False)
    cpu_loops._tell_user.cache_clear()
    return event


@pytest.mark.parametrize("is_writable", [True, False])
def test_a_user_who_waits_for_the_compiler_is_told_once(
    is_writable: bool,
    told: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def njit(cache: bool = False, **options: object) -> Callable[..., object]:
        if cache and not is_writable:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(cpu_loops.numba, "njit", njit)
    for seconds in (60, 0.1):
        loop = a_loop()
        loop._serial = Slow(False, told, seconds)
        loop(1, np.arange(3), np.zeros(3))
        told.clear()
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("compiling") == len(found.err.splitlines()) == 1
    assert ("NUMBA_CACHE_DIR" in found.err) is not is_writable


def test_machine_code_that_is_slow_to_load_is_not_called_compiling(
    told: threading.Event, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = a_loop()
    loop._serial = Slow(True, told, 0.1)
    loop(1, np.arange(3), np.zeros(3))
    assert capsys.readouterr().err == ""


def test_machine_code_for_which_the_disk_is_too_full_runs_all_the_same() -> None:
    """Numba compiles, then keeps: of what raised, nothing has run."""
    loop, x, asked = a_loop(), np.zeros(3), []

    def full_at_first(rows: np.ndarray, x: np.ndarray) -> None:
        asked.append(len(asked))
        if asked == [0]:
            raise OSError(28, "No space left on device")
        x[rows] += 1

    loop._serial = full_at_first
    loop(1, np.arange(3), x)
    loop(1, np.arange(3), x)
    assert x.tolist() == [2, 2, 2]
    assert asked == [0, 1, 2]


def test_machine_code_is_kept_and_found_again(tmp_path: Path) -> None:
    """Both forms of a loop, each by another process."""
    source = tmp_path / "loops_of_a_test.py"
    source.write_text(
        "from numba import prange\n"
        "from seqtrain.nn.norms.kernels.cpu_loops import Loop\n"
        "@Loop\n"
        "def count(rows, x):\n"
        "    for i in prange(len(rows)):\n"
        "        x[rows[i]] += 1\n"
    )
    program = (
        "import numpy as np, loops_of_a_test as l\n"
        "x = np.zeros(4)\n"
        "l.count(1, np.arange(3), x); l.count(2, np.arange(3), x)\n"
        "assert x.tolist() == [2, 2, 2, 0]\n"
        "print([sum(f.stats.cache_hits.values()) for f in (l.count._serial, l.count._parallel)])\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "2"}
    found = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=120,
        )
        for _ in range(2)
    ]
    assert [run.stdout for run in found] == ["[0, 0]\n", "[1, 1]\n"], found[0].stderr


def test_errors_of_compiled_loops_are_raised() -> None:
    with pytest.raises(numba.TypingError):
        cpu_loops.rescale(1, np.arange(3), np.zeros((3, 2)), 1, "no array", 2, 3, 4)
    loop = a_loop()
    loop._serial = lambda rows, x: x[rows[0]]
    with pytest.raises(IndexError):
        loop(1, np.array([7]), np.zeros(3))
