"""One HDF5 file for each set: a unit a row, read one at a time.

`images` uint8 [units, exemplars, 3, height, width] and `masks` uint8 0/1 [units, exemplars, height, width], a unit a
chunk, with Fletcher's checksums; `layer` (text), `unit` (int64) and `annotations` (text, three a unit). The root's
attribute `devil_pipe_units` is JSON: the schema's version, the set's name, and what the file was made from. Masks are
deflated to almost nothing; pictures are not: it would save a quarter of the disk and cost each unit some 12 ms to read,
one thread at a time.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, UInt8

from devil_pipe.stages.prepare.checks import safe_key
from devil_pipe.stages.prepare.milan.annotations import Unit
from devil_pipe.stages.prepare.milan.experiments import file_stem
from devil_pipe.store.errors import InputError
from devil_pipe.store.hdf5 import write_texts, written

if TYPE_CHECKING:
    import h5py

HEADER, VERSION = "devil_pipe_units", 1
ENDING = ".h5"
_OPEN = 16  # files held open in a process; an experiment has seven at most
_AGAIN = "run `devil-pipe prepare` again"
Put = Callable[[int, np.ndarray, np.ndarray], None]


@dataclass(frozen=True)
class Exemplars:
    """A unit's top pictures, and where in them it was most active."""

    images: UInt8[np.ndarray, "exemplars 3 height width"]
    masks: Bool[np.ndarray, "exemplars height width"]


@dataclass(frozen=True)
class UnitsFile:
    """What a set's file says of itself: its units in the order of its rows, and the size of their exemplars."""

    path: Path
    name: str
    units: list[Unit]
    exemplars: int
    height: int
    width: int

    def keys(self) -> list[str]:
        """A key for each row."""
        return [unit_key(self.name, unit.layer, unit.number) for unit in self.units]


def unit_key(name: str, layer: str, number: int) -> str:
    """A unit's key, ARCH-DATASET-LAYER-UNIT."""
    return safe_key(f"{file_stem(name)}-{layer}-{number}", name)


def is_unit(row: Mapping[str, Any]) -> bool:
    """Whether a row of an index is a unit with exemplars, and not a picture."""
    return not row["shard"] and str(row["path"]).endswith(ENDING)


def units_of(index: pa.Table) -> pa.ChunkedArray:
    """Which rows of an index are units, bool [rows]: `is_unit` of all of them."""
    return pc.and_(pc.equal(index["shard"], ""), pc.ends_with(index["path"], ENDING))


def read_unit(row: Mapping[str, Any], root: Path) -> Exemplars:
    """The exemplars of an index's row, from any thread; the file stays open for the process's next row.

    Args:
        row: a row for which `is_unit` holds.
        root: the index's folder, data/NAME.

    Raises:
        InputError: the file is gone, damaged, or another than the one that was indexed.
    """
    path = Path(root / row["path"])
    try:
        opened = _opened(path)
        number = row["offset"]
        if number >= len(opened.keys) or opened.keys[number] != row["key"]:
            raise InputError(f"key {row['key']!r}: expected it in row {number} of {path}, which changed; {_AGAIN}")
        return Exemplars(opened.images[number], opened.masks[number].astype(bool))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # HDF5 and its wrapper raise anything where bytes are damaged
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"key {row['key']!r}: expected its exemplars in {path}: {why}; {_AGAIN}") from None


@contextmanager
def writing_units(
    path: Path, name: str, units: Sequence[Unit], shape: Sequence[int], source: list[Any]
) -> Iterator[Put]:
    """A set's file, whole at `path` on success alone: gives a function of row, images [exemplars, 3, height, width]
    and masks [exemplars, height, width], which is to be called once for each unit, in any order.

    Args:
        path: the file to be.
        name: the set, ARCH/DATASET.
        units: a row each.
        shape: exemplars, height, width.
        source: what the file is made from, as JSON holds it.

    Raises:
        InputError: the file cannot be written.
    """
    exemplars, height, width = shape
    put_rows: set[int] = set()
    with written(path) as (file, check):
        header = json.dumps({"version": VERSION, "set": name, "source": source}, sort_keys=True)
        file.attrs[HEADER] = np.bytes_(header.encode())
        write_texts(file, "layer", [unit.layer for unit in units])
        numbers = np.array([unit.number for unit in units], dtype=np.int64)
        file.create_dataset("unit", data=numbers, chunks=numbers.shape, fletcher32=True)
        write_texts(file, "annotations", [unit.captions for unit in units])
        images = _create(file, "images", (len(units), exemplars, 3, height, width))
        masks = _create(file, "masks", (len(units), exemplars, height, width), compression="gzip", compression_opts=1)

        def put(row: int, pictures: np.ndarray, covered: np.ndarray) -> None:
            images[row], masks[row] = pictures, covered
            put_rows.add(row)
            check()

        yield put
        assert put_rows == set(range(len(units)))


def open_units(path: Path) -> UnitsFile:
    """Read what a set's file says of itself, none of its pictures.

    Raises:
        InputError: no file that `prepare` wrote.
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            header = _checked(file, path)
            layers, numbers, captions = (file[part][:] for part in ("layer", "unit", "annotations"))
            exemplars, height, width = file["masks"].shape[1:]
            units = [
                Unit(layer.decode(), int(number), tuple(text.decode() for text in texts), line=0)
                for layer, number, texts in zip(layers, numbers, captions, strict=True)
            ]
            found = UnitsFile(path, header["set"], units, exemplars, height, width)
            found.keys()
    except (InputError, MemoryError):
        raise
    except Exception as error:  # HDF5 and its wrapper raise anything where bytes are damaged
        raise InputError(f"{path}: expected an HDF5 file of `devil-pipe prepare`: {error}; remove it") from None
    return found


@dataclass
class _Open:
    """A file that stays open, and which one it was."""

    version: tuple[int, int, int]
    images: h5py.Dataset
    masks: h5py.Dataset
    keys: list[str]


_files: OrderedDict[Path, _Open] = OrderedDict()
_opening = threading.Lock()
_inherited: list[object] = []


def _forget() -> None:
    """A child process opens files anew: HDF5's own handles are not to be used, nor closed, on both sides of a fork."""
    global _files, _opening
    _inherited.append(_files)
    _files, _opening = OrderedDict(), threading.Lock()


os.register_at_fork(after_in_child=_forget)


def _opened(path: Path) -> _Open:
    """The open file; opened again where another one lies there now. Raises OSError, InputError."""
    stat = path.stat()
    version = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    with _opening:
        held = _files.get(path)
        if held is None or held.version != version:
            held = None
            _files.pop(path, None)  # closed before: HDF5 takes a file that was written over for the one it holds open
            held = _files[path] = _open(path, version)
        _files.move_to_end(path)
        while len(_files) > _OPEN:
            _files.popitem(last=False)  # closes itself once no thread reads from it
        return held


def _open(path: Path, version: tuple[int, int, int]) -> _Open:
    import h5py

    keys = open_units(path).keys()
    file = h5py.File(path, "r", locking=False)
    return _Open(version, file["images"], file["masks"], keys)


def _create(file: h5py.File, name: str, shape: tuple[int, ...], **packed: Any) -> h5py.Dataset:
    return file.create_dataset(name, shape, np.uint8, chunks=(1, *shape[1:]), fletcher32=True, **packed)


def _checked(file: h5py.File, path: Path) -> dict[str, Any]:
    """The file's header, if all that should be there is there."""
    import h5py

    text = file.attrs.get(HEADER)
    header = json.loads(text) if isinstance(text, str | bytes) else {}
    if not isinstance(header, dict) or not isinstance(header.get("set"), str):
        header = {"version": header.get("version", "none")} if isinstance(header, dict) else {}
    if header.get("version") != VERSION or "set" not in header:
        found = header.get("version", "none")
        raise InputError(f"{path}: expected {HEADER} version {VERSION}, got {found}; remove it, and {_AGAIN}")
    shapes = {}
    for name in ("images", "masks", "layer", "unit", "annotations"):
        # A link, or values that lie in another file, could be any file of this machine.
        data = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
        if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
            raise InputError(f"{path}: expected a dataset {name!r}, found none; remove it, and {_AGAIN}")
        if name in ("images", "masks") and data.dtype != np.uint8:
            raise InputError(f"{path}: expected {name!r} of uint8, got {data.dtype}; remove it, and {_AGAIN}")
        shapes[name] = data.shape
    units, exemplars, height, width = shapes["masks"]
    if shapes["images"] != (units, exemplars, 3, height, width) or shapes["annotations"][:1] != (units,):
        raise InputError(f"{path}: expected as many pictures as masks, got {shapes}; remove it, and {_AGAIN}")
    return header
