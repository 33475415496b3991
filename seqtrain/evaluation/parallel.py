"""Work shared out to processes, its results in order, and never much of it at once."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

from seqtrain.errors import SeqtrainError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 3
"""Items in hand for each process: one at work, and some to begin with at once."""

_work: Callable[[Any], Any]


def in_processes(
    items: Iterable[Item],
    start: Callable[[str], Callable[[Item], Result]],
    devices: Sequence[str],
) -> Iterator[Result]:
    """The result of each item, in order, computed in one process per device.

    No more than a few items per process are in hand at any time, however many there are.

    Args:
        items: What can be sent to a process; read by the one that called.
        start: Called once in each process with its device; gives what does the work. It is sent
            there too: a function of a module, or a ``partial`` of one.
        devices: Names of devices; a CPU may be there several times.

    Raises:
        SeqtrainError: A process died, or the work raised it.
    """
    context = get_context("spawn")  # a forked process cannot use CUDA, nor torch's threads
    names = context.SimpleQueue()
    for device in devices:
        names.put(device)
    threads = max(1, torch.get_num_threads() // len(devices))
    pool = ProcessPoolExecutor(len(devices), context, _begin, (start, names, threads))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_do, item))
            if len(waiting) == AHEAD * len(devices):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise SeqtrainError(
            "a worker process died: it ran out of memory, or was killed. Use fewer --workers or a "
            "smaller --batch-size."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(start: Callable[[str], Callable[[Any], Any]], names: Any, threads: int) -> None:
    # Ctrl-C reaches every process of a terminal; the one that writes decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    global _work
    try:
        _work = start(names.get())
    except Exception as error:  # raised here it would be taken for the death of the process
        _work = partial(_raise, error)


def _raise(error: Exception, _item: Any) -> Any:
    raise error


def _do(item: Any) -> Any:
    return _work(item)
