"""MILANNOTATIONS at its real size: memory and rate while a zip becomes an HDF5 file, and while units are read from it.

A set of 4,000 units × 15 pictures of 224 × 224 is generated, 9.0 GB of pictures and 3.0 GB of masks. `--units 200`
tries it out. The HDF5 file takes some 9 GB of the temporary folder (`--folder` for another disk) until the end.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import resource
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _measure import write
from numpy.lib import format as npy_format

from devil_pipe.stages.common.progress import Mode, speak
from devil_pipe.stages.prepare.milan.archive import open_archive
from devil_pipe.stages.prepare.milan.pictures import SourcePictures
from devil_pipe.stages.prepare.milan.published import Published
from devil_pipe.stages.prepare.milan.units import UnitsFile, open_units, read_unit

NAME, EXEMPLARS, SIDE, LAYERS = "biggan/places365", 15, 224, 4
MIB = 1 << 20


class Memory:
    """Resident memory against units done."""

    def __init__(self, every: int) -> None:
        self.every, self.process = every, psutil.Process()
        self.curve: list[tuple[int, float]] = []
        self.begun = time.perf_counter()

    def at(self, done: int) -> None:
        if done % self.every == 0:
            self.curve.append((done, round(self.process.memory_info().rss / MIB, 1)))

    def facts(self) -> dict[str, Any]:
        """The rate, and how much memory grew once a tenth was done."""
        done = self.curve[-1][0]
        later = np.array([point for point in self.curve if point[0] >= done / 10])
        return {
            "units": done,
            "seconds": round(time.perf_counter() - self.begun, 1),
            "units_per_second": round(done / (time.perf_counter() - self.begun), 1),
            "slope_mib_per_1000_units": round(float(np.polyfit(later[:, 0], later[:, 1], 1)[0]) * 1000, 3),
            "largest_minus_smallest_mib": round(float(np.ptp(later[:, 1])), 1),
            "curve_units_mib": self.curve,
        }


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--units", type=int, default=4000)
    asked.add_argument("--folder", type=Path, default=None)
    options = asked.parse_args()
    speak(Mode.QUIET)
    every = max(1, options.units // 100)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        zipped = generate(folder, options.units)
        converting = Memory(every)
        found = convert(zipped, converting.at)
        converted = converting.facts()
        reading = Memory(every)
        read_at_random(found, reading.at)
        files = {"zip_bytes": zipped.stat().st_size, "hdf5_bytes": found.path.stat().st_size}
        result = {"converting": converted, "reading_at_random": reading.facts(), **files}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    data = f"{options.units} units × {EXEMPLARS} pictures of {SIDE} × {SIDE}, generated: coarse noise and round masks"
    write("milan_reading", data=data, peak_mib=round(peak, 1), **result)
    for what, facts in (("converted", converted), ("read", result["reading_at_random"])):
        print(
            f"milan_reading: {facts['units']:,} units {what} at {facts['units_per_second']:,} a second, "
            f"{facts['slope_mib_per_1000_units']:+.2f} MiB each 1,000, peak {peak:.0f} MiB"
        )


def convert(zipped: Path, told: Callable[[int], None]) -> UnitsFile:
    """The set's HDF5 file beside its zip, made as `devil-pipe prepare` makes it; `told` how many units after each."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        told(done)

    path = zipped.with_suffix(".h5")
    with open_archive(zipped, NAME) as archive:
        Published(archive, SourcePictures(None, "places365", "crop")).write(path, 1, count)
    return open_units(path)


def read_at_random(found: UnitsFile, told: Callable[[int], None]) -> None:
    """Every unit once, in random order."""
    rows = [{"key": key, "path": found.path.name, "offset": row} for row, key in enumerate(found.keys())]
    random.Random(0).shuffle(rows)
    for done, row in enumerate(rows, start=1):
        exemplars = read_unit(row, found.path.parent)
        assert exemplars.images.shape == (EXEMPLARS, 3, SIDE, SIDE)
        told(done)


def generate(folder: Path, units: int) -> Path:
    """A zip as published, written a unit at a time."""
    path = folder / f"{NAME.replace('/', '-')}.zip"
    rng = np.random.default_rng(0)
    down, across = np.mgrid[:SIDE, :SIDE]
    counts = [len(part) for part in np.array_split(np.arange(units), LAYERS)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        lines = [["layer", "unit", "summary"]]
        for layer, count in enumerate(counts, start=1):
            lines += [[f"layer{layer}", str(unit), "grey noise"] for unit in range(count) for _ in range(3)]
            with file.open(f"layer{layer}/images.npy", "w", force_zip64=True) as images:
                _header(images, (count, EXEMPLARS, 3, SIDE, SIDE))
                for _ in range(count):
                    coarse = rng.integers(0, 256, (EXEMPLARS, 3, SIDE // 8, SIDE // 8), dtype=np.uint8)
                    images.write(coarse.repeat(8, axis=2).repeat(8, axis=3).tobytes())
            with file.open(f"layer{layer}/masks.npy", "w", force_zip64=True) as masks:
                _header(masks, (count, EXEMPLARS, 1, SIDE, SIDE))
                for _ in range(count):
                    centres, radii = rng.uniform(0, SIDE, (EXEMPLARS, 2)), rng.uniform(10, 80, EXEMPLARS)
                    distance = np.hypot(down - centres[:, :1, None], across - centres[:, 1:, None])
                    masks.write((distance < radii[:, None, None]).astype(np.uint8).tobytes())
        text = io.StringIO(newline="")
        csv.writer(text).writerows(lines)
        file.writestr("annotations.csv", text.getvalue())
    return path


def _header(stream: Any, shape: tuple[int, ...]) -> None:
    npy_format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})


if __name__ == "__main__":
    main()
