"""Batches: every caption once an epoch, by length, and from (seed, step) alone; features against the store's own."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from devil_pipe.stages.train.batches import Batch, BatchSource, Example, epoch_order, whole_features
from devil_pipe.stages.train.config import DropoutConfig
from devil_pipe.store.reader import StoreReader

from .. import tiny

LENGTHS = np.random.default_rng(0).integers(1, 30, 101)
ROWS = 40


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    root = tmp_path_factory.mktemp("batches")
    rows = tiny.pictures(root / "data")
    tiny.store(root / "store", rows, "no index")
    return StoreReader(root / "store")


def examples() -> list[Example]:
    """Forty rows with one to three captions each; the caption's first token tells them all apart."""
    pairs = [(row, place) for row in range(ROWS) for place in range(1 + row % 3)]
    return [Example(row, (number, *range(row % 7))) for number, (row, _) in enumerate(pairs)]


def source(store: StoreReader, seed: int = 0, share: tuple[int, int] = (0, 1), **dropout: float) -> BatchSource:
    chosen = DropoutConfig(**dropout) if dropout else DropoutConfig()
    return BatchSource(store, examples(), chosen, batch_size=8, window=2, seed=seed, share=share)


def same(one: Batch, other: Batch) -> bool:
    features = all(torch.equal(mine, theirs) for mine, theirs in zip(one.features, other.features, strict=True))
    return features and torch.equal(one.keep, other.keep) and one.captions == other.captions


@pytest.mark.parametrize("window", [1, 3, 1000])
@pytest.mark.parametrize("size", [1, 8, 101, 500])
def test_an_epoch_holds_every_example_once(size: int, window: int) -> None:
    batches = epoch_order(LENGTHS, size, window, seed=0, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(101))
    assert len(batches) == -(-101 // size)
    assert all(len(batch) <= size for batch in batches)


def ranges(batches: list[np.ndarray]) -> list[tuple[int, int]]:
    return sorted((int(LENGTHS[batch].min()), int(LENGTHS[batch].max())) for batch in batches)


def test_a_window_as_wide_as_the_data_sorts_it_all() -> None:
    """Sorted by length, one batch ends where the next one begins."""
    found = ranges(epoch_order(LENGTHS, 8, 1000, seed=0, epoch=0))
    assert all(one[1] <= other[0] for one, other in pairwise(found))


def test_wider_windows_need_less_padding() -> None:
    def padding(window: int) -> int:
        batches = epoch_order(LENGTHS, 8, window, seed=0, epoch=0)
        return sum(int((LENGTHS[batch].max() - LENGTHS[batch]).sum()) for batch in batches)

    assert padding(1) > padding(4) > padding(1000)


def test_batches_of_a_sorted_window_come_in_random_order() -> None:
    smallest = [int(LENGTHS[batch].min()) for batch in epoch_order(LENGTHS, 4, 1000, seed=0, epoch=0)]
    assert smallest not in (sorted(smallest), sorted(smallest, reverse=True))


def test_epochs_and_seeds_differ() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(epoch_order(LENGTHS, 8, 2, seed, epoch)).tolist()  # type: ignore[no-any-return]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_a_batch_is_a_function_of_seed_and_step(store: StoreReader) -> None:
    steps = [0, 25, 3, 11, 12, 25]
    forward = {step: source(store).draw(step) for step in steps}
    one = source(store)
    assert all(same(one.draw(step), forward[step]) for step in reversed(steps))
    assert not same(source(store, seed=1).draw(3), forward[3])


def test_the_stream_draws_ahead_what_each_step_draws(store: StoreReader) -> None:
    found = list(source(store).stream(7, 14))
    assert [step for step, _ in found] == list(range(7, 14))
    assert all(same(batch, source(store).draw(step)) for step, batch in found)
    assert list(source(store).stream(5, 5)) == []


def test_steps_of_an_epoch_show_every_caption_once(store: StoreReader) -> None:
    count = len(examples())
    epoch = -(-count // 8)
    for start in (0, epoch):
        seen = Counter(item for step in range(start, start + epoch) for item in source(store).members(step))
        assert seen == Counter(examples())


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_a_batch_without_overlap(store: StoreReader, processes: int) -> None:
    for step in range(5):
        whole = Counter(source(store).draw(step).captions)
        parts = [source(store, share=(rank, processes)).draw(step).captions for rank in range(processes)]
        assert sum(map(Counter, parts), Counter()) == whole
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_processes_drop_independently(store: StoreReader) -> None:
    """The two halves of a batch do not get one and the same mask."""
    keeps = [source(store, share=(rank, 2), layer=0.5).draw(step).keep for step in range(8) for rank in (0, 1)]
    pairs = zip(keeps[::2], keeps[1::2], strict=True)
    assert any(not torch.equal(one[: len(other)], other[: len(one)]) for one, other in pairs)


def test_without_dropout_features_are_the_stores_means(store: StoreReader) -> None:
    made = source(store, spatial=0.0, layer=0.0)
    batch, members = made.draw(2), made.members(2)
    assert batch.captions == [item.caption for item in members]
    assert bool(batch.keep.all())
    for layer, found in zip(store.layers, batch.features, strict=True):
        slow = [store.read(layer.name, [item.row])[0].astype(np.float64).mean(axis=0) for item in members]
        assert np.allclose(found.numpy(), slow, atol=1e-6)


def test_every_example_keeps_a_layer(store: StoreReader) -> None:
    made = source(store, spatial=0.5, layer=0.9)
    assert all(bool(made.draw(step).keep.any(dim=1).all()) for step in range(20))


def test_whole_features_are_plain_means_however_they_are_read(store: StoreReader) -> None:
    rows = [5, 0, 17, 5, 33]
    for layer, whole, parts in zip(
        store.layers, whole_features(store, rows), whole_features(store, rows, size=2), strict=True
    ):
        slow = [
            np.mean([place.astype(np.float64) for place in store.read(layer.name, [row])[0]], axis=0) for row in rows
        ]
        assert np.allclose(whole.numpy(), slow, atol=1e-6)
        assert torch.equal(whole, parts)
