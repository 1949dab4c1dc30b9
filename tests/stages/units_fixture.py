"""The tiny project with units that are known: channel c of the layer `coarse` is active where the object c is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml

from devil_pipe.stages.prepare.index import index_digest, to_table, write_index
from devil_pipe.stages.train import checkpoint
from devil_pipe.stages.train.config import TranslatorConfig
from devil_pipe.stages.train.translator import build
from devil_pipe.store.schema import Identity
from devil_pipe.store.writer import StoreWriter

from .. import tiny

PLANTED = len(tiny.OBJECTS)
TRANSFORM = {"resize": [24, 40], "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3}


def project(root: Path) -> Path:
    """Index, pictures, store, language model, and a translator of random weights as the run `tiny`."""
    rows = tiny.pictures(root / "data" / tiny.NAME)
    table = to_table(rows)
    write_index(table, root / "data" / tiny.NAME / "index.parquet")
    identity = Identity(
        backbone="effnet_lite0",
        weights="0" * 64,
        layers=tiny.LAYERS,
        transform=TRANSFORM,
        index=index_digest(table),
        rows=len(rows),
    )
    _write_store(root / "stores" / tiny.NAME, identity, [row.reason for row in rows])
    tiny.language_model(root / "lm", taught=True)
    config = TranslatorConfig(layers=1, width=16, heads=2, feedforward=32, queries=3)
    torch.manual_seed(0)
    card = checkpoint.Card(
        translator=config,
        prefix_norm=3.0,
        prefix_repeats=2,
        language_model=str(root / "lm"),
        store=identity,
        warmup="none",
        seed=0,
        data_note="Coloured quarters.",
    )
    checkpoint.save(root / "runs" / tiny.NAME / "checkpoint", build(config, identity.layers, 16, 3.0), card)
    files = {
        f"stores/{tiny.NAME}": {"data": tiny.NAME, "backbone": "effnet_lite0"},
        f"runs/{tiny.NAME}": {"store": tiny.NAME, "evaluate": {"max_new_tokens": 8}},
    }
    for name, values in files.items():
        path = root / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values))
    return root


def _write_store(root: Path, identity: Identity, reasons: list[str]) -> None:
    random = np.random.default_rng(0)
    plan = [tiny.composite(split, number) for split, count in tiny.SPLITS.items() for number in range(count)]
    writer = StoreWriter(root, identity, 16)
    for shard, span in enumerate(writer.ranges):
        maps = {}
        for layer in identity.layers:
            values = random.normal(size=(len(span), layer.locations, layer.channels))
            if layer.name == "coarse":
                for place, row in enumerate(span):
                    made = plan[row]
                    location = 2 * made.box[0] + made.box[1]
                    if made.thing in tiny.OBJECTS:
                        values[place, location, tiny.OBJECTS.index(made.thing)] += 20
            maps[layer.name] = values.astype(np.float16)
        writer.write_shard(shard, maps, {row: reasons[row] for row in span if reasons[row]})
    writer.finalise()
