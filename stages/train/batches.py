"""Which pictures a training step sees, and their pooled features: a function of (seed, step) alone.

So a run that was stopped needs no random state to go on: the step's number is enough. And so several processes see,
together, what one would: masks are drawn for the whole batch by each, which is cheap, and maps are read for its share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devil_pipe.stages.train.config import DropoutConfig, Order
from devil_pipe.stages.train.dropout import Share, draw, pool, whole_mean
from devil_pipe.stages.train.order import epoch_order, windows_order
from devil_pipe.store.layer import Stored
from devil_pipe.store.order import windows
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.windows import Window, WindowReader


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
    counts: bool = True
    """False where this process has no example of the step and sees another's again: its loss is to weigh nothing."""


def shards_a_window(order: Order, window_shards: int, store: FeatureStore) -> int:
    """How many shards a window of this store's epochs holds; 0: each epoch is a full permutation."""
    if order == "permutation" or (order == "auto" and store.place.local):
        return 0
    return window_shards


class _Disk:
    """Whether pages had to be waited for lately. To ask ahead for what is in memory costs a tenth of reading it."""

    STEPS = 64

    def __init__(self) -> None:
        self._left = self.STEPS  # of a store that was just opened nothing is known

    @property
    def is_slow(self) -> bool:
        return self._left > 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A step of reading."""
        before = _pages_waited_for()
        yield
        self._left = self.STEPS if _pages_waited_for() > before else self._left - 1


def _pages_waited_for() -> int:
    """Page faults of this process that had to wait for a disk, so far; 0 where the system does not count them."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


@dataclass(frozen=True)
class _Planned:
    """A batch of an epoch."""

    drawn: Int[np.ndarray, " drawn"]
    """Examples whose masks are drawn together."""

    mine: slice
    """Those of them that this process sees."""

    window: int = 0
    """Of the store."""

    counts: bool = True
    """See `Batch`."""

    @property
    def members(self) -> Int[np.ndarray, " members"]:
        return self.drawn[self.mine]


class BatchSource:
    """Draws the batches of one phase; one batch is prepared in a thread while another is computed."""

    def __init__(
        self,
        store: FeatureStore,
        examples: Sequence[Example],
        dropout: DropoutConfig,
        *,
        batch_size: int,
        window: int,
        seed: int,
        share: tuple[int, int] = (0, 1),
        window_shards: int = 0,
    ) -> None:
        """Plan the batches.

        Args:
            store: of the features.
            examples: every caption of the split.
            dropout: rates.
            batch_size: examples a step, over all processes.
            window: batches that are sorted by length together.
            seed: with the step it decides the batch.
            share: (rank, processes). In a full permutation every process draws the same batch and the same masks, and
                takes each n-th example: n processes see what one sees. With windows each has a part of the epoch's
                shards to itself, so that no shard is read twice, and masks of its own; sizes of parts differ by one at
                most where the processes divide the batch. In both a process whose share of the epoch's last batch is
                empty sees one example again, so that all make as many steps; it does not count.
            window_shards: shards of the store in a window; 0: a full permutation. See `shards_a_window`.
        """
        self.store, self.examples, self.dropout = store, examples, dropout
        self.batch_size, self.window, self.seed, self.share = batch_size, window, seed, share
        self.window_shards = window_shards
        self._lengths = np.array([len(example.caption) for example in examples])
        self._shards = np.array([example.row for example in examples]) // store.manifest.shard_rows
        self._per_epoch = -(-len(examples) // batch_size)
        self._noise = [dropout.noise * spread for spread in spreads(store, examples)] if dropout.noise else []
        self._epochs: dict[int, list[_Planned]] = {}

    def members(self, step: int) -> list[Example]:
        """The examples of a step that this process sees."""
        return [self.examples[int(number)] for number in self._planned(step).members]

    def _planned(self, step: int) -> _Planned:
        epoch, place = divmod(step, self._per_epoch)
        return self._epoch(epoch)[place]

    def _epoch(self, number: int) -> list[_Planned]:
        if number not in self._epochs:
            kept = {epoch: plan for epoch, plan in self._epochs.items() if epoch == number - 1}
            self._epochs = {**kept, number: self._windows(number) if self.window_shards else self._permuted(number)}
        return self._epochs[number]

    def _permuted(self, number: int) -> list[_Planned]:
        rank, processes = self.share
        batches = epoch_order(self._lengths, self.batch_size, self.window, self.seed, number)
        mine, again = slice(rank, None, processes), slice(0, 1)
        return [
            _Planned(batch, mine) if rank < len(batch) else _Planned(batch, again, counts=False) for batch in batches
        ]

    def _windows(self, number: int) -> list[_Planned]:
        rank, processes = self.share
        sizes = [len(range(rank, self.batch_size, processes)) for rank in range(processes)]
        whole, rest = divmod(len(self.examples), self.batch_size)
        ends = np.cumsum([whole * size + len(range(rank, rest, processes)) for rank, size in enumerate(sizes)])
        part = range(int(ends[rank - 1]) if rank else 0, int(ends[rank]))
        members = windows(self._shards, self.window_shards, self.seed, number, part)
        random = np.random.default_rng([self.seed, number]).spawn(1)[0]
        planned = windows_order(members, self._lengths, max(sizes[rank], 1), self.window, random)
        all_of_it = slice(None)
        batches = [_Planned(batch, all_of_it, window) for window, batches in enumerate(planned) for batch in batches]
        seen = batches[-1] if batches else _Planned(np.zeros(1, dtype=np.int64), all_of_it)
        again = _Planned(seen.drawn[:1], all_of_it, seen.window, counts=False)
        # Nothing is left of the last batch for this process or, with fewer examples a step than processes, of any.
        return batches + [again] * (self._per_epoch - len(batches))

    def draw(self, step: int) -> Batch:
        """Read, drop and pool the features of a step."""
        planned, members = self._planned(step), self.members(step)
        rank = self.share[0] if self.window_shards else 0
        state = np.random.SeedSequence([self.seed, step, rank]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        stored = self._stored([example.row for example in members])
        share = Share(len(planned.drawn), planned.mine)
        features = [pool(layer, self.dropout.spatial, generator, share) for layer in stored]
        there = layers_there(stored)
        if there is not None and len(there) < share.whole:  # of units: what the others see decides what is drawn again
            there = layers_there(self._stored([self.examples[int(number)].row for number in planned.drawn]))
        keep = draw(share.whole, len(stored), self.dropout.layer, generator, there)
        if self._noise:  # drawn last and for the whole batch, as the masks are
            noise = [torch.randn(share.whole, len(scale), generator=generator) * scale for scale in self._noise]
            features = [pooled + other[share.rows] for pooled, other in zip(features, noise, strict=True)]
        return Batch(features, keep[share.rows], [example.caption for example in members], planned.counts)

    def _stored(self, rows: list[int]) -> list[Stored]:
        return [self.store[layer.name].stored(rows, verify=True) for layer in self.store.layers]

    def stream(self, start: int, stop: int) -> Iterator[tuple[int, Batch]]:
        """(step, batch) for start ≤ step < stop, one drawn ahead; where a disk is slow one more is asked of it."""
        reader = WindowReader(self.store) if self.window_shards and not self.store.place.local else None
        disk = _Disk()

        def drawn(step: int) -> Batch:
            if reader is not None:
                self._enter(reader, step, stop)
            elif disk.is_slow and step + 1 < stop:
                self.store.prefetch([example.row for example in self.members(step + 1)])
            with disk.watched():
                return self.draw(step)

        try:
            with ThreadPoolExecutor(1) as ahead:
                coming: Future[Batch] | None = ahead.submit(drawn, start) if start < stop else None
                for step in range(start, stop):
                    assert coming is not None
                    batch = coming.result()
                    coming = ahead.submit(drawn, step + 1) if step + 1 < stop else None
                    yield step, batch
        finally:
            if reader is not None:
                reader.close()

    def _enter(self, reader: WindowReader, step: int, stop: int) -> None:
        """Have the window of a step in memory, and the next one on its way."""
        key, _ = self._window_of(step)
        if key != reader.current:
            window, end = self._read_window(step)
            reader.enter(window, self._read_window(end)[0] if end < stop else None)

    def _window_of(self, step: int) -> tuple[tuple[int, int], list[_Planned]]:
        number, place = divmod(step, self._per_epoch)
        epoch = self._epoch(number)
        return (number, epoch[place].window), epoch

    def _read_window(self, step: int) -> tuple[Window, int]:
        """The window that a step belongs to, and the step at which the next one begins."""
        key, epoch = self._window_of(step)
        places = [place for place, planned in enumerate(epoch) if planned.window == key[1]]
        rows = {self.examples[int(number)].row for place in places for number in epoch[place].members}
        return Window(key, sorted(rows)), key[0] * self._per_epoch + places[-1] + 1


def spreads(store: FeatureStore, examples: Sequence[Example], rows: int = 512) -> list[Float[Tensor, " channels"]]:
    """The standard deviation of each layer's pooled features over some of the examples, drawn with a fixed seed."""
    known = sorted({example.row for example in examples})
    chosen = np.random.default_rng(0).choice(known, min(rows, len(known)), replace=False)
    return [layer.std(dim=0, correction=0) for layer in whole_features(store, sorted(chosen.tolist())).layers]


def layers_there(stored: Sequence[Stored]) -> Bool[Tensor, "batch layers"] | None:
    """Which layers know something of each row; None where all do, as of pictures."""
    if any(layer.exemplars is None for layer in stored):
        return None
    there = [torch.from_numpy(layer.exemplars).flatten() > 0 for layer in stored if layer.exemplars is not None]
    return torch.stack(there, dim=1)


@dataclass(frozen=True)
class Features:
    """Pooled features of some rows, as evaluation looks at them."""

    layers: list[Tensor]
    """float32 [rows, C] of each layer: the mean over all locations, or over a unit's exemplars."""

    there: Bool[Tensor, "rows layers"]
    """Which layers know something of a row."""

    def __len__(self) -> int:
        return len(self.there)

    def take(self, places: Int[Tensor, " places"]) -> Features:
        """The rows at these places, in their order."""
        return Features([layer[places] for layer in self.layers], self.there[places])


def whole_features(store: FeatureStore, rows: Sequence[int], size: int = 256) -> Features:
    """The features of rows of a store, without any dropout."""
    parts: list[list[Tensor]] = [[] for _ in store.layers]
    there: list[Tensor] = []
    for begin in range(0, len(rows), size):
        stored = [store[layer.name].stored(rows[begin : begin + size], verify=True) for layer in store.layers]
        for part, layer in zip(parts, stored, strict=True):
            part.append(whole_mean(layer))
        known = layers_there(stored)
        there.append(torch.ones(len(stored[0].values), len(stored), dtype=torch.bool) if known is None else known)
    return Features([torch.cat(part) for part in parts], torch.cat(there))
