"""Features of a picture into words, many at once, each with what tells how far to trust it; knows no backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from devil_pipe.stages.explain.answers import Asked, Description, Looked, Margin
from devil_pipe.stages.explain.margin import BATCH, SEED, margin_of, means, read, resampled
from devil_pipe.stages.explain.places import covered, location, pooled
from devil_pipe.stages.train.batches import Features
from devil_pipe.stages.train.language_model import LanguageModel
from devil_pipe.stages.train.loop import translate
from devil_pipe.stages.train.translator import Translator
from devil_pipe.store.errors import UsageError
from devil_pipe.store.schema import LayerSpec

Masks = list[Bool[Tensor, "_ _"] | None]
"""For each layer which locations are averaged [rows, locations], one row a prefix; None where it is not looked at."""


def layer_called(name: str | None, layers: Sequence[LayerSpec]) -> LayerSpec | None:
    """The layer of a name; None for all together. Raises UsageError with the names there are."""
    if name is None:
        return None
    for layer in layers:
        if layer.name == name:
            return layer
    names = [layer.name for layer in layers]
    near = get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"layer {name!r}: expected one of {', '.join(names)}{hint}")


class Describer:
    """Describes feature maps through a translator and the language model that it writes for."""

    def __init__(self, translator: Translator, layers: Sequence[LayerSpec], language_model: LanguageModel) -> None:
        """`layers` are the translator's, in its order; translator and language model are on one device."""
        self.translator, self.layers, self.language_model = translator, tuple(layers), language_model

    @torch.inference_mode()
    def describe(
        self, looked: Looked, asked: Sequence[Asked], max_new_tokens: int, blank: Looked | None, resamples: int
    ) -> list[Description]:
        """What each asked feature says; each as it would be alone.

        Args:
            looked: the picture.
            asked: any number.
            max_new_tokens: length of a description.
            blank: a picture that shows nothing, to which the margin compares; None: neither margins nor agreement.
            resamples: spatial masks that the margin's interval and the agreement come from.

        Raises:
            UsageError: no such layer, a place or box outside the picture, or an empty box.
        """
        specs = [layer_called(item.layer, self.layers) for item in asked]
        own = [self._masks(item, looked.size) for item in asked]
        if not asked:
            return []
        prefixes = self.prefixes(looked.maps, own)
        texts = [
            tokens
            for part in torch.split(prefixes, BATCH)
            for tokens in self.language_model.write_tokens(part, max_new_tokens)
        ]
        trust: Sequence[tuple[Margin | None, float | None]] = [(None, None)] * len(asked)
        if blank is not None:
            trust = self._trust(looked, blank, own, texts, prefixes, resamples)
        return [
            self._description(item, spec, looked.size, masks, tokens, known)
            for item, spec, masks, tokens, known in zip(asked, specs, own, texts, trust, strict=True)
        ]

    def prefixes(
        self, maps: Mapping[str, Float[Tensor, "_ _ _"]], asked: Sequence[Masks]
    ) -> Float[Tensor, "rows queries width"]:
        """Prefix tokens of every row of what is asked, in its order, looking at the layers that have masks."""
        rows = torch.tensor([next(len(there) for there in masks if there is not None) for masks in asked])
        features = [
            torch.cat(
                [_mean(maps[layer.name], masks[place], int(count)) for masks, count in zip(asked, rows, strict=True)]
            )
            for place, layer in enumerate(self.layers)
        ]
        seen = torch.tensor([[there is not None for there in masks] for masks in asked])
        keep = seen.repeat_interleave(rows, dim=0)
        return translate(self.translator, Features(features, keep), device=self.language_model.device)

    def _masks(self, asked: Asked, size: tuple[int, int]) -> Masks:
        """What is asked, as one row of each layer that is looked at."""
        return [
            pooled(asked, size, layer)[None] if asked.layer in (None, layer.name) else None for layer in self.layers
        ]

    def _resampled(self, masks: Masks, count: int) -> Masks:
        """So many rows in place of the one; always the same, whatever else is asked beside it."""
        generator = torch.Generator().manual_seed(SEED)
        return [
            None if there is None else resampled(there[0], layer, count, generator)
            for there, layer in zip(masks, self.layers, strict=True)
        ]

    def _trust(
        self,
        looked: Looked,
        blank: Looked,
        own: Sequence[Masks],
        texts: Sequence[list[int]],
        prefixes: Tensor,
        resamples: int,
    ) -> list[tuple[Margin, float]]:
        """Margin and agreement of each text: read after its own prefix, after a blind one, and after resampled ones."""
        model, count = self.language_model, len(texts)
        blind = self.prefixes(blank.maps, own)
        again = self.prefixes(looked.maps, [self._resampled(masks, resamples) for masks in own])
        repeated = [text for text in texts for _ in range(resamples)]
        found = read(model, torch.cat([prefixes, blind, again]), [*texts, *texts, *repeated])
        nulls = torch.maximum(found.nats[count : 2 * count], read(model, None, texts).nats)
        nats = found.nats[2 * count :].reshape(count, resamples)
        same = found.written[2 * count :].reshape(count, resamples).float().mean(dim=1)
        return [
            (margin_of(float(found.nats[place]), nats[place], float(nulls[place])), float(same[place]))
            for place in range(count)
        ]

    def _description(
        self,
        asked: Asked,
        layer: LayerSpec | None,
        size: tuple[int, int],
        masks: Masks,
        tokens: list[int],
        trust: tuple[Margin | None, float | None],
    ) -> Description:
        row = column = box = None
        if layer is not None and (asked.at is not None or asked.box is not None):
            there = masks[self.layers.index(layer)]
            assert there is not None, "a layer that is asked is looked at"
            box = covered(there[0], size, layer)
            if asked.at is not None:
                row, column = location(asked.at, size, layer)
        return Description(self.language_model.decode(tokens), asked.layer, row, column, box, *trust)


def _mean(
    features: Float[Tensor, "height width channels"], keep: Bool[Tensor, "rows locations"] | None, count: int
) -> Float[Tensor, "rows channels"]:
    """Means over the masks' locations; zeros, which nobody looks at, without masks."""
    return features.new_zeros(count, features.shape[2]) if keep is None else means(features, keep)
