"""Shared out to processes: everything comes back, in order, and little is in hand at a time.

A spawned process cannot import a test, so the work is Python's own: ``pydoc.locate`` begins with a
name and gives what it names.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate

import pytest

from seqtrain.errors import SeqtrainError
from seqtrain.evaluation.parallel import AHEAD, in_processes

pytestmark = pytest.mark.slow


def test_results_come_in_order_from_each_device_and_the_input_is_not_read_far_ahead(
    tmp_path: Path,
) -> None:
    """Of two processes, one evaluates to a number and the other to None."""
    taken, sign = 0, tmp_path / "sign"

    def work() -> Iterator[str]:
        nonlocal taken
        for taken in range(1, 31):
            yield {
                # The first waits for the second, which so must be done by the other process.
                1: f"next(i for i in iter(int, 1) if __import__('os').path.exists({str(sign)!r}))",
                2: f"open({str(sign)!r}, 'w').close() or 0",
            }.get(taken, str(taken))

    found = []
    for number, result in enumerate(in_processes(work(), locate, ["eval", "exec"])):
        found.append(result)
        assert taken <= number + 2 * AHEAD
    assert len(found) == 30
    assert all(result in (None, 0, place) for place, result in enumerate(found, 1))
    assert {0, None} == set(found[:2])


def test_errors_of_the_work_and_of_its_beginning_come_through() -> None:
    stream = in_processes(["1", "1 / 0", "3"], locate, ["eval"])
    assert next(stream) == 1
    with pytest.raises(ZeroDivisionError):
        next(stream)
    with pytest.raises(TypeError, match="str"):
        list(in_processes(["1"], os._exit, ["not a number"]))


def test_the_death_of_a_process_is_told() -> None:
    with pytest.raises(SeqtrainError, match="a worker process died"):
        list(in_processes(["__import__('os')._exit(9)"], locate, ["eval"]))
