"""The gallery's pictures as the page shows them: every sentence with a quiet mark for what it names."""

from __future__ import annotations

from dataclasses import dataclass

from devil_pipe.pipeline.report.anchors import anchor
from devil_pipe.pipeline.report.gallery import Gallery, Marker, Picture, mentions
from devil_pipe.pipeline.report.metrics import ALL_LAYERS, Metrics, ordered_layers
from devil_pipe.stages.evaluate.naming import Namer

WHOLE = "whole"


@dataclass(frozen=True)
class Sentence:
    """A description with its quiet mark; `verdict` is "right", "wrong", "off" or ""."""

    text: str
    verdict: str
    reason: str
    marker: Marker | None = None

    @property
    def symbol(self) -> str:
        """The mark itself."""
        return {"right": "✓", "wrong": "✗", "off": "○"}.get(self.verdict, "")


@dataclass(frozen=True)
class Layer:
    """What one layer says: of the whole layer, then of each marked place."""

    name: str
    anchor: str
    said: list[Sentence | None]


@dataclass(frozen=True)
class Card:
    """One picture of the gallery as the template shows it."""

    anchor: str
    picture: Picture
    whole: Sentence | None
    layers: list[Layer]


def cards(gallery: Gallery, metrics: Metrics) -> list[Card]:
    """The gallery's pictures with each sentence judged."""
    made = []
    namer = Namer([*gallery.objects, *(picture.object for picture in gallery.pictures)])
    for picture in gallery.pictures:
        address = anchor("picture", picture.key)
        names = ordered_layers((name for name in picture.descriptions if name != ALL_LAYERS), metrics.layers)
        layers = [
            Layer(name, anchor(f"{address}.layer", name), _layer(namer, picture, picture.descriptions[name]))
            for name in names
        ]
        whole = picture.descriptions.get(ALL_LAYERS)
        made.append(Card(address, picture, judged(namer, picture, whole) if isinstance(whole, str) else None, layers))
    return made


def _layer(namer: Namer, picture: Picture, said: str | dict[str, str]) -> list[Sentence | None]:
    """A layer's sentences in the order of the columns: whole layer, then each marker."""
    by_place = {WHOLE: said} if isinstance(said, str) else said
    sentences = [judged(namer, picture, by_place[WHOLE]) if WHOLE in by_place else None]
    for marker in picture.markers:
        sentences.append(judged(namer, picture, by_place[marker.id], marker) if marker.id in by_place else None)
    return sentences


def judged(namer: Namer, picture: Picture, text: str, marker: Marker | None = None) -> Sentence:
    """Mark a sentence by the object's name; on the background the scene's name is right and none is wrong."""
    if marker is not None and marker.where == "background":
        if picture.scene and mentions(text, picture.scene):
            return Sentence(text, "right", "names the scene", marker)
        if picture.object and namer.right(text, picture.object):
            return Sentence(text, "off", "names the object, though the marker lies on the background", marker)
        return Sentence(text, "", "", marker)
    if not picture.object:
        return Sentence(text, "", "", marker)
    if namer.right(text, picture.object):
        return Sentence(text, "right", "names the object", marker)
    return Sentence(text, "wrong", "does not name the object", marker)
