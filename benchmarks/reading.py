"""Random batches of 64 full maps, page cache warm: our reader beside np.memmap, tensorstore, h5py and zarr-python.

Twice over: with the memory that a plain process gets, where every new array is paged in, and with freed memory kept
(as train and extract do), where copying is all there is and the reader's own work shows most.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import tensorstore
import zarr
from _measure import interleaved, rates, write
from _stores import LAYERS, PICTURE_BYTES, write_forms

from devil_pipe.stages.common.memory import keep_freed_memory
from devil_pipe.store.reader import FeatureStore

ROWS, BATCH, ROUNDS = 1536, 64, 31
BASE = "np.memmap, fancy index"


def ways(folder: Path, arrays: Path) -> dict[str, Callable[[np.ndarray], object]]:
    """Each way from row numbers to float16 [batch, locations, channels] of each layer."""
    store = FeatureStore(folder)
    raw = [
        np.memmap(folder / f"{layer.name}.raw", np.float16, "r", shape=(ROWS, layer.locations, layer.channels))
        for layer in LAYERS
    ]
    opened = [
        tensorstore.open({"driver": "zarr3", "kvstore": f"file://{arrays / layer.name}/"}).result() for layer in LAYERS
    ]
    groups = [zarr.open_array(arrays / layer.name, mode="r") for layer in LAYERS]
    file = h5py.File(folder / "store.h5")

    def by_h5py(rows: np.ndarray) -> list[np.ndarray]:
        found = [np.empty((BATCH, layer.locations, layer.channels), np.float16) for layer in LAYERS]
        for layer, out in zip(LAYERS, found, strict=True):
            for position, row in enumerate(rows):
                file[layer.name].read_direct(out, np.s_[row : row + 1], np.s_[position : position + 1])
        return found

    return {
        BASE: lambda rows: [one[rows] for one in raw],
        "FeatureStore": lambda rows: [store[layer.name].stored(rows).values for layer in LAYERS],
        "FeatureStore, verifying": lambda rows: [store[layer.name].stored(rows, verify=True) for layer in LAYERS],
        "tensorstore": lambda rows: [one[rows].read().result() for one in opened],
        "h5py, read_direct": by_h5py,
        "zarr-python, a picture at a time": lambda rows: [one[row : row + 1] for row in rows for one in groups],
    }


def main() -> None:
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        readers = ways(folder, write_forms(folder, ROWS))
        for way in (BASE, "FeatureStore"):  # all of the bytes into the page cache, and into this process's page table
            for start in range(0, ROWS, BATCH):
                readers[way](np.arange(start, start + BATCH))
        # Every batch is of other rows than the one before, so that none is in the processor's cache.
        timed = {
            way: lambda read=read: read(random.choice(ROWS, BATCH, replace=False)) for way, read in readers.items()
        }
        found = {"plain process": rates(interleaved(timed, ROUNDS), BASE, BATCH)}
        keep_freed_memory()
        found["freed memory kept"] = rates(interleaved(timed, ROUNDS), BASE, BATCH)
    write(
        "reading",
        base=BASE,
        unit="pictures",
        ways=found,
        rounds=ROUNDS,
        data=f"random float16 in CLIP-RN50's shapes, {ROWS} pictures of {PICTURE_BYTES} bytes, batches of {BATCH}",
        page_cache="warm",
        threads="one, but for tensorstore, which takes all cores",
        versions={module.__name__: module.__version__ for module in (np, zarr, h5py)}
        | {"tensorstore": version("tensorstore")},
    )
    for memory, by_way in found.items():
        told = ", ".join(
            f"{way} {rate['per_second']:,.0f}/s (×{rate['times_as_fast_as_base']:.2f})" for way, rate in by_way.items()
        )
        print(f"reading, {memory}: {told}")


if __name__ == "__main__":
    main()
