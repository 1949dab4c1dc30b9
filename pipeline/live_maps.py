"""Maps of a picture that is asked now: computed for each layer and all together, and written as arrays and pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from devil_pipe.stages.common.files import replacing
from devil_pipe.stages.common.progress import track, warn
from devil_pipe.stages.evaluate.language import Tagger
from devil_pipe.stages.explain.answers import Asked, Description, Looked, SaliencyMap
from devil_pipe.stages.explain.explainer import Explainer
from devil_pipe.stages.saliency.figure import Row, draw_grid
from devil_pipe.stages.saliency.likelihood import Smooth, kernel, smoothed
from devil_pipe.stages.saliency.localisation import enlarge
from devil_pipe.stages.saliency.overlays import Scale, draw
from devil_pipe.stages.saliency.words import main_words

ALL = "all"
"""All layers together, in the names of arrays and files."""

GREY = Image.new("RGB", (64, 64), (128, 128, 128))
SHOWN = 1024  # pixels along a drawn picture's longer side


@dataclass(frozen=True)
class Wanted:
    """What is asked of every picture."""

    queries: tuple[str, ...]
    layers: tuple[str, ...]
    scale: Scale
    at: tuple[float, float] | None = None
    """Where to describe each layer, and take the description's main words as its queries too."""

    smooth: Smooth = "auto"
    grid: int = 0
    upsample: bool = False
    grey: bool = False
    """Zero is a grey picture's own log-likelihood, not the language model's prior."""


@dataclass(frozen=True)
class LayerMaps:
    """The maps of one layer, or of all together."""

    name: str
    maps: Sequence[SaliencyMap]
    zeros: Sequence[float]
    """For each query the log-likelihood that was taken off, by which zero is what it is."""

    smooth: int
    """Side of the average pool that is drawn; the maps themselves are as they were scored."""

    description: Description | None = None

    @property
    def drawn(self) -> list[np.ndarray]:
        """The maps after smoothing."""
        stacked = torch.from_numpy(np.stack([item.values for item in self.maps]))
        return list(smoothed(stacked, self.smooth).numpy())


def ask(
    explainer: Explainer, name: str, picture: Image.Image, wanted: Wanted, tagger: Tagger | None
) -> list[LayerMaps]:
    """Maps of every layer, the last layer first, and of all layers together above them.

    Raises:
        UsageError: no such layer, a place outside the picture, or a query without words.
    """
    looked = explainer.look(picture)
    layers = [None, *reversed(wanted.layers)]
    said: list[Description | None] = [None] * len(layers)
    if wanted.at is not None:
        said = [*explainer.describe_many(looked, [Asked(layer, wanted.at) for layer in layers], margin=False)]
    found = []
    for layer, description in zip(track(layers, name, unit="layers"), said, strict=True):
        queries = [*wanted.queries, *_words(description, tagger)]
        queries = list(dict.fromkeys(queries))
        if queries:
            found.append(_maps(explainer, looked, layer, queries, wanted, description))
    return found


def _words(description: Description | None, tagger: Tagger | None) -> list[str]:
    if description is None or tagger is None:
        return []
    words = main_words(description.text, tagger)
    if not words:
        where = description.layer or "all layers"
        warn(f"{where}: no noun in {description.text!r}, so nothing of it is asked for")
    return words


def _maps(
    explainer: Explainer,
    looked: Looked,
    layer: str | None,
    queries: Sequence[str],
    wanted: Wanted,
    description: Description | None,
) -> LayerMaps:

    def scored(asked: Looked | Image.Image, grid: int) -> list[SaliencyMap]:
        scale = wanted.scale
        return explainer.saliency(
            asked, queries, layer=layer, plain=scale.plain, per_token=scale.per_token, smooth=0, grid=grid
        )

    maps = scored(looked, wanted.grid)
    zeros = [0.0 if wanted.scale.plain else item.prior for item in maps]
    if wanted.grey:
        # Averaged to a single location: what a translator says of nothing, its captions' form included.
        grey = [float(item.values[0, 0]) for item in scored(GREY, 1)]
        maps = [replace(item, values=item.values - np.float32(off)) for item, off in zip(maps, grey, strict=True)]
        zeros = [zero + off for zero, off in zip(zeros, grey, strict=True)]
    side = kernel(wanted.smooth, layer, explainer.layers, wanted.grid)
    return LayerMaps(layer or ALL, maps, zeros, side, description)


def save(folder: Path, stem: str, picture: Image.Image, found: Sequence[LayerMaps], wanted: Wanted, note: str) -> None:
    """Write STEM.npz, STEM.png (all maps in one look) and STEM-LAYER-NUMBER-QUERY.png (each over the picture)."""
    arrays: dict[str, np.ndarray] = {}
    for item in found:
        scored = [one.values for one in item.maps]
        if wanted.upsample:
            scored = [enlarge(one, picture.height, picture.width).astype(np.float32) for one in scored]
        arrays[item.name] = np.stack(scored)
        arrays[f"{item.name}/queries"] = np.array([one.query for one in item.maps])
        arrays[f"{item.name}/zero"] = np.array(item.zeros, dtype=np.float32)
        arrays[f"{item.name}/prior"] = np.array([one.prior for one in item.maps], dtype=np.float32)
    with replacing(folder / f"{stem}.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    shown = picture.copy()
    shown.thumbnail((SHOWN, SHOWN))
    factor = shown.width / picture.width
    for item in found:
        for number, (one, values) in enumerate(zip(item.maps, item.drawn, strict=True)):
            path = folder / f"{stem}-{_safe(item.name)}-{number}-{_safe(one.query)}.png"
            draw(values, shown, wanted.scale, path)
    rows = [_row(item, factor) for item in found]
    at = None if wanted.at is None else (wanted.at[0] * factor, wanted.at[1] * factor)
    draw_grid(rows, shown, wanted.scale, [_drawn_how(found, wanted), note], folder / f"{stem}.png", at)


def _row(item: LayerMaps, factor: float) -> Row:
    said, box = "", None
    if item.description is not None:
        said = item.description.text
        if item.description.box is not None:
            left, top, right, bottom = (side * factor for side in item.description.box)
            box = (left, top, right, bottom)
    height, width = item.maps[0].values.shape
    name = "all layers" if item.name == ALL else item.name
    return Row(name, (height, width), [one.query for one in item.maps], item.drawn, said, box)


def _drawn_how(found: Sequence[LayerMaps], wanted: Wanted) -> str:
    """How to read the figure, in one sentence or two."""
    pools = ", ".join(f"{item.name} {item.smooth} × {item.smooth}" for item in found if item.smooth > 1)
    smooth = f" Smoothed by an average pool: {pools} locations." if pools else ""
    if wanted.scale.plain:
        return "The plain score: the language model's prior is not taken off." + smooth
    than = "on a grey picture" if wanted.grey else "to the language model alone"
    return f"One scale for all maps; white: no likelier than {than}." + smooth


def as_dict(name: str, picture: Image.Image, found: Sequence[LayerMaps]) -> dict[str, Any]:
    """Plain values for JSON: of each map as it is drawn, its extremes and where they are."""
    return {
        "picture": name,
        "width": picture.width,
        "height": picture.height,
        "layers": {item.name: _layer_dict(item, picture.size) for item in found},
    }


def _layer_dict(item: LayerMaps, size: tuple[int, int]) -> dict[str, Any]:
    height, width = item.maps[0].values.shape
    return {
        "grid": [height, width],
        "smooth": item.smooth,
        "description": None if item.description is None else item.description.text,
        "queries": [
            {
                "query": one.query,
                "tokens": one.tokens,
                "prior": round(one.prior, 4),
                "zero": round(zero, 4),
                "max": round(float(values.max()), 4),
                "at": peak(values, size),
                "min": round(float(values.min()), 4),
                "mean": round(float(values.mean()), 4),
            }
            for one, zero, values in zip(item.maps, item.zeros, item.drawn, strict=True)
        ],
    }


def peak(values: np.ndarray, size: tuple[int, int]) -> list[float]:
    """x and y, in pixels, of the middle of the highest location."""
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    x, y = (column + 0.5) * size[0] / values.shape[1], (row + 0.5) * size[1] / values.shape[0]
    return [round(float(x), 1), round(float(y), 1)]


def lines(name: str, picture: Image.Image, found: Sequence[LayerMaps]) -> list[str]:
    """A picture's answers as text."""
    told = [f"{name} ({picture.width} × {picture.height})"]
    for item in found:
        label = "all layers" if item.name == ALL else item.name
        told.append(f"  {label}" + (f": “{item.description.text}”" if item.description is not None else ""))
        for one, values in zip(item.maps, item.drawn, strict=True):
            x, y = peak(values, picture.size)
            told.append(
                f"    {one.query}: most {values.max():+.1f} at {x:.0f},{y:.0f}, mean {values.mean():+.1f}, least "
                f"{values.min():+.1f} (prior {one.prior:.1f})"
            )
    return told


def _safe(text: str) -> str:
    """A layer or query as part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", text)[:40]
