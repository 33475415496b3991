"""Operations that are shared out among threads."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from seqtrain.nn import crew
from seqtrain.nn.crew import share


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_item_is_worked_at_once(threads: int) -> None:
    for number in (0, 1, 2, 50):
        done: list[int] = []
        share(done.append, list(range(number)))
        assert sorted(done) == list(range(number))
    assert torch.get_num_threads() == threads


def test_the_threads_work_side_by_side(threads: int) -> None:
    """Each waits for all others, which none could in turn."""
    together = threading.Barrier(threads, timeout=60)
    share(lambda _: together.wait() and None, range(threads))


def test_operations_within_do_not_ask_for_torchs_threads(threads: int) -> None:
    found: list[int] = []
    share(lambda _: found.append(torch.get_num_threads()), range(8))
    assert set(found) == {1}


def test_a_backward_pass_keeps_the_number_of_threads(threads: int) -> None:
    """It asks torch for what a thread set last; a thread of ours must not have been it."""
    crew._crew.cache_clear()  # so that threads are hired now
    share(lambda _: None, range(4))
    x = torch.ones(3, requires_grad=True)
    (x * x).sum().backward()
    assert torch.get_num_threads() == threads
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [threads]


def test_a_thread_outlives_what_it_was_asked_to_do() -> None:
    def fail() -> None:
        raise OSError("no space left")

    done = threading.Event()
    crew.call(1, fail)
    crew.call(1, done.set)
    assert done.wait(60)
    assert crew._crew(os.getpid())[0].empty()


@pytest.mark.usefixtures("threads")
def test_autograd_sees_nothing_and_inference_stays_inference() -> None:
    x, made = torch.ones(3, requires_grad=True), []
    share(lambda _: made.append(x * 2), range(4))
    assert not any(t.requires_grad or t.is_inference() for t in made)
    made.clear()
    with torch.inference_mode():
        share(lambda _: made.append(x * 2), range(4))
    assert all(t.is_inference() for t in made)


@pytest.mark.usefixtures("threads")
def test_an_error_comes_back_and_the_threads_live_on() -> None:
    def fail(number: int) -> None:
        if number == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        share(fail, range(8))
    done: list[int] = []
    share(done.append, range(8))
    assert sorted(done) == list(range(8))


FORKED = """
import os, signal, torch
from seqtrain.nn import crew
from seqtrain.nn.crew import share
torch.set_num_threads(2)
def check():
    done = []
    share(done.append, range(9))
    assert sorted(done) == list(range(9))
check()
child = os.fork()
signal.alarm(60)
check()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_has_threads_of_its_own() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
