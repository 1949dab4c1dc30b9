"""Stores that released versions wrote are read for good, and what is written today has not changed unnoticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from devil_pipe.store.errors import InputError
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.writer import StoreWriter

from .stores import KEPT, KEPT_INVALID, KEPT_SEED, files, identity, keys, random_maps, write_kept, write_store

DATA = Path(__file__).parent / "data"
GOOD = [5, 0, 3, 2, 4]


def test_every_kept_store_is_tested() -> None:
    assert {path.name for path in DATA.glob("store-*")} == {"store-1.0", *KEPT}


@pytest.mark.parametrize("name", ["store-1.0", *KEPT])
def test_a_kept_store_reads_as_it_was_written(name: str) -> None:
    store = FeatureStore(DATA / name)
    of = identity(7, KEPT.get(name, "float16"))
    written = random_maps(of, KEPT_SEED)
    assert store.layers == of.layers
    assert store.valid().tolist() == [row not in KEPT_INVALID for row in range(7)]
    assert store.manifest.invalid == KEPT_INVALID
    for layer in of.layers:
        stored = store[layer.name].stored(GOOD, verify=True)
        assert stored.values.tobytes() == written[layer.name][GOOD].tobytes()
        if stored.bounds is not None:
            assert stored.bounds.tobytes() == written[layer.name + ".bounds"][GOOD].tobytes()
        if stored.exemplars is not None:
            assert stored.exemplars.tobytes() == written[layer.name + ".exemplars"][GOOD].tobytes()
        if of.encoding == "float16":
            np.testing.assert_array_equal(store[layer.name][2:5], written[layer.name][2:5])
            np.testing.assert_array_equal(store[layer.name][5], written[layer.name][5])
        with pytest.raises(InputError, match=r"row 1: has no features \(cannot be decoded: not a picture\)"):
            store[layer.name].stored([1])
    if name != "store-1.0":
        assert store.identity == of
        assert store.keys == keys(of)


def test_a_store_of_1_0_knows_itself_and_holds_no_keys() -> None:
    store = FeatureStore(DATA / "store-1.0")
    assert store.identity.digest.startswith("87c0acf1ccd6")
    assert FeatureStore(DATA / "store-1.0", store.identity).rows == 7
    with pytest.raises(InputError, match=r"store-1\.0: holds no keys; take rows by number, or extract again"):
        store["fine"]["picture0"]
    with pytest.raises(InputError, match=r"schema_version: '1\.1' against '1\.0'"):
        FeatureStore(DATA / "store-1.0", identity(7))
    with pytest.raises(InputError, match=r"expected an identity of schema 1\.1 or later, got 1\.0"):
        StoreWriter(DATA / "store-1.0", store.identity, 4)


def test_a_store_is_of_the_oldest_version_that_says_what_it_holds() -> None:
    """So that a new version changes no digest of stores that do not need it."""
    for encoding, version in {"float16": "1.1", "uint8+zstd": "1.1", "units": "1.2"}.items():
        assert identity(7, encoding).schema_version == version
    for encoding, version in {"float16": "1.2", "units": "1.1", "units+zstd": "1.0"}.items():
        with pytest.raises(ValueError, match=r"schema.*1\.[012]"):
            identity(7, encoding, schema_version=version)


def test_extracting_again_leaves_a_store_of_1_0_beside_the_new_one(tmp_path: Path) -> None:
    shutil.copytree(DATA / "store-1.0", tmp_path / "s")
    before = files(tmp_path / "s/87c0acf1ccd6")
    write_store(tmp_path / "s", identity(7), random_maps(identity(7)), 4)
    assert files(tmp_path / "s/87c0acf1ccd6") == before
    assert FeatureStore(tmp_path / "s").identity == identity(7)


def test_todays_writer_writes_the_kept_stores_to_the_byte(tmp_path: Path) -> None:
    write_kept(tmp_path)
    for name, encoding in KEPT.items():
        today, kept = files(tmp_path / name), files(DATA / name)
        assert set(today) == set(kept)
        # zstd may compress otherwise in another release: there the values are held (above), and what stands around them
        held = [file for file in kept if "zstd" not in encoding or file.endswith(("zarr.json", "/c.0"))]
        assert {file: today[file] for file in held} == {file: kept[file] for file in held}
        ours, theirs = (json.loads(found["manifest.json"]) for found in (today, kept))
        assert [ours[key] for key in ("identity", "folder", "rows")] == [
            theirs[key] for key in ("identity", "folder", "rows")
        ]
