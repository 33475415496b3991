"""Batches made while a GPU computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from seqtrain.data.batching import Batch

Item = TypeVar("Item")

AHEAD = 2
"""Steps whose batches wait in page-locked memory."""


def made_ahead(
    make: Callable[[Item], list[Batch]], items: Iterable[Item], device: torch.device
) -> Iterator[list[Batch]]:
    """``make`` of each item, in order; for a GPU some steps ahead, in page-locked memory.

    On a CPU a second thread would only take a core from the first.

    Args:
        make: The batches of one step.
        items: What they are made of.
        device: Where they go.
    """
    if device.type != "cuda":
        yield from map(make, items)
        return

    def make_pinned(item: Item) -> list[Batch]:
        return [batch.pin_memory() for batch in make(item)]

    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future[list[Batch]]] = deque()
        for item in items:
            waiting.append(thread.submit(make_pinned, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
