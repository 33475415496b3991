"""Threads that wait for work, beside those that torch has for the inside of an operation.

torch splits each operation among its threads and has them meet at its end. Where there are many
small ones they meet more than they work: then whole operations are shared out, one thread each.
"""

import functools
import os
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

import torch

Item = TypeVar("Item")
Work = Callable[[], None]


@functools.lru_cache(maxsize=1)
def _crew(process: int) -> tuple[SimpleQueue[Work], list[Thread]]:  # noqa: ARG001
    """Where work is left, and who takes it: nobody yet, in a new process after a fork too."""
    return SimpleQueue(), []


def call(helpers: int, work: Work) -> None:
    """Have ``work`` called by that many other threads, whenever they come to it."""
    jobs, threads = _crew(os.getpid())
    while len(threads) < helpers:
        threads.append(_hire(jobs))
    for _ in range(helpers):
        jobs.put(work)


def _hire(jobs: SimpleQueue[Work]) -> Thread:
    """A thread more, whose operations do not ask torch's threads for help."""
    ready: SimpleQueue[None] = SimpleQueue()

    def serve() -> None:
        torch.get_num_threads()  # has torch set this thread up now, not over the next line later
        torch.set_num_threads(1)
        ready.put(None)
        while True:
            jobs.get()()

    others = torch.get_num_threads()
    thread = Thread(target=serve, name="seqtrain-crew", daemon=True)
    thread.start()
    ready.get()
    torch.set_num_threads(others)  # what a thread sets for itself is what later ones begin with
    return thread


def share(work: Callable[[Item], None], items: Iterable[Item]) -> None:
    """``work`` of each item, by as many threads as torch may use, unseen by autograd.

    Args:
        work: Takes an item; may not depend on the mode or the device of this thread.
        items: Taken in order.

    Raises:
        Exception: Whatever a call of ``work`` raised, once all threads have ended theirs.
    """
    todo = iter(items)  # the interpreter's lock makes it safe to share
    done: SimpleQueue[Exception | None] = SimpleQueue()
    inference = torch.is_inference_mode_enabled()

    def some() -> None:
        failure = None
        try:
            with torch.inference_mode(inference), torch.no_grad():
                for item in todo:
                    work(item)
        except Exception as error:
            failure = error
        done.put(failure)

    helpers = torch.get_num_threads()
    if helpers > 1:
        call(helpers, some)
    else:
        some()
    for failure in [done.get() for _ in range(helpers)]:
        if failure is not None:
            raise failure
