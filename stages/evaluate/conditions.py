"""What the translator is given: all layers, one layer, and the null controls that show what it owes to the features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from devil_pipe.stages.common.progress import track
from devil_pipe.stages.train.batches import Features, whole_features
from devil_pipe.stages.train.language_model import LanguageModel
from devil_pipe.stages.train.loop import derangement, row_losses, translate
from devil_pipe.stages.train.translator import Translator
from devil_pipe.store.reader import FeatureStore

ALL = "all"
CONTROLS = ("shuffled", "mean", "zero", "lm_alone")


@dataclass(frozen=True)
class Outcome:
    """For each row: what was written, and the loss of its reference (summed nats, tokens)."""

    descriptions: list[str]
    nats: Tensor
    tokens: Tensor


class Conditions:
    """Computes the outcome of each condition on some rows of a store."""

    def __init__(
        self,
        store: FeatureStore,
        translator: Translator,
        language_model: LanguageModel,
        *,
        training_rows: Sequence[int],
        seed: int,
        max_new_tokens: int,
        batch_size: int,
    ) -> None:
        """`training_rows` give the mean feature, the best guess without a look at the picture."""
        self.store, self.translator, self.language_model = store, translator, language_model
        self.seed, self.max_new_tokens, self.batch_size = seed, max_new_tokens, batch_size
        self.mean = _mean(whole_features(store, training_rows))

    @property
    def names(self) -> tuple[str, ...]:
        """All conditions: all layers, each alone, then the controls."""
        return (ALL, *(layer.name for layer in self.store.layers), *CONTROLS)

    def outcomes(
        self, names: Sequence[str], features: Features, captions: Sequence[Sequence[int]]
    ) -> dict[str, Outcome]:
        """The outcome of each condition; shuffled features give the descriptions of the pictures they come from."""
        found: dict[str, Outcome] = {}
        for name in track(names, "describe", unit="conditions"):
            known = None
            if name == "shuffled" and ALL in found:
                order = derangement(len(captions), self.seed)
                known = [found[ALL].descriptions[place] for place in order]
            found[name] = self.outcome(name, features, captions, known)
        return found

    def outcome(
        self,
        name: str,
        features: Features,
        captions: Sequence[Sequence[int]],
        written: list[str] | None = None,
    ) -> Outcome:
        """Descriptions and reference losses under the condition `name`.

        Args:
            name: one of `names`.
            features: of the rows.
            captions: token ids of each row's first reference.
            written: the descriptions, where they are known already.
        """
        prefixes = self._prefixes(name, features)
        nats, tokens = row_losses(self.language_model, prefixes, captions)
        if written is not None:
            assert len(written) == len(captions), "one description a row"
        elif name in ("mean", "zero", "lm_alone"):  # one and the same input for every row
            one = None if prefixes is None else prefixes[:1]
            written = self.language_model.write(one, self.max_new_tokens) * len(captions)
        else:
            assert prefixes is not None
            parts = torch.split(prefixes, self.batch_size)
            written = [text for part in parts for text in self.language_model.write(part, self.max_new_tokens)]
        return Outcome(written, nats, tokens)

    def _prefixes(self, name: str, features: Features) -> Tensor | None:
        count = len(features)
        layers = None
        if name == "lm_alone":
            return None
        if name == "shuffled":
            features = features.take(torch.from_numpy(derangement(count, self.seed)))
        elif name in ("mean", "zero"):
            chosen = [item if name == "mean" else torch.zeros_like(item) for item in self.mean]
            features = Features([item.expand(count, -1) for item in chosen], torch.ones_like(features.there))
        elif name != ALL:
            layers = [[layer.name for layer in self.store.layers].index(name)]
        return translate(self.translator, features, layers, device=self.language_model.device)


def _mean(features: Features) -> list[Tensor]:
    """The mean of each layer [1, C] over the rows of which it knows something."""
    counts = features.there.sum(dim=0).clamp(min=1)
    return [
        (layer * features.there[:, place, None]).sum(dim=0, keepdim=True) / counts[place]
        for place, layer in enumerate(features.layers)
    ]
