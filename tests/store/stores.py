"""Small stores of random numbers, and their shard files taken apart as SPEC.md says, without our reader."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from devil_pipe.store.place import Root
from devil_pipe.store.schema import BOUNDS, Encoding, Identity, LayerSpec
from devil_pipe.store.writer import StoreWriter

LAYERS = (
    LayerSpec(name="fine", channels=3, height=2, width=4),
    LayerSpec(name="coarse", channels=5, height=1, width=2),
)


WHOLE = ("float16", "uint8", "partition:3", "pool:1", "units")
ENCODINGS = [whole + codec for whole in WHOLE for codec in ("", "+zstd")]

KEPT = {"store-1.1-float16": "float16", "store-1.1-uint8-zstd": "uint8+zstd", "store-1.1-partition": "partition:3"}
KEPT |= {"store-1.2-units": "units"}
KEPT_SEED, KEPT_SHARD_ROWS = 10, 4
KEPT_INVALID = {1: "cannot be decoded: not a picture", 6: "gone"}
"""The stores of released versions in data/, and of what they were made."""


def identity(rows: int = 7, encoding: str = "float16", **changes: Any) -> Identity:
    values: dict[str, Any] = {
        "backbone": "some",
        "weights": "random:0",
        "layers": LAYERS,
        "transform": {"resize": [8, 8]},
        "index": "0" * 64,
        "rows": rows,
        "encoding": encoding,
        "dtype": Encoding.parse(encoding).values,
    }
    return Identity(**values | changes)


def random_maps(of: Identity, seed: int = 0) -> dict[str, np.ndarray]:
    """[N, places, C] of each array; float16 ones have the type's extreme values and −0 among them."""
    draw = np.random.default_rng(seed)
    maps: dict[str, np.ndarray] = {}
    for array in of.arrays:
        shape = (of.rows, *array.shape)
        if array.dtype == "uint8":
            maps[array.name] = draw.integers(0, 256, shape, dtype=np.uint8)
            continue
        values = draw.normal(0, 100, shape).astype(np.float16)
        values.flat[:4] = np.array([65504, -65504, -0.0, 6e-8], dtype=np.float16)
        maps[array.name] = np.sort(values, axis=1) if array.name.endswith(BOUNDS) else values
    return maps


def keys(of: Identity) -> list[str]:
    """A key for each row, one of them beyond ASCII, one empty."""
    return [["picture", "Bild ", "é/", ""][row % 4] + str(row) * (row != 3) for row in range(of.rows)]


def write_store(
    root: Root,
    of: Identity,
    maps: Mapping[str, np.ndarray],
    shard_rows: int,
    invalid: Mapping[int, str] | None = None,
    names: Sequence[str] | None = None,
) -> StoreWriter:
    """Write every missing shard and the manifest; `names` are the rows' keys."""
    writer = StoreWriter(root, of, shard_rows)
    for shard in writer.missing_shards():
        write_one(writer, shard, maps, invalid)
    writer.finalise(names)
    return writer


def write_kept(root: Path) -> None:
    """Write every store of the newest version that is kept in data/."""
    for name, encoding in KEPT.items():
        of = identity(7, encoding)
        write_store(root / name, of, random_maps(of, KEPT_SEED), KEPT_SHARD_ROWS, KEPT_INVALID, keys(of))


def write_one(
    writer: StoreWriter, shard: int, maps: Mapping[str, np.ndarray], invalid: Mapping[int, str] | None = None
) -> None:
    rows = writer.ranges[shard]
    part = {name: values[rows.start : rows.stop] for name, values in maps.items()}
    writer.write_shard(shard, part, {row: why for row, why in (invalid or {}).items() if row in rows})


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def crc32c(content: bytes) -> int:
    """CRC-32C bit by bit (RFC 3720, B.4), to check against another hand than the library's."""
    register = 0xFFFFFFFF
    for byte in content:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def index_of(content: bytes, shard_rows: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of each row of a shard file, from its end."""
    table = content[-16 * shard_rows - 4 : -4]
    assert crc32c(table) == struct.unpack("<I", content[-4:])[0]
    return struct.iter_unpack("<QQ", table)
