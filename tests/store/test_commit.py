"""What a stopped, failing or repeated write leaves behind: whole shards or none, and the same bytes in the end."""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zarr

from devil_pipe.store.errors import InputError
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.writer import StoreWriter

from ..small_disk import small_disk
from .stores import files, identity, random_maps, write_one, write_store

OF = identity(7)
MAPS = random_maps(OF)
INVALID = {4: "why"}


@pytest.fixture
def undisturbed(tmp_path: Path) -> bytes:
    write_store(tmp_path / "undisturbed", OF, MAPS, 3, INVALID)
    return (tmp_path / "undisturbed/manifest.json").read_bytes()


@pytest.mark.parametrize("harm", ["marker gone", "shard gone", "shard cut", "shard longer", "layer gone"])
def test_a_harmed_shard_alone_is_written_again(tmp_path: Path, undisturbed: bytes, harm: str) -> None:
    writer = write_store(tmp_path / "s", OF, MAPS, 3, INVALID)
    assert writer.missing_shards() == []
    before = files(tmp_path / "s")
    folder = tmp_path / "s" / writer.folder
    path = folder / "coarse/c.1.0.0"
    match harm:
        case "marker gone":
            (tmp_path / "s" / writer.marker(1)).unlink()
        case "shard gone":
            path.unlink()
        case "shard cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "shard longer":
            path.write_bytes(path.read_bytes() + b"\0")
        case "layer gone":
            shutil.rmtree(path.parent)
    missing = [0, 1, 2] if harm == "layer gone" else [1]
    if harm != "layer gone":
        kept = (folder / "coarse/c.0.0.0").stat().st_mtime_ns
    assert StoreWriter(tmp_path / "s", OF, 3).missing_shards() == missing
    shown = rf"{len(missing)} of 3 shards are not committed \({', '.join(map(str, missing))}\)"
    with pytest.raises(InputError, match=shown):
        writer.finalise()
    write_store(tmp_path / "s", OF, MAPS, 3, INVALID)
    assert files(tmp_path / "s") == before
    assert (tmp_path / "s/manifest.json").read_bytes() == undisturbed
    if harm != "layer gone":
        assert (folder / "coarse/c.0.0.0").stat().st_mtime_ns == kept


def test_shards_in_any_order_by_several_writers(tmp_path: Path, undisturbed: bytes) -> None:
    one, two = StoreWriter(tmp_path / "s", OF, 3), StoreWriter(tmp_path / "s", OF, 3)
    write_one(one, 2, MAPS, INVALID)
    write_one(two, 0, MAPS, INVALID)
    assert one.missing_shards() == two.missing_shards() == [1]
    write_one(one, 1, MAPS, INVALID)
    two.finalise()
    assert (tmp_path / "s/manifest.json").read_bytes() == undisturbed


def test_an_unfinished_store_cannot_be_opened(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "s", OF, 3)
    write_one(writer, 0, MAPS)
    with pytest.raises(InputError, match=r"2 of 3 shards are not committed \(1, 2\)"):
        writer.finalise()
    with pytest.raises(InputError, match="expected a finished store"):
        FeatureStore(tmp_path / "s")


def test_what_a_killed_run_left_half_written_is_cleared(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "s", OF, 3)
    for half in (f"{writer.folder}/fine/.c.1.0.0.4711.partial", f"commits/{writer.folder}/.000001.json.4711.partial"):
        (tmp_path / "s" / half).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / half).write_bytes(b"half")
    assert writer.missing_shards() == [0, 1, 2]
    write_store(tmp_path / "s", OF, MAPS, 3)
    assert not list((tmp_path / "s").rglob("*.partial"))


def test_another_number_of_rows_a_shard_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "s", OF, MAPS, 3)
    with pytest.raises(InputError, match=r"zarr\.json: expected 4 rows a shard, found 3; .*remove the folder"):
        StoreWriter(tmp_path / "s", OF, 4)
    assert StoreWriter(tmp_path / "s", OF, 3).missing_shards() == []
    with pytest.raises(InputError, match="shard_rows: expected at least 1, got 0"):
        StoreWriter(tmp_path / "t", OF, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_with_their_row(tmp_path: Path, value: float) -> None:
    spoilt = {name: values.copy() for name, values in MAPS.items()}
    spoilt["coarse"][5, 1, 2] = value
    writer = StoreWriter(tmp_path / "s", OF, 3)
    with pytest.raises(InputError, match="layer coarse, row 5: features are NaN or beyond float16's ±65504"):
        write_one(writer, 1, spoilt)
    assert writer.missing_shards() == [0, 1, 2]
    write_one(writer, 1, spoilt, {5: "a row without features may hold anything"})
    assert writer.missing_shards() == [0, 2]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: the kernel refuses the write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_refused_write_commits_nothing(tmp_path: Path) -> None:
    of = identity(9)
    maps = random_maps(of)
    root = tmp_path / "s"
    writer = StoreWriter(root, of, 3)
    write_one(writer, 0, maps)
    with files_up_to(200), pytest.raises(OSError, match="while writing") as caught:
        write_one(writer, 1, maps)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(root / writer.folder / "fine/c.1.0.0"))
    assert not list(root.rglob("*.partial"))
    assert writer.missing_shards() == [1, 2]
    # a shard that was whole before counts no longer once its second write has failed
    with files_up_to(200), pytest.raises(OSError, match="while writing"):
        write_one(writer, 0, maps)
    assert writer.missing_shards() == [0, 1, 2]


def test_a_full_disk_keeps_what_was_committed(tmp_path: Path) -> None:
    of = identity(40)
    maps = random_maps(of)
    write_store(tmp_path / "undisturbed", of, maps, 4)
    with small_disk(tmp_path / "disk", kilobytes=96) as resize:
        root = tmp_path / "disk/s"
        writer = StoreWriter(root, of, 4)

        def write_all() -> None:
            for shard in range(10):
                write_one(writer, shard, maps)

        with pytest.raises(OSError, match="No space left on device") as caught:
            write_all()
        assert caught.value.errno == errno.ENOSPC
        assert Path(caught.value.filename).is_relative_to(root)
        missing = writer.missing_shards()
        assert 0 < len(missing) < 10
        assert not list(root.rglob("*.partial"))
        for layer in of.layers:
            plain = zarr.open_array(root / writer.folder / layer.name, mode="r")
            for shard in set(range(10)) - set(missing):
                rows = slice(4 * shard, 4 * shard + 4)
                np.testing.assert_array_equal(plain[rows], maps[layer.name][rows])
        with pytest.raises(InputError, match="expected a finished store"):
            FeatureStore(root)
        resize(10_000)
        write_store(root, of, maps, 4)
        assert (root / "manifest.json").read_bytes() == (tmp_path / "undisturbed/manifest.json").read_bytes()
