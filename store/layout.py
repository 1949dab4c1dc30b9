"""The store's layout on disk: Zarr's metadata, the names of files, and the bytes of a shard.

Normative text: `SPEC.md` beside this file.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import Zstd

from devil_pipe.store.errors import InputError
from devil_pipe.store.schema import ArraySpec, Encoding, Identity, Version

CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16  # offset and length of a chunk, two little-endian uint64
MISSING = 2**64 - 1  # Zarr's mark for a chunk that was never written
ZSTD_LEVEL = 1
DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "uint8": np.dtype("u1")}


def folder_of(identity: Identity) -> str:
    """The folder of a store's arrays, beside its manifest."""
    return identity.digest[:12]


def shard_name(folder: str, array: str, shard: int, version: Version) -> str:
    """Where Zarr's chunk key puts a shard: one folder of files, where 1.0 had two folders for each file."""
    key = f"c/{shard}/0/0" if version == "1.0" else f"c.{shard}.0.0"
    return f"{folder}/{array}/{key}"


def marker_name(folder: str, shard: int) -> str:
    """The file that says a shard is committed. Beside the Zarr group, which holds nothing but arrays."""
    return f"commits/{folder}/{shard:06d}.json"


def group_metadata(identity: Identity, shard_rows: int) -> dict[str, Any]:
    """The `zarr.json` of the group, with the identity among its attributes."""
    header = {"identity": identity.fields(), "shard_rows": shard_rows}
    return {"zarr_format": 3, "node_type": "group", "attributes": {"devil_pipe": header}}


def array_metadata(array: ArraySpec, encoding: Encoding, rows: int, shard_rows: int) -> dict[str, Any]:
    """The `zarr.json` of one array: [N, places, channels], a row a chunk, `shard_rows` chunks a shard."""
    crc = {"name": "crc32c"}
    little = _bytes_codec(array.dtype)
    zstd = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}
    sharding = {
        "chunk_shape": [1, *array.shape],
        "codecs": [little, *([zstd] if encoding.compressed else []), crc],
        "index_codecs": [_bytes_codec("float16"), crc],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *array.shape],
        "data_type": array.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, *array.shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN" if array.dtype == "float16" else 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": list(array.dimensions),
        "attributes": array.attributes,
    }


def row_array_metadata(rows: int, name: str) -> dict[str, Any]:
    """The `zarr.json` of `valid` (bool) or `key` (string): one value a row, one chunk."""
    text = name == "key"
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows],
        "data_type": "string" if text else "bool",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [rows]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "" if text else False,
        "codecs": [{"name": "vlen-utf8"} if text else _bytes_codec("uint8"), {"name": "crc32c"}],
        "dimension_names": ["row"],
        "attributes": {},
    }


def _bytes_codec(dtype: str) -> dict[str, Any]:
    """Zarr's `bytes` codec; one byte has no order."""
    return {"name": "bytes"} if dtype == "uint8" else {"name": "bytes", "configuration": {"endian": "little"}}


def encode_shard(
    array: ArraySpec, encoding: Encoding, values: np.ndarray, rows: range, shard_rows: int, invalid: Collection[int]
) -> bytearray:
    """A shard's bytes: chunk and CRC32C of each valid row, then the index of all chunks and its CRC32C.

    Args:
        array: what is encoded.
        encoding: of the store.
        values: [rows, places, channels] of the array's type; what stands in invalid rows is ignored.
        rows: the shard's rows in the store.
        shard_rows: rows of a full shard.
        invalid: rows without features.

    Raises:
        InputError: a value is NaN or infinite; the message names array and row.
    """
    expected = (len(rows), *array.shape)
    assert values.shape == expected, f"array {array.name}: expected {expected}, got {values.shape}"
    assert values.dtype == DTYPES[array.dtype], f"array {array.name}: expected {array.dtype}, got {values.dtype}"
    values = np.ascontiguousarray(values)
    if (bad := first_not_finite(values, rows, invalid)) is not None:
        raise InputError(f"layer {array.layer}, row {bad}: features are NaN or beyond float16's ±65504")
    good = [place for place, row in enumerate(rows) if row not in invalid]
    out = bytearray()
    entries = np.full((shard_rows, 2), MISSING, dtype="<u8")
    codec = Zstd(level=ZSTD_LEVEL) if encoding.compressed else None
    for place in good:
        chunk = values[place].view(np.uint8).reshape(-1)
        if codec is not None:
            chunk = np.frombuffer(codec.encode(chunk), dtype=np.uint8)
        entries[place] = len(out), len(chunk) + CRC_BYTES
        out += chunk.data
        out += _crc(chunk)
    index = np.frombuffer(entries.tobytes(), dtype=np.uint8)
    out += index.data
    out += _crc(index)
    return out


def first_not_finite(values: np.ndarray, rows: range, invalid: Collection[int]) -> int | None:
    """The first valid row with a NaN or infinite float16, or None. Reads exponents: NumPy's isfinite is slow."""
    if values.dtype != DTYPES["float16"]:
        return None
    for place, row in enumerate(rows):
        if row not in invalid and int((values[place].view("<u2") & 0x7C00).max()) == 0x7C00:
            return row
    return None


def read_index(table: bytes | np.ndarray, source: str) -> np.ndarray:
    """A shard's index, uint64 [shard_rows, (offset, length)], from its last bytes with their CRC32C.

    Raises:
        InputError: the checksum does not match.
    """
    content = np.frombuffer(table, dtype=np.uint8)
    if google_crc32c.value(content[:-CRC_BYTES]) != int.from_bytes(content[-CRC_BYTES:].tobytes(), "little"):
        raise InputError(f"{source}: its index does not match its checksum")
    return np.frombuffer(content[:-CRC_BYTES].tobytes(), dtype="<u8").reshape(-1, 2)


def index_bytes(shard_rows: int) -> int:
    """Length of a shard's index with its checksum."""
    return shard_rows * INDEX_ENTRY_BYTES + CRC_BYTES


def chunk_matches(stored: np.ndarray) -> bool:
    """Whether a chunk with its CRC32C, uint8 [length], is what was written."""
    return matches(stored[:-CRC_BYTES], stored[-CRC_BYTES:])


def matches(content: np.ndarray, checksum: np.ndarray) -> bool:
    """Whether uint8 [length] has this CRC32C, uint8 [4]."""
    return bool(google_crc32c.value(content) == int.from_bytes(checksum.tobytes(), "little"))


def decode_chunk(array: ArraySpec, encoding: Encoding, stored: np.ndarray) -> np.ndarray:
    """[places, channels] of a chunk without its checksum; a view where nothing is compressed. Raises ValueError."""
    content = stored[:-CRC_BYTES]
    if encoding.compressed:
        try:
            content = np.frombuffer(Zstd().decode(content), dtype=np.uint8)
        except (RuntimeError, MemoryError) as error:  # the latter where the damage is in the length
            raise ValueError(str(error)) from error
    if len(content) != array.chunk_bytes:
        raise ValueError(f"expected {array.chunk_bytes} bytes, found {len(content)}")
    values: np.ndarray = content.view(DTYPES[array.dtype]).reshape(array.shape)
    return values


def encode_keys(keys: Collection[str]) -> bytes:
    """The chunk of the array `key`: Zarr's vlen-utf8 (a count, then length and bytes of each) and its CRC32C."""
    parts = [struct.pack("<I", len(keys))]
    for key in keys:
        text = key.encode()
        parts += [struct.pack("<I", len(text)), text]
    content = np.frombuffer(b"".join(parts), dtype=np.uint8)
    return content.tobytes() + _crc(content)


def decode_keys(stored: bytes, source: str) -> list[str]:
    """The keys in the order of rows. Raises InputError where the bytes are not what was written."""
    if not chunk_matches(np.frombuffer(stored, dtype=np.uint8)):
        raise InputError(f"{source}: does not match its checksum")
    place, keys = 4, []
    try:
        (count,) = struct.unpack_from("<I", stored)
        for _ in range(count):
            (length,) = struct.unpack_from("<I", stored, place)
            keys.append(stored[place + 4 : place + 4 + length].decode())
            place += 4 + length
    except (struct.error, UnicodeDecodeError) as error:
        raise InputError(f"{source}: expected a count, then length and UTF-8 of each key: {error}") from error
    if place != len(stored) - CRC_BYTES:
        raise InputError(f"{source}: expected its keys to end at byte {len(stored) - CRC_BYTES}, they end at {place}")
    return keys


def encode_valid(valid: np.ndarray) -> bytes:
    """The chunk of the array `valid`: a byte a row, and its CRC32C."""
    content = valid.astype(np.uint8)
    return content.tobytes() + _crc(content)


def _crc(content: np.ndarray) -> bytes:
    return struct.pack("<I", google_crc32c.value(content))
