"""The scan of a store: top rows and quantiles against a slow loop over everything, and NumPy's own quantile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from devil_pipe.stages.units import scan as scanning
from devil_pipe.stages.units.scan import Counts, Top, blocks, decode, encode, maxima_of, scan
from devil_pipe.store.errors import InputError
from devil_pipe.store.reader import FeatureStore

from ..store.stores import identity, random_maps, write_store

ROWS = 40
INVALID = {3: "gone", 17: "gone"}
USED = [row for row in range(ROWS) if row not in INVALID and row % 5]
"""Rows of a split: with gaps, and none without features."""


def opened(root: Path, encoding: str = "float16") -> FeatureStore:
    """A store in shards of 8 rows, in which rows 11 to 15 are those before them once more."""
    of = identity(ROWS, encoding)
    maps = random_maps(of, seed=3)
    for values in maps.values():
        values[11:16] = values[6:11]
    write_store(root, of, maps, 8, INVALID)
    return FeatureStore(root)


def whole(store: FeatureStore, layer: str) -> np.ndarray:
    """float32 [rows, locations, channels] of the used rows, read one by one."""
    return np.stack([store[layer][row] for row in USED]).astype(np.float32)


@pytest.mark.parametrize("encoding", ["float16", "uint8", "pool:1", "float16+zstd", "uint8+zstd"])
@pytest.mark.parametrize("layer", ["fine", "coarse"])
def test_scan_finds_what_a_loop_over_everything_finds(
    tmp_path: Path, encoding: str, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "BLOCK", 150)  # a few rows at once, other ones than a shard's
    store = opened(tmp_path / "store", encoding)
    maps = whole(store, layer)
    units = [2, 0]
    keep = [USED[5], USED[1], USED[20]]
    found = scan(store, store.identity.layer(layer), USED, units, exemplars=7, quantile=0.9, keep=keep)
    assert found.units == units
    for place, unit in enumerate(units):
        highest = [(float(maps[number, :, unit].max()), -row) for number, row in enumerate(USED)]
        best = sorted(highest, reverse=True)[:7]  # of equal ones the earlier row
        assert found.rows[place].tolist() == [-row for _, row in best]
        assert found.peaks[place].tolist() == [value for value, _ in best]
        expected = np.quantile(maps[:, :, unit].astype(np.float64), 0.9)
        assert found.thresholds[place] == pytest.approx(expected, rel=1e-6, abs=1e-12)
        kept = [maps[USED.index(row), :, unit].max() for row in keep]
        assert found.maxima[:, place].tolist() == kept
    np.testing.assert_allclose(found.mean, maps.astype(np.float64).mean(axis=(0, 1)), rtol=1e-4, atol=1e-2)
    some = maxima_of(store, store.identity.layer(layer), USED, units)
    assert np.array_equal(some.astype(np.float32), maps[:, :, units].max(axis=1))


def test_equal_rows_stand_in_their_order(tmp_path: Path) -> None:
    """Rows 6 to 10 are stored twice: wherever both are exemplars, the first stands right before its double."""
    store = opened(tmp_path / "store")
    found = scan(store, store.layers[0], USED, [0, 1, 2], exemplars=len(USED), quantile=0.5, keep=[])
    for order in found.rows.tolist():
        assert sorted(order) == USED
        for row in (7, 8, 9):  # 6 and 11 are used, too, but 10 and 15 are not
            assert order.index(row + 5) == order.index(row) + 1


@pytest.mark.parametrize("encoding", ["partition:3", "units"])
def test_means_without_locations_are_refused(tmp_path: Path, encoding: str) -> None:
    of = identity(ROWS, encoding)
    write_store(tmp_path / "store", of, random_maps(of), 8)
    store = FeatureStore(tmp_path / "store")
    with pytest.raises(InputError, match=rf"expected feature maps with locations.* got encoding '{encoding}'"):
        scan(store, store.layers[0], [0, 1], [0], exemplars=1, quantile=0.9, keep=[])


def test_blocks_are_bounded_and_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "BLOCK", 200)
    store = opened(tmp_path / "store")
    layer = store["fine"]
    seen: list[int] = []
    for rows, maps in blocks(layer, USED):
        assert maps.nbytes <= 200
        assert all(np.array_equal(layer[row], one) for row, one in zip(rows, maps, strict=True))
        seen += rows
    assert seen == USED


def test_codes_order_every_value_as_the_values_are() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    codes = encode(finite).astype(np.int64)
    values = finite.astype(np.float64)
    order = np.argsort(values, kind="stable")
    assert (np.sign(np.diff(codes[order])) == np.sign(np.diff(values[order]))).all()
    assert np.array_equal(decode(encode(finite)).astype(np.float64), values)


@given(
    values=arrays(np.float16, st.tuples(st.integers(1, 60), st.just(2)), elements=st.floats(-100, 100, width=16)),
    share=st.floats(0.001, 0.999),
)
def test_quantile_is_numpys(values: np.ndarray, share: float) -> None:
    counts = Counts(2, len(values))
    for part in np.array_split(values, 3):
        if len(part):
            counts.add(encode(part[None]))
    expected = np.quantile(values.astype(np.float64), share, axis=0)
    np.testing.assert_allclose(counts.quantile(share), expected, rtol=1e-5, atol=1e-6)


def test_memory_does_not_grow_with_rows() -> None:
    counts, top = Counts(3, 1 << 20), Top(3, 4)
    random = np.random.default_rng(0)
    before = counts.counts.nbytes
    for number in range(20):
        codes = encode(random.normal(size=(5, 4, 3)).astype(np.float16))
        counts.add(codes)
        top.add(codes.max(axis=1), range(5 * number, 5 * number + 5))
    assert counts.counts.nbytes == before
    assert top.rows.shape == top.codes.shape == (4, 3)
    assert Counts(1, 1 << 32).counts.dtype == np.uint64  # more values than 32 bits can count
