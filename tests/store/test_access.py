"""`FeatureStore(root)["layer"][rows]`: what may be asked for, what comes back, and whose memory it is."""

from __future__ import annotations

import gc
import math
import multiprocessing
import operator
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devil_pipe.store.errors import InputError
from devil_pipe.store.layer import Stored
from devil_pipe.store.place import LocalPlace
from devil_pipe.store.reader import FeatureStore

from .stores import ENCODINGS, identity, keys, random_maps, write_store

OF = identity(7)
MAPS = random_maps(OF)["fine"]
WHOLE = ["float16", "float16+zstd", "pool:1"]


def make(root: Path, encoding: str = "float16", rows: int = 7, shard_rows: int = 3) -> FeatureStore:
    of = identity(rows, encoding)
    write_store(root, of, random_maps(of), shard_rows, {4: "not a picture"}, keys(of))
    return FeatureStore(root)


@pytest.mark.parametrize("encoding", WHOLE)
def test_whatever_is_asked_for_is_what_numpy_gives(tmp_path: Path, encoding: str) -> None:
    layer = make(tmp_path / "s", encoding)["fine"]
    maps, names = random_maps(identity(7, encoding))["fine"], keys(OF)
    single: list[Any] = [0, 6, np.int64(5), np.uint8(3)]
    for row in single:
        assert layer[row].tobytes() == maps[row].tobytes()
        assert layer[names[row]].tobytes() == maps[row].tobytes()
        assert layer[row].shape == maps[0].shape
    several: list[Any] = [[3], [6, 0, 6], (5, 2), np.array([1, 0]), np.array([], dtype=np.int64), [], range(5, 7)]
    several += [
        slice(0, 3),
        slice(1, 4),
        slice(5, None),
        slice(-2, None),
        slice(None, 4),
        slice(0, 7, 3),
        slice(3, None, -1),
    ]
    several += [slice(2, 2), slice(9, 12), slice(-1, None, -6)]
    for rows in several:
        expected = maps[rows if isinstance(rows, slice) else np.array(rows, dtype=np.int64)]
        assert layer[rows].shape == expected.shape
        assert layer[rows].tobytes() == expected.tobytes()
    assert layer[[names[6], names[0]]].tobytes() == maps[[6, 0]].tobytes()
    assert layer[[names[6], 0]].tobytes() == maps[[6, 0]].tobytes()


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    wrong: list[tuple[Any, str]] = [
        (7, "row 7: the store has rows 0 to 6"),
        (-1, "row -1: the store has rows 0 to 6"),
        ([0, -8], "row -8: the store has rows 0 to 6"),
        (4, r"row 4: has no features \(not a picture\)"),
        (slice(3, 6), r"row 4: has no features"),
        (slice(None), r"row 4: has no features"),
        (keys(OF)[4], r"row 4: has no features"),
        ("picture", rf"{tmp_path / 's'}: no row has the key 'picture'; the first is 'picture0'"),
        (["picture0", "nobody"], "no row has the key 'nobody'"),
    ]
    for wanted, said in wrong:
        with pytest.raises(InputError, match=said):
            store["fine"][wanted]
    assert (store.row("é/2"), store.row("")) == (2, 3)
    damaged = next((tmp_path / "s").glob("*/key/c.0"))
    damaged.write_bytes(damaged.read_bytes().replace(b"Bild", b"bild"))
    with pytest.raises(InputError, match=rf"{damaged}: does not match its checksum"):
        FeatureStore(tmp_path / "s")["fine"]["picture0"]


def test_masks_and_fractions_are_no_row_numbers(tmp_path: Path) -> None:
    make(tmp_path / "s")
    script = (  # in a process of its own: here the tests' own check of types would answer first
        "import sys, numpy as np\nfrom devil_pipe.store.reader import FeatureStore\n"
        "layer = FeatureStore(sys.argv[1])['fine']\n"
        "for wanted in (layer.store.valid(), [False, True], True, [1.0], np.array([0.5]), 1.5):\n"
        "    try: layer[wanted]\n"
        "    except TypeError: print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "s")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["refused"] * 6


def in_the_file(store: FeatureStore, found: np.ndarray) -> bool:
    assert isinstance(store.place, LocalPlace)
    return any(np.shares_memory(found, store.place._content(store.file("fine", shard))[1]) for shard in range(3))


def test_one_row_and_runs_within_a_shard_are_views_that_cannot_be_written(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    layer = store["fine"]
    viewed: list[Any] = [0, 5, "picture0", slice(0, 3), slice(1, 3), slice(3, 4), slice(5, 6), slice(6, 7)]
    for wanted in viewed:
        assert in_the_file(store, layer[wanted])
        assert not layer[wanted].flags.writeable
    copied: list[Any] = [[0], [0, 1], slice(2, 4), slice(5, 7), slice(0, 3, 2), slice(2, None, -1)]
    for wanted in copied:
        assert not in_the_file(store, layer[wanted])
        assert layer[wanted].flags.writeable
    np.testing.assert_array_equal(layer[2:4], MAPS[2:4])
    for encoding in ("float16+zstd", "uint8"):
        packed = make(tmp_path / encoding, encoding)
        assert not in_the_file(packed, packed["fine"][0])


def test_a_view_outlives_its_store(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    view, run = store["fine"][6], store["fine"][0:3]
    del store
    gc.collect()
    for path in (tmp_path / "s").glob("*/fine/c.*"):
        path.unlink()
    np.testing.assert_array_equal(view, MAPS[6])
    np.testing.assert_array_equal(run, MAPS[0:3])


@pytest.mark.parametrize("wanted", [0, [0, 6], slice(0, 3), "picture0"])
def test_tensors_have_memory_of_their_own(tmp_path: Path, wanted: Any) -> None:
    layer = make(tmp_path / "s")["fine"]
    expected = torch.from_numpy(layer[wanted].copy())
    tensor = layer.torch(wanted)
    assert tensor.dtype == torch.float16
    assert torch.equal(tensor, expected)
    tensor.zero_()
    assert torch.equal(layer.torch(wanted), expected)


@pytest.mark.parametrize(
    ("encoding", "height", "width"), [("float16", 2, 4), ("uint8", 2, 4), ("pool:1", 1, 1), ("pool:3", 2, 3)]
)
def test_a_grid_is_row_major(tmp_path: Path, encoding: str, height: int, width: int) -> None:
    layer = make(tmp_path / "s", encoding)["fine"]
    square, flat = layer.on_grid([6, 0]), layer[[6, 0]]
    assert square.shape == (2, height, width, 3)
    for y in range(height):
        for x in range(width):
            np.testing.assert_array_equal(square[:, y, x], flat[:, y * width + x])


@pytest.mark.parametrize("codec", ["", "+zstd"])
def test_units_refuse_maps_in_words_and_say_what_each_mean_is_of(tmp_path: Path, codec: str) -> None:
    layer = make(tmp_path / "s", "units" + codec)["fine"]
    for wanted in (0, slice(0, 2), [3]):
        with pytest.raises(InputError, match=r"holds a mean over each unit's exemplars \(units(\+zstd)?\), which has"):
            layer[wanted]
    found = layer.stored([5, 0, 3])
    assert found.exemplars is not None
    assert (found.values.shape, found.exemplars.shape) == ((3, 1, 3), (3, 1, 1))
    assert found.group_sizes is None
    assert found.bounds is None


@pytest.mark.parametrize("codec", ["", "+zstd"])
def test_a_partition_refuses_maps_in_words(tmp_path: Path, codec: str) -> None:
    layer = make(tmp_path / "s", "partition:3" + codec)["fine"]
    said = (
        rf"{tmp_path / 's'}: holds random partitions of each map \(partition:3.*\), which have no locations: .*float16"
    )
    for ask in (
        lambda: layer[0],
        lambda: layer[0:2],
        lambda: layer[[0]],
        lambda: layer["picture0"],
        lambda: layer.on_grid([0]),
        lambda: layer.torch(0),
    ):
        with pytest.raises(InputError, match=said):
            ask()
    stored = layer.stored([0, 5])
    assert stored.group_sizes == (3, 3, 2)  # of eight locations
    assert stored.values.shape == (2, 3, 3)
    assert layer.grid is None


@given(st.data())
def test_uint8_stands_for_the_closed_form(data: st.DataObject) -> None:
    ends = st.floats(-65504, 65504, width=16)
    low, high = sorted(data.draw(st.tuples(ends, ends)))
    value = data.draw(st.integers(0, 255))
    bounds = np.array([[[low], [high]]], dtype=np.float16)
    (decoded,) = Stored(np.array([[[value]]], dtype=np.uint8), bounds).maps().ravel()
    exact = Fraction(low) + value * (Fraction(high) - Fraction(low)) / 255
    half_step = Fraction(2) ** (max(math.frexp(float(decoded))[1] - 1, -14) - 11)  # of float16 there
    lost_before = max(abs(Fraction(low)), abs(Fraction(high))) / 2**22  # in float32
    # Also at the ends: where they lie far apart, one may be missed by a step of float16.
    assert abs(Fraction(float(decoded)) - exact) <= half_step + lost_before


@pytest.mark.parametrize("encoding", ["uint8", "uint8+zstd"])
def test_uint8_is_read_with_the_bounds_of_its_own_row_and_channel(tmp_path: Path, encoding: str) -> None:
    layer = make(tmp_path / "s", encoding)["fine"]
    arrays = random_maps(identity(7, encoding))
    rows = [6, 0, 3]
    values, bounds = arrays["fine"][rows].astype(np.float64), arrays["fine.bounds"][rows].astype(np.float64)
    exact = bounds[:, :1] + values * (bounds[:, 1:] - bounds[:, :1]) / 255
    found = layer[rows]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float64), exact, rtol=2**-10, atol=2**-6)
    np.testing.assert_array_equal(layer[6], found[0])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_store_goes_to_other_threads_and_processes(tmp_path: Path, encoding: str) -> None:
    store = make(tmp_path / "s", encoding)
    rows = [6, 0, 3, 5, 3]
    expected = store["coarse"].stored(rows)
    again = pickle.loads(pickle.dumps(store))  # noqa: S301 (our own bytes)
    assert again.identity == store.identity
    layer = pickle.loads(pickle.dumps(store["coarse"]))  # noqa: S301 (our own bytes)
    assert layer.stored(rows).values.tobytes() == expected.values.tobytes()
    place = store.place
    assert isinstance(place, LocalPlace)
    place._most = 1  # every shard throws another out
    with ThreadPoolExecutor(8) as pool:
        for stored in pool.map(lambda _: store["coarse"].stored(rows, verify=True), range(48)):
            assert stored.values.tobytes() == expected.values.tobytes()
            assert (stored.bounds is None) == (expected.bounds is None)


def test_a_spawned_process_reads_the_same(tmp_path: Path) -> None:
    layer = make(tmp_path / "s", "float16+zstd")["fine"]
    layer.stored([0])  # so that there are maps and indices that must not go along
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(operator.getitem, layer, [0, 6]).result(60)
    np.testing.assert_array_equal(found, MAPS[[0, 6]])


def open_files(root: Path) -> int:
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum(link.is_relative_to(root) for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
@pytest.mark.parametrize("most", [1, 2, 5])
def test_no_more_files_stay_open_than_the_system_allows(tmp_path: Path, most: int) -> None:
    of = identity(24)
    maps = random_maps(of)
    write_store(tmp_path / "s", of, maps, 2)
    store = FeatureStore(tmp_path / "s")
    assert isinstance(store.place, LocalPlace)
    store.place._most = most
    draw = np.random.default_rng(0)
    kept = store["fine"][0:2]
    for _ in range(20):
        rows = draw.permutation(24)
        for layer in of.layers:
            np.testing.assert_array_equal(store[layer.name].stored(rows, verify=True).values, maps[layer.name][rows])
        store.prefetch(rows)
        assert open_files(tmp_path) <= most + 1  # a view keeps its file
    np.testing.assert_array_equal(kept, maps["fine"][0:2])


def test_a_file_that_goes_away_under_an_open_store_is_named(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    path = next((tmp_path / "s").glob("*/fine/c.1.0.0"))
    path.unlink()
    for ask in (lambda: store["fine"][3], lambda: store["fine"].stored([0, 3])):
        with pytest.raises(InputError, match=rf"{path}: a file is gone.*devil-pipe extract"):
            ask()
    np.testing.assert_array_equal(store["fine"][0], MAPS[0])
