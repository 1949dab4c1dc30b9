"""A batch divided among threads, each of which takes its piece through the whole backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

LEAST = 8  # pictures that are worth a thread of their own

Item = TypeVar("Item")
Piece = TypeVar("Piece")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lanes:
    """Threads that each take a piece of a batch; one lane is the caller's own thread."""

    count: int
    pool: ThreadPoolExecutor | None

    def split(self, items: Sequence[Item]) -> list[Sequence[Item]]:
        """Neighbouring items for each lane, as even as can be; no piece is empty."""
        size = math.ceil(len(items) / self.count)
        return [items[begin : begin + size] for begin in range(0, len(items), size)] if items else []

    def each(self, work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
        """What `work` makes of every piece, in order."""
        return list(map(work, pieces) if self.pool is None else self.pool.map(work, pieces))


@contextmanager
def lanes(device: torch.device, batch_size: int) -> Iterator[Lanes]:
    """As many lanes as PyTorch has threads on a CPU, if the batch is large enough; elsewhere one.

    Threads of one forward pass wait for each other in every operation, and so whenever a decoder takes a core from one
    of them; passes over pieces of the batch, a thread for each, wait once (benchmarks/extraction.py). Within the block
    PyTorch's own threads are divided among the lanes.
    """
    threads = torch.get_num_threads()
    count = min(threads, batch_size // LEAST) if device.type == "cpu" else 1
    if count < 2:
        yield Lanes(1, None)
        return
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads // count,)) as pool:
        try:
            yield Lanes(count, pool)
        finally:
            torch.set_num_threads(threads)  # a lane's number is also that of threads which begin later
