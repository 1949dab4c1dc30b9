"""Batches: every caption once an epoch, by length, and from (seed, step) alone; features against the store's own."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devil_pipe.stages.train import batches
from devil_pipe.stages.train.batches import (
    Batch,
    BatchSource,
    Example,
    shards_a_window,
    whole_features,
)
from devil_pipe.stages.train.config import DropoutConfig
from devil_pipe.stages.train.order import epoch_order, windows_order
from devil_pipe.store.layer import Stored
from devil_pipe.store.place import Span
from devil_pipe.store.reader import FeatureStore

from .. import tiny

LENGTHS = np.random.default_rng(0).integers(1, 30, 101)
ROWS = 40


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    root = tmp_path_factory.mktemp("batches")
    rows = tiny.pictures(root / "data")
    tiny.store(root / "store", rows, "no index")
    return FeatureStore(root / "store")


def examples() -> list[Example]:
    """Forty rows with one to three captions each; the caption's first token tells them all apart."""
    pairs = [(row, place) for row in range(ROWS) for place in range(1 + row % 3)]
    return [Example(row, (number, *range(row % 7))) for number, (row, _) in enumerate(pairs)]


def source(store: FeatureStore, seed: int = 0, share: tuple[int, int] = (0, 1), **dropout: float) -> BatchSource:
    chosen = DropoutConfig(**dropout) if dropout else DropoutConfig()
    return BatchSource(store, examples(), chosen, batch_size=8, window=2, seed=seed, share=share)


def in_windows(store: FeatureStore, **changes: Any) -> BatchSource:
    """Windows of two of the store's shards of 16 rows."""
    values = {"batch_size": 8, "window": 2, "seed": 0, "window_shards": 2, **changes}
    return BatchSource(store, examples(), DropoutConfig(), **values)


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


def test_a_batch_is_a_function_of_seed_and_step(store: FeatureStore) -> None:
    steps = [0, 25, 3, 11, 12, 25]
    forward = {step: source(store).draw(step) for step in steps}
    one = source(store)
    assert all(same(one.draw(step), forward[step]) for step in reversed(steps))
    assert not same(source(store, seed=1).draw(3), forward[3])


def test_noise_has_the_asked_spread_and_is_a_function_of_the_step(store: FeatureStore) -> None:
    plain = [source(store, spatial=0.0, layer=0.5).draw(step) for step in range(200)]
    noisy = [source(store, spatial=0.0, layer=0.5, noise=0.5).draw(step) for step in (0, 7)]
    assert same(noisy[1], source(store, spatial=0.0, layer=0.5, noise=0.5).draw(7))
    assert torch.equal(noisy[0].keep, plain[0].keep)  # what is dropped does not depend on the noise
    one = source(store, spatial=0.0, layer=0.5, noise=0.5)
    for layer, spec in enumerate(store.layers):
        apart = torch.cat([one.draw(step).features[layer] - plain[step].features[layer] for step in range(200)])
        rows = store[spec.name].torch(slice(0, ROWS)).float().mean(dim=1)
        assert apart.std(dim=0) / rows.std(dim=0, correction=0) == pytest.approx(0.5, rel=0.15)
        assert (apart.mean(dim=0) / apart.std(dim=0)).abs().max() < 0.15


def test_two_processes_see_the_noise_that_one_sees(store: FeatureStore) -> None:
    whole = source(store, noise=0.3).draw(2)
    parts = [source(store, share=(rank, 2), noise=0.3).draw(2) for rank in range(2)]
    for layer, values in enumerate(whole.features):
        for rank, part in enumerate(parts):
            assert torch.equal(part.features[layer], values[rank::2])


def test_the_stream_draws_ahead_what_each_step_draws(store: FeatureStore) -> None:
    found = list(source(store).stream(7, 14))
    assert [step for step, _ in found] == list(range(7, 14))
    assert all(same(batch, source(store).draw(step)) for step, batch in found)
    assert list(source(store).stream(5, 5)) == []


def test_steps_of_an_epoch_show_every_caption_once(store: FeatureStore) -> None:
    count = len(examples())
    epoch = -(-count // 8)
    for start in (0, epoch):
        seen = Counter(item for step in range(start, start + epoch) for item in source(store).members(step))
        assert seen == Counter(examples())


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_a_batch_without_overlap(store: FeatureStore, processes: int) -> None:
    for step in range(5):
        whole = Counter(source(store).draw(step).captions)
        parts = [source(store, share=(rank, processes)).draw(step).captions for rank in range(processes)]
        assert sum(map(Counter, parts), Counter()) == whole
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("processes", [2, 3, 9])
def test_processes_see_together_what_one_sees(store: FeatureStore, processes: int) -> None:
    """Dropped locations and layers included. Of nine processes one has no example of eight, and says so.

    A share that lost no location at all is averaged in float32, so the tolerance is the bag's (2⁻¹¹ of the mean).
    """
    for step in range(5):
        whole = source(store).draw(step)
        for rank in range(processes):
            part = source(store, share=(rank, processes)).draw(step)
            rows = slice(rank, None, processes) if rank < 8 else slice(0, 1)
            assert part.captions == whole.captions[rows]
            assert part.counts == (rank < 8)
            assert torch.equal(part.keep, whole.keep[rows])
            for mine, theirs in zip(part.features, whole.features, strict=True):
                assert torch.allclose(mine, theirs[rows], rtol=2**-11, atol=2e-4)


def test_processes_see_together_what_one_sees_of_units(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that one of the two layers knows nothing of: how often it is drawn depends on the whole batch."""
    random = np.random.default_rng(0)
    counts = random.integers(0, 2, (store.rows, 2)).astype(np.uint8)
    counts[~counts.any(axis=1), 1] = 1
    values = [random.normal(size=(store.rows, 1, layer.channels)).astype(np.float16) for layer in store.layers]

    def stored(_: BatchSource, rows: list[int]) -> list[Stored]:
        return [
            Stored(values[place][rows], exemplars=counts[rows, place][:, None, None]) for place in range(len(values))
        ]

    monkeypatch.setattr(BatchSource, "_stored", stored)
    for step in range(10):
        whole = source(store, spatial=0.5, layer=0.7).draw(step)
        parts = [source(store, share=(rank, 3), spatial=0.5, layer=0.7).draw(step) for rank in range(3)]
        for rank, part in enumerate(parts):
            assert torch.equal(part.keep, whole.keep[rank::3])
            assert torch.equal(part.features[1], whole.features[1][rank::3])


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    """The same store where every read is a round trip."""
    root = f"memory://{uuid.uuid4().hex}"
    tiny.store(f"{root}/store", tiny.pictures(tmp_path_factory.mktemp("far")), "no index")  # type: ignore[arg-type]
    yield FeatureStore(f"{root}/store")
    fsspec.filesystem("memory").rm(root, recursive=True)


@pytest.mark.parametrize("epoch", [0, 3])
def test_a_permutation_is_drawn_sorted_and_drawn_as_ever(epoch: int) -> None:
    """Runs that were begun go on as they were: the order of a local store's epochs, spelled out without arrays."""
    random = np.random.default_rng([5, epoch])
    shuffled = random.permutation(101).tolist()
    windows = [sorted(shuffled[begin : begin + 24], key=lambda one: LENGTHS[one]) for begin in range(0, 101, 24)]
    batches = [window[begin : begin + 8] for window in windows for begin in range(0, len(window), 8)]
    expected = [batches[place] for place in random.permutation(len(batches))]
    assert [batch.tolist() for batch in epoch_order(LENGTHS, 8, 3, seed=5, epoch=epoch)] == expected


def test_auto_takes_windows_where_the_store_is_far(store: FeatureStore, far: FeatureStore) -> None:
    assert [shards_a_window("auto", 5, one) for one in (store, far)] == [0, 5]
    assert [shards_a_window("permutation", 5, one) for one in (store, far)] == [0, 0]
    assert [shards_a_window("windows", 5, one) for one in (store, far)] == [5, 5]


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 12), st.integers(1, 4))
def test_batches_of_windows_are_whole_and_sorted_inside_their_window(sizes: list[int], size: int, group: int) -> None:
    starts = np.cumsum([0, *sizes])
    members = [np.arange(*pair) for pair in pairwise(starts)]
    lengths = np.random.default_rng(1).integers(1, 30, int(starts[-1]))
    planned = windows_order(members, lengths, size, group, np.random.default_rng(0))
    batches = [batch for window in planned for batch in window]
    assert len(planned) == len(members)
    assert sorted(item for batch in batches for item in batch.tolist()) == list(range(starts[-1]))
    assert sorted(map(len, batches), reverse=True)[: int(starts[-1]) // size] == [size] * (int(starts[-1]) // size)
    left: set[int] = set()
    for window, more in zip(planned, members, strict=True):
        inside = {item for batch in window for item in batch.tolist()}
        assert inside <= left | set(more.tolist()), "an example is seen in its window, or left over for the next"
        left = (left | set(more.tolist())) - inside
        assert len(left) < size
        assert all(sorted(lengths[batch]) == lengths[batch].tolist() for batch in window)
    assert not left


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 4), st.integers(0, 2))
def test_windows_show_every_caption_once_to_any_number_of_processes(
    store: FeatureStore, processes: int, batch: int, window_shards: int, epoch: int
) -> None:
    """And every process makes as many steps: one whose share of the last batch is empty sees a caption again."""
    count = len(examples())
    steps = range(epoch * -(-count // batch), (epoch + 1) * -(-count // batch))
    seen: Counter[Example] = Counter()
    for rank in range(processes):
        made = in_windows(store, batch_size=batch, window_shards=window_shards, share=(rank, processes))
        sizes = [len(range(rank, size, processes)) for size in [batch] * (len(steps) - 1) + [(count - 1) % batch + 1]]
        mine = [made.members(step) for step in steps]
        assert sorted(map(len, mine)) == sorted(max(size, 1) for size in sizes)
        seen.update(example for step in mine for example in step)
        empty = sizes.count(0)
        seen -= Counter(example for step in mine[len(steps) - empty :] for example in step)
    assert seen == Counter(examples())


def test_windows_are_a_function_of_seed_and_step(store: FeatureStore) -> None:
    steps = [0, 25, 3, 11, 12, 25]
    forward = {step: in_windows(store).draw(step) for step in steps}
    one = in_windows(store)
    assert all(same(one.draw(step), forward[step]) for step in reversed(steps))
    assert not same(in_windows(store, seed=1).draw(3), forward[3])


@pytest.mark.parametrize("start", [0, 4, 13])
def test_a_far_store_streams_what_a_near_one_does_wherever_it_begins(
    store: FeatureStore, far: FeatureStore, start: int
) -> None:
    """Over two ends of epochs; 80 captions are ten steps."""
    found = list(in_windows(far, window_shards=1).stream(start, start + 21))
    assert [step for step, _ in found] == list(range(start, start + 21))
    near = in_windows(store, window_shards=1)
    assert all(same(batch, near.draw(step)) for step, batch in found)


def test_a_far_epoch_asks_for_each_shard_once(far: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    behind = getattr(far.place, "behind", far.place)
    answer = behind.spans

    def spans(wanted: list[Span]) -> list[np.ndarray]:
        asked.extend(span.name for span in wanted)
        return answer(wanted)

    monkeypatch.setattr(behind, "spans", spans)
    made = in_windows(far, window_shards=1)
    steps = -(-len(examples()) // 8)
    assert len(list(made.stream(0, steps))) == steps
    shards = {example.row // 16 for example in examples()}
    assert sorted(asked) == sorted(far.file(layer.name, shard) for layer in far.layers for shard in shards)


def test_a_stream_that_is_left_lets_go_of_its_window(far: FeatureStore) -> None:
    stream = in_windows(far).stream(0, 100)
    next(stream)
    assert far.place.held.files  # type: ignore[attr-defined]
    stream.close()  # type: ignore[attr-defined]
    assert not far.place.held.files  # type: ignore[attr-defined]


def test_a_disk_that_is_waited_for_is_asked_ahead_and_memory_is_not(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For 64 steps after the last wait, and after opening: always for the rows of the step that comes next."""
    made, waited, asked = source(store), [0], []
    monkeypatch.setattr(batches, "_pages_waited_for", lambda: waited[0])
    monkeypatch.setattr(store, "prefetch", asked.append)

    def rows(steps: range) -> list[list[int]]:
        return [[example.row for example in made.members(step)] for step in steps]

    list(made.stream(0, 100))
    assert asked == rows(range(1, 65))
    asked.clear()
    draw = made.draw

    def slow_at_70(step: int) -> Batch:
        waited[0] += step == 70
        return draw(step)

    monkeypatch.setattr(made, "draw", slow_at_70)
    list(made.stream(0, 100))
    assert asked == rows(range(1, 65)) + rows(range(72, 100))


def test_without_dropout_features_are_the_stores_means(store: FeatureStore) -> None:
    made = source(store, spatial=0.0, layer=0.0)
    batch, members = made.draw(2), made.members(2)
    assert batch.captions == [item.caption for item in members]
    assert bool(batch.keep.all())
    for layer, found in zip(store.layers, batch.features, strict=True):
        slow = [store[layer.name].stored([item.row]).values[0].astype(np.float64).mean(axis=0) for item in members]
        assert np.allclose(found.numpy(), slow, atol=1e-6)


def test_every_example_keeps_a_layer(store: FeatureStore) -> None:
    made = source(store, spatial=0.5, layer=0.9)
    assert all(bool(made.draw(step).keep.any(dim=1).all()) for step in range(20))


def test_whole_features_are_plain_means_however_they_are_read(store: FeatureStore) -> None:
    rows = [5, 0, 17, 5, 33]
    for layer, whole, parts in zip(
        store.layers, whole_features(store, rows).layers, whole_features(store, rows, size=2).layers, strict=True
    ):
        slow = [
            np.mean([place.astype(np.float64) for place in store[layer.name].stored([row]).values[0]], axis=0)
            for row in rows
        ]
        assert np.allclose(whole.numpy(), slow, atol=1e-6)
        assert torch.equal(whole, parts)
