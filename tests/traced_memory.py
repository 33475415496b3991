"""What a piece of work takes of memory."""

import tracemalloc
from collections.abc import Callable


def most_memory(work: Callable[[], object]) -> int:
    """Bytes that Python and numpy held at once.

    The least of three times, after one that loads what is loaded once: other threads of the
    process, as those that hand out tests, are counted too.
    """
    work()
    return min(_peak(work) for _ in range(3))


def _peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
