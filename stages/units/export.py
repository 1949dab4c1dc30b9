"""Units in MILANNOTATIONS' published layout, so that whatever reads that data set reads these.

`ARCH/DATASET/annotations.csv`, and for each layer `images.npy` uint8 [units, exemplars, 3, height, width], `masks.npy`
uint8 0/1 [units, exemplars, 1, height, width] and `units.npy`, the channel of each entry. Pictures are in the
backbone's frame; of a frame of 224 × 224 the shapes are the published ones.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.lib import format as npy_format

from devil_pipe.stages.common.files import replacing, write_text_atomic
from devil_pipe.stages.prepare.milan.annotations import COLUMNS, EACH
from devil_pipe.stages.prepare.milan.archive import ANNOTATIONS
from devil_pipe.store.errors import InputError

PARTS = (("all exemplars", slice(None)), ("odd ranks", slice(0, None, 2)), ("even ranks", slice(1, None, 2)))
"""What a unit's annotations are made from, as many as the data set has: its exemplars, and every other one of them."""

assert len(PARTS) == EACH

Put = Callable[[UInt8[np.ndarray, "exemplars 3 height width"], Bool[np.ndarray, "exemplars height width"]], None]


@dataclass(frozen=True)
class Annotation:
    """What was said of a unit, and by whom."""

    layer: str
    unit: int
    summary: str
    annotator: str


class Export:
    """A set under way: its layers one after another, then what is said of the units."""

    def __init__(self, root: Path, backbone: str, data: str) -> None:
        """A set ARCH/DATASET in the folder `root`. Raises InputError where a finished one lies there."""
        self.folder = root / backbone.replace("/", "-").replace(":", "-") / data
        if (self.folder / ANNOTATIONS).exists():
            raise InputError(
                f"{self.folder}: expected no exported units, found some; remove the folder, or name another --export"
            )

    @contextmanager
    def layer(self, name: str, units: Sequence[int], exemplars: int, size: tuple[int, int]) -> Iterator[Put]:
        """Gives a function that appends a unit, to be called once for each of them in their order.

        One unit is in memory at a time; the files are there on success alone.

        Args:
            name: of the layer.
            units: its channels.
            exemplars: of each.
            size: height and width of the pictures.
        """
        folder = self.folder / name
        shape = (len(units), exemplars)
        with (
            replacing(folder / "images.npy") as images,
            replacing(folder / "masks.npy") as masks,
            images.open("wb") as image_file,
            masks.open("wb") as mask_file,
        ):
            _head(image_file, (*shape, 3, *size))
            _head(mask_file, (*shape, 1, *size))
            done = 0

            def put(pictures: np.ndarray, covered: np.ndarray) -> None:
                nonlocal done
                assert pictures.shape == (exemplars, 3, *size), "as announced in the header"
                assert covered.shape == (exemplars, *size), "as announced in the header"
                image_file.write(np.ascontiguousarray(pictures, np.uint8).data)
                mask_file.write(np.ascontiguousarray(covered[:, None], np.uint8).data)
                done += 1

            yield put
            assert done == len(units)
        with replacing(folder / "units.npy") as path, path.open("wb") as file:
            np.save(file, np.array(units, dtype=np.int64))

    def finish(self, annotations: Sequence[Annotation]) -> Path:
        """Write annotations.csv, which makes the set whole. Returns the set's folder.

        An empty description has no line: readers of the data set leave out units with fewer than three.
        """
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*COLUMNS, "annotator"])
        for one in annotations:
            if one.summary:
                writer.writerow([one.layer, one.unit, one.summary, one.annotator])
        write_text_atomic(self.folder / ANNOTATIONS, text.getvalue())
        return self.folder


def _head(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """A .npy file's header; what follows is the array in C order."""
    npy_format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
