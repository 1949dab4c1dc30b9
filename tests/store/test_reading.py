"""The reader gives what zarr-python gives for the same files, refuses what is damaged, and says where."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devil_pipe.store.errors import InputError
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.schema import LayerSpec

from .stores import ENCODINGS, identity, random_maps, write_store


def plainly(path: Path) -> np.ndarray:
    """A whole array as zarr-python reads it."""
    found: np.ndarray = np.asarray(zarr.open_array(path, mode="r")[:])
    return found


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
    of = identity(rows, draw(st.sampled_from(ENCODINGS)), layers=layers)
    return of, draw(st.integers(1, 14)), invalid, asked


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_any_rows_in_any_order_are_what_zarr_reads(case: tuple[Any, int, dict[int, str], list[int]]) -> None:
    of, shard_rows, invalid, asked = case
    maps = random_maps(of)
    with tempfile.TemporaryDirectory() as place:
        writer = write_store(Path(place), of, maps, shard_rows, invalid)
        reader = FeatureStore(Path(place), of)
        assert [row for row in range(of.rows) if not reader.valid()[row]] == sorted(invalid)
        good = [row for row in asked if row not in invalid]
        plain = {array.name: plainly(Path(place) / writer.folder / array.name) for array in of.arrays}
        for array in of.arrays:
            for row in range(of.rows):
                if row in invalid:
                    assert (
                        np.isnan(plain[array.name][row]) if array.dtype == "float16" else ~plain[array.name][row]
                    ).all()
                else:
                    assert plain[array.name][row].tobytes() == maps[array.name][row].tobytes()
        for layer in of.layers:
            stored = reader[layer.name].stored(good, verify=True)
            assert stored.values.shape == (len(good), *layer.arrays(of.stored_as)[0].shape)
            assert stored.values.tobytes() == plain[layer.name][good].tobytes()
            if stored.bounds is not None:
                assert stored.bounds.tobytes() == plain[layer.name + ".bounds"][good].tobytes()
            for row in set(asked) & set(invalid):
                with pytest.raises(InputError, match=rf"row {row}: has no features \(reason {row}\)"):
                    reader[layer.name].stored([row])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    of = identity(7)
    write_store(tmp_path / "s", of, random_maps(of), 3, {4: "not a picture"})
    return tmp_path / "s"


def shard(store: Path, layer: str = "fine", number: int = 1) -> Path:
    return next(store.glob(f"*/{layer}/c.{number}.0.0"))


def refusal(read: Callable[[], bool]) -> str | None:
    """What was said where reading was refused; None where it was not, and what was read is as it should be."""
    try:
        assert read()
    except InputError as error:
        return str(error)
    return None


def test_what_is_read_is_a_copy(store: Path) -> None:
    reader = FeatureStore(store)
    reader["fine"].stored([0, 0]).values[:] = 0
    np.testing.assert_array_equal(reader["fine"].stored([0]).values[0], random_maps(identity(7))["fine"][0])


def test_many_threads_read_the_same(store: Path) -> None:
    reader = FeatureStore(store)
    expected = random_maps(identity(7))["coarse"][[6, 0, 5]]
    with ThreadPoolExecutor(8) as pool:
        for read in pool.map(lambda _: reader["coarse"].stored([6, 0, 5]).values, range(64)):
            np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("row", [-1, 7])
def test_rows_that_are_not_there(store: Path, row: int) -> None:
    with pytest.raises(InputError, match=f"row {row}: the store has rows 0 to 6"):
        FeatureStore(store)["fine"].stored([row])


def test_an_unknown_layer_names_the_known(store: Path) -> None:
    with pytest.raises(InputError, match="layer 'deep': the store holds fine, coarse"):
        FeatureStore(store)["deep"].stored([0])


def test_no_manifest_says_what_to_run(store: Path) -> None:
    (store / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"manifest\.json: expected a finished store.*`devil-pipe extract s`"):
        FeatureStore(store)


def test_a_missing_or_cut_shard_is_found_on_opening(store: Path) -> None:
    path = shard(store)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=rf"{path}: expected {len(whole)} bytes, found {len(whole) - 1} bytes"):
        FeatureStore(store)
    path.unlink()
    with pytest.raises(InputError, match=rf"{path}: expected {len(whole)} bytes, found no such file"):
        FeatureStore(store)
    shutil.rmtree(path.parent)  # the layer's whole folder
    with pytest.raises(InputError, match="no such file"):
        FeatureStore(store)


def test_a_flipped_bit_anywhere_in_a_chunk_is_found(store: Path) -> None:
    path = shard(store)
    whole = path.read_bytes()
    stored = 2 * 8 * 3 + 4  # a row's map and its checksum; row 4 has none
    draw = np.random.default_rng(0)
    for place in [0, stored - 1, stored, *draw.integers(0, 2 * stored, 20).tolist()]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(flipped)
        reader = FeatureStore(store)
        row, other = (3, 5) if place < stored else (5, 3)
        reader["fine"].stored([other], verify=True)
        reader["coarse"].stored([3, 5], verify=True)
        with pytest.raises(InputError, match=rf"{path}: row {row} does not match its checksum.*devil-pipe extract"):
            reader["fine"].stored([row], verify=True)


def test_a_flipped_bit_anywhere_in_the_index_is_found_where_the_index_is_needed(store: Path, tmp_path: Path) -> None:
    packed = identity(7, "float16+zstd")
    write_store(tmp_path / "packed", packed, random_maps(packed), 3, {4: "not a picture"})
    for root in (store, tmp_path / "packed"):
        path = shard(root)
        whole = path.read_bytes()
        for place in range(len(whole) - 3 * 16 - 4, len(whole), 3):
            flipped = bytearray(whole)
            flipped[place] ^= 0x10
            path.write_bytes(flipped)
            layer = FeatureStore(root)["fine"]
            if root == store:  # places follow from the rows without features
                read = layer.stored([5, 3], verify=True).values
                np.testing.assert_array_equal(read, random_maps(identity(7))["fine"][[5, 3]])
            else:
                with pytest.raises(InputError, match=rf"{path}: its index does not match its checksum"):
                    layer.stored([3])
                layer.stored([0, 6], verify=True)  # in other shards


def test_a_flipped_bit_in_a_compressed_chunk_never_gives_other_values_unnoticed(tmp_path: Path) -> None:
    of = identity(7, "uint8+zstd")
    write_store(tmp_path / "s", of, random_maps(of), 7)
    path = shard(tmp_path / "s", number=0)
    whole = path.read_bytes()
    for place in range(whole.index(b"\x28\xb5\x2f\xfd", 1)):  # row 0: as far as the next frame of zstd
        for bit in (0, 3, 7):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            layer = FeatureStore(tmp_path / "s")["fine"]
            with pytest.raises(InputError, match=rf"{path}: row 0 does not match its checksum"):
                layer.stored([0], verify=True)
            said = refusal(lambda layer=layer: layer.stored([0]).values.shape == (1, 8, 3))  # type: ignore[misc]
            assert said is None or f"{path}: row 0 cannot be read" in said
            np.testing.assert_array_equal(layer.stored([1], verify=True).values[0], random_maps(of)["fine"][1])
