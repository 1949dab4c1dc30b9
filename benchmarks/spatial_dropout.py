"""Spatial dropout and mean of a batch, for each stored type, beside loops over pictures and a memory copy.

Then from a store on disk to pooled batches as training draws them, end to end, page cache warm. Shapes of
CLIP-RN50, random numbers.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import interleaved, rates, write
from _stores import LAYERS

from devil_pipe.stages.common.memory import keep_freed_memory
from devil_pipe.stages.train.batches import BatchSource, Example
from devil_pipe.stages.train.config import DropoutConfig
from devil_pipe.stages.train.dropout import draw, pool
from devil_pipe.store.layer import Stored
from devil_pipe.store.layout import DTYPES
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.schema import BOUNDS, Encoding, Identity
from devil_pipe.store.writer import StoreWriter

BATCH, ROUNDS, RATE = 64, 15, 0.5
LOOP = "loop over pictures"
ROWS = {"float16": 1024, "uint8": 1024, "partition:16": 8192}


def random_arrays(encoding: str, rows: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Stored arrays of some rows, by name: relu-like float16, whole bytes, bounds."""
    arrays = {}
    for layer in LAYERS:
        for array in layer.arrays(Encoding.parse(encoding)):
            shape = (rows, *array.shape)
            if array.dtype == "uint8":
                arrays[array.name] = random.integers(0, 256, shape, dtype=np.uint8)
            else:
                arrays[array.name] = random.random(shape, dtype=np.float32).astype(DTYPES["float16"])
    return arrays


def stored(encoding: str, random: np.random.Generator) -> list[Stored]:
    """A batch of each layer as the reader gives it."""
    arrays, parsed = random_arrays(encoding, BATCH, random), Encoding.parse(encoding)
    sizes = {layer.name: layer.group_sizes(parsed.size) if parsed.size else None for layer in LAYERS}
    return [Stored(arrays[layer.name], arrays.get(layer.name + BOUNDS), sizes[layer.name]) for layer in LAYERS]


def batched(layers: list[Stored], generator: torch.Generator) -> list[torch.Tensor]:
    return [pool(layer, RATE, generator) for layer in layers]


def looped(layers: list[Stored], generator: torch.Generator) -> list[torch.Tensor]:
    """A loop over pictures of the arrays as they are stored: decode, choose, mean."""
    out = []
    for layer in layers:
        values = torch.from_numpy(layer.values)
        rows = []
        if layer.group_sizes is not None:
            sizes = torch.tensor(layer.group_sizes, dtype=torch.float32)
            for one in values:
                chosen = torch.randperm(len(sizes), generator=generator)[: len(sizes) // 2]
                rows.append((one[chosen].float() * sizes[chosen, None]).sum(dim=0) / sizes[chosen].sum())
        else:
            keep = draw(*values.shape[:2], RATE, generator)
            rows = [one[kept].float().mean(dim=0) for one, kept in zip(values, keep, strict=True)]
        pooled = torch.stack(rows)
        if layer.bounds is not None:
            low, high = torch.from_numpy(layer.bounds).float().unbind(dim=1)
            pooled = low + pooled * ((high - low) / 255)
        out.append(pooled)
    return out


def looped_channels_first(maps: list[torch.Tensor], generator: torch.Generator) -> list[torch.Tensor]:
    """A loop over pictures of maps [channels, locations], as networks give them and as they are usually stored."""
    out = []
    for item in maps:
        keep = draw(len(item), item.shape[2], RATE, generator)
        out.append(torch.stack([one[:, kept].float().mean(dim=1) for one, kept in zip(item, keep, strict=True)]))
    return out


def copying(layers: list[Stored]) -> Callable[[], object]:
    """Copies the batch into memory that is there already."""
    sources = [torch.from_numpy(layer.values) for layer in layers]
    targets = [torch.ones_like(source) for source in sources]
    return lambda: [target.copy_(source) for source, target in zip(sources, targets, strict=True)]


def counted(way: Callable[[], object], busy: list[float]) -> Callable[[], object]:
    """The same, noting the processor's seconds: on a shared machine they say what a free core would take."""

    def run() -> None:
        begun = time.process_time()
        way()
        busy.append(time.process_time() - begun)

    return run


def make_store(folder: Path, encoding: str, random: np.random.Generator) -> FeatureStore:
    identity = Identity(
        backbone="shapes of clip_rn50",
        weights="none",
        layers=LAYERS,
        transform={},
        dtype=Encoding.parse(encoding).values,
        encoding=encoding,
        index="0",
        rows=ROWS[encoding],
    )
    writer = StoreWriter(folder, identity)
    for shard, rows in enumerate(writer.ranges):
        writer.write_shard(shard, random_arrays(encoding, len(rows), random), {})
    writer.finalise()
    return FeatureStore(folder)


def summary(seconds: dict[str, list[float]], size: int) -> dict[str, Any]:
    """Rates of one encoding's ways by one clock; `size` is the bytes of a batch."""
    copied, looped_over = rates(seconds, "copied", BATCH), rates(seconds, LOOP, BATCH)
    return {
        "copy_gigabytes_per_second": round(size / copied["copied"]["median_seconds"] / 1e9, 2),
        "pictures_per_second": {way: rate["per_second"] for way, rate in copied.items()},
        "median_seconds": {way: rate["median_seconds"] for way, rate in copied.items()},
        "time_over_copy": {way: round(1 / rate["times_as_fast_as_base"], 2) for way, rate in copied.items()},
        "times_as_fast_as_loop": {way: rate["times_as_fast_as_base"] for way, rate in looped_over.items()},
    }


def main() -> None:
    keep_freed_memory()  # as training does
    random, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    batches = {encoding: stored(encoding, random) for encoding in ROWS}
    first = [torch.from_numpy(layer.values).transpose(1, 2).contiguous() for layer in batches["float16"]]
    ways: dict[str, Callable[[], object]] = {}
    for encoding, layers in batches.items():
        ways[f"{encoding}, copied"] = copying(layers)
        ways[f"{encoding}, {LOOP}"] = lambda layers=layers: looped(layers, generator)
        ways[f"{encoding}, batched"] = lambda layers=layers: batched(layers, generator)
    ways[f"float16, {LOOP}, channels first"] = lambda: looped_channels_first(first, generator)
    with tempfile.TemporaryDirectory() as folder:
        for encoding in ROWS:
            store = make_store(Path(folder) / encoding.replace(":", ""), encoding, random)

            examples = [Example(row, (row,)) for row in range(store.rows)]
            source = BatchSource(store, examples, DropoutConfig(), batch_size=BATCH, window=1, seed=0)
            steps = count()
            for _ in range(store.rows // BATCH):  # an epoch: into the page cache, and into this process's page table
                source.draw(next(steps))
            ways[f"{encoding}, store to pooled"] = lambda source=source, steps=steps: source.draw(next(steps))
        busy: dict[str, list[float]] = {name: [] for name in ways}
        seconds = interleaved({name: counted(way, busy[name]) for name, way in ways.items()}, ROUNDS)
    bytes_of = {encoding: sum(layer.values.nbytes for layer in layers) for encoding, layers in batches.items()}
    found = {
        encoding: {
            clock: summary(
                {
                    way.removeprefix(f"{encoding}, "): times
                    for way, times in clocked.items()
                    if way.startswith(encoding)
                },
                bytes_of[encoding],
            )
            for clock, clocked in {"wall": seconds, "processor": busy}.items()
        }
        for encoding in ROWS
    }
    write(
        "spatial_dropout",
        encodings=found,
        rounds=ROUNDS,
        rate=RATE,
        data=f"random numbers in CLIP-RN50's shapes, batches of {BATCH}; stores of {ROWS} rows",
        page_cache="warm, and the files mapped",
        seed=0,
    )
    told = [
        f"{encoding} ({clock}): batched {one['time_over_copy']['batched']:.2f} of a copy's time "
        f"({one['copy_gigabytes_per_second']:.1f} GB/s), ×{one['times_as_fast_as_loop']['batched']:.1f} a loop's rate, "
        f"store to pooled {one['pictures_per_second']['store to pooled']:,.0f} pictures/s"
        for encoding, clocks in found.items()
        for clock, one in clocks.items()
    ]
    print("spatial_dropout: " + "; ".join(told))


if __name__ == "__main__":
    main()
