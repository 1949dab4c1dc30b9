"""What lies in a store's folder, finished or not: its manifest, the folders of identities, and the shards' markers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from pydantic import Field, model_validator

from devil_pipe.store import layout
from devil_pipe.store.errors import InputError
from devil_pipe.store.place import Place, Root, place
from devil_pipe.store.schema import (
    MOST_SHARDS,
    Identity,
    Manifest,
    Record,
    ShardRecord,
    Version,
    parse_record,
    shard_count,
    shard_ranges,
)
from devil_pipe.store.writer import MANIFEST

_FOLDER = re.compile(r"[0-9a-f]{12}")


class Header(Record):
    """What the metadata of an identity's folder say of it."""

    identity: Identity
    shard_rows: int = Field(ge=1)

    @model_validator(mode="after")
    def _countable(self) -> Header:
        """Each shard's marker is asked for: a damaged number must not ask for more than there can be."""
        if (count := shard_count(self.identity.rows, self.shard_rows)) > MOST_SHARDS:
            raise ValueError(f"shard_rows: expected a store of at most {MOST_SHARDS} shards, got {count}")
        return self

    @cached_property
    def folder(self) -> str:
        """The folder of the arrays."""
        return layout.folder_of(self.identity)

    @cached_property
    def ranges(self) -> list[range]:
        """The rows of each shard."""
        return shard_ranges(self.identity.rows, self.shard_rows)


@dataclass(frozen=True)
class Markers:
    """The shards' markers: those that can be read, and why others cannot."""

    records: Mapping[int, ShardRecord]
    troubles: Mapping[int, str]


def marker_name(header: Header, shard: int) -> str:
    """A shard's marker; schema 1.0 kept it within the folder of the arrays."""
    version: Version = header.identity.schema_version
    return f"{header.folder}/commits/{shard:06d}.json" if version == "1.0" else layout.marker_name(header.folder, shard)


class Survey:
    """A look at a store without opening it: nothing is believed that cannot be read, and nothing raises for damage."""

    def __init__(self, root: Root) -> None:
        """List the files below `root`.

        Raises:
            InputError: there is nothing of a store.
            OSError: the folder cannot be read.
        """
        self.place: Place = place(root)
        self.names = frozenset(self.place.names(""))
        self.manifest, self.trouble = self._manifest()
        parts = [name.split("/") for name in self.names]
        found = {part[0] for part in parts if len(part) > 1} | {part[1] for part in parts if part[0] == "commits"}
        self.folders = sorted(name for name in found if _FOLDER.fullmatch(name))
        if MANIFEST not in self.names and not self.folders:
            raise InputError(f"{self.place.show()}: expected a store ({MANIFEST}, or the folder of one), found none")
        self.headers: dict[str, Header] = {}
        self.troubles: dict[str, str] = {}
        for folder in self.folders:
            try:
                self.headers[folder] = self._header(folder)
            except InputError as error:
                self.troubles[folder] = one_line(error)
        if self.manifest is not None:  # the manifest counts, also where the folder's own metadata are damaged
            header = Header(identity=self.manifest.identity, shard_rows=self.manifest.shard_rows)
            self.headers[header.folder] = header

    def _manifest(self) -> tuple[Manifest | None, str]:
        if self.place.sizes([MANIFEST]) == [None]:
            return None, ""
        try:
            content = self.place.read([MANIFEST])[0]
            manifest = parse_record(Manifest, content, self.place.show(MANIFEST))
            Header(identity=manifest.identity, shard_rows=manifest.shard_rows)
        except ValueError as error:
            return None, one_line(error)
        return manifest, ""

    def _header(self, folder: str) -> Header:
        name = f"{folder}/zarr.json"
        source = self.place.show(name)
        try:
            values = json.loads(self.place.read([name])[0])["attributes"]["devil_pipe"]
            content = json.dumps(values).encode()
        except FileNotFoundError:
            raise InputError(f"{source}: no such file") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{source}: expected a store's metadata ({type(error).__name__}: {error})") from error
        header = parse_record(Header, content, source)
        if header.folder != folder:
            raise InputError(f"{source}: is the metadata of another store's folder, {header.folder}")
        return header

    def current(self, index: str | None = None) -> list[Header]:
        """What counts: the manifest's; without a manifest those of the picture index, or else all that there are."""
        if self.manifest is not None:
            return [self.headers[layout.folder_of(self.manifest.identity)]]
        ours = [header for header in self.headers.values() if header.identity.index == index]
        return ours or list(self.headers.values())

    def markers(self, header: Header) -> Markers:
        """The markers of an identity's shards."""
        names = [marker_name(header, shard) for shard in range(len(header.ranges))]
        there = [shard for shard, size in enumerate(self.place.sizes(names)) if size is not None]
        records, troubles = {}, {}
        for shard, content in zip(there, self.place.read([names[shard] for shard in there]), strict=True):
            try:
                records[shard] = parse_record(ShardRecord, content, self.place.show(names[shard]))
            except InputError as error:
                troubles[shard] = one_line(error)
        return Markers(records, troubles)

    def sizes(self) -> Counter[str]:
        """Bytes on disk of each folder of an identity, its markers with it, and of what lies beside ("")."""
        names = sorted(self.names)
        total: Counter[str] = Counter()
        for name, size in zip(names, self.place.sizes(names), strict=True):
            first, _, rest = name.partition("/")
            folder = rest.partition("/")[0] if first == "commits" else first
            total[folder if folder in self.folders else ""] += size or 0
        return total

    def files_as_recorded(self, header: Header, records: Mapping[int, ShardRecord]) -> bool:
        """Whether every file of these shards has its size: what a reader checks when it opens a store."""
        wanted = {
            layout.shard_name(header.folder, array, shard, header.identity.schema_version): file.size
            for shard, record in records.items()
            for array, file in record.files.items()
        }
        return self.place.sizes(list(wanted)) == list(wanted.values())


def one_line(error: Exception) -> str:
    """An error's text without line breaks, at most 300 signs."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:299] + "…"
