"""A store as one HDF5 file and back, for tools that want one file. Numbers and text alone; a shard in memory at a time.

The file holds a dataset for each array of the store, [N, places, C], a row a chunk, with Fletcher's checksums; `valid`
(uint8 [N]), `key` (text [N], where the store has keys) and `.reason` (text [N]: why a row has no features). The root's
attribute `devil_pipe` is the identity and the rows a shard as JSON. Rows without features read as the fill value.

It is written in the format of HDF5 1.10, whose own records have checksums, and its texts are of fixed length: those of
variable length lie in a heap without checksums, on which HDF5, damaged, never comes to an end.
"""

from __future__ import annotations

import io
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from devil_pipe.store.errors import InputError
from devil_pipe.store.layout import DTYPES
from devil_pipe.store.place import Root, place
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.schema import ArraySpec, Manifest, parse_record
from devil_pipe.store.survey import Header
from devil_pipe.store.writer import MANIFEST, StoreWriter

if TYPE_CHECKING:
    import h5py

HEADER = "devil_pipe"
REASON = ".reason"  # no layer's name begins with a dot
Advance = Callable[[int], None]


def export_hdf5(store: FeatureStore, path: Path, *, force: bool = False, advance: Advance = lambda _: None) -> None:
    """Write a store as one HDF5 file, whole or not at all; every row is checked on the way.

    Args:
        store: an opened store.
        path: the file to be.
        force: take the place of a file that is there.
        advance: told how many rows were written, all layers of them.

    Raises:
        InputError: the file is there, cannot be written, or the store is damaged.
    """
    if path.exists() and not (force and path.is_file()):
        or_force = "" if force else ", or --force"
        raise InputError(f"{path}: is there already; choose another name{or_force}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: expected the folder {path.parent}, found none; make it first")
    header = {"identity": store.identity.fields(), "shard_rows": store.manifest.shard_rows}
    with written(path) as (file, check):
        file.attrs[HEADER] = np.bytes_(json.dumps(header, sort_keys=True).encode())
        _write_rows(file, store)
        datasets = {array.name: _create(file, store, array) for array in store.identity.arrays}
        for shard in store.manifest.shards:
            good = [row for row in range(shard.start, shard.stop) if row not in shard.invalid]
            for layer in store.layers if good else ():
                found = store[layer.name].stored(good, verify=True)
                for array, values in zip(layer.arrays(store.identity.stored_as), found.arrays(), strict=True):
                    _write_runs(datasets[array.name], good, values)
            check()
            advance(shard.stop - shard.start)


def import_hdf5(path: Path, root: Root, *, force: bool = False, advance: Advance = lambda _: None) -> Manifest:
    """Write the store that was exported to `path` again, byte for byte, under `root`; a stopped import goes on.

    Args:
        path: a file of `export_hdf5`.
        root: folder or URL of the store to be.
        force: also where a finished store lies there: its manifest is replaced, its files of other identities stay.
        advance: told how many rows were written.

    Raises:
        InputError: no such file, not one of `export_hdf5`, damaged, or a finished store lies in `root`.
    """
    import h5py

    if not path.is_file():
        raise InputError(f"{path}: expected an HDF5 file of `devil-pipe store export`, found no file")
    lies = place(root)
    if not force and lies.sizes([MANIFEST]) != [None]:
        raise InputError(f"{lies.show(MANIFEST)}: a store is there already; choose another place, or --force")
    try:
        with h5py.File(path, "r", locking=False) as file:
            header = _header(file, path)
            arrays = {array.name: _array(file, array, header, path) for array in header.identity.arrays}
            valid, reasons = _validity(file, header, path)
            keys = _texts(file, "key", header, path) if "key" in file else None
            writer = StoreWriter(root, header.identity, header.shard_rows)
            for shard in writer.missing_shards():
                rows = writer.ranges[shard]
                values = {name: _read(data, rows, path) for name, data in arrays.items()}
                invalid = {row: reasons[row] for row in rows if not valid[row]}
                try:
                    writer.write_shard(shard, values, invalid)
                except InputError as error:
                    raise InputError(f"{path}: {error}") from error
                advance(len(rows))
            return writer.finalise(keys)
    except InputError:
        raise
    except (RuntimeError, LookupError, ValueError, TypeError, ArithmeticError) as error:  # of HDF5's own wrapper
        raise InputError(f"{path}: cannot be read as HDF5: {error}") from error
    except OSError as error:
        if error.filename is not None:  # a file of the store, which is no fault of the HDF5 file
            raise
        raise InputError(f"{path}: expected an HDF5 file of `devil-pipe store export`: {error}") from error


class _Sink(io.FileIO):
    """A file whose writes never fail before `check`: HDF5 crashes on a full disk, here or when it closes the file.

    What could not be written is kept in memory, for HDF5 reads it again.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "x+")
        self.error: OSError | None = None
        self.kept: list[tuple[int, bytes]] = []

    def write(self, content: Any) -> int:
        rest = memoryview(content).cast("B")
        size = len(rest)
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        if rest:
            self.kept.append((self.tell(), bytes(rest)))
            self.seek(len(rest), os.SEEK_CUR)
        return size

    def readinto(self, buffer: Any) -> int:
        into, start = memoryview(buffer).cast("B"), self.tell()
        found = super().readinto(into) or 0
        for place_of, content in self.kept:
            begin, end = max(start, place_of), min(start + len(into), place_of + len(content))
            if begin < end:
                into[begin - start : end - start] = content[begin - place_of : end - place_of]
                found = max(found, end - start)
        return found

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        """Raise the error of an earlier write."""
        if self.error is not None:
            raise self.error


@contextmanager
def written(path: Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """An HDF5 file under a temporary name, which is `path` once it is whole, and what raises if a write failed.

    Raises:
        InputError: it cannot be written; nothing is left.
    """
    import h5py

    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with _Sink(partial) as sink:
            with h5py.File(sink, "w", libver=("v110", "v110")) as file:
                yield file, sink.check
            sink.check()
            os.fsync(sink.fileno())
        partial.replace(path)
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(partial):
            raise  # a file of the store
        raise InputError(f"{path}: cannot be written: {error.strerror or error}; nothing was left there") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _create(file: h5py.File, store: FeatureStore, array: ArraySpec) -> h5py.Dataset:
    # Gzip is slow, but no other codec is in every HDF5; a store that was not compressed stays so.
    packed: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    data = file.create_dataset(
        array.name,
        shape=(store.rows, *array.shape),
        dtype=DTYPES[array.dtype],
        chunks=(1, *array.shape),
        fillvalue=np.nan if array.dtype == "float16" else 0,
        fletcher32=True,
        **(packed if store.identity.stored_as.compressed else {}),
    )
    data.attrs["dimensions"] = list(array.dimensions)
    for name, value in array.attributes.items():
        data.attrs[name] = value
    return data


def _write_runs(data: h5py.Dataset, rows: Sequence[int], values: np.ndarray) -> None:
    """Write rows in runs of neighbours: HDF5 takes a list of rows one by one, and slowly."""
    edges = [0, *(place for place in range(1, len(rows)) if rows[place] != rows[place - 1] + 1), len(rows)]
    for begin, end in pairwise(edges):
        data[rows[begin] : rows[begin] + end - begin] = values[begin:end]


def _write_rows(file: h5py.File, store: FeatureStore) -> None:
    file.create_dataset("valid", data=store.valid().astype(np.uint8), chunks=(store.rows,), fletcher32=True)
    texts = {REASON: [store.manifest.invalid.get(row, "") for row in range(store.rows)]}
    if "key" in store.manifest.rows:
        texts["key"] = store.keys
    for name, values in texts.items():
        try:
            write_texts(file, name, values)
        except ValueError as error:
            raise InputError(f"{store.place.show()}: {name}: HDF5 cannot hold a text of it: {error}") from error


def write_texts(file: h5py.File, name: str, values: Sequence[str] | Sequence[Sequence[str]]) -> None:
    """A dataset of texts, as long as the longest, each with a checksum. Raises ValueError for one with a NUL."""
    import h5py

    found = np.array(values, dtype=object)
    coded = [text.encode() for text in found.flat]
    if any(b"\0" in text for text in coded):
        raise ValueError("a NUL, with which HDF5's texts end")
    kind = h5py.string_dtype("utf-8", max(1, *map(len, coded)))
    data = np.array(coded, dtype=kind).reshape(found.shape)
    chunks = (min(len(data), 4096), *data.shape[1:])
    file.create_dataset(name, data=data, chunks=chunks, compression="gzip", compression_opts=1, fletcher32=True)


def _header(file: h5py.File, path: Path) -> Header:
    """The identity and the rows a shard. Nothing but text is looked at."""
    if HEADER not in file.attrs:
        raise InputError(f"{path}: expected a file of `devil-pipe store export`: it has no attribute {HEADER}")
    text = file.attrs[HEADER]
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    if not isinstance(text, str):
        raise InputError(f"{path}: expected text in the attribute {HEADER}, found {type(text).__name__}")
    header = parse_record(Header, text.encode("utf-8", "replace"), f"{path}, attribute {HEADER}")
    if header.identity.schema_version == "1.0":
        raise InputError(f"{path}: holds a store of schema 1.0, which is read and no longer written")
    return header


def _dataset(file: h5py.File, name: str, shape: tuple[int, ...], path: Path) -> h5py.Dataset:
    """A dataset of the file itself: a link, or values that lie in another file, could be any file of this machine."""
    import h5py

    if name not in file:
        raise InputError(f"{path}: expected a dataset {name!r}, found none")
    link = file.get(name, getlink=True)
    data = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
        raise InputError(f"{path}: expected {name!r} as a dataset of the file itself")
    if data.shape != shape:
        raise InputError(f"{path}: {name!r}: expected the shape {shape}, found {data.shape}")
    return data


def _array(file: h5py.File, array: ArraySpec, header: Header, path: Path) -> h5py.Dataset:
    data = _dataset(file, array.name, (header.identity.rows, *array.shape), path)
    if data.dtype != DTYPES[array.dtype]:
        raise InputError(f"{path}: {array.name!r}: expected {array.dtype}, found {data.dtype}")
    return data


def _read(data: h5py.Dataset, rows: range, path: Path) -> np.ndarray:
    try:
        values: np.ndarray = data[rows.start : rows.stop]
    except (OSError, RuntimeError) as error:
        name = data.name.removeprefix("/")
        what = f"{name!r}, rows {rows.start} to {rows.stop - 1}, cannot be read: {error}"
        raise InputError(f"{path}: damaged: {what}; export it again, or take a copy") from error
    return values


def _texts(file: h5py.File, name: str, header: Header, path: Path) -> list[str]:
    import h5py

    data = _dataset(file, name, (header.identity.rows,), path)
    if h5py.check_string_dtype(data.dtype) is None:
        raise InputError(f"{path}: {name!r}: expected text, found {data.dtype}")
    try:
        return [item.decode() for item in _read(data, range(header.identity.rows), path)]
    except (UnicodeDecodeError, AttributeError) as error:  # the latter of what is no text after all
        raise InputError(f"{path}: {name!r}: expected UTF-8: {error}") from error


def _validity(file: h5py.File, header: Header, path: Path) -> tuple[np.ndarray, list[str]]:
    """Which rows have features (bool [N]), and why the others have none."""
    data = _dataset(file, "valid", (header.identity.rows,), path)
    if data.dtype != np.uint8:
        raise InputError(f"{path}: 'valid': expected uint8, found {data.dtype}")
    values = _read(data, range(header.identity.rows), path)
    if (values > 1).any():
        raise InputError(f"{path}: 'valid': expected 0 or 1, found {int(values.max())}")
    return values.astype(bool), _texts(file, REASON, header, path)
