"""A unit's feature in words, and what the words owe to the unit rather than to its layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from devil_pipe.stages.common.progress import bar
from devil_pipe.stages.evaluate.run import Trained
from devil_pipe.stages.explain.margin import read
from devil_pipe.stages.saliency.likelihood import Likelihoods


@dataclass(frozen=True)
class Said:
    """A description."""

    text: str
    margin: float
    """Nats by which the text is likelier after this feature than after the layer's mean feature; its end not counted.

    Around zero any unit of the layer might have got the same words."""


class UnitWriter:
    """Describes features of single layers through a run's translator, the other layers absent."""

    def __init__(self, trained: Trained, max_new_tokens: int, batch_size: int) -> None:
        """`batch_size` features are described together, at most `max_new_tokens` long."""
        self.model = trained.language_model
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self._likelihoods = Likelihoods(trained.translator, trained.store.layers, trained.language_model)

    @torch.inference_mode()
    def describe(
        self, layer: str, features: Float[Tensor, "units channels"], mean: Float[Tensor, " channels"]
    ) -> list[Said]:
        """What each feature of a layer says (greedy), with its margin.

        Args:
            layer: whose features they are.
            features: one a row.
            mean: over all locations of the layer, which is what a blind reader would bet on.
        """
        found: list[Said] = []
        blind = self._likelihoods.prefixes(layer, [mean[None]])
        with bar(f"describe {layer}", len(features), "units") as shown:
            for part in torch.split(features, self.batch_size) if len(features) else ():
                prefixes = self._likelihoods.prefixes(layer, [part])
                texts = self.model.write_tokens(prefixes, self.max_new_tokens)
                own = read(self.model, prefixes, texts).nats
                other = read(self.model, blind.expand(len(texts), -1, -1), texts).nats
                margins = (own - other).tolist()
                found += [Said(self.model.decode(text), margin) for text, margin in zip(texts, margins, strict=True)]
                shown.advance(len(part))
        return found

    @torch.inference_mode()
    def write(self, layer: str, features: Sequence[Float[Tensor, " channels"]]) -> list[str]:
        """The descriptions alone."""
        texts: list[str] = []
        for part in torch.split(torch.stack(list(features)), self.batch_size):
            texts += self.model.write(self._likelihoods.prefixes(layer, [part]), self.max_new_tokens)
        return texts
