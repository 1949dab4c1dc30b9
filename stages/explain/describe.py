"""Describe pictures live: the backbone runs on each, and every feature asked for is put into words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from devil_pipe.stages.common.decoding import PictureError, open_picture
from devil_pipe.stages.common.progress import warn
from devil_pipe.stages.extract.backbones import Backbone, load
from devil_pipe.stages.extract.layers import Taps, choose, layer_specs
from devil_pipe.stages.extract.pictures import INTERPOLATIONS, Transform
from devil_pipe.stages.train.batches import Features
from devil_pipe.stages.train.checkpoint import Card
from devil_pipe.stages.train.language_model import LanguageModel
from devil_pipe.stages.train.loop import translate
from devil_pipe.stages.train.translator import Translator
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.schema import Identity, LayerSpec

Place = tuple[float, float]
"""x and y as fractions of the picture's width and height, from its upper left corner."""


@dataclass(frozen=True)
class Located:
    """What the location that holds a place says, at one layer."""

    row: int
    column: int
    text: str


@dataclass(frozen=True)
class Explanation:
    """What a picture's features say."""

    whole: str
    """All layers together, each pooled over the picture."""

    layers: dict[str, str]
    """Each layer alone, pooled over the picture."""

    places: list[dict[str, Located]]
    """For each place asked for: layer → its location there, alone."""


class Explainer:
    """A translator with the backbone whose features it reads and the language model that it writes through."""

    def __init__(self, translator: Translator, card: Card, backbone: Backbone, language_model: LanguageModel) -> None:
        """Put the parts together; all run on the language model's device.

        Raises:
            InputError: another backbone, or another language model, than the translator was trained with.
        """
        self.card, self.language_model, self.device = card, language_model, language_model.device
        self.translator = translator.to(self.device)
        self.transform = transform_of(card.store)
        self.module = backbone.module.to(self.device)
        check_backbone(backbone, card.store)
        self.taps = choose(backbone.spec, [layer.name for layer in card.store.layers])
        found = layer_specs(self.module, self.taps, self.transform.size)
        if found != card.store.layers:
            raise InputError(f"backbone {backbone.spec.name}: expected layers {card.store.layers}, got {found}")
        self._check_width()

    def _check_width(self) -> None:
        layers = self.card.store.layers
        blank = Features([torch.zeros(1, layer.channels) for layer in layers], torch.ones(1, len(layers)).bool())
        width = translate(self.translator, blank, device=self.device).shape[2]
        if width != self.language_model.width:
            raise InputError(
                f"language model {self.language_model.name}: expected {self.card.language_model}, whose embeddings are "
                f"{width} wide, got one of width {self.language_model.width}"
            )

    @torch.inference_mode()
    def maps(self, picture: Image.Image) -> list[Float[Tensor, "locations _"]]:
        """The feature map of each layer, locations in rows of the grid."""
        pixels = self.transform(picture)[None].to(self.device)
        compute = self.card.store.compute
        kind = torch.float32 if compute == "float32" else getattr(torch, compute)
        with Taps(self.module, self.taps) as read, torch.autocast(self.device.type, kind, enabled=compute != "float32"):
            found = read(pixels)
        return [found[layer.name][0].float() for layer in self.card.store.layers]

    def explain(
        self, picture: Image.Image, layers: Sequence[str], places: Sequence[Place], max_new_tokens: int
    ) -> Explanation:
        """Describe a picture.

        Args:
            picture: of any size.
            layers: names of those to be described alone.
            places: where single locations are described too.
            max_new_tokens: length of a description.

        Raises:
            InputError: no such layer.
            UsageError: a place outside the picture.
        """
        chosen = [self.card.store.layer(name) for name in layers]
        maps = self.maps(picture)
        means = [item.mean(dim=0, keepdim=True) for item in maps]
        prefixes = [self._prefix(means, None)]
        prefixes += [self._prefix(means, layer) for layer in chosen]
        asked = [(place, layer, _location(place, layer)) for place in places for layer in chosen]
        for _, layer, (row, column) in asked:
            vector = maps[self._number(layer)][row * layer.width + column]
            prefixes.append(self._prefix([vector[None] if other == layer else None for other in self._layers], layer))
        whole, *texts = self.language_model.write(torch.cat(prefixes), max_new_tokens)
        alone, there = texts[: len(chosen)], texts[len(chosen) :]
        located: list[dict[str, Located]] = [{} for _ in places]
        for number, ((_, layer, spot), text) in enumerate(zip(asked, there, strict=True)):
            located[number // len(chosen)][layer.name] = Located(*spot, text)
        return Explanation(whole, dict(zip(layers, alone, strict=True)), located)

    @property
    def _layers(self) -> tuple[LayerSpec, ...]:
        return self.card.store.layers

    def _number(self, layer: LayerSpec) -> int:
        return self._layers.index(layer)

    def _prefix(self, vectors: Sequence[Tensor | None], layer: LayerSpec | None) -> Tensor:
        """Prefix tokens of one vector a layer, looking at one layer (all if None)."""
        given = [
            torch.zeros(1, spec.channels) if vector is None else vector.cpu()
            for vector, spec in zip(vectors, self._layers, strict=True)
        ]
        there = torch.ones(1, len(given), dtype=torch.bool)
        return translate(
            self.translator,
            Features(given, there),
            None if layer is None else [self._number(layer)],
            device=self.device,
        )


def _location(place: Place, layer: LayerSpec) -> tuple[int, int]:
    """Row and column of the grid's cell that holds a place."""
    x, y = place
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise UsageError(f"expected a place X,Y of fractions from 0 to 1, got {x:g},{y:g}")
    return min(int(y * layer.height), layer.height - 1), min(int(x * layer.width), layer.width - 1)


def open_backbone(store: Identity, weights: str, trusted: str) -> Backbone:
    """The backbone whose features a translator reads.

    Args:
        store: of the translator's card.
        weights: "auto", "random" or a file; "auto" draws random weights anew where the translator was trained on such.
        trusted: a function of one's own that may be called; a translator from elsewhere calls none by itself.

    Raises:
        UsageError: unknown backbone, or one that is a function nobody named here.
        InputError: weights that cannot be had, or others than the translator was trained on.
    """
    function = "/" not in store.backbone.partition(":")[0] and ":" in store.backbone
    if function and trusted != store.backbone:
        raise UsageError(
            f"the translator's backbone is the function {store.backbone}, which would be imported and called here; "
            f"if you trust it, say so with --backbone {store.backbone}"
        )
    kind, _, seed = store.weights.partition(":")
    if kind == "random" and weights in ("auto", "random"):
        warn(f"{store.backbone} has random weights: its features mean nothing, and neither do their descriptions")
        return load(store.backbone, "random", int(seed))
    backbone = load(store.backbone, weights)
    check_backbone(backbone, store)
    return backbone


def check_backbone(backbone: Backbone, store: Identity) -> None:
    """Raise InputError, which names both, unless the weights are those that the features were made with."""
    if backbone.weights != store.weights:
        raise InputError(
            f"backbone {backbone.spec.name}: expected the weights that the translator was trained on, "
            f"{store.weights}, got {backbone.weights}; name their file with --weights"
        )


def transform_of(store: Identity) -> Transform:
    """How pictures became the pixels that a store's features were made from. Raises InputError for an unknown way."""
    said = dict(store.transform)
    try:
        height, width = said.pop("resize")
        made = Transform(
            (int(height), int(width)), tuple(said.pop("mean")), tuple(said.pop("std")), said.pop("interpolation")
        )
        known = {"orientation": "exif", "transparency": "white"}
        strange = {key: value for key, value in said.items() if known.get(key) != value}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the translator's features: expected how their pictures were resized and scaled, got {store.transform}"
        ) from error
    if strange or made.interpolation not in INTERPOLATIONS:
        raise InputError(f"the translator's features: this version does not know how to make {store.transform}")
    return made


def read_pictures(paths: Sequence[Path]) -> list[Image.Image]:
    """Open pictures. Raises InputError for the first that is none."""
    found = []
    for path in paths:
        try:
            found.append(open_picture(path.read_bytes()))
        except OSError as error:
            raise InputError(f"{path}: expected a picture, and cannot read it: {error.strerror or error}") from None
        except PictureError as error:
            raise InputError(f"{path}: expected a picture: {error}") from None
    return found


def as_dict(explanation: Explanation, places: Sequence[Place]) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "all": explanation.whole,
        "layers": explanation.layers,
        "places": [
            {"x": x, "y": y, "layers": {name: located.__dict__ for name, located in found.items()}}
            for (x, y), found in zip(places, explanation.places, strict=True)
        ],
    }
