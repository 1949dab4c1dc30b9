"""The gallery of `saliency/gallery.json`: its schema, the files it needs, and whether a sentence names the object."""

from __future__ import annotations

import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from devil_pipe.pipeline.report.reading import read_object, require, validated
from devil_pipe.store.errors import InputError

# Only plain hex colours reach a style attribute: escaping for HTML does not guard CSS.
Colour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]

# matplotlib's RdBu_r at nine even steps, blue to red; used where gallery.json names no colours of its own.
DEFAULT_COLOURS = [
    "#053061", "#2f79b5", "#75b2d4", "#c0dceb", "#f7f7f7", "#fbccb4", "#e58368", "#be3036", "#67001f",
]  # fmt: skip


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Marker(_Part):
    """A marked location, in fractions of the picture's width and height."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
    x: float = Field(ge=0, le=1)
    y: float = Field(ge=0, le=1)
    colour: Colour
    where: str


class SaliencyMap(_Part):
    """One layer's map for one query: the overlay's file and the map's own range in nats over the prior."""

    overlay: str
    min: FiniteFloat
    max: FiniteFloat


class Query(_Part):
    """A word that was asked for, and whether the picture holds it."""

    text: str
    present: bool
    maps: dict[str, SaliencyMap]


class Picture(_Part):
    """One picture with its descriptions (`all` and for each layer `whole` and each marker) and queries."""

    key: str
    split: str
    object: str
    scene: str
    reference: str
    picture: str
    markers: list[Marker]
    descriptions: dict[str, str | dict[str, str]]
    queries: list[Query]


class Scale(_Part):
    """The one colour scale of all maps, in nats over the language model's prior; colours run low to high."""

    low: FiniteFloat = Field(lt=0)
    high: FiniteFloat = Field(gt=0)
    colours: list[Colour] = Field(default=DEFAULT_COLOURS, min_length=2)


class Gallery(_Part):
    """`saliency/gallery.json`."""

    seed: int
    scale: Scale
    objects: list[str] = []
    """All object names of the index: "a sea lion" must not count as naming the lion."""
    pictures: list[Picture]


def read_gallery(run: str, run_dir: Path) -> Gallery:
    """Read the gallery and see that every picture it names is there.

    Raises:
        InputError: the file or a picture is missing, a key is wrong, or a path leaves the saliency folder.
    """
    path = run_dir / "saliency" / "gallery.json"
    gallery = validated(Gallery, read_object(path, "saliency", run), path, "saliency", run)
    for name in picture_files(gallery):
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or parts.suffix.lower() not in {".png", ".jpg", ".webp"}:
            raise InputError(f"{path}: expected a picture's path inside the folder saliency, got {name!r}.")
        require(path.parent / name, "saliency", run)
    return gallery


def picture_files(gallery: Gallery) -> list[str]:
    """Every file the gallery shows, relative to the saliency folder, each once."""
    names = {picture.picture for picture in gallery.pictures}
    for picture in gallery.pictures:
        names |= {shown.overlay for query in picture.queries for shown in query.maps.values()}
    return sorted(names)


def copy_pictures(gallery: Gallery, saliency: Path, report: Path) -> None:
    """Copy what the gallery shows into the report's folder, under the same relative paths."""
    for name in picture_files(gallery):
        target = report / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(saliency / name, target)


def anchors(gallery: Gallery) -> list[str]:
    """For each picture `picture-KEY`, with letters fit for an address; equal ones get a number."""
    seen: dict[str, int] = {}
    result = []
    for picture in gallery.pictures:
        name = "picture-" + re.sub(r"[^A-Za-z0-9_.-]", "-", picture.key)
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return result


def mentions(description: str, name: str) -> bool:
    """Whether the whole words of `name` (its article left out) stand in `description`; case does not count."""
    words = re.sub(r"^(an?|the)\s+", "", name.strip().lower())
    if not words:
        return False
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", description.lower()) is not None
