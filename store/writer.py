"""Writing a store: whole shards, each committed at once.

A shard's files are put in place whole; its marker comes last. A shard without a marker does not exist for a reader,
so a crash at any moment costs at most that shard. Layout and reasons: `SPEC.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256

import numpy as np

from devil_pipe.store import layout
from devil_pipe.store.errors import InputError
from devil_pipe.store.place import Root, place
from devil_pipe.store.schema import (
    FileRecord,
    Identity,
    Manifest,
    ShardRecord,
    json_bytes,
    parse_record,
    shard_ranges,
)

MANIFEST = "manifest.json"


class StoreWriter:
    """Writes the shards of one store; many writers may share a store if no shard has two of them."""

    def __init__(self, root: Root, identity: Identity, shard_rows: int | None = None) -> None:
        """Create the store under `root`, or go on with the one of the same identity that lies there.

        Args:
            root: folder or URL of the manifest.
            identity: what the features are.
            shard_rows: rows a shard; None takes what suits the encoding.

        Raises:
            InputError: a store of this identity lies there with another number of rows a shard.
        """
        self.shard_rows = shard_rows if shard_rows is not None else identity.stored_as.shard_rows
        if self.shard_rows < 1:
            raise InputError(f"shard_rows: expected at least 1, got {self.shard_rows}")
        if identity.schema_version == "1.0":
            raise InputError("expected an identity of schema 1.1 or later, got 1.0, which is only read")
        self.place, self.identity = place(root), identity
        self.folder = layout.folder_of(identity)
        self.ranges = shard_ranges(identity.rows, self.shard_rows)
        self._create()

    def _create(self) -> None:
        group = f"{self.folder}/zarr.json"
        wanted = {
            f"{self.folder}/{array.name}/zarr.json": json_bytes(
                layout.array_metadata(array, self.identity.stored_as, self.identity.rows, self.shard_rows)
            )
            for array in self.identity.arrays
        }
        wanted[group] = json_bytes(layout.group_metadata(self.identity, self.shard_rows))
        there = [name for name, size in zip(wanted, self.place.sizes(list(wanted)), strict=True) if size is not None]
        found = dict(zip(there, self.place.read(there), strict=True))
        if group in found and (rows := _shard_rows(found[group], self.place.show(group))) != self.shard_rows:
            raise InputError(
                f"{self.place.show(group)}: expected {self.shard_rows} rows a shard, found {rows}; "
                "keep that number, or remove the folder to start again"
            )
        for name, content in wanted.items():
            if found.get(name) != content:
                self.place.commit(name, content)

    def marker(self, shard: int) -> str:
        """Name of the file that says a shard is committed."""
        return layout.marker_name(self.folder, shard)

    def file(self, array: str, shard: int) -> str:
        """Name of a shard's file of one array."""
        return layout.shard_name(self.folder, array, shard, self.identity.schema_version)

    def missing_shards(self) -> list[int]:
        """Numbers of the shards that are not committed, or whose files are gone or of another size."""
        whole = self._whole()
        return [shard for shard in range(len(self.ranges)) if shard not in whole]

    def _whole(self) -> dict[int, ShardRecord]:
        """The markers, in order, whose files are there in the size that they name."""
        records = self._records()
        wanted = {
            self.file(array, shard): file.size
            for shard, record in records.items()
            for array, file in record.files.items()
        }
        found = dict(zip(wanted, self.place.sizes(list(wanted)), strict=True))
        return {
            shard: record
            for shard, record in records.items()
            if all(found[self.file(array, shard)] == file.size for array, file in record.files.items())
        }

    def is_committed(self, shard: int) -> bool:
        """Whether a shard has its marker: another writer may have been quicker."""
        try:
            self.place.read([self.marker(shard)])  # a size would list all markers where the place is remote
        except FileNotFoundError:
            return False
        return True

    def forget_damaged(self) -> None:
        """Take away the markers that cannot be believed, or whose files are gone or of another size.

        From then on a marker again says: nothing to do.
        """
        marked = self._marked()  # first: what another writer commits meanwhile is not damaged
        for shard in set(marked) - self._whole().keys():
            self.place.remove(self.marker(shard))

    def _marked(self) -> list[int]:
        """The shards that have a marker, in order."""
        markers = [self.marker(shard) for shard in range(len(self.ranges))]
        return [shard for shard, size in enumerate(self.place.sizes(markers)) if size is not None]

    def _records(self) -> dict[int, ShardRecord]:
        """The markers that are there and can be true of their shards, in order: the others commit nothing."""
        there = self._marked()
        contents = self.place.read([self.marker(shard) for shard in there])
        found = {shard: self._believed(shard, content) for shard, content in zip(there, contents, strict=True)}
        return {shard: record for shard, record in found.items() if record is not None}

    def _believed(self, shard: int, content: bytes) -> ShardRecord | None:
        """What a marker says; None where it is damaged or another shard's."""
        try:
            record = parse_record(ShardRecord, content, self.place.show(self.marker(shard)))
        except InputError:
            return None
        rows, arrays = self.ranges[shard], {array.name for array in self.identity.arrays}
        own = (record.shard, record.start, record.stop) == (shard, rows.start, rows.stop)
        return record if own and set(record.files) == arrays and all(row in rows for row in record.invalid) else None

    def write_shard(self, shard: int, arrays: Mapping[str, np.ndarray], invalid: Mapping[int, str]) -> ShardRecord:
        """Write and commit one shard of every array.

        Args:
            shard: its number.
            arrays: name → [rows of the shard, places, C] of the array's type; invalid rows are not written.
            invalid: row of the store → why it has no features.

        Raises:
            InputError: a map is NaN or infinite; the message names layer and row.
            OSError: the disk is full or failing; the shard is not committed.
        """
        rows = self.ranges[shard]
        assert set(arrays) == {array.name for array in self.identity.arrays}, "every array of the shard at once"
        assert all(row in rows for row in invalid), "invalid rows of this shard alone"
        self.place.remove(self.marker(shard))
        files: dict[str, FileRecord] = {}
        for array in self.identity.arrays:
            content = layout.encode_shard(
                array, self.identity.stored_as, arrays[array.name], rows, self.shard_rows, invalid
            )
            self.place.commit(self.file(array.name, shard), content)
            files[array.name] = FileRecord(size=len(content), sha256=sha256(content).hexdigest())
        record = ShardRecord(shard=shard, start=rows.start, stop=rows.stop, invalid=dict(invalid), files=files)
        self.place.commit(self.marker(shard), json_bytes(record.model_dump(mode="json")))
        return record

    def finalise(self, keys: Sequence[str] | None = None) -> Manifest:
        """Write the manifest once every shard is committed, and the arrays `valid` and `key`.

        Args:
            keys: the pictures' keys by row; without them rows are found by number alone.

        Raises:
            InputError: shards are missing; the message names them.
        """
        whole = self._whole()
        if missing := [shard for shard in range(len(self.ranges)) if shard not in whole]:
            shown = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
            raise InputError(
                f"{self.place.show(self.folder)}: {len(missing)} of {len(self.ranges)} shards "
                f"are not committed ({shown}); `devil-pipe extract` makes them"
            )
        records = tuple(whole.values())
        manifest = Manifest(
            identity=self.identity,
            shard_rows=self.shard_rows,
            folder=self.folder,
            shards=records,
            rows=self._write_rows(records, keys),
        )
        self.place.commit(MANIFEST, json_bytes(manifest.content()))
        self.place.tidy([self.folder, f"commits/{self.folder}"])
        return manifest

    def _write_rows(self, records: Sequence[ShardRecord], keys: Sequence[str] | None) -> dict[str, FileRecord]:
        """The arrays that say of each row whether it has features, and its picture's key."""
        assert keys is None or len(keys) == self.identity.rows, "a key for every row"
        valid = np.ones(self.identity.rows, dtype=bool)
        valid[[row for record in records for row in record.invalid]] = False
        contents = {"valid": layout.encode_valid(valid)}
        if keys is not None:
            contents["key"] = layout.encode_keys(keys)
        files = {}
        for name, content in contents.items():
            metadata = layout.row_array_metadata(self.identity.rows, name)
            self.place.commit(f"{self.folder}/{name}/zarr.json", json_bytes(metadata))
            self.place.commit(f"{self.folder}/{name}/c.0", content)
            files[name] = FileRecord(size=len(content), sha256=sha256(content).hexdigest())
        return files


def _shard_rows(content: bytes, source: str) -> int:
    """Rows a shard of the store whose group metadata this is."""
    try:
        return int(json.loads(content)["attributes"]["devil_pipe"]["shard_rows"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{source}: expected a store's metadata ({error}); remove the file and extract again"
        ) from error
