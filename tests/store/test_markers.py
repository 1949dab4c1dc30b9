"""A marker that is damaged or another shard's commits nothing: its shard is made again, and the store is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from devil_pipe.store.errors import InputError
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.writer import StoreWriter

from .stores import files, identity, keys, random_maps, write_one

OF = identity(10, "uint8+zstd")
MAPS = random_maps(OF)
INVALID = {4: "why"}
SHARD_ROWS = 3  # so shard 1 is rows 3 to 6, of which 4 has no features


def swap(marker: Path) -> None:
    other = marker.with_name("000002.json")
    mine, theirs = marker.read_bytes(), other.read_bytes()
    marker.write_bytes(theirs)
    other.write_bytes(mine)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda marker: marker.write_bytes(b""),
    "cut": lambda marker: marker.write_bytes(marker.read_bytes()[:-9]),
    "no UTF-8": lambda marker: marker.write_bytes(marker.read_bytes().replace(b"why", b"\xffhy")),
    "rows of another": lambda marker: marker.write_bytes(marker.read_bytes().replace(b'"start": 3', b'"start": 2')),
    "a row that is not its own": lambda marker: marker.write_bytes(marker.read_bytes().replace(b'"4": ', b'"8": ')),
    "an array that is not there": lambda marker: marker.write_bytes(marker.read_bytes().replace(b"fine", b"fime")),
    "swapped": swap,
}


def made(root: Path) -> StoreWriter:
    writer = StoreWriter(root, OF, SHARD_ROWS)
    for shard in range(len(writer.ranges)):
        write_one(writer, shard, MAPS, INVALID)
    return writer


@pytest.mark.parametrize("damage", DAMAGES)
def test_its_shard_is_made_again(tmp_path: Path, damage: str) -> None:
    made(tmp_path / "undisturbed").finalise(keys(OF))
    writer = made(tmp_path / "store")
    DAMAGES[damage](tmp_path / "store" / writer.marker(1))
    hurt = [1, 2] if damage == "swapped" else [1]
    assert writer.missing_shards() == hurt
    with pytest.raises(InputError, match=f"{len(hurt)} of 4 shards are not committed"):
        writer.finalise(keys(OF))
    writer.forget_damaged()
    assert [shard for shard in range(4) if not writer.is_committed(shard)] == hurt, "else a worker would leave it out"
    for shard in hurt:
        write_one(writer, shard, MAPS, INVALID)
    writer.finalise(keys(OF))
    assert files(tmp_path / "store") == files(tmp_path / "undisturbed")
    assert FeatureStore(tmp_path / "store").rows == OF.rows
