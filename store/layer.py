"""One layer of an opened store: where its rows lie, and how they are read."""

from __future__ import annotations

import math
import operator
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float16, Integer, UInt8

from devil_pipe.store import layout
from devil_pipe.store.errors import InputError
from devil_pipe.store.place import Place, Span
from devil_pipe.store.schema import ArraySpec, Identity, LayerSpec, Manifest, ShardRecord

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

    exemplars: UInt8[np.ndarray, "batch 1 1"] | None = None
    """Of units: how many exemplars each mean was taken over; 0: this layer says nothing of the unit."""

    def arrays(self) -> list[np.ndarray]:
        """What was read, array by array in the order of `LayerSpec.arrays`."""
        return [item for item in (self.values, self.bounds, self.exemplars) if item is not None]

    def maps(self) -> np.ndarray:
        """float16 [batch, places, channels]: the values, or what the quantised values stand for."""
        if self.bounds is None:
            return self.values
        low, high = self.bounds[:, :1].astype(np.float32), self.bounds[:, 1:].astype(np.float32)
        decoded: np.ndarray = (low + self.values * ((high - low) / 255)).astype(np.float16)
        return decoded


@runtime_checkable  # for checks of types while tests run
class Opened(Protocol):
    """What a layer needs of the opened store that it belongs to."""

    place: Place
    manifest: Manifest
    identity: Identity
    bad_rows: list[list[int]]

    @property
    def rows(self) -> int:
        """N."""

    def file(self, array: str, shard: ShardRecord | int) -> str:
        """Name of a shard's file."""

    def row(self, key: str) -> int:
        """The row of a picture's key."""


class StoredLayer:
    """One layer of an opened store: `layer[rows]` are its feature maps."""

    def __init__(self, store: Opened, spec: LayerSpec) -> None:
        self.store, self.spec = store, spec
        self.encoding = store.identity.stored_as
        self.arrays = spec.arrays(self.encoding)
        self.grid = spec.grid(self.encoding)
        """Height and width of the stored map; None: partitions and units, which have no locations."""

        self._indices: dict[tuple[str, int], np.ndarray] = {}

    def __getitem__(self, wanted: Wanted) -> np.ndarray:
        """Feature maps, float16: [locations, channels] of one row or key, [batch, locations, channels] of several.

        A single row and a run of neighbours in one shard are read-only views of the file where nothing has to be
        decoded; anything else is copied.

        Raises:
            InputError: a row or key that is not there or has no features, damaged bytes, a partition, or units.
        """
        if self.grid is None:
            raise InputError(f"{self.store.place.show()}: {self._no_locations()}")
        if isinstance(wanted, slice):
            rows = range(*wanted.indices(self.store.rows))
            view = self._run(rows)
            return self.stored(rows).maps() if view is None else view
        if isinstance(wanted, str | int | np.integer):
            row = self.store.row(wanted) if isinstance(wanted, str) else _number(wanted)
            view = self._run(range(row, row + 1))
            one: np.ndarray = (self.stored([row]).maps() if view is None else view)[0]
            return one
        return self.stored([self.store.row(item) if isinstance(item, str) else item for item in wanted]).maps()

    def _no_locations(self) -> str:
        encoding = self.store.identity.encoding
        if self.encoding.reduce == "units":
            return (
                f"holds a mean over each unit's exemplars ({encoding}), which has no locations: it serves training and "
                "scores of units; for maps extract the pictures themselves"
            )
        return (
            f"holds random partitions of each map ({encoding}), which have no locations: it serves training and "
            "scores of whole pictures; for maps extract with encoding float16 or uint8"
        )

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
        values, *more = (self._gather(array, rows, verify) for array in self.arrays)
        if self.encoding.reduce == "units":
            return Stored(values, exemplars=more[0])
        sizes = self.spec.group_sizes(self.encoding.size) if self.encoding.reduce == "partition" else None
        return Stored(values, more[0] if more else None, sizes)

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
        numbers = [_number(item) for item in rows]
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
        shown: Any = self.grid or ("units" if self.encoding.reduce == "units" else f"{self.arrays[0].shape[0]} groups")
        return f"<layer {self.spec.name}: {self.store.rows} rows, {shown}, {self.spec.channels} channels>"


def _number(item: Any) -> int:
    """A row's number. TypeError for a fraction, and for a mask, which Python and older NumPys take as 0 and 1."""
    if isinstance(item, bool | np.bool_):
        raise TypeError("expected the numbers of rows, got a mask; np.flatnonzero(mask) gives its numbers")
    return operator.index(item)


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
