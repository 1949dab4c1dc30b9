"""The gallery of `saliency/gallery.json`: its schema, the files it needs, and whether a sentence names the object."""

from __future__ import annotations

import re
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


class Failure(_Part):
    """A picture with a description that a rule found to be bad, and its margin over another picture's features."""

    key: str
    split: str
    object: str
    reference: str
    picture: str
    description: str
    margin: FiniteFloat


class Failures(_Part):
    """What was looked at, how much of it failed, and the failures that are shown."""

    looked: int = Field(ge=0)
    failed: int | None = Field(None, ge=0)
    """How many of them name no right object; None where the index knows no objects."""
    pictures: list[Failure] = []


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
    failures: Failures = Failures(looked=0)


def read_gallery(run: str, run_dir: Path) -> Gallery:
    """Read the gallery and see that every picture it names is there.

    Raises:
        InputError: the file or a picture is missing, a key is wrong or there twice, or a path leaves the folder.
    """
    path = run_dir / "saliency" / "gallery.json"
    gallery = validated(Gallery, read_object(path, "saliency", run), path, "saliency", run)
    keys_of_parts = (
        [picture.key for picture in gallery.pictures],
        [picture.key for picture in gallery.failures.pictures],
    )
    for keys in keys_of_parts:
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise InputError(
                f"{path}, key {twice!r}: expected every picture once, got it twice. "
                f"Make it anew with `devil-pipe saliency {run}`."
            )
    for name in (*picture_files(gallery), *overlay_files(gallery)):
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or parts.suffix.lower() not in {".png", ".jpg", ".webp"}:
            raise InputError(f"{path}: expected a picture's path inside the folder saliency, got {name!r}.")
        require(path.parent / name, "saliency", run)
    return gallery


def picture_files(gallery: Gallery) -> list[str]:
    """The pictures that are shown, relative to the saliency folder, each once."""
    shown = {picture.picture for picture in gallery.pictures}
    return sorted(shown | {picture.picture for picture in gallery.failures.pictures})


def overlay_files(gallery: Gallery) -> list[str]:
    """The maps that are shown, relative to the saliency folder, each once."""
    queries = [query for picture in gallery.pictures for query in picture.queries]
    return sorted({shown.overlay for query in queries for shown in query.maps.values()})


def mentions(description: str, name: str) -> bool:
    """Whether the whole words of `name` (its article left out) stand in `description`; case does not count."""
    words = re.sub(r"^(an?|the)\s+", "", name.strip().lower())
    if not words:
        return False
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", description.lower()) is not None
