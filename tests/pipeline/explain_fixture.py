"""Drawn pictures, a store of a random backbone's features, and a translator of them as a run of a project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.stages.extract.run import run as extract
from devil_pipe.stages.prepare.config import FolderConfig, PrepareConfig
from devil_pipe.stages.prepare.run import run as prepare
from devil_pipe.stages.train import checkpoint
from devil_pipe.stages.train.config import TranslatorConfig
from devil_pipe.stages.train.translator import build
from devil_pipe.store.reader import FeatureStore

from .. import tiny
from ..conftest import draw_pictures

RUN = "tiny"
LAYERS = ("s16", "s32")
SIDE = 64


def project(root: Path) -> Path:
    """Everything that `explain --run tiny` and `export tiny` read; pictures/000.png and on are 64 × 64."""
    listing = draw_pictures(root / "pictures", 6)
    values: dict[str, Any] = {"pictures": root / "pictures", "captions": listing}
    prepare(PrepareConfig(name="drawn", source="folder", folder=FolderConfig(**values), out=root / "data" / "drawn"))
    store = {"data": "drawn", "backbone": "effnet_lite0", "weights": "random", "layers": list(LAYERS)}
    store |= {"image_size": SIDE}
    places = {"data_dir": root / "data" / "drawn", "out": root / "stores" / "drawn"}
    extract(ExtractConfig.model_validate({"name": "drawn", **store, **places}))
    tiny.language_model(root / "lm", taught=True)
    identity = FeatureStore(root / "stores" / "drawn").identity
    config = TranslatorConfig(layers=1, width=16, heads=2, feedforward=32, queries=3)
    torch.manual_seed(0)
    translator = build(config, identity.layers, 16, 3.0)
    card = checkpoint.Card(
        translator=config,
        prefix_norm=3.0,
        prefix_repeats=2,
        language_model=str(root / "lm"),
        store=identity,
        warmup="none",
        seed=0,
        data_note="Drawn shapes.",
    )
    checkpoint.save(root / "runs" / "tiny" / "checkpoint", translator, card)
    for name, content in {"stores/drawn": store, "runs/tiny": {"store": "drawn"}}.items():
        path = root / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    return root
