"""Writing a store: whole shards, each committed at once.

A shard is written under a temporary name, flushed to the disk, then linked into place; its marker comes last.
A shard without a marker does not exist for a reader, so a crash at any moment costs at most that shard.
Layout and reasons: `SPEC.md`.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from jaxtyping import Float16

from devil_pipe.store.errors import InputError
from devil_pipe.store.schema import (
    MISSING,
    FileRecord,
    Identity,
    LayerSpec,
    Manifest,
    ShardRecord,
    array_metadata,
    read_record,
    shard_file,
    shard_ranges,
)

Maps = Float16[np.ndarray, "rows locations channels"]


class StoreWriter:
    """Writes the shards of one store; many writers may share a store if no shard has two of them."""

    def __init__(self, root: Path, identity: Identity, shard_rows: int = 256) -> None:
        """Create the store under `root`, or go on with the one of the same identity that lies there.

        Raises:
            InputError: a store of this identity lies there with another number of rows a shard.
        """
        if shard_rows < 1:
            raise InputError(f"shard_rows: expected at least 1, got {shard_rows}")
        self.root, self.identity = root, identity
        self.folder = root / identity.digest[:12]
        self.ranges = shard_ranges(identity.rows, shard_rows)
        self.shard_rows = shard_rows
        self._create()

    def _create(self) -> None:
        header = {"identity": self.identity.model_dump(mode="json"), "shard_rows": self.shard_rows}
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"devil_pipe": header}}
        path = self.folder / "zarr.json"
        if path.exists():
            found = _shard_rows(path)
            if found != self.shard_rows:
                raise InputError(
                    f"{path}: expected {self.shard_rows} rows a shard, found {found}; "
                    "keep that number, or remove the folder to start again"
                )
        for layer in self.identity.layers:
            metadata = array_metadata(layer, self.identity.rows, self.shard_rows)
            _commit_bytes(self.folder / layer.name / "zarr.json", _json_bytes(metadata))
        _commit_bytes(path, _json_bytes(group))

    def marker(self, shard: int) -> Path:
        """The file that says a shard is committed."""
        return self.folder / "commits" / f"{shard:06d}.json"

    def missing_shards(self) -> list[int]:
        """Numbers of the shards that are not committed, or whose files are gone or of another size."""
        return [shard for shard in range(len(self.ranges)) if not self._committed(shard)]

    def _committed(self, shard: int) -> bool:
        if not self.marker(shard).exists():
            return False
        record = read_record(ShardRecord, self.marker(shard))
        files = {name: shard_file(self.folder, name, shard) for name in record.files}
        return all(
            files[name].exists() and files[name].stat().st_size == file.size for name, file in record.files.items()
        )

    def write_shard(self, shard: int, maps: Mapping[str, Maps], invalid: Mapping[int, str]) -> ShardRecord:
        """Write and commit one shard of every layer.

        Args:
            shard: its number.
            maps: layer → float16 [rows of the shard, H·W, C]; what stands in invalid rows is not written.
            invalid: row of the store → why it has no features.

        Raises:
            InputError: a map is NaN or infinite; the message names layer and row.
            OSError: the disk is full or failing; the shard is not committed.
        """
        rows = self.ranges[shard]
        assert set(maps) == {layer.name for layer in self.identity.layers}, "every layer of the shard at once"
        assert all(row in rows for row in invalid), "invalid rows of this shard alone"
        self.marker(shard).unlink(missing_ok=True)
        files: dict[str, FileRecord] = {}
        for layer in self.identity.layers:
            content = _encode(layer, maps[layer.name], rows, self.shard_rows, invalid)
            path = shard_file(self.folder, layer.name, shard)
            for stale in path.parent.glob(f".{path.name}.*.partial"):  # of a run that was killed; nobody else's shard
                stale.unlink()
            _commit_bytes(path, content)
            files[layer.name] = FileRecord(size=len(content), sha256=sha256(content).hexdigest())
        record = ShardRecord(shard=shard, start=rows.start, stop=rows.stop, invalid=dict(invalid), files=files)
        _commit_bytes(self.marker(shard), _json_bytes(record.model_dump(mode="json")))
        return record

    def finalise(self) -> Manifest:
        """Write the manifest beside the store once every shard is committed.

        Raises:
            InputError: shards are missing; the message names them.
        """
        if missing := self.missing_shards():
            raise InputError(f"{self.folder}: shards {missing} of {len(self.ranges)} are not committed")
        records = tuple(read_record(ShardRecord, self.marker(shard)) for shard in range(len(self.ranges)))
        manifest = Manifest(identity=self.identity, shard_rows=self.shard_rows, folder=self.folder.name, shards=records)
        _commit_bytes(self.root / "manifest.json", _json_bytes(manifest.model_dump(mode="json")))
        return manifest


def _encode(layer: LayerSpec, maps: Maps, rows: range, shard_rows: int, invalid: Mapping[int, str]) -> bytes:
    """A shard's bytes: chunk and CRC32C for each valid row, then the index of all chunks and its CRC32C."""
    expected = (len(rows), layer.locations, layer.channels)
    assert maps.shape == expected, f"layer {layer.name}: expected {expected}, got {maps.shape}"
    assert maps.dtype == np.float16, f"layer {layer.name}: expected float16, got {maps.dtype}"
    parts: list[bytes] = []
    entries = np.full((shard_rows, 2), MISSING, dtype="<u8")
    offset = 0
    for position, row in enumerate(rows):
        if row in invalid:
            continue
        if not np.isfinite(maps[position]).all():
            raise InputError(f"layer {layer.name}, row {row}: features are NaN or beyond float16's ±65504")
        chunk = np.ascontiguousarray(maps[position], dtype="<f2").tobytes()
        parts += [chunk, _crc(chunk)]
        size = len(chunk) + len(parts[-1])
        entries[position] = offset, size
        offset += size
    index = entries.tobytes()
    return b"".join([*parts, index, _crc(index)])


def _crc(content: bytes) -> bytes:
    return struct.pack("<I", google_crc32c.value(content))


def _shard_rows(path: Path) -> int:
    """Rows a shard of the store whose group metadata lies at `path`."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["attributes"]["devil_pipe"]["shard_rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected a store's metadata ({error}); remove the file and extract again") from error


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _commit_bytes(path: Path, content: bytes) -> None:
    """Put a file in place whole: written beside, flushed, renamed, and the folder flushed as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)} while writing", str(path)) from error
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
