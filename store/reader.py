"""Reading a store: `FeatureStore(path)["layer"][rows]`, rows in any order.

On a local disk rows are read through memory maps: seventeen to twenty-eight times as many random rows a second as
through zarr-python (benchmarks/reading.py). The files are plain Zarr v3 all the same, and `zarr.open` reads them
identically.
"""

from __future__ import annotations

from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from devil_pipe.store import layout
from devil_pipe.store.errors import InputError
from devil_pipe.store.layer import Rows, StoredLayer
from devil_pipe.store.place import Place, Root, place
from devil_pipe.store.schema import Identity, LayerSpec, Manifest, ShardRecord, parse_record
from devil_pipe.store.writer import MANIFEST

_MANIFEST_AGAIN = "it was damaged: remove it, and `devil-pipe extract` writes it again from the shards' markers"


class FeatureStore:
    """An opened store. Safe to use from several threads and to hand to other processes."""

    def __init__(self, root: Root, identity: Identity | None = None) -> None:
        """Open the store whose `manifest.json` lies in `root`; every file's size is checked.

        Args:
            root: folder or URL (`s3://…`) of the manifest.
            identity: what the reader expects; None takes what is there.

        Raises:
            InputError: no manifest (not extracted, or unfinished), another identity (both sides named),
                a shard's file missing or of another size.
        """
        self.root = root
        self.place: Place = place(root)
        source = self.place.show(MANIFEST)
        try:
            content = self.place.read([MANIFEST])[0]
        except FileNotFoundError:
            name = str(root).rstrip("/").rpartition("/")[2]
            raise InputError(
                f"{source}: expected a finished store, found none; "
                f"run `devil-pipe extract {name}`, which goes on where it stopped"
            ) from None
        try:
            self.manifest = parse_record(Manifest, content, source)
        except InputError as error:
            raise InputError(f"{error}; if {_MANIFEST_AGAIN}") from None
        self.identity = self.manifest.identity
        if identity is not None and identity != self.identity:
            lines = "; ".join(identity.differences(self.identity))
            raise InputError(f"{source}: the store is not the one expected (expected against found): {lines}")
        self._check_sizes()
        self._check_files()
        self._check_valid()
        self.bad_rows = [sorted(shard.invalid) for shard in self.manifest.shards]
        """The rows without features, by shard."""

        self._layers = {layer.name: StoredLayer(self, layer) for layer in self.layers}

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureStore, (self.root, self.identity)

    def _check_sizes(self) -> None:
        """Whether the manifest's files can hold the manifest's rows: rows are found by it, and it has no checksum."""
        source, compressed = self.place.show(MANIFEST), self.identity.stored_as.compressed
        table = layout.index_bytes(self.manifest.shard_rows)
        for shard in self.manifest.shards:
            good = shard.stop - shard.start - len(shard.invalid)
            for array in self.identity.arrays:
                least = table + good * (layout.CRC_BYTES + (1 if compressed else array.chunk_bytes))
                found = shard.files[array.name].size
                if found < least or (found > least and not compressed):
                    raise InputError(
                        f"{source}: shard {shard.shard} of {array.name}: expected {'at least ' * compressed}{least} "
                        f"bytes for {good} rows, the manifest says {found}; {_MANIFEST_AGAIN}"
                    )
        valid = self.manifest.rows.get("valid")
        if valid is not None and valid.size != self.rows + layout.CRC_BYTES:
            raise InputError(
                f"{source}: valid: expected {self.rows + layout.CRC_BYTES} bytes for {self.rows} rows, "
                f"the manifest says {valid.size}; {_MANIFEST_AGAIN}"
            )

    def _check_valid(self) -> None:
        """Whether the rows without features are those of the array `valid`: one more or less moves all behind it."""
        valid = self.manifest.rows.get("valid")
        if valid is not None and sha256(layout.encode_valid(self.valid())).hexdigest() != valid.sha256:
            raise InputError(
                f"{self.place.show(MANIFEST)}: valid: expected the SHA-256 of the rows that have features by the "
                f"manifest itself, found another; {_MANIFEST_AGAIN}"
            )

    def _check_files(self) -> None:
        wanted = {
            self.file(array, shard): record.size
            for shard in self.manifest.shards
            for array, record in shard.files.items()
        }
        wanted |= {f"{self.manifest.folder}/{name}/c.0": record.size for name, record in self.manifest.rows.items()}
        for (name, expected), found in zip(wanted.items(), self.place.sizes(list(wanted)), strict=True):
            if found != expected:
                what = "no such file" if found is None else f"{found} bytes"
                raise InputError(
                    f"{self.place.show(name)}: expected {expected} bytes, found {what}; "
                    "`devil-pipe extract` writes this shard again"
                )

    def file(self, array: str, shard: ShardRecord | int) -> str:
        """Name of a shard's file of one array, relative to the store's root."""
        number = shard if isinstance(shard, int) else shard.shard
        return layout.shard_name(self.manifest.folder, array, number, self.identity.schema_version)

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

    def __getitem__(self, layer: str) -> StoredLayer:
        """A layer by name. Raises InputError with the names there are."""
        self.identity.layer(layer)
        return self._layers[layer]

    def prefetch(self, rows: Rows) -> None:
        """Tell the system that these rows of every layer will be read next; worth it where the disk is slower."""
        if self.place.local:
            for layer in self._layers.values():
                layer.prefetch(rows)

    @cached_property
    def keys(self) -> list[str]:
        """The pictures' keys by row. Raises InputError where the store was written without them."""
        if "key" not in self.manifest.rows:
            raise InputError(f"{self.place.show()}: holds no keys; take rows by number, or extract again")
        name = f"{self.manifest.folder}/key/c.0"
        keys = layout.decode_keys(self.place.read([name])[0], self.place.show(name))
        if len(keys) != self.rows:
            raise InputError(f"{self.place.show(name)}: expected {self.rows} keys, found {len(keys)}")
        return keys

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}

    def row(self, key: str) -> int:
        """The row of a picture's key. Raises InputError."""
        if key not in self._row_of:
            raise InputError(f"{self.place.show()}: no row has the key {key!r}; the first is {self.keys[0]!r}")
        return self._row_of[key]
