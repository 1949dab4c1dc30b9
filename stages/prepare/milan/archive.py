"""One published zip, read member by member: nothing is unpacked to disk, no array is held whole, nothing unpickled."""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from devil_pipe.stages.common.files import sha256_json
from devil_pipe.store.errors import InputError

ANNOTATIONS = "annotations.csv"
_AGAIN = "download it again"
_UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError)
_LARGEST = 1 << 28  # bytes of a member that is read whole: the published annotations.csv has some megabytes


class Archive:
    """A set's zip: its members by their names below the folder in which annotations.csv lies."""

    def __init__(self, path: Path, name: str, file: zipfile.ZipFile) -> None:
        """Look through the zip's directory; `name` is the set's, ARCH/DATASET.

        Raises:
            InputError: no annotations.csv, a name twice, one that leaves its folder, or an encrypted member.
        """
        self.path, self.name, self._file = path, name, file
        found: dict[str, zipfile.ZipInfo] = {}
        for info in file.infolist():
            if not info.filename:
                raise InputError(f"{path}: expected each member with a name, got one without; {_AGAIN}")
            if info.is_dir() or _is_litter(info.filename):
                continue
            self._check(info, found)
            found[info.filename] = info
        top = self._top(list(found))
        self.members = {member.removeprefix(top): info for member, info in found.items() if member.startswith(top)}

    @property
    def digest(self) -> str:
        """A digest of every member's name, size and checksum: another content is another digest."""
        return sha256_json([[name, info.file_size, info.CRC] for name, info in sorted(self.members.items())])

    @property
    def layers(self) -> list[str]:
        """The folders beside annotations.csv."""
        return sorted({name.partition("/")[0] for name in self.members if "/" in name})

    def where(self, member: str) -> str:
        """How messages name a member."""
        return f"{self.path}, {member}"

    def read(self, member: str) -> bytes:
        """A small member whole.

        Raises:
            InputError: it cannot be read, or is too large to be what it should be.
        """
        with self._opened(member) as stream:
            if (size := self.members[member].file_size) > _LARGEST:
                raise InputError(f"{self.where(member)}: expected at most {_LARGEST} bytes, got {size}; {_AGAIN}")
            return _read(stream, -1, self.where(member))

    @contextmanager
    def array(self, member: str) -> Iterator[Npy]:
        """A member that is a .npy file, its header read.

        Raises:
            InputError: no .npy file, Python objects in it (which only pickle could read), or another size than its
                header says.
        """
        where = self.where(member)
        with self._opened(member) as stream:
            shape, dtype = _header(stream, where)
            expected = stream.tell() + math.prod(shape) * dtype.itemsize
            if expected != self.members[member].file_size:
                raise InputError(
                    f"{where}: expected {expected} bytes for the shape {shape} of {dtype}, "
                    f"got {self.members[member].file_size}: cut short or damaged; {_AGAIN}"
                )
            yield Npy(where, shape, dtype, stream)

    @contextmanager
    def _opened(self, member: str) -> Iterator[zipfile.ZipExtFile]:
        if member not in self.members:
            near = [name for name in self.members if name.partition("/")[0] == member.partition("/")[0]]
            raise InputError(f"{self.path}: expected {member}, found {_some(near or self.members)}; {_AGAIN}")
        try:
            stream = self._file.open(self.members[member])
        except _UNREADABLE as error:
            raise InputError(f"{self.where(member)}: cannot be read: {error}; {_AGAIN}") from None
        assert isinstance(stream, zipfile.ZipExtFile)
        with stream:
            yield stream

    def _check(self, info: zipfile.ZipInfo, found: dict[str, zipfile.ZipInfo]) -> None:
        place = PurePosixPath(info.filename)
        if place.is_absolute() or ".." in place.parts or "\\" in info.filename or not info.filename.isprintable():
            raise InputError(f"{self.path}: expected names inside the zip's own folders, got {info.filename!r}")
        if info.filename in found:
            raise InputError(f"{self.path}: expected each member once, got {info.filename} twice; {_AGAIN}")
        if info.flag_bits & 1:
            raise InputError(f"{self.where(info.filename)}: is encrypted, and MILANNOTATIONS is not; {_AGAIN}")

    def _top(self, members: list[str]) -> str:
        """The folder of the set within the zip, with its slash: "" as published, or ARCH/DATASET/ as unpacked."""
        tops = [name.removesuffix(ANNOTATIONS) for name in members if PurePosixPath(name).name == ANNOTATIONS]
        ours = [top for top in tops if f"/{top}".endswith(f"/{self.name}/")] or tops
        if len(ours) != 1:
            what = f"one for {self.name}" if ours else "one"
            raise InputError(f"{self.path}: expected {ANNOTATIONS}, {what}; found {_some(tops or members)}; {_AGAIN}")
        return ours[0]


@dataclass
class Npy:
    """An array in a zip, given out along its first axis, one entry in memory at a time."""

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _stream: zipfile.ZipExtFile

    def entries(self) -> Iterator[np.ndarray]:
        """Each entry [shape[1:]] in order; with the last one the zip's checksum is compared.

        Raises:
            InputError: cut short, or its checksum differs.
        """
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        for number in range(self.shape[0]):
            content = _read(self._stream, size, self.where)
            if len(content) != size:
                raise InputError(
                    f"{self.where}: expected {self.shape[0]} entries, got {number} whole ones: cut short; {_AGAIN}"
                )
            yield np.frombuffer(content, self.dtype).reshape(self.shape[1:])

    def whole(self) -> np.ndarray:
        """All of a small array. Raises InputError as `entries`."""
        return np.array(list(self.entries()), dtype=self.dtype).reshape(self.shape)


@contextmanager
def open_archive(path: Path, name: str) -> Iterator[Archive]:
    """The published zip of the set `name`.

    Raises:
        InputError: no such file, no zip, or as `Archive`.
    """
    if not path.is_file():
        found = "a folder: give the zip as it was downloaded" if path.is_dir() else "no file"
        raise InputError(f"milan.zips: expected the zip of {name} at {path}, found {found}; see docs/milannotations.md")
    try:
        file = zipfile.ZipFile(path)
    except Exception as error:  # zipfile meets numbers that no writer wrote, and may raise anything
        raise InputError(f"{path}: expected a zip file: {_said(error)}; {_AGAIN}") from None
    with file:
        yield Archive(path, name, file)


def _header(stream: zipfile.ZipExtFile, where: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    readers = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    try:
        version = npy_format.read_magic(stream)
        if version not in readers:
            raise ValueError(f"format version {version[0]}.{version[1]}")
        shape, fortran, dtype = readers[version](stream)
    except Exception as error:  # the header is a Python literal, whose parser may raise anything
        raise InputError(f"{where}: expected a .npy file: {_said(error)}; {_AGAIN}") from None
    if dtype.hasobject:
        raise InputError(f"{where}: expected numbers, got Python objects, which only pickle reads: that is not done")
    if fortran and len(shape) > 1:
        raise InputError(
            f"{where}: expected an array in C order, got Fortran order; save it with numpy.save as C order"
        )
    if not shape:
        raise InputError(f"{where}: expected an array, got a single number")
    if min(shape) < 0 or not dtype.itemsize:
        raise InputError(f"{where}: expected counts from 0 and numbers of some size, got {shape} of {dtype}; {_AGAIN}")
    return shape, dtype


def _read(stream: zipfile.ZipExtFile, size: int, where: str) -> bytes:
    try:
        return stream.read(size)
    except _UNREADABLE as error:
        raise InputError(f"{where}: cut short or damaged: {error}; {_AGAIN}") from None


def _said(error: Exception) -> str:
    """An error's text, short: some repeat what they could not read."""
    return f"{str(error) or type(error).__name__:.200}"


def _is_litter(name: str) -> bool:
    """What operating systems add to zips on their own."""
    place = PurePosixPath(name)
    return place.parts[:1] == ("__MACOSX",) or place.name in {".DS_Store", "Thumbs.db"}


def _some(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "") or "nothing"
