"""Orders: every item once whatever the parts and windows; mixing against closed forms; far files read once."""

from __future__ import annotations

import itertools
import uuid
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devil_pipe.store.order import Mixing, mixing, parts, perfect_mixing, permutation, windows, windows_mixing
from devil_pipe.store.place import Span
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.windows import Window, WindowReader
from devil_pipe.store.writer import StoreWriter

from .stores import identity, random_maps, write_one


@st.composite
def layouts(draw: st.DrawFn) -> np.ndarray:
    """The shard of each item: several items a row, the last shard short, rows and whole shards without items."""
    rows, shard_rows = draw(st.integers(1, 60)), draw(st.integers(1, 12))
    counts = draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))
    return np.repeat(np.arange(rows) // shard_rows, counts)


@settings(deadline=None)
@given(layouts(), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3), st.integers(1, 7))
def test_every_item_once_over_any_number_of_parts(
    shards: np.ndarray, size: int, seed: int, epoch: int, number: int
) -> None:
    cut = parts(len(shards), number)
    found = [windows(shards, size, seed, epoch, part) for part in cut]
    seen = [np.concatenate([np.empty(0, dtype=np.int64), *mine]) for mine in found]
    assert sorted(np.concatenate(seen).tolist()) == list(range(len(shards)))
    assert [len(mine) for mine in seen] == [len(part) for part in cut]
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


@settings(deadline=None)
@given(layouts(), st.integers(1, 9), st.integers(0, 3), st.integers(1, 7))
def test_a_window_holds_few_shards_and_a_shard_lies_in_one_window(
    shards: np.ndarray, size: int, epoch: int, number: int
) -> None:
    readers: Counter[int] = Counter()
    for part in parts(len(shards), number):
        held = [set(shards[window].tolist()) for window in windows(shards, size, 0, epoch, part)]
        assert all(0 < len(window) <= size for window in held)
        assert len(held) == -(-len(set().union(*held)) // size)
        assert max(map(len, held), default=0) - min(map(len, held), default=0) <= 1
        assert all(one.isdisjoint(other) for one, other in itertools.combinations(held, 2))
        readers.update(set().union(*held))
    assert sum(readers.values()) <= len(readers) + number - 1, "a shard is read twice at the edges of parts alone"


def test_no_items_have_no_windows() -> None:
    assert windows(np.empty(0, dtype=np.int64), 4, 0, 0) == []


def test_orders_differ_by_seed_and_epoch_and_by_nothing_else() -> None:
    def in_windows(seed: int, epoch: int) -> np.ndarray:
        return np.concatenate(windows(np.arange(100) // 10, 3, seed, epoch))

    for made in (partial(permutation, 100), in_windows):
        found = {at: tuple(made(*at).tolist()) for at in itertools.product(range(3), range(3))}
        assert len(set(found.values())) == 9
        assert all(tuple(made(*at).tolist()) == order for at, order in found.items())


def test_an_item_may_stand_anywhere_in_its_window_also_where_a_shard_is_cut() -> None:
    """Over many epochs the rows of the shard that two parts share stand in the middle of their window on average."""
    shards = np.arange(30) // 10
    places: list[float] = []
    for epoch in range(2000):
        (window,) = windows(shards, 2, 0, epoch, range(15))  # a whole shard and half of another
        half = [shard for shard in range(3) if (shards[window] == shard).sum() == 5]
        places += np.flatnonzero(shards[window] == half[0]).tolist()
    sigma = np.sqrt((15**2 - 1) / 12 / len(places))
    assert abs(np.mean(places) - 7) < 5 * sigma


def test_mixing_of_orders_that_can_be_worked_out_by_hand() -> None:
    """In order: neighbours correlate fully, a batch lies in one shard; every batch across all shards: 1 row of each."""
    straight = mixing(np.arange(6400), 64, 64)
    assert straight.serial > 0.95
    assert straight.shards == pytest.approx(1)
    # Variance of 64 neighbours, n(n + 1)/12 with n in the place of a sample's n − 1, over that of all.
    assert straight.spread == pytest.approx(64 * 65 / (6400 * 6401))
    across = mixing(np.arange(6400).reshape(64, 100).T.ravel(), 64, 100)
    assert across.shards == pytest.approx(64)


@pytest.mark.parametrize(("rows", "shard_rows"), [(20_000, 256), (5_000, 1000)])
def test_a_permutation_mixes_as_the_closed_form_says(rows: int, shard_rows: int) -> None:
    found = [mixing(permutation(rows, 0, epoch), 64, shard_rows) for epoch in range(12)]
    # Five standard errors of the mean of 12 · 64 half-normal values: 5 · √(π/2 − 1) / √768 = 0.14.
    near(found, perfect_mixing(rows, 64, shard_rows), serial=0.14, spread=0.01)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_windows_mix_as_the_closed_form_says(size: int) -> None:
    """Positions spread as a window's few shards happen to lie: 3,072 windows of 4 bring the mean within 5 %."""
    shards = np.arange(512 * 64) // 64
    found = [mixing(np.concatenate(windows(shards, size, 0, epoch)), 32, 64) for epoch in range(24)]
    near(found, windows_mixing(len(shards), 32, 64, size), serial=0.15, spread=0.05)


def near(found: list[Mixing], expected: Mixing, serial: float, spread: float, shards: float = 0.01) -> None:
    for name, tolerance in {"serial": serial, "spread": spread, "shards": shards}.items():
        mean = np.mean([getattr(one, name) for one in found])
        assert mean == pytest.approx(getattr(expected, name), rel=tolerance), name


ROWS, SHARD_ROWS = 46, 6


@pytest.fixture(params=["float16", "uint8", "float16+zstd"])
def far(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """A store in fsspec's memory with a short last shard and rows without features; and its identity."""
    url = f"memory://{uuid.uuid4().hex}/far"
    values = "uint8" if request.param == "uint8" else "float16"
    of = identity(ROWS, encoding=request.param, dtype=values)
    writer = StoreWriter(url, of, SHARD_ROWS)
    maps = random_maps(identity(ROWS))
    random = np.random.default_rng(0)
    for layer in of.layers if values == "uint8" else ():
        maps[layer.name] = random.integers(0, 256, maps[layer.name].shape).astype(np.uint8)
        maps[layer.name + ".bounds"] = random.normal(size=(ROWS, 2, layer.channels)).astype(np.float16)
    for shard in range(len(writer.ranges)):
        write_one(writer, shard, maps, {7: "broken", 45: "broken"})
    writer.finalise()
    yield url, of
    fsspec.filesystem("memory").rm(url.rpartition("/")[0], recursive=True)


class Counted:
    """Counts what a store asks its place for."""

    def __init__(self, store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Span] = []
        answer = store.place.spans

        def spans(wanted: list[Span]) -> list[np.ndarray]:
            self.asked += wanted
            return answer(wanted)

        monkeypatch.setattr(store.place, "spans", spans)


@pytest.mark.parametrize("batch", [4, 5])
def test_an_epoch_in_windows_asks_for_each_far_file_once(
    far: tuple[str, Any], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches go over the edges of windows; their rows are those of a store that reads each on its own."""
    url, of = far
    plain, store = FeatureStore(url), FeatureStore(url)
    counted = Counted(store, monkeypatch)
    good = np.flatnonzero(plain.valid())
    order = [good[window] for window in windows(good // SHARD_ROWS, 2, 0, 0)]
    reader = WindowReader(store)
    left = np.empty(0, dtype=np.int64)
    seen: list[int] = []
    uses = []
    for number, more in enumerate(order):
        pool = np.concatenate([left, more])
        whole = len(pool) if number == len(order) - 1 else len(pool) // batch * batch
        uses.append(Window(number, pool[:whole].tolist()))
        left = pool[whole:]
    for window, following in itertools.zip_longest(uses, uses[1:]):
        reader.enter(window, following)
        for begin in range(0, len(window.rows), batch):
            rows = window.rows[begin : begin + batch]
            seen += rows
            for layer in of.layers:
                mine, other = store[layer.name].stored(rows, verify=True), plain[layer.name].stored(rows)
                assert mine.values.tobytes() == other.values.tobytes()
                np.testing.assert_array_equal(mine.bounds, other.bounds)  # None is None
    reader.close()
    assert sorted(seen) == good.tolist()
    files = {
        store.file(name, shard): file.size for shard in store.manifest.shards for name, file in shard.files.items()
    }
    assert sorted(counted.asked) == sorted(Span(name, 0, size) for name, size in files.items())


def test_what_is_not_in_the_window_is_read_as_before(far: tuple[str, Any]) -> None:
    url, of = far
    plain, store = FeatureStore(url), FeatureStore(url)
    reader = WindowReader(store)
    reader.enter(Window("a", [0, 1]), None)
    rows = [40, 1, 12, 0, 40]
    for layer in of.layers:
        assert store[layer.name].stored(rows).values.tobytes() == plain[layer.name].stored(rows).values.tobytes()
    reader.close()


def test_no_more_than_the_window_and_the_next_are_held(far: tuple[str, Any]) -> None:
    url, _ = far
    store = FeatureStore(url)
    reader = WindowReader(store)
    uses = [Window(shard, [shard * SHARD_ROWS]) for shard in range(5)]
    for shard, (window, following) in enumerate(itertools.zip_longest(uses, uses[1:])):
        reader.enter(window, following)
        assert reader.current == shard
        expected = {store.file(array.name, shard) for array in store.identity.arrays}
        assert set(reader.place.held.files) == expected
    reader.close()
    assert not reader.place.held.files


def test_a_file_that_is_gone_is_named_where_its_window_begins(far: tuple[str, Any]) -> None:
    url, _ = far
    store = FeatureStore(url)
    name = store.file("coarse", 3)
    store.place.remove(name)
    reader = WindowReader(store)
    reader.enter(Window(0, [0]), Window(3, [3 * SHARD_ROWS]))
    with pytest.raises(FileNotFoundError, match=Path(name).name):
        reader.enter(Window(3, [3 * SHARD_ROWS]), None)
    reader.close()
