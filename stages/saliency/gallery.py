"""Random pictures with what the translator says of them: at two marked places, for each layer, and as heat maps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from devil_pipe.stages.common.decoding import PictureError, open_picture
from devil_pipe.stages.common.files import replacing, write_json
from devil_pipe.stages.common.progress import track
from devil_pipe.stages.evaluate.run import Trained
from devil_pipe.stages.prepare.index import read_mask, read_picture
from devil_pipe.stages.saliency.config import SaliencyConfig
from devil_pipe.stages.saliency.likelihood import LikelihoodMaps
from devil_pipe.stages.saliency.localisation import read_mask_image
from devil_pipe.stages.saliency.overlays import draw
from devil_pipe.stages.train.batches import whole_features
from devil_pipe.stages.train.loop import translate
from devil_pipe.store.errors import InputError

PINK, GREEN = "#e0218a", "#1a9850"
LONGEST = 1024  # pixels along a shown picture's longer side


def build(
    config: SaliencyConfig, trained: Trained, maps: LikelihoodMaps, rows: Sequence[int], failures: dict[str, Any]
) -> None:
    """Write gallery.json (with `failures` as they stand), the pictures, their overlays and maps.npz under saliency/."""
    folder = config.out / "saliency"
    objects = sorted({entry["object"] for entry in trained.index if entry["object"]})
    entries, arrays = [], {}
    for number, row in enumerate(track(rows, "gallery", unit="pictures")):
        random = np.random.default_rng([config.seed, row])
        entry = trained.index[row]
        picture = shown_picture(entry, config.data_dir)
        shown = folder / "gallery" / f"{number:03d}-{safe_name(entry['key'])}.png"
        with replacing(shown) as partial:
            picture.save(partial, format="PNG", optimize=True)
        markers = _markers(entry, config.data_dir, random)
        queries = _queries(entry, objects, random)
        for layer in trained.store.layers:
            arrays[f"{number:03d}/{layer.name}"] = maps.maps(layer, row, [text for text, _ in queries]).numpy()
        entries.append(
            {
                "key": entry["key"],
                "split": entry["split"],
                "object": entry["object"],
                "scene": scene_words(entry),
                "reference": entry["captions"][0],
                "picture": str(shown.relative_to(folder)),
                "markers": markers,
                "descriptions": _descriptions(config, trained, maps, row, markers),
                "queries": [{"text": text, "present": present, "maps": {}} for text, present in queries],
            }
        )
    scale = _scale(list(arrays.values()))
    for number, item in enumerate(entries):
        _overlays(
            folder, item, {key[4:]: value for key, value in arrays.items() if key.startswith(f"{number:03d}/")}, scale
        )
    with replacing(folder / "maps.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    limits = {"low": -scale, "high": scale}
    listed = {"seed": config.seed, "scale": limits, "objects": objects, "pictures": entries, "failures": failures}
    write_json(folder / "gallery.json", listed)


def shown_picture(entry: dict[str, Any], data_dir: Path) -> Image.Image:
    """The picture as the backbone saw it, in its own proportions and no larger than a page shows.

    Raises:
        InputError: its file is gone, or changed since its features were extracted.
    """
    try:
        picture = open_picture(read_picture(entry, data_dir))
    except PictureError as error:
        raise InputError(
            f"key {entry['key']!r}: its picture cannot be decoded: {error}; "
            "it changed since its features were extracted: run `devil-pipe prepare` again"
        ) from None
    picture.thumbnail((LONGEST, LONGEST))
    return picture


def _overlays(folder: Path, item: dict[str, Any], arrays: dict[str, np.ndarray], scale: float) -> None:
    with Image.open(folder / item["picture"]) as opened:
        picture = opened.convert("RGB")
    for place, query in enumerate(item["queries"]):
        for layer, values in arrays.items():
            path = folder / "overlays" / f"{Path(item['picture']).stem}-{place}-{safe_name(layer)}.png"
            draw(values[place], picture, scale, path)
            query["maps"][layer] = {
                "overlay": str(path.relative_to(folder)),
                "min": round(float(values[place].min()), 3),
                "max": round(float(values[place].max()), 3),
            }


def _scale(arrays: Sequence[np.ndarray]) -> float:
    """A scale that all maps share: the 99th percentile of |nats|, so that one hot spot does not pale the rest."""
    if not arrays:
        return 1.0
    return round(float(np.percentile(np.abs(np.concatenate([item.ravel() for item in arrays])), 99)), 2) or 1.0


def _markers(entry: dict[str, Any], data_dir: Path, random: np.random.Generator) -> list[dict[str, Any]]:
    """Two places: one on the object and one off it where a mask tells, else two random ones."""
    content = read_mask(entry, data_dir)
    if content is None:
        places = [(*random.uniform(0.1, 0.9, 2), "anywhere") for _ in range(2)]
    else:
        mask = read_mask_image(content)
        places = [(*_place(mask, random), "object"), (*_place(~mask, random), "background")]
    return [
        {"id": name, "x": round(float(x), 4), "y": round(float(y), 4), "colour": colour, "where": where}
        for (x, y, where), name, colour in zip(places, "AB", (PINK, GREEN), strict=True)
    ]


def _place(mask: np.ndarray, random: np.random.Generator) -> tuple[float, float]:
    """A random pixel of the mask that keeps clear of the frame's edge where one does; fractions (x, y)."""
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    inner = (abs(rows / height - 0.5) < 0.42) & (abs(columns / width - 0.5) < 0.42)
    if inner.any():
        rows, columns = rows[inner], columns[inner]
    if len(rows) == 0:
        return 0.5, 0.5
    chosen = int(random.integers(len(rows)))
    return (columns[chosen] + 0.5) / width, (rows[chosen] + 0.5) / height


def scene_words(entry: dict[str, Any]) -> str:
    """The scene in the caption's own words: what stands behind the object's name, from its last article on."""
    caption, name = entry["captions"][0], entry["object"]
    if not name or not caption.startswith(name):
        return ""
    tail = caption.removeprefix(name).strip()
    return re.sub(r"^.*\b(?=(?:an?|the) )", "", tail)


def _queries(entry: dict[str, Any], objects: Sequence[str], random: np.random.Generator) -> list[tuple[str, bool]]:
    """Words of the caption (object and scene where known, else the caption), and an object that is not there."""
    present = [text for text in (entry["object"], scene_words(entry)) if text] or [entry["captions"][0]]
    absent = [name for name in objects if name != entry["object"]]
    return [(text, True) for text in present] + ([(absent[int(random.integers(len(absent)))], False)] if absent else [])


def _descriptions(
    config: SaliencyConfig, trained: Trained, maps: LikelihoodMaps, row: int, markers: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    model = trained.language_model
    features = whole_features(trained.store, [row])
    whole = model.write(translate(trained.translator, features, device=model.device), config.max_new_tokens)[0]
    said: dict[str, Any] = {"all": whole}
    for place, layer in enumerate(trained.store.layers):
        vectors = trained.store[layer.name].on_grid([row])[0]
        height, width, _ = vectors.shape
        chosen = [
            vectors[min(int(item["y"] * height), height - 1), min(int(item["x"] * width), width - 1)]
            for item in markers
        ]
        stacked = np.stack([features.layers[place][0].numpy(), *[vector.astype(np.float32) for vector in chosen]])
        texts = model.write(maps.prefixes(layer.name, [torch.from_numpy(stacked)]), config.max_new_tokens)
        said[layer.name] = dict(zip(["whole", *[item["id"] for item in markers]], texts, strict=True))
    return said


def safe_name(name: str) -> str:
    """A key as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)
