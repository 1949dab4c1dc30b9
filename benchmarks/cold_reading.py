"""Random batches of 64 full maps from files that are not in the page cache, beside a sequential read of those files.

Before each way the files are written out (fsync) and dropped from the page cache (posix_fadvise, DONTNEED); mincore
then says how much of them is still there. A quarter of the rows is read, each once, so that what the system reads ahead
is of little use to later batches. Our reader asks for each batch one batch ahead, in a thread (FeatureStore.prefetch).
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import tensorstore
import zarr
from _measure import rates, write
from _stores import LAYERS, PICTURE_BYTES, write_forms

from devil_pipe.store.reader import FeatureStore

ROWS, BATCH, BATCHES, ROUNDS = 2048, 64, 8, 5
BASE = "sequential read of all files"
BLOCK = 1 << 20


def drop(files: Sequence[Path]) -> float:
    """Take files out of the page cache. Returns the share of their pages that stayed."""
    gc.collect()  # nor can one that a memory map holds: those of readers that are done with
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)  # a page that is not yet on the disk cannot be dropped
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    return sum(map(resident_pages, files)) / sum(-(-path.stat().st_size // mmap.PAGESIZE) for path in files)


def resident_pages(path: Path) -> int:
    """How many pages of a file are in the page cache (mincore(2))."""
    system = ctypes.CDLL(None, use_errno=True)
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        there = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        failed = system.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), there)
        del start  # else the map cannot be closed
        assert not failed, os.strerror(ctypes.get_errno())
    return int((np.frombuffer(there, np.uint8) & 1).sum())


def sequential(files: Sequence[Path]) -> None:
    buffer = bytearray(BLOCK)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def ahead(folder: Path, batches: Sequence[np.ndarray]) -> None:
    """Our reader, which says one batch ahead what it will read."""
    store = FeatureStore(folder)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(store.prefetch, batches[0])
        for number, rows in enumerate(batches):
            coming.result()
            if number + 1 < len(batches):
                coming = thread.submit(store.prefetch, batches[number + 1])
            for layer in LAYERS:
                store[layer.name].stored(rows)


def unasked(folder: Path, batches: Sequence[np.ndarray]) -> None:
    """Our reader without the hint."""
    store = FeatureStore(folder)
    for rows in batches:
        for layer in LAYERS:
            store[layer.name].stored(rows)


def by_tensorstore(arrays: Path, batches: Sequence[np.ndarray]) -> None:
    opened = [
        tensorstore.open({"driver": "zarr3", "kvstore": f"file://{arrays / layer.name}/"}).result() for layer in LAYERS
    ]
    for rows in batches:
        for one in opened:
            one[rows].read().result()


def by_h5py(folder: Path, batches: Sequence[np.ndarray]) -> None:
    with h5py.File(folder / "store.h5") as file:
        for rows in batches:
            for layer in LAYERS:
                out = np.empty((len(rows), layer.locations, layer.channels), np.float16)
                for position, row in enumerate(rows):
                    file[layer.name].read_direct(out, np.s_[row : row + 1], np.s_[position : position + 1])


def by_zarr(arrays: Path, batches: Sequence[np.ndarray]) -> None:
    opened = [zarr.open_array(arrays / layer.name, mode="r") for layer in LAYERS]
    for rows in batches:
        for row in rows:
            for one in opened:
                one[row : row + 1]


def main() -> None:
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arrays = write_forms(folder, ROWS, plain=False)
        shards = sorted(path for path in arrays.glob("*/c.*") if path.parent.name in {layer.name for layer in LAYERS})
        ways: dict[str, Callable[[list[np.ndarray]], None]] = {
            BASE: lambda _: sequential(shards),
            "FeatureStore, prefetch one batch ahead": lambda batches: ahead(folder, batches),
            "FeatureStore, no prefetch": lambda batches: unasked(folder, batches),
            "tensorstore": lambda batches: by_tensorstore(arrays, batches),
            "h5py, read_direct": lambda batches: by_h5py(folder, batches),
            "zarr-python, a picture at a time": lambda batches: by_zarr(arrays, batches),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        stayed, warm = [], []
        for _ in range(ROUNDS):
            rows = random.permutation(ROWS)[: BATCH * BATCHES]
            batches = list(rows.reshape(BATCHES, BATCH))
            for way, read in ways.items():
                stayed.append(drop([*shards, folder / "store.h5"]))
                begun = time.perf_counter()
                read(batches)
                taken = time.perf_counter() - begun
                seconds[way].append(taken * len(rows) / ROWS if way == BASE else taken)
            sequential(shards)
            begun = time.perf_counter()
            sequential(shards)
            warm.append((time.perf_counter() - begun) * len(rows) / ROWS)
    found = rates(seconds, BASE, BATCH * BATCHES)
    write(
        "cold_reading",
        base=BASE,
        unit="pictures",
        ways=found,
        rounds=ROUNDS,
        data=f"random float16 in CLIP-RN50's shapes, {ROWS} pictures of {PICTURE_BYTES} bytes; "
        f"{BATCHES} batches of {BATCH}, each row once",
        page_cache={
            "dropped_by": "fsync, then posix_fadvise(POSIX_FADV_DONTNEED), before each way",
            "largest_share_of_pages_left": round(max(stayed), 4),
            "sequential_read_when_warm_per_second": round(BATCH * BATCHES / statistics.median(warm), 1),
        },
    )
    told = ", ".join(
        f"{way} {one['per_second']:,.0f}/s (×{one['times_as_fast_as_base']:.2f})" for way, one in found.items()
    )
    print(f"cold_reading: {told}; {max(stayed):.1%} of the pages were left in the cache")


if __name__ == "__main__":
    main()
