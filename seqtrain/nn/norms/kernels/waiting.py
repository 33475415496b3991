"""Threads that wait for a job without the interpreter, and work at it beside who asks for it.

One of Python's own has to take the interpreter's lock to wake up, from a caller that needs it too.
Each of these has a box in memory, with a semaphore to sleep on and the job that it is to do. Who
asks and finds a box in use leaves it alone, and takes a job back that nobody has begun: it waits
for no thread but one that is at work.

Importing this needs Numba, and a C library that has semaphores without a name: that of Linux.
"""

import ctypes
import inspect
from threading import RLock, Thread
from typing import Any

import numpy as np
from numba import types

from seqtrain.nn.norms.kernels.intrinsics import invoke, load, replace, store
from seqtrain.nn.norms.kernels.machine import machine_code

BOX = 128
"""Bytes of a box, two lines of the cache: the semaphore takes 32, then come these."""

JOB, LOOP = 64, 72
"""Where in it the place of a job is (0 for none, odd once it is begun) and what to call with it."""

MOST = 64
"""Threads."""

sem_wait = types.ExternalFunction("sem_wait", types.int32(types.intp))
sem_post = types.ExternalFunction("sem_post", types.int32(types.intp))


def serve(box: Any) -> None:  # pragma: no cover (it runs as machine code)
    """Do the jobs of a box, for ever."""
    while True:
        sem_wait(box)
        job = load(box + JOB)
        if job > 0 and job & 1 == 0 and replace(box + JOB, job, job | 1):
            invoke(load(box + LOOP), job, 0)
            store(box + JOB, 0)


def lead(boxes: Any, helpers: Any, loop: Any, job: Any) -> None:  # pragma: no cover
    """Do a job with the help of those of the first boxes that are free."""
    for box in range(boxes, boxes + helpers * BOX, BOX):
        if replace(box + JOB, 0, -1):
            store(box + LOOP, loop)
            store(box + JOB, job)
            sem_post(box)
    invoke(loop, job, 1)
    for box in range(boxes, boxes + helpers * BOX, BOX):
        if not replace(box + JOB, job, 0):
            while load(box + JOB) == job | 1:
                pass


class Crew:
    """The boxes of this process, and a thread at each of the first."""

    def __init__(self) -> None:
        self._memory = np.zeros((MOST + 1) * BOX, np.uint8)
        self._boxes = self._memory.ctypes.data + -self._memory.ctypes.data % BOX
        self._threads: list[Thread] = []
        self._hiring = RLock()
        for box in range(MOST):
            place = ctypes.c_void_p(self._boxes + box * BOX)
            ctypes.CDLL(None).sem_init(place, 0, 0)
        word = ctypes.c_ssize_t
        self._serve = machine_code(inspect.unwrap(serve), word)
        self._lead = machine_code(inspect.unwrap(lead), word, word, word, ctypes.c_char_p)

    def lead(self, helpers: int, loop: Any, job: bytes) -> None:
        """Do a job, with the help of at most so many threads."""
        helpers = min(helpers, MOST)
        if len(self._threads) < helpers:
            self._hire(helpers)
        self._lead(self._boxes, helpers, loop.address, job)

    def _hire(self, helpers: int) -> None:
        with self._hiring:
            while len(self._threads) < helpers:
                box = self._boxes + len(self._threads) * BOX
                thread = Thread(target=self._stay, args=(box,), name="seqtrain-norm", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _stay(self, box: int) -> None:
        """What it uses is held by this frame until the process ends."""
        self._serve(box)
