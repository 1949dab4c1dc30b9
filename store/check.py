"""One identity's folder of a store: its metadata, markers, shard files and arrays of rows, held against each other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from devil_pipe.store import layout
from devil_pipe.store.errors import InputError
from devil_pipe.store.examine import Finding, ShardFile, Wrong, examine
from devil_pipe.store.schema import FileRecord, Manifest, ShardRecord
from devil_pipe.store.survey import Header, Markers, Survey, marker_name
from devil_pipe.store.writer import MANIFEST

ROW_ARRAYS = ("valid", "key")
_OF_1_0 = ("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "codecs", "fill_value")


class Check:
    """One identity's folder: what its markers and the manifest say, held against its files."""

    def __init__(self, survey: Survey, header: Header, index: str | None, keys: Sequence[str] | None) -> None:
        self.survey, self.header, self.index, self.keys = survey, header, index, keys
        self.place, self.identity = survey.place, header.identity
        self.manifest: Manifest | None = survey.manifest
        self.old = self.identity.schema_version == "1.0"
        self.arrays = [array.name for array in self.identity.arrays]
        self.found: Markers = survey.markers(header)
        self.records = self._believed()
        self.known: dict[str, list[tuple[str, int]]] = {}
        for shard, record in self.records.items():
            for array, file in record.files.items():
                self.known.setdefault(file.sha256, []).append((array, shard))

    def _believed(self) -> dict[int, ShardRecord]:
        """Each shard's record: its marker's, or the manifest's where the marker cannot be used."""
        listed = {} if self.manifest is None else {record.shard: record for record in self.manifest.shards}
        both = [listed, dict(self.found.records)]
        return {
            shard: record for records in both for shard, record in records.items() if self.fault(shard, record) is None
        }

    def fault(self, shard: int, record: ShardRecord) -> str | None:
        """What a record says that cannot be true of this shard."""
        if shard >= len(self.header.ranges):
            return f"the store has {len(self.header.ranges)} shards"
        rows = self.header.ranges[shard]
        if (record.shard, record.start, record.stop) != (shard, rows.start, rows.stop):
            return (
                f"expected shard {shard}, rows {rows.start} to {rows.stop}, "
                f"found shard {record.shard}, rows {record.start} to {record.stop}"
            )
        if wrong := sorted(set(record.files) ^ set(self.arrays)):
            return f"its arrays are not those of the identity: {_shown(wrong)}"
        if any(row not in rows for row in record.invalid):
            return f"names rows without features beyond {rows.start} to {rows.stop}"
        return None

    def file(self, array: str, shard: int) -> str:
        """Name of a shard's file of one array."""
        return layout.shard_name(self.header.folder, array, shard, self.identity.schema_version)

    def _finding(self, problem: str, name: str, what: str, remove: Iterable[str] = (), **more: Any) -> Finding:
        """A finding, and how to mend it where files have to go."""
        store = self.place.show()
        mend = f"`devil-pipe store verify {store} --discard` takes it away, and `devil-pipe extract` makes it again"
        if self.old:
            remove, mend = (), "schema 1.0 is only read: take the file from a copy, or extract a new store"
        return Finding(problem, self.place.show(name), what, more.pop("mend", mend), remove=tuple(remove), **more)

    def _shard_again(self, shard: int) -> list[str]:
        files = [self.file(array, shard) for array in self.arrays]
        return [MANIFEST, marker_name(self.header, shard), *files]

    def metadata(self) -> Iterator[Finding]:
        """`zarr.json` of the group and of each array, against the identity."""
        header, folder = self.header, self.header.folder
        expected = {f"{folder}/zarr.json": layout.group_metadata(self.identity, header.shard_rows)}
        for array in self.identity.arrays:
            values = layout.array_metadata(array, self.identity.stored_as, self.identity.rows, header.shard_rows)
            expected[f"{folder}/{array.name}/zarr.json"] = values
        for name in self.manifest.rows if self.manifest is not None else ():
            if name in ROW_ARRAYS:
                expected[f"{folder}/{name}/zarr.json"] = layout.row_array_metadata(self.identity.rows, name)
        for name, values in expected.items():
            if what := self._metadata_fault(name, values):
                yield self._finding("metadata", name, what, [name])

    def _metadata_fault(self, name: str, expected: dict[str, Any]) -> str:
        try:
            found = json.loads(self.place.read([name])[0])
        except FileNotFoundError:
            return "no such file"
        except (ValueError, RecursionError) as error:
            return f"expected JSON: {error}"
        if not isinstance(found, dict):
            return f"expected an object, found {type(found).__name__}"
        keys = _OF_1_0 if self.old and expected["node_type"] == "array" else tuple(expected.keys() | found.keys())
        differ = sorted(key for key in keys if found.get(key) != expected.get(key))
        return f"is not what the identity says: {_shown(differ)}" if differ else ""

    def markers(self) -> Iterator[Finding]:
        """Markers that are missing, cannot be read, or say something else than the manifest."""
        listed = {} if self.manifest is None else {record.shard: record for record in self.manifest.shards}
        for shard in range(len(self.header.ranges)):
            name, again = marker_name(self.header, shard), self._shard_again(shard)
            record = self.found.records.get(shard)
            if shard in self.found.troubles:
                yield self._finding("marker", name, f"cannot be read: {self.found.troubles[shard]}", again, shard=shard)
            elif record is None:
                if self.manifest is not None:
                    yield self._finding("marker", name, "no such file", again, shard=shard)
            elif fault := self.fault(shard, record):
                yield self._finding("marker", name, fault, again, shard=shard)
            elif shard in listed and listed[shard] != record:
                yield self._finding("marker", name, "disagrees with the manifest", [MANIFEST], shard=shard)

    def shard_files(self) -> list[tuple[int, ShardFile]]:
        """What each committed shard file should be."""
        arrays, encoding = self.identity.arrays, self.identity.stored_as
        return [
            (
                shard,
                ShardFile(
                    array,
                    encoding,
                    self.header.ranges[shard],
                    self.header.shard_rows,
                    frozenset(record.invalid),
                    record.files[array.name],
                ),
            )
            for shard, record in sorted(self.records.items())
            for array in arrays
        ]

    def look(self, shard: int, expected: ShardFile) -> list[Finding]:
        """What is wrong with one shard file."""
        array = expected.array.name
        name = self.file(array, shard)
        try:
            wrongs = examine(self.place.read([name])[0], expected, self.known)
        except (FileNotFoundError, NotADirectoryError):
            wrongs = [Wrong("missing", f"no such file, expected {expected.record.size} bytes")]
        except OSError as error:  # no sign of damage: nothing is taken away for it
            mend = "see to the disk or to the rights on it"
            what = f"cannot be read: {error.strerror or error}"
            return [self._finding("unreadable", name, what, shard=shard, array=array, mend=mend)]
        again = self._shard_again(shard)
        return [
            self._finding(wrong.problem, name, wrong.what, again, shard=shard, array=array, rows=wrong.rows)
            for wrong in wrongs
        ]

    def row_arrays(self) -> Iterator[Finding]:
        """`valid` and `key`, against the manifest, the markers and the index."""
        if self.manifest is None or self.old:
            return
        for array, record in self.manifest.rows.items():
            if array not in ROW_ARRAYS:
                yield self._finding("manifest", MANIFEST, f"names an unknown array of rows, {array!r}", [MANIFEST])
                continue
            name = f"{self.header.folder}/{array}/c.0"
            if what := self._row_array_fault(name, array, record):
                yield self._finding("rows", name, what, [MANIFEST, name], array=array)
        if "valid" not in self.manifest.rows:
            yield self._finding("manifest", MANIFEST, "names no array `valid`", [MANIFEST])

    def _row_array_fault(self, name: str, array: str, record: FileRecord) -> str:
        try:
            content = self.place.read([name])[0]
        except FileNotFoundError:
            return f"no such file, expected {record.size} bytes"
        if len(content) != record.size:
            return f"expected {record.size} bytes, found {len(content)}"
        if array == "valid" and len(content) != self.identity.rows + layout.CRC_BYTES:
            return f"expected {self.identity.rows + layout.CRC_BYTES} bytes for its rows, found {len(content)}"
        if sha256(content).hexdigest() != record.sha256:
            return "is not what was committed (SHA-256)"
        if array == "key":
            return self._keys_fault(content, self.place.show(name))
        expected = np.ones(self.identity.rows, dtype=bool)
        expected[[row for item in self.records.values() for row in item.invalid]] = False
        return "" if content == layout.encode_valid(expected) else "is not what the markers say"

    def _keys_fault(self, content: bytes, source: str) -> str:
        try:
            keys = layout.decode_keys(content, source)
        except InputError as error:
            return f"cannot be read: {error}"
        if len(keys) != self.identity.rows:
            return f"expected {self.identity.rows} keys, found {len(keys)}"
        if self.keys is None or not self._of_index or keys == list(self.keys):
            return ""
        row = next(row for row, key in enumerate(keys) if key != self.keys[row])
        return f"row {row}: expected key {self.keys[row]!r} of the index, found {keys[row]!r}"

    @property
    def _of_index(self) -> bool:
        rows = len(self.keys) if self.keys is not None else self.identity.rows
        return self.index in (None, self.identity.index) and rows == self.identity.rows

    def against_index(self) -> Iterator[Finding]:
        """Whether row i of the store is row i of the picture index."""
        if self._of_index:
            return
        rows = len(self.keys) if self.keys is not None else None
        what = f"made from another index of pictures: {self.identity.rows} rows, digest {self.identity.index[:12]}"
        theirs = "" if rows is None else f"{rows} rows, "
        what += f"; the index now has {theirs}digest {(self.index or '')[:12]}"
        mend = "`devil-pipe extract` makes the store of the new index beside it; or put the old pictures back"
        yield self._finding("identity", self.header.folder, what, mend=mend)


def _shown(names: Iterable[str]) -> str:
    """Names that a damaged file holds, with nothing in them that a terminal would take for a command."""
    return ", ".join(name if name.isprintable() else repr(name) for name in names)
