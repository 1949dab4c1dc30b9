"""A store of maps in CLIP-RN50's shapes, and the same bytes in the forms that other readers take."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from devil_pipe.store.schema import Identity, LayerSpec
from devil_pipe.store.writer import StoreWriter

SHAPES = (("L21", 512, 28), ("L39", 1024, 14), ("L49", 2048, 7))
LAYERS = tuple(LayerSpec(name=name, channels=channels, height=side, width=side) for name, channels, side in SHAPES)
PICTURE_BYTES = 2 * sum(layer.locations * layer.channels for layer in LAYERS)


def write_forms(folder: Path, rows: int, *, plain: bool = True) -> Path:
    """Write `rows` pictures of random finite bits: a store, raw files (LAYER.raw) and an HDF5 file (store.h5).

    Args:
        folder: where.
        rows: pictures.
        plain: whether to write the raw files too.

    Returns:
        the folder of the store's arrays, which Zarr readers open.
    """
    identity = Identity(
        backbone="shapes of clip_rn50", weights="none", layers=LAYERS, transform={}, index="0", rows=rows
    )
    random = np.random.default_rng(0)
    writer = StoreWriter(folder, identity)
    with h5py.File(folder / "store.h5", "w") as file:
        for layer in LAYERS:
            shape = (layer.locations, layer.channels)
            file.create_dataset(layer.name, (rows, *shape), np.float16, chunks=(1, *shape))
        for shard, part in enumerate(writer.ranges):
            maps = {layer.name: _bits(random, len(part), layer) for layer in LAYERS}
            writer.write_shard(shard, maps, {})
            for name, values in maps.items():
                file[name][part.start : part.stop] = values
                if plain:
                    with (folder / f"{name}.raw").open("ab") as raw:
                        values.tofile(raw)
    return folder / writer.finalise().folder


def _bits(random: np.random.Generator, rows: int, layer: LayerSpec) -> np.ndarray:
    """Every finite float16 that is not negative, equally often: nothing here is compressed."""
    bits = random.integers(0, 0x7C00, (rows, layer.locations, layer.channels), dtype=np.uint16)
    return bits.view(np.float16)
