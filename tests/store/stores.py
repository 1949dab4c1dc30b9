"""Small stores of random maps, and their shard files taken apart as SPEC.md says, without our reader."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from devil_pipe.store.schema import Identity, LayerSpec
from devil_pipe.store.writer import StoreWriter

LAYERS = (
    LayerSpec(name="fine", channels=3, height=2, width=4),
    LayerSpec(name="coarse", channels=5, height=1, width=2),
)


def identity(rows: int = 7, **changes: Any) -> Identity:
    values: dict[str, Any] = {
        "backbone": "some",
        "weights": "random:0",
        "layers": LAYERS,
        "transform": {"resize": [8, 8]},
        "index": "0" * 64,
        "rows": rows,
    }
    return Identity(**values | changes)


def random_maps(of: Identity, seed: int = 0) -> dict[str, np.ndarray]:
    """Float16 [N, H·W, C] of each layer, with the type's extreme values and −0 among them."""
    draw = np.random.default_rng(seed)
    maps = {}
    for layer in of.layers:
        values = draw.normal(0, 100, (of.rows, layer.locations, layer.channels)).astype(np.float16)
        values.flat[:4] = np.array([65504, -65504, -0.0, 6e-8], dtype=np.float16)
        maps[layer.name] = values
    return maps


def write_store(
    root: Path, of: Identity, maps: Mapping[str, np.ndarray], shard_rows: int, invalid: Mapping[int, str] | None = None
) -> StoreWriter:
    """Write every missing shard and the manifest."""
    writer = StoreWriter(root, of, shard_rows)
    for shard in writer.missing_shards():
        write_one(writer, shard, maps, invalid)
    writer.finalise()
    return writer


def write_one(
    writer: StoreWriter, shard: int, maps: Mapping[str, np.ndarray], invalid: Mapping[int, str] | None = None
) -> None:
    rows = writer.ranges[shard]
    part = {name: values[rows.start : rows.stop] for name, values in maps.items()}
    writer.write_shard(shard, part, {row: why for row, why in (invalid or {}).items() if row in rows})


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
    return struct.iter_unpack("<QQ", table)  # type: ignore[return-value]
