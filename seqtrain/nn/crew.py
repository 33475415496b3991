"""Threads that wait for work, beside those that torch has for the inside of an operation.

torch splits each operation among its threads and has them meet at its end. Where there are many
small ones they meet more than they work: then whole operations are shared out, one thread each.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TypeVar

import torch

Item = TypeVar("Item")
Work = Callable[[], None]


@functools.lru_cache(maxsize=1)
def _crew(process: int) -> tuple[SimpleQueue[Work], list[Thread]]:  # noqa: ARG001
    """Where work is left, and who takes it: nobody yet, in a new process after a fork too."""
    return SimpleQueue(), []


_hiring = Lock()
if hasattr(os, "register_at_fork"):  # a fork while another thread hires
    os.register_at_fork(after_in_child=lambda: globals().update(_hiring=Lock()))


def call(helpers: int, work: Work) -> None:
    """Have ``work`` called by that many other threads, whenever they come to it.

    What it raises there is lost: who calls has to do the same work or to ask for it.
    """
    with _hiring:
        jobs, threads = _crew(os.getpid())
        while len(threads) < helpers:
            threads.append(_hire(jobs))
    for _ in range(helpers):
        jobs.put(work)


def _hire(jobs: SimpleQueue[Work]) -> Thread:
    """A thread more, whose operations do not ask torch's threads for help.

    torch gives the number that any thread sets to those that use it for the first time later: one
    that does so between the two settings below keeps 1.
    """
    ready: SimpleQueue[None] = SimpleQueue()

    def serve() -> None:
        torch.get_num_threads()  # has torch set this thread up now, not over the next line later
        torch.set_num_threads(1)
        ready.put(None)
        while True:
            work = jobs.get()
            # A thread that ended would leave its jobs, and all they hold, in the queue for good.
            with contextlib.suppress(BaseException):
                work()
            del work

    others = torch.get_num_threads()
    thread = Thread(target=serve, name="seqtrain-crew", daemon=True)
    thread.start()
    ready.get()
    torch.set_num_threads(others)  # what a thread sets for itself is what later ones begin with
    return thread


def share(work: Callable[[Item], None], items: Sequence[Item]) -> None:
    """``work`` of each item, by at most as many threads as torch may use, unseen by autograd.

    Args:
        work: Takes an item; may not depend on the mode or the device of this thread.
        items: Taken in order.

    Raises:
        BaseException: Whatever a call of ``work`` raised, once all threads have ended theirs.
    """
    todo = iter(items)  # that of a sequence is safe to share, by the interpreter's lock
    done: SimpleQueue[BaseException | None] = SimpleQueue()
    inference = torch.is_inference_mode_enabled()

    def some() -> None:
        failure = None
        try:
            with torch.inference_mode(inference), torch.no_grad():
                for item in todo:
                    work(item)
        except BaseException as error:
            failure = error
        done.put(failure)

    helpers = min(torch.get_num_threads(), max(1, len(items)))
    if helpers > 1:
        call(helpers, some)
    else:
        some()
    for failure in [done.get() for _ in range(helpers)]:
        if failure is not None:
            raise failure
