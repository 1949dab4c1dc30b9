"""Two tiny runs beside each other, and an explainer without any model."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from devil_pipe.stages.explain.answers import Asked, Description, Looked, Margin, SaliencyMap
from devil_pipe.stages.train import checkpoint
from devil_pipe.stages.train.translator import build, width_of
from devil_pipe.store.schema import LayerSpec

from .explain_fixture import LAYERS, RUN, project

__all__ = ["DATA", "LAYERS", "OTHER", "RUN", "Silent", "make"]

DATA, OTHER = "drawn", "other"
GRIDS = {"s16": (4, 4), "s32": (2, 2)}


def make(root: Path) -> Path:
    """The project of `explain`, with a second run on its store whose translator has other random weights."""
    project(root)
    translator, card = checkpoint.load(root / "runs" / RUN / "checkpoint")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        other = build(card.translator, card.store.layers, width_of(card.translator, translator.state_dict()), 3.0)
    checkpoint.save(root / "runs" / OTHER / "checkpoint", other, replace(card, seed=1))
    shutil.copyfile(root / "configs" / "runs" / f"{RUN}.yaml", root / "configs" / "runs" / f"{OTHER}.yaml")
    return root


class Silent:
    """In the place of an Explainer: it answers with what it was asked, and counts how often it looked."""

    def __init__(self) -> None:
        self.layers = tuple(LayerSpec(name=name, channels=3, height=h, width=w) for name, (h, w) in GRIDS.items())
        store = SimpleNamespace(backbone="none", weights="none", layers=self.layers)
        self.card = SimpleNamespace(store=store, language_model="none", seed=0, data_note="Nothing learned.")
        self.looks = self.most = 0
        self._inside = 0
        self._count = threading.Lock()
        self.hold = threading.Event()
        self.hold.set()
        self.asked: list[str] = []

    def _enter(self, what: str) -> None:
        with self._count:
            self._inside += 1
            self.most = max(self.most, self._inside)
            self.asked.append(what)
        self.hold.wait(10)
        with self._count:
            self._inside -= 1

    def look(self, image: Image.Image) -> Looked:
        self.looks += 1
        return Looked(image.size, {layer.name: torch.zeros(layer.height, layer.width, 3) for layer in self.layers})

    def describe_many(self, image: Looked, asked: list[Asked], *, margin: bool = True) -> list[Description]:
        self._enter(f"describe {asked[0].at}")
        known = Margin(2.0, -1.0, 3.0, 16) if margin else None
        return [
            Description(
                f"{one.layer} of {image.size} at {one.at}", one.layer, 0, 0, None, known, 0.5 if margin else None
            )
            for one in asked
        ]

    def saliency(self, image: Looked, queries: list[str], *, layer: str | None) -> list[SaliencyMap]:
        self._enter(f"maps {queries}")
        values = np.arange(4, dtype=np.float32).reshape(2, 2)
        return [SaliencyMap(query, layer, values, -3.0, 1) for query in queries]
