"""The reader gives what zarr-python gives for the same files, refuses what is damaged, and says where."""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devil_pipe.store.errors import InputError
from devil_pipe.store.reader import StoreReader
from devil_pipe.store.schema import LayerSpec

from .stores import identity, random_maps, write_store


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, int, dict[int, str], list[int]]:
    rows = draw(st.integers(1, 12))
    size = st.integers(1, 4)
    layers = tuple(
        LayerSpec(name=name, channels=draw(size), height=draw(size), width=draw(size))
        for name in draw(st.lists(st.sampled_from(["s8", "L21", "block 3", "é"]), min_size=1, max_size=3, unique=True))
    )
    invalid = {row: f"reason {row}" for row in draw(st.sets(st.integers(0, rows - 1)))}
    asked = draw(st.lists(st.integers(0, rows - 1), max_size=15))
    return identity(rows, layers=layers), draw(st.integers(1, 14)), invalid, asked


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_any_rows_in_any_order_are_what_zarr_reads(case: tuple[Any, int, dict[int, str], list[int]]) -> None:
    of, shard_rows, invalid, asked = case
    maps = random_maps(of)
    with tempfile.TemporaryDirectory() as place:
        writer = write_store(Path(place), of, maps, shard_rows, invalid)
        reader = StoreReader(Path(place), of)
        assert [row for row in range(of.rows) if not reader.valid()[row]] == sorted(invalid)
        good = [row for row in asked if row not in invalid]
        for layer in of.layers:
            plain = zarr.open_array(writer.folder / layer.name, mode="r")[:]
            for row in range(of.rows):
                if row in invalid:
                    assert np.isnan(plain[row]).all()
                else:
                    assert plain[row].tobytes() == maps[layer.name][row].tobytes()
            read = reader.read(layer.name, good, verify=True)
            assert read.shape == (len(good), layer.locations, layer.channels)
            assert read.tobytes() == plain[good].tobytes()
            for row in set(asked) & set(invalid):
                with pytest.raises(InputError, match=rf"row {row}: has no features \(reason {row}\)"):
                    reader.read(layer.name, [row])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    of = identity(7)
    write_store(tmp_path / "s", of, random_maps(of), 3, {4: "not a picture"})
    return tmp_path / "s"


def shard(store: Path, layer: str = "fine", number: int = 1) -> Path:
    return next(store.glob(f"*/{layer}/c/{number}/0/0"))


def test_what_is_read_is_a_copy(store: Path) -> None:
    reader = StoreReader(store)
    reader.read("fine", [0, 0])[:] = 0
    np.testing.assert_array_equal(reader.read("fine", [0])[0], random_maps(identity(7))["fine"][0])


def test_many_threads_read_the_same(store: Path) -> None:
    reader = StoreReader(store)
    expected = random_maps(identity(7))["coarse"][[6, 0, 5]]
    with ThreadPoolExecutor(8) as pool:
        for read in pool.map(lambda _: reader.read("coarse", [6, 0, 5]), range(64)):
            np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("row", [-1, 7])
def test_rows_that_are_not_there(store: Path, row: int) -> None:
    with pytest.raises(InputError, match=f"row {row}: the store has rows 0 to 6"):
        StoreReader(store).read("fine", [row])


def test_an_unknown_layer_names_the_known(store: Path) -> None:
    with pytest.raises(InputError, match="layer 'deep': the store holds fine, coarse"):
        StoreReader(store).read("deep", [0])


def test_no_manifest_says_what_to_run(store: Path) -> None:
    (store / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"manifest\.json: expected a finished store.*`devil-pipe extract s`"):
        StoreReader(store)


def test_a_missing_or_cut_shard_is_found_on_opening(store: Path) -> None:
    path = shard(store)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=rf"{path}: expected {len(whole)} bytes, found {len(whole) - 1} bytes"):
        StoreReader(store)
    path.unlink()
    with pytest.raises(InputError, match=rf"{path}: expected {len(whole)} bytes, found no such file"):
        StoreReader(store)
    shutil.rmtree(path.parents[3])  # the layer's whole folder
    with pytest.raises(InputError, match="no such file"):
        StoreReader(store)


def test_a_flipped_bit_anywhere_in_a_chunk_is_found(store: Path) -> None:
    path = shard(store)
    whole = path.read_bytes()
    stored = 2 * 8 * 3 + 4  # a row's map and its checksum; row 4 has none
    draw = np.random.default_rng(0)
    for place in [0, stored - 1, stored, *draw.integers(0, 2 * stored, 20).tolist()]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(flipped)
        reader = StoreReader(store)
        row, other = (3, 5) if place < stored else (5, 3)
        reader.read("fine", [other], verify=True)
        reader.read("coarse", [3, 5], verify=True)
        with pytest.raises(InputError, match=rf"{path}: row {row} does not match its checksum.*devil-pipe extract"):
            reader.read("fine", [row], verify=True)


def test_a_flipped_bit_anywhere_in_the_index_is_found(store: Path) -> None:
    path = shard(store)
    whole = path.read_bytes()
    for place in range(len(whole) - 3 * 16 - 4, len(whole), 3):
        flipped = bytearray(whole)
        flipped[place] ^= 0x10
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=rf"{path}: its index does not match its checksum"):
            StoreReader(store).read("fine", [3])
