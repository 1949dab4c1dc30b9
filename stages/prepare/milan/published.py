"""A published set, checked and then turned into its HDF5 file, a unit in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from devil_pipe.stages.prepare.milan.annotations import Annotated, Unit, read_annotations
from devil_pipe.stages.prepare.milan.archive import ANNOTATIONS, Archive
from devil_pipe.stages.prepare.milan.pictures import SourcePictures
from devil_pipe.stages.prepare.milan.units import Put, writing_units
from devil_pipe.store.errors import InputError

Advance = Callable[[int], None]


@dataclass(frozen=True)
class _Layer:
    """A layer's arrays: which entry is which row of the file to be, and where the pictures come from."""

    name: str
    shape: tuple[int, int, int, int]
    """Units, exemplars, height, width of its masks."""
    rows: dict[int, int]
    """Entry of the layer's arrays → row of the file."""
    ids: list[list[int]] | None
    """For each entry the numbers of its pictures, where the set comes without them."""


class Published:
    """What a set's zip holds: its annotated units, and for each of their layers the arrays, found to agree."""

    def __init__(self, archive: Archive, pictures: SourcePictures) -> None:
        """Check all but the pixels.

        Raises:
            InputError: a member that is missing or not as published, with its name.
        """
        self.archive, self.pictures = archive, pictures
        content = archive.read(ANNOTATIONS)
        self.annotated: Annotated = read_annotations(content, archive.where(ANNOTATIONS))
        self.layers = [self._layer(name, rows) for name, rows in self._by_layer().items()]
        self.shape = self.layers[0].shape[1:]
        for layer in self.layers:
            if layer.shape[1:] != self.shape:
                raise InputError(
                    f"{archive.where(f'{layer.name}/masks.npy')}: expected exemplars, height, width {self.shape} as in "
                    f"{self.layers[0].name}, got {layer.shape[1:]}"
                )

    @property
    def source(self) -> list[Any]:
        """What the HDF5 file is made from: the zip's content, and the pictures' files where it has none."""
        joined = any(layer.ids is not None for layer in self.layers)
        return [self.archive.digest, self.pictures.identity if joined else None]

    def write(self, path: Path, workers: int, advance: Advance = lambda _: None) -> None:
        """Write the set's HDF5 file; `advance` is told how many units were written.

        Args:
            path: the file to be.
            workers: threads that decode pictures, where the set comes without them.
            advance: called after each unit.

        Raises:
            InputError: an array that is damaged or no mask, a picture that does not decode, or the file cannot be
                written.
        """
        with (
            ThreadPoolExecutor(workers) as pool,
            writing_units(path, self.archive.name, self.annotated.units, self.shape, self.source) as put,
        ):
            for layer in self.layers:
                self._write_layer(layer, put, pool, advance)

    def _write_layer(self, layer: _Layer, put: Put, pool: ThreadPoolExecutor, advance: Advance) -> None:
        size = self.shape[1:]
        with ExitStack() as stack:
            masks = stack.enter_context(self.archive.array(f"{layer.name}/masks.npy"))
            stored: Iterator[np.ndarray] | None = None
            if layer.ids is None:
                stored = stack.enter_context(self.archive.array(f"{layer.name}/images.npy")).entries()
            for entry, mask in enumerate(masks.entries()):
                images = None if stored is None else next(stored)
                if entry not in layer.rows:
                    continue
                if images is None:
                    assert layer.ids is not None
                    found = pool.map(lambda number: self.pictures.load(number, size), layer.ids[entry])
                    images = np.stack(list(found))
                put(layer.rows[entry], images, _binary(mask, f"{masks.where}, entry {entry}"))
                advance(1)

    def _by_layer(self) -> dict[str, list[tuple[int, Unit]]]:
        """Layer → rows and units."""
        found: dict[str, list[tuple[int, Unit]]] = {}
        for row, unit in enumerate(self.annotated.units):
            found.setdefault(unit.layer, []).append((row, unit))
        return found

    def _layer(self, name: str, units: Sequence[tuple[int, Unit]]) -> _Layer:
        line = f"{self.archive.where(ANNOTATIONS)}, line {units[0][1].line}"
        if name not in self.archive.layers:
            layers = ", ".join(self.archive.layers) or "none"
            raise InputError(f"{line}: expected a folder of the layer {name!r} in the zip, which has {layers}")
        shape = self._shape(name)
        numbers = self._numbers(name, shape[0])
        rows: dict[int, int] = {}
        for row, unit in units:
            if unit.number not in numbers:
                raise InputError(
                    f"{self.archive.where(ANNOTATIONS)}, line {unit.line}: expected pictures of unit {unit.number} of "
                    f"{name}, got masks and pictures of {shape[0]} others (0, 1, … or as units.npy says)"
                )
            rows[numbers[unit.number]] = row
        ids = None if f"{name}/images.npy" in self.archive.members else self._ids(name, shape)
        return _Layer(name, shape, rows, ids)

    def _shape(self, name: str) -> tuple[int, int, int, int]:
        """Units, exemplars, height and width of a layer's masks, to which its pictures agree."""
        with self.archive.array(f"{name}/masks.npy") as masks:
            shape, kind, where = masks.shape, masks.dtype.kind, masks.where
        if len(shape) != 5 or shape[2] != 1 or min(shape) < 1:
            raise InputError(f"{where}: expected the shape (units, exemplars, 1, height, width), got {shape}")
        if kind not in "biuf":
            raise InputError(f"{where}: expected numbers 0 and 1, got {masks.dtype}")
        units, exemplars, _, height, width = shape
        if f"{name}/images.npy" in self.archive.members:
            with self.archive.array(f"{name}/images.npy") as images:
                pass
            expected = (units, exemplars, 3, height, width)
            if images.shape != expected:
                raise InputError(f"{images.where}: expected the shape {expected} by masks.npy, got {images.shape}")
            if images.dtype != np.uint8:
                raise InputError(f"{images.where}: expected uint8, got {images.dtype}")
        return units, exemplars, height, width

    def _numbers(self, name: str, count: int) -> dict[int, int]:
        """Unit → entry of the layer's arrays; units.npy is optional."""
        member = f"{name}/units.npy"
        if member not in self.archive.members:
            return {number: number for number in range(count)}
        with self.archive.array(member) as array:
            if array.dtype.kind not in "iu" or array.shape != (count,):
                raise InputError(
                    f"{array.where}: expected {count} whole numbers, one for each unit of masks.npy, "
                    f"got {array.dtype} of shape {array.shape}"
                )
            listed = array.whole().tolist()
        numbers: dict[int, int] = {}
        for entry, number in enumerate(listed):
            if number in numbers:
                raise InputError(
                    f"{array.where}: expected each unit once, got {number} as entries {numbers[number]} and {entry}"
                )
            numbers[number] = entry
        return numbers

    def _ids(self, name: str, shape: tuple[int, int, int, int]) -> list[list[int]]:
        """For each entry of the layer the numbers of its pictures in the ImageFolder."""
        member = f"{name}/ids.csv"
        if member not in self.archive.members:
            raise InputError(
                f"{self.archive.path}: expected {name}/images.npy, or {member} in its place; found neither"
            )
        where = self.archive.where(member)
        lines = self.archive.read(member).decode("ascii", errors="replace").splitlines()
        if len(lines) != shape[0]:
            raise InputError(f"{where}: expected {shape[0]} rows, one for each unit of masks.npy, got {len(lines)}")
        return [self._row_of_ids(text, f"{where}, line {line}", shape[1]) for line, text in enumerate(lines, start=1)]

    def _row_of_ids(self, line: str, where: str, exemplars: int) -> list[int]:
        texts = [cell.strip() for cell in line.split(",")]
        if len(texts) != exemplars or not all(text.isascii() and text.isdigit() and len(text) < 19 for text in texts):
            raise InputError(f"{where}: expected {exemplars} whole numbers, got {line[:100]!r}")
        numbers = [int(text) for text in texts]
        for place, number in enumerate(numbers):
            self.pictures.check(number, where)
            if number in numbers[:place]:
                raise InputError(f"{where}: expected {exemplars} different pictures, got {number} twice")
        return numbers


def _binary(mask: np.ndarray, where: str) -> np.ndarray:
    """A unit's masks [exemplars, height, width] as 0 and 1. Raises InputError where they are neither."""
    inside = mask == 1
    wrong = ~(inside | (mask == 0))  # NaN is neither
    if wrong.any():
        exemplar = int(np.argwhere(wrong)[0][0])
        raise InputError(f"{where}, exemplar {exemplar}: expected 0 and 1, got {mask[wrong][0]}")
    found: np.ndarray = inside[:, 0].astype(np.uint8)
    return found
