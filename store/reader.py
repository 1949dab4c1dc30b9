"""Reading a store: `FeatureStore(path)["layer"][rows]`, rows in any order.

On a local disk rows are read through memory maps: seventeen to twenty-eight times as many random rows a second as
through zarr-python (benchmarks/reading.py). The files are plain Zarr v3 all the same, and `zarr.open` reads them
identically.
"""

from __future__ import annotations

import math
import operator
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float16, Integer

from devil_pipe.store import layout
from devil_pipe.store.errors import InputError
from devil_pipe.store.place import Place, Root, Span, place
from devil_pipe.store.schema import ArraySpec, Identity, LayerSpec, Manifest, ShardRecord, parse_record
from devil_pipe.store.writer import MANIFEST

if TYPE_CHECKING:
    import torch

Row = int | np.integer[Any]
Rows = Sequence[Row] | Integer[np.ndarray, " batch"]
Wanted = Row | slice | str | Rows | Sequence[Row | str]
MISMATCH = "does not match its checksum"


@dataclass(frozen=True)
class Stored:
    """Rows of one layer as they lie on disk: full maps, quantised maps, or means of groups of locations."""

    values: np.ndarray
    """float16 or uint8 [batch, places, channels]."""

    bounds: Float16[np.ndarray, "batch 2 channels"] | None = None
    """Of uint8 values: what 0 and what 255 stand for, in each picture and channel."""

    group_sizes: tuple[int, ...] | None = None
    """Of a partition: how many locations each group's mean was taken over."""

    def maps(self) -> np.ndarray:
        """float16 [batch, places, channels]: the values, or what the quantised values stand for."""
        if self.bounds is None:
            return self.values
        low, high = self.bounds[:, :1].astype(np.float32), self.bounds[:, 1:].astype(np.float32)
        decoded: np.ndarray = (low + self.values * ((high - low) / 255)).astype(np.float16)
        return decoded


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
        self.manifest = parse_record(Manifest, content, source)
        self.identity = self.manifest.identity
        if identity is not None and identity != self.identity:
            lines = "; ".join(identity.differences(self.identity))
            raise InputError(f"{source}: the store is not the one expected (expected against found): {lines}")
        self._check_files()
        self.bad_rows = [sorted(shard.invalid) for shard in self.manifest.shards]
        """The rows without features, by shard."""

        self._layers = {layer.name: StoredLayer(self, layer) for layer in self.layers}

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureStore, (self.root, self.identity)

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
        return layout.decode_keys(self.place.read([name])[0], self.place.show(name))

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}

    def row(self, key: str) -> int:
        """The row of a picture's key. Raises InputError."""
        if key not in self._row_of:
            raise InputError(f"{self.place.show()}: no row has the key {key!r}; the first is {self.keys[0]!r}")
        return self._row_of[key]


class StoredLayer:
    """One layer of an opened store: `layer[rows]` are its feature maps."""

    def __init__(self, store: FeatureStore, spec: LayerSpec) -> None:
        self.store, self.spec = store, spec
        self.encoding = store.identity.stored_as
        self.arrays = spec.arrays(self.encoding)
        self.grid = spec.grid(self.encoding)
        """Height and width of the stored map; None: a partition, which has no locations."""

        self._indices: dict[tuple[str, int], np.ndarray] = {}

    def __getitem__(self, wanted: Wanted) -> np.ndarray:
        """Feature maps, float16: [locations, channels] of one row or key, [batch, locations, channels] of several.

        A single row and a run of neighbours in one shard are read-only views of the file where nothing has to be
        decoded; anything else is copied.

        Raises:
            InputError: a row or key that is not there or has no features, damaged bytes, or a partition.
        """
        if self.grid is None:
            raise InputError(
                f"{self.store.place.show()}: holds random partitions of each map ({self.store.identity.encoding}), "
                "which have no locations: it serves training and scores of whole pictures; "
                "for maps extract with encoding float16 or uint8"
            )
        if isinstance(wanted, slice):
            rows = range(*wanted.indices(self.store.rows))
            view = self._run(rows)
            return self.stored(rows).maps() if view is None else view
        if isinstance(wanted, str | int | np.integer):
            row = self.store.row(wanted) if isinstance(wanted, str) else operator.index(wanted)
            view = self._run(range(row, row + 1))
            one: np.ndarray = (self.stored([row]).maps() if view is None else view)[0]
            return one
        return self.stored([self.store.row(item) if isinstance(item, str) else item for item in wanted]).maps()

    def on_grid(self, rows: Rows) -> np.ndarray:
        """Feature maps with their grid, float16 [batch, height, width, channels]; InputError as `layer[rows]`."""
        found = self[rows]
        assert self.grid is not None
        return found.reshape(len(found), *self.grid, self.spec.channels)

    def torch(self, wanted: Wanted) -> torch.Tensor:
        """The same as a tensor of its own memory, which may be written to."""
        import torch

        found = self[wanted]
        return torch.from_numpy(found if found.flags.writeable else found.copy())

    def stored(self, rows: Rows, *, verify: bool = False) -> Stored:
        """Rows as they lie on disk, in the order asked for, copied.

        Args:
            rows: row numbers, any order, repeats allowed.
            verify: compare each chunk with its checksum.

        Raises:
            InputError: a row out of range or without features, or changed bytes (without `verify` only where they
                cannot be decoded).
        """
        values = self._gather(self.arrays[0], rows, verify)
        bounds = self._gather(self.arrays[1], rows, verify) if len(self.arrays) > 1 else None
        sizes = self.spec.group_sizes(self.encoding.size) if self.grid is None else None
        return Stored(values, bounds, sizes)

    def prefetch(self, rows: Rows) -> None:
        """See `FeatureStore.prefetch`."""
        for array in self.arrays:
            self.store.place.prefetch(self._spans(array, rows))

    def _gather(self, array: ArraySpec, rows: Rows, verify: bool) -> np.ndarray:
        out = np.empty((len(rows), *array.shape), dtype=layout.DTYPES[array.dtype])
        spans = self._spans(array, rows)
        chunks = self._chunks(spans)
        for row, span, chunk in zip(rows, spans, chunks, strict=True):
            if len(chunk) != span.stop - span.start:
                raise self._damaged(span.name, f"ends before row {int(row)} does")
        wrong = self._decode(array, chunks, out, verify) if self.encoding.compressed else _copy(chunks, out, verify)
        for position, why in wrong:
            raise self._damaged(spans[position].name, f"row {int(rows[position])} {why}")
        return out

    def _decode(
        self, array: ArraySpec, chunks: Sequence[np.ndarray], out: np.ndarray, verify: bool
    ) -> Iterator[tuple[int, str]]:
        """Decode chunks into the rows of `out`; yields where and why that fails."""
        for position, chunk in enumerate(chunks):
            if verify and not layout.chunk_matches(chunk):
                yield position, MISMATCH
            try:
                out[position] = layout.decode_chunk(array, self.encoding, chunk)
            except ValueError as error:
                yield position, f"cannot be read: {error}"

    def _chunks(self, spans: Sequence[Span]) -> list[np.ndarray]:
        """The bytes of each span: views of the local files, or one request for all of them."""
        if not self.store.place.local:
            return self._bytes(spans)
        files = {name: self._bytes([Span(name, 0, sys.maxsize)])[0] for name in {span.name for span in spans}}
        return [files[name][start:stop] for name, start, stop in spans]

    def _spans(self, array: ArraySpec, rows: Rows) -> list[Span]:
        """Where the chunks of the rows lie, checksum included."""
        numbers = [operator.index(item) for item in rows]  # which refuses 1.5 and a mask, where int() takes both
        located = [self._locate(row) for row in numbers]
        spans = []
        names = {number: self.store.file(array.name, number) for number in {shard.shard for shard, _ in located}}
        size = array.chunk_bytes + layout.CRC_BYTES
        if self.encoding.compressed:
            self._read_indices(array.name, [shard for shard, _ in located])
        for row, (shard, position) in zip(numbers, located, strict=True):
            if self.encoding.compressed:
                offset, size = (int(value) for value in self._indices[array.name, shard.shard][position])
            else:  # chunks of one size in the order of rows (SPEC.md, 2): the place follows without the index
                offset = size * (position - bisect_left(self.store.bad_rows[shard.shard], row))
            spans.append(Span(names[shard.shard], offset, offset + size))
        return spans

    def _bytes(self, spans: Sequence[Span]) -> list[np.ndarray]:
        try:
            return self.store.place.spans(spans)
        except FileNotFoundError as error:
            raise self._damaged(spans[0].name if len(spans) == 1 else "", f"a file is gone ({error})") from error

    def _locate(self, row: int) -> tuple[ShardRecord, int]:
        if not 0 <= row < self.store.rows:
            raise InputError(f"row {row}: the store has rows 0 to {self.store.rows - 1}")
        number, position = divmod(row, self.store.manifest.shard_rows)
        shard = self.store.manifest.shards[number]
        if row in shard.invalid:
            raise InputError(f"row {row}: has no features ({shard.invalid[row]})")
        return shard, position

    def _read_indices(self, array: str, shards: Iterable[ShardRecord]) -> None:
        """Read the indices of these shards that have not been read yet, all at once, and keep them."""
        unread = list({shard.shard: shard for shard in shards if (array, shard.shard) not in self._indices}.values())
        length = layout.index_bytes(self.store.manifest.shard_rows)
        ends = [(self.store.file(array, shard), shard.files[array].size) for shard in unread]
        tables = self._bytes([Span(name, size - length, size) for name, size in ends])
        for shard, (name, _), table in zip(unread, ends, tables, strict=True):
            try:
                self._indices[array, shard.shard] = layout.read_index(table, name)
            except InputError as error:
                raise self._damaged(name, "its index does not match its checksum") from error

    def _run(self, rows: range) -> np.ndarray | None:
        """Neighbouring rows of one shard as a view of the file; None where they have to be copied or decoded."""
        plain = not self.encoding.compressed and len(self.arrays) == 1 and self.store.place.local
        if not plain or not rows or rows.step != 1 or rows[0] < 0:
            return None
        spans = self._spans(self.arrays[0], rows)
        if spans[0].name != spans[-1].name:
            return None
        array = self.arrays[0]
        content = self._bytes([Span(spans[0].name, spans[0].start, spans[-1].stop)])[0]
        stride = array.chunk_bytes + layout.CRC_BYTES
        if len(content) != stride * len(rows):
            raise self._damaged(spans[0].name, f"ends before row {rows[-1]} does")
        dtype = layout.DTYPES[array.dtype]
        strides = (stride, array.shape[1] * dtype.itemsize, dtype.itemsize)
        return np.ndarray((len(rows), *array.shape), dtype, content.data, strides=strides)

    def _damaged(self, name: str, what: str) -> InputError:
        store = self.store.place.show()
        return InputError(
            f"{self.store.place.show(name)}: {what}; `devil-pipe store verify {store} --discard` "
            "takes damaged shards away, and `devil-pipe extract` then writes them again"
        )

    def __repr__(self) -> str:
        shown: Any = self.grid or f"{self.arrays[0].shape[0]} groups"
        return f"<layer {self.spec.name}: {self.store.rows} rows, {shown}, {self.spec.channels} channels>"


def _copy(chunks: Sequence[np.ndarray], out: np.ndarray, verify: bool) -> Iterator[tuple[int, str]]:
    """Copy uncompressed chunks into the rows of `out`; yields those that do not match their checksums."""
    # Every slice is taken before: between copies, which sweep the processor's caches, each step costs many times more.
    copies = list(out.reshape(len(out), math.prod(out.shape[1:])).view(np.uint8))
    contents = [chunk[: -layout.CRC_BYTES] for chunk in chunks]
    for position, (copy, content) in enumerate(zip(copies, contents, strict=True)):
        copy[:] = content
        # The copy is compared: it is in the processor's cache, and it is what the caller gets.
        if verify and not layout.matches(copy, chunks[position][-layout.CRC_BYTES :]):
            yield position, MISMATCH
