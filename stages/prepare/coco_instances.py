"""COCO's instances: of each picture one category that it shows, and the mask of all its instances.

The published instances_val2014.json holds `images` (id, width, height), `categories` (id, name) and `annotations`
(image_id, category_id, segmentation: polygons, or runs for crowds). A picture shows several categories, and the index
knows one object: it is drawn, so that large ones are not preferred, and the others are told apart from it.
"""

from __future__ import annotations

import io
import math
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pycocotools.mask as coco_masks
from jaxtyping import Bool
from PIL import Image

from devil_pipe.stages.prepare.coco_files import entries, get, named, read_json
from devil_pipe.store.errors import InputError

LEAST = 0.01
"""Share of a picture that a category's instances must cover to be drawn: two of 14 × 14 locations."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Shown:
    """What a picture shows, by its instances."""

    object: str
    """The category that was drawn, with its article; "" where none is large enough."""
    others: tuple[str, ...]
    """The other categories in the picture, of any size."""
    size: Size
    """Height and width that the file gives the picture."""
    outlines: tuple[Any, ...] = ()
    """Of the drawn category's instances: polygons, or runs."""

    def mask(self, size: Size | None = None) -> Bool[np.ndarray, "height width"]:
        """Where the drawn category's instances lie; `size` is the picture's, where it differs from the file's."""
        found = np.zeros(self.size, dtype=bool)
        for outline in self.outlines:
            found |= coco_masks.decode(_runs(outline, self.size)).astype(bool)
        if size is None or size == self.size:
            return found
        return np.asarray(Image.fromarray(found).resize(size[::-1], Image.Resampling.NEAREST))

    def png(self, size: Size) -> bytes:
        """The mask as a picture of one bit a pixel."""
        target = io.BytesIO()
        Image.fromarray(self.mask(size)).save(target, format="PNG")
        return target.getvalue()


def read_instances(paths: Sequence[Path], seed: int) -> dict[int, Shown]:
    """Image id → what it shows, of every image that the files list.

    Args:
        paths: instances_train2014.json and the like.
        seed: of the draw among a picture's categories.

    Raises:
        InputError: a key missing or of another type, an unknown image or category, or an outline that is none.
    """
    found: dict[int, Shown] = {}
    for path in paths:
        here = _read(path, seed)
        if twice := found.keys() & here.keys():
            raise InputError(f"{path}: expected images that no other file of coco.instances has, got {min(twice)}")
        found |= here
    return found


def _read(path: Path, seed: int) -> dict[int, Shown]:
    content = read_json(path, "instances")
    categories = {
        get(entry, "id", int, where): get(entry, "name", str, where)
        for where, entry in entries(content, "categories", path)
    }
    sizes: dict[int, Size] = {}
    for where, entry in entries(content, "images", path):
        sizes[get(entry, "id", int, where)] = (_side(entry, "height", where), _side(entry, "width", where))
    outlines: dict[int, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for where, entry in entries(content, "annotations", path):
        number, category = get(entry, "image_id", int, where), get(entry, "category_id", int, where)
        if number not in sizes:
            raise InputError(f"{where}: expected the image_id of one of the file's images, got {number}")
        if category not in categories:
            raise InputError(f"{where}: expected the category_id of one of the file's categories, got {category}")
        outlines[number][categories[category]].append(_outline(entry, sizes[number], where))
    return {number: _shown(number, size, outlines.get(number, {}), seed) for number, size in sizes.items()}


def _side(entry: Mapping[str, Any], key: str, where: str) -> int:
    side: int = get(entry, key, int, where)
    if not 0 < side <= 1 << 16:
        raise InputError(f"{where}: key {key!r}: expected pixels, got {side}")
    return side


def _outline(entry: Mapping[str, Any], size: Size, where: str) -> Any:
    """An instance's polygons [[x, y, …], …] or runs, checked, since the decoder believes whatever it is given."""
    given = entry.get("segmentation")
    if isinstance(given, list) and given and all(map(_is_polygon, given)):
        limits = np.array([size[1], size[0]], dtype=np.float64)
        return [np.clip(np.reshape(line, (-1, 2)).astype(np.float64), 0, limits).ravel().tolist() for line in given]
    if isinstance(given, dict) and given.get("size") == list(size):
        counts = given.get("counts")
        if _are_runs(counts) and sum(counts) == size[0] * size[1]:
            return {"size": list(size), "counts": counts}
    raise InputError(
        f"{where}: key 'segmentation': expected polygons of three points or more, or runs over {size[1]} × {size[0]} "
        f"pixels, got {named(given)}"
    )


def _is_polygon(line: Any) -> bool:
    return (
        isinstance(line, list)
        and len(line) >= 6
        and len(line) % 2 == 0
        and all(isinstance(value, int | float) and math.isfinite(value) for value in line)
    )


def _are_runs(counts: Any) -> TypeGuard[list[int]]:
    return isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)


def _shown(number: int, size: Size, outlines: Mapping[str, Sequence[Any]], seed: int) -> Shown:
    """Draw one of the categories that are large enough, always the same for a picture and a seed."""
    large = [name for name in sorted(outlines) if _share(outlines[name], size) >= LEAST]
    drawn = large[zlib.crc32(f"{seed} {number}".encode()) % len(large)] if large else ""
    others = tuple(_with_article(name) for name in sorted(outlines) if name != drawn)
    return Shown(_with_article(drawn), others, size, tuple(outlines[drawn]) if drawn else ())


def _share(outlines: Sequence[Any], size: Size) -> float:
    covered = coco_masks.area(coco_masks.merge([_runs(outline, size) for outline in outlines]))
    return float(covered) / (size[0] * size[1])


def _runs(outline: Any, size: Size) -> Any:
    """An instance in the decoder's own runs; its parts are one thing."""
    made = coco_masks.frPyObjects(outline, *size)
    return coco_masks.merge(made) if isinstance(made, list) else made


def _with_article(name: str) -> str:
    """COCO's names are singular, but for pairs."""
    if not name or name in ("scissors", "skis"):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
