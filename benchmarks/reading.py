"""Random batches of 64 from a store: the memory-mapped reader beside zarr-python (page cache warm)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import zarr
from _measure import interleaved, report

from devil_pipe.store.reader import StoreReader
from devil_pipe.store.schema import Identity, LayerSpec
from devil_pipe.store.writer import StoreWriter

ROWS, BATCH, ROUNDS = 512, 64, 7
LAYERS = (("L21", 512, 28), ("L39", 1024, 14), ("L49", 2048, 7))


def main() -> None:
    random = np.random.default_rng(0)
    layers = tuple(LayerSpec(name=name, channels=channels, height=side, width=side) for name, channels, side in LAYERS)
    identity = Identity(
        backbone="shapes of clip_rn50", weights="none", layers=layers, transform={}, index="0", rows=ROWS
    )
    with tempfile.TemporaryDirectory() as folder:
        writer = StoreWriter(Path(folder), identity)
        for shard, rows in enumerate(writer.ranges):
            maps = {
                layer.name: random.random((len(rows), layer.locations, layer.channels), dtype=np.float32).astype(
                    np.float16
                )
                for layer in layers
            }
            writer.write_shard(shard, maps, {})
        manifest = writer.finalise()
        reader = StoreReader(Path(folder))
        arrays = [zarr.open_array(Path(folder) / manifest.folder / layer.name, mode="r") for layer in layers]

        def draw() -> list[int]:
            return [int(row) for row in random.integers(0, ROWS, BATCH)]

        ways = {
            "zarr-python, a picture at a time": lambda: [array[row : row + 1] for row in draw() for array in arrays],
            "memory map": lambda: [reader.read(layer.name, draw()) for layer in layers],
            "memory map, checksums compared": lambda: [
                reader.read(layer.name, draw(), verify=True) for layer in layers
            ],
        }
        seconds = interleaved(ways, ROUNDS)
    report("reading", seconds, "zarr-python, a picture at a time", BATCH, "pictures", rows=ROWS, seed=0)


if __name__ == "__main__":
    main()
