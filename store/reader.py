"""Reading a store: rows in any order, through a memory map of each shard.

A memory map reads about fourteen times as many random rows a second as zarr-python (benchmarks/reading.py).
The files are plain Zarr v3 all the same, and `zarr.open` reads them identically (tested).
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np
from jaxtyping import Float16, Int

from devil_pipe.store.errors import InputError
from devil_pipe.store.schema import (
    CRC_BYTES,
    INDEX_ENTRY_BYTES,
    MISSING,
    Identity,
    LayerSpec,
    Manifest,
    read_record,
    shard_file,
)


class StoreReader:
    """An opened store. Safe to use from several threads; opening checks every file's size."""

    def __init__(self, root: Path, identity: Identity | None = None) -> None:
        """Open the store whose `manifest.json` lies in `root`.

        Args:
            root: folder of the manifest.
            identity: what the reader expects; None takes what is there.

        Raises:
            InputError: no manifest (not extracted, or unfinished), another identity (both sides named),
                a shard's file missing or of another size.
        """
        path = root / "manifest.json"
        if not path.exists():
            raise InputError(
                f"{path}: expected a finished store, found none; "
                f"run `devil-pipe extract {root.name}`, which goes on where it stopped"
            )
        self.manifest = read_record(Manifest, path)
        self.identity = self.manifest.identity
        if identity is not None and identity != self.identity:
            lines = "; ".join(identity.differences(self.identity))
            raise InputError(f"{path}: the store is not the one expected (expected against found): {lines}")
        self.folder = root / self.manifest.folder
        self._check_files()
        self._maps: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}

    def _check_files(self) -> None:
        for shard in self.manifest.shards:
            for name, record in shard.files.items():
                path = shard_file(self.folder, name, shard.shard)
                size = path.stat().st_size if path.exists() else None
                if size != record.size:
                    found = "no such file" if size is None else f"{size} bytes"
                    raise InputError(
                        f"{path}: expected {record.size} bytes, found {found}; "
                        "`devil-pipe extract` writes this shard again"
                    )

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The layers, in the order in which the translator takes them."""
        return self.identity.layers

    @property
    def rows(self) -> int:
        """N, the rows with and without features."""
        return self.identity.rows

    def valid(self) -> np.ndarray:
        """bool [N]: which rows have features."""
        mask = np.ones(self.rows, dtype=bool)
        mask[list(self.manifest.invalid)] = False
        return mask

    def read(
        self, layer: str, rows: Sequence[int] | Int[np.ndarray, " batch"], *, verify: bool = False
    ) -> Float16[np.ndarray, "batch locations channels"]:
        """Feature maps of `rows`, in their order, copied.

        Args:
            layer: its name.
            rows: row numbers, any order, repeats allowed.
            verify: compare each chunk with its checksum.

        Raises:
            InputError: a row out of range or without features, or (with `verify`) changed bytes.
        """
        spec = self.identity.layer(layer)
        out = np.empty((len(rows), spec.locations, spec.channels), dtype=np.float16)
        for position, row in enumerate(rows):
            out[position] = self._chunk(spec, int(row), verify)
        return out

    def _chunk(self, spec: LayerSpec, row: int, verify: bool) -> np.ndarray:
        if not 0 <= row < self.rows:
            raise InputError(f"row {row}: the store has rows 0 to {self.rows - 1}")
        shard, position = divmod(row, self.manifest.shard_rows)
        content, index = self._shard(spec.name, shard)
        offset, size = (int(value) for value in index[position])
        if offset == MISSING:
            why = self.manifest.shards[shard].invalid.get(row, "no reason recorded")
            raise InputError(f"row {row}: has no features ({why})")
        if size != spec.chunk_bytes + CRC_BYTES or offset + size > len(content):
            raise self._damaged(spec.name, shard, f"the index points outside the shard at row {row}")
        chunk = content[offset : offset + spec.chunk_bytes]
        if verify:
            stored = int.from_bytes(content[offset + spec.chunk_bytes : offset + size].tobytes(), "little")
            if google_crc32c.value(chunk.tobytes()) != stored:
                raise self._damaged(spec.name, shard, f"row {row} does not match its checksum")
        return chunk.view("<f2").reshape(spec.locations, spec.channels)

    def _shard(self, layer: str, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """The shard's bytes, and its index as uint64 [rows of a shard, (offset, length)]."""
        key = (layer, shard)
        if key not in self._maps:
            path = shard_file(self.folder, layer, shard)
            with path.open("rb") as file:
                content = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
            size = self.manifest.shard_rows * INDEX_ENTRY_BYTES
            index = content[-size - CRC_BYTES : -CRC_BYTES].tobytes()
            if google_crc32c.value(index) != int.from_bytes(content[-CRC_BYTES:].tobytes(), "little"):
                raise self._damaged(layer, shard, "its index does not match its checksum")
            self._maps[key] = content, np.frombuffer(index, dtype="<u8").reshape(-1, 2)
        return self._maps[key]

    def _damaged(self, layer: str, shard: int, what: str) -> InputError:
        path = shard_file(self.folder, layer, shard)
        return InputError(f"{path}: {what}; remove the file and run `devil-pipe extract` again")
