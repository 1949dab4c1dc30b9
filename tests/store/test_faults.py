"""A disk that fills up at any file, and files and folders that may not be touched: what was committed stays."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zarr

from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.writer import StoreWriter

from ..small_disk import small_disk
from .stores import files, identity, keys, random_maps, write_one, write_store

OF = identity(10, "uint8+zstd")
MAPS = random_maps(OF)
INVALID = {4: "why"}
NOBODY = 65534


def intact(root: Path, shards: set[int], shard_rows: int) -> None:
    """Every row of these shards is what zarr-python reads."""
    for array in OF.arrays if shards else ():
        plain = zarr.open_array(root / OF.digest[:12] / array.name, mode="r")
        for shard in shards:
            rows = [
                row for row in range(shard * shard_rows, min((shard + 1) * shard_rows, OF.rows)) if row not in INVALID
            ]
            np.testing.assert_array_equal(plain.oindex[rows], MAPS[array.name][rows])


def refused(root: Path) -> OSError | None:
    """Write what is missing; the error, if there was one."""
    try:
        write_store(root, OF, MAPS, 3, INVALID, keys(OF))
    except OSError as error:
        return error
    return None


def test_whichever_file_the_disk_is_full_at_nothing_committed_is_lost(tmp_path: Path) -> None:
    write_store(tmp_path / "undisturbed", OF, MAPS, 3, INVALID, keys(OF))
    committed: set[int] = set()
    stopped_at: set[str] = set()
    with small_disk(tmp_path / "disk", kilobytes=4) as resize:
        root = tmp_path / "disk/s"
        for kilobytes in range(4, 400, 4):  # one page, so one file, more each time
            resize(kilobytes)
            if (failure := refused(root)) is None:
                break
            assert failure.errno == errno.ENOSPC
            assert Path(failure.filename).is_relative_to(root)
            stopped_at.add(Path(failure.filename).name)
            assert not list(root.rglob("*.partial"))
            assert not (root / "manifest.json").exists()
            now = {int(path.stem) for path in root.glob("commits/*/*.json")}
            assert committed <= now
            committed = now
            intact(root, now, 3)
        assert files(root) == files(tmp_path / "undisturbed")
    # it was full at metadata, values, bounds, markers, row arrays and the manifest
    assert {"zarr.json", "c.0.0.0", "c.3.0.0", "000000.json", "000003.json", "c.0", "manifest.json"} <= stopped_at


@contextmanager
def somebody() -> Iterator[Path]:
    """A folder of an ordinary user, and this process as that user: root may touch anything."""
    with tempfile.TemporaryDirectory() as folder:
        if os.geteuid() != 0:
            yield Path(folder)
            return
        os.chown(folder, NOBODY, -1)
        os.seteuid(NOBODY)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


@contextmanager
def mode(path: Path, bits: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(bits)
    try:
        yield
    finally:
        path.chmod(before)


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_a_folder_that_may_not_be_written_is_named_and_what_lies_there_stays() -> None:
    with somebody() as place:
        root = place / "s"
        writer = StoreWriter(root, OF, 3)
        write_one(writer, 0, MAPS, INVALID)
        intact(root, {0}, 3)  # and imports what zarr wants while it may
        for closed in (f"{writer.folder}/fine", f"{writer.folder}/coarse.bounds", f"commits/{writer.folder}"):
            with mode(root / closed, 0o555), pytest.raises(PermissionError) as caught:
                write_one(writer, 1, MAPS, INVALID)
            assert Path(caught.value.filename).parent == root / closed
            assert writer.missing_shards() == [1, 2, 3]
            intact(root, {0}, 3)
        with mode(place, 0o555), pytest.raises(PermissionError) as caught:
            StoreWriter(place / "other", OF, 3)
        assert Path(caught.value.filename).is_relative_to(place)
        write_store(root, OF, MAPS, 3, INVALID, keys(OF))
        with mode(root, 0o555), pytest.raises(PermissionError, match=r"manifest\.json"):
            writer.finalise()
        intact(root, set(range(4)), 3)


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
@pytest.mark.parametrize("closed", ["manifest.json", "*/fine/c.1.0.0", "*/fine", "*/key/c.0"])
def test_what_may_not_be_read_is_named(closed: str) -> None:
    with somebody() as place:
        root = place / "s"
        write_store(root, OF, MAPS, 3, INVALID, keys(OF))
        FeatureStore(root)["fine"]["picture0"]
        (path,) = root.glob(closed)
        with mode(path, 0), pytest.raises(PermissionError) as caught:
            FeatureStore(root)["fine"][[f"{name}" for name in keys(OF) if name != keys(OF)[4]]]
        assert Path(caught.value.filename).is_relative_to(path)
        assert FeatureStore(root)["fine"][[3, 5]].shape == (2, 8, 3)
