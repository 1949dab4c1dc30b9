"""Which pictures a training step sees, and their pooled features: a function of (seed, step) alone.

So a run that was stopped needs no random state to go on: the step's number is enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from devil_pipe.stages.train.config import DropoutConfig
from devil_pipe.stages.train.dropout import draw, pool
from devil_pipe.store.reader import StoreReader


@dataclass(frozen=True)
class Example:
    """One caption of one picture."""

    row: int
    caption: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Pooled features [batch, C] of each layer, the layers that are kept, and the captions' token ids."""

    features: list[Tensor]
    keep: Bool[Tensor, "batch layers"]
    captions: list[tuple[int, ...]]


def epoch_order(
    lengths: Int[np.ndarray, " examples"], batch_size: int, window: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Every example once, in batches of similar caption length, the batches in random order.

    Sorting happens within windows of `window` batches: the wider, the less padding is computed, and the less a
    batch is a fair sample (with windows as long as the data, short and long captions never meet).
    """
    random = np.random.default_rng([seed, epoch])
    shuffled = random.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for begin in range(0, len(shuffled), window * batch_size):
        part = shuffled[begin : begin + window * batch_size]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[place : place + batch_size] for place in range(0, len(part), batch_size)]
    return [batches[place] for place in random.permutation(len(batches))]


class BatchSource:
    """Draws the batches of one phase; one batch is prepared in a thread while another is computed."""

    def __init__(
        self,
        store: StoreReader,
        examples: Sequence[Example],
        dropout: DropoutConfig,
        *,
        batch_size: int,
        window: int,
        seed: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """`share` is (rank, processes): every process draws the same batch and takes each n-th of its examples."""
        self.store, self.examples, self.dropout = store, examples, dropout
        self.batch_size, self.window, self.seed, self.share = batch_size, window, seed, share
        self._lengths = np.array([len(example.caption) for example in examples])
        self._per_epoch = -(-len(examples) // batch_size)
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def members(self, step: int) -> list[Example]:
        """The examples of a step."""
        epoch, place = divmod(step, self._per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, epoch_order(self._lengths, self.batch_size, self.window, self.seed, epoch))
        return [self.examples[int(number)] for number in self._epoch[1][place]]

    def draw(self, step: int) -> Batch:
        """Read, drop and pool the features of a step."""
        rank, processes = self.share
        members = self.members(step)[rank::processes] or self.members(step)[:1]
        state = np.random.SeedSequence([self.seed, step, rank]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        rows = [example.row for example in members]
        maps = [torch.from_numpy(self.store.read(layer.name, rows)) for layer in self.store.layers]
        return Batch(
            features=pool(maps, self.dropout.spatial, generator),
            keep=draw(len(members), len(maps), self.dropout.layer, generator),
            captions=[example.caption for example in members],
        )

    def stream(self, start: int, stop: int) -> Iterator[tuple[int, Batch]]:
        """(step, batch) for start ≤ step < stop, one drawn ahead."""
        with ThreadPoolExecutor(1) as ahead:
            coming: Future[Batch] | None = ahead.submit(self.draw, start) if start < stop else None
            for step in range(start, stop):
                assert coming is not None
                batch = coming.result()
                coming = ahead.submit(self.draw, step + 1) if step + 1 < stop else None
                yield step, batch


def whole_features(store: StoreReader, rows: Sequence[int], size: int = 256) -> list[Tensor]:
    """Mean over all locations of each layer, float32 [rows, C]: what evaluation looks at."""
    parts: list[list[Tensor]] = [[] for _ in store.layers]
    for begin in range(0, len(rows), size):
        for part, layer in zip(parts, store.layers, strict=True):
            maps = torch.from_numpy(store.read(layer.name, rows[begin : begin + size]))
            part.append(maps.mean(dim=1, dtype=torch.float32))
    return [torch.cat(part) for part in parts]
