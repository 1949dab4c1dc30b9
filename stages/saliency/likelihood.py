"""Likelihood maps: how much likelier a query becomes by looking at one location of one layer (section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from devil_pipe.stages.common.progress import track
from devil_pipe.stages.evaluate.run import Trained
from devil_pipe.stages.train.batches import Features
from devil_pipe.stages.train.language_model import LanguageModel
from devil_pipe.stages.train.loop import translate
from devil_pipe.stages.train.translator import Translator
from devil_pipe.store.errors import UsageError
from devil_pipe.store.schema import LayerSpec

Smooth = int | Literal["auto"]
Maps = Mapping[str, Float[Tensor, "_ _ _"]]
"""The feature map [height, width, channels] of each layer."""

KERNELS = (1, 3, 7)
"""The authors' average pools: of the last layer, the second-last, the third-last."""


class Likelihoods:
    """Likelihood maps of features, wherever they come from: a store, or a backbone that has just run."""

    def __init__(
        self, translator: Translator, layers: Sequence[LayerSpec], language_model: LanguageModel, batch_size: int = 64
    ) -> None:
        """`layers` are the translator's, in its order; `batch_size` locations are computed together."""
        self.translator, self.layers = translator, tuple(layers)
        self.language_model, self.batch_size = language_model, batch_size
        self._priors: dict[str, float] = {}

    def tokens(self, queries: Sequence[str]) -> list[list[int]]:
        """Token ids of each query. Raises UsageError for one without words."""
        for query in queries:
            if not query.strip():
                raise UsageError(f"query: expected a word or more, got {query!r}")
        return self.language_model.encode(queries)

    def prior(self, queries: Sequence[str]) -> Float[Tensor, " queries"]:
        """Log-likelihood of each query without any picture, nats summed over tokens; computed once a query."""
        new = [query for query in dict.fromkeys(queries) if query not in self._priors]
        if new:
            found = self.language_model.query_scores(None, self.tokens(new))[0].tolist()
            self._priors.update(zip(new, found, strict=True))
        return torch.tensor([self._priors[query] for query in queries])

    def prefixes(
        self, layer: str | None, vectors: Sequence[Float[Tensor, "count _"]]
    ) -> Float[Tensor, "count queries width"]:
        """Prefix tokens of single features: of one layer, the others masked out, or of all layers together.

        Args:
            layer: which one is looked at; None: all.
            vectors: one of each layer that is looked at.
        """
        looked = [spec for spec in self.layers if layer in (None, spec.name)]
        given = dict(zip((spec.name for spec in looked), vectors, strict=True))
        count = len(vectors[0])
        features = [
            given[spec.name] if spec.name in given else torch.zeros(count, spec.channels) for spec in self.layers
        ]
        there = torch.ones(count, len(features), dtype=torch.bool)
        places = [self.layers.index(spec) for spec in looked]
        return translate(self.translator, Features(features, there), places, device=self.language_model.device)

    @torch.inference_mode()
    def scores(
        self,
        layer: str | None,
        maps: Maps,
        queries: Sequence[str],
        *,
        plain: bool = False,
        per_token: bool = False,
        smooth: Smooth = 0,
        grid: int = 0,
        progress: bool = False,
    ) -> Float[Tensor, "queries height width"]:
        """How likely each query is at each location: nats above the language model's own likelihood of it.

        Zero means: no likelier than without looking.

        Args:
            layer: whose locations are asked; None: all layers together, the coarser ones bilinearly interpolated to the
                finest, so that each location of that one has a feature of every layer.
            maps: of the layer, or of all.
            queries: words or phrases, one at least.
            plain: the paper's score: the prior is not taken off.
            per_token: the mean over a query's tokens in place of their sum, so that long queries compare with short.
            smooth: side of an average pool over the scores; "auto" and 0: see `kernel`.
            grid: average finer layers down to so many locations a side before they are asked; 0 asks all.
            progress: show it.

        Raises:
            UsageError: a query without words.
        """
        ids = self.tokens(queries)
        given = [averaged(maps[spec.name], grid) for spec in self.layers if layer in (None, spec.name)]
        features = on_finest(given)
        height, width, _ = features[0].shape
        prefixes = self.prefixes(layer, [item.flatten(0, 1) for item in features])
        told = f"{layer or 'all layers'} {height}×{width}"
        batches = torch.split(prefixes, self.batch_size)
        scores = torch.cat(
            [
                self.language_model.query_scores(batch, ids).cpu()
                for batch in (track(batches, told, unit="batches") if progress else batches)
            ]
        )
        if not plain:
            scores = scores - self.prior(queries)
        if per_token:
            scores = scores / torch.tensor([len(text) for text in ids])
        found = scores.T.reshape(len(queries), height, width)
        return smoothed(found, kernel(smooth, layer, self.layers, grid))


class LikelihoodMaps(Likelihoods):
    """Likelihood maps of the pictures of a trained run's store."""

    def __init__(self, trained: Trained, grid: int, batch_size: int) -> None:
        """`grid` > 0 averages finer layers down to grid × grid locations (less to compute, smoother maps)."""
        super().__init__(trained.translator, trained.store.layers, trained.language_model, batch_size)
        self.store, self.grid = trained.store, grid

    def locations(self, layer: LayerSpec, row: int) -> Float[Tensor, "height width channels"]:
        """The feature of every location of a layer, averaged down to the grid where that is coarser."""
        return averaged(torch.from_numpy(self.store[layer.name].on_grid([row])[0]).float(), self.grid)

    def maps(self, layer: LayerSpec, row: int, queries: Sequence[str]) -> Float[Tensor, "queries height width"]:
        """`scores` of a picture of the store."""
        return self.scores(layer.name, {layer.name: self.locations(layer, row)}, queries)


def averaged(features: Float[Tensor, "_ _ channels"], grid: int) -> Float[Tensor, "_ _ channels"]:
    """A map averaged down to grid × grid locations along each side that has more; 0 leaves it as it is."""
    height, width, _ = features.shape
    if not 0 < grid < max(height, width):
        return features
    pooled = nn.functional.adaptive_avg_pool2d(features.permute(2, 0, 1), (min(height, grid), min(width, grid)))
    return pooled.permute(1, 2, 0)


def on_finest(maps: Sequence[Float[Tensor, "_ _ _"]]) -> list[Float[Tensor, "height width _"]]:
    """Every map bilinearly interpolated to the finest one's grid, values at the middle of their locations."""
    height, width = max(item.shape[0] for item in maps), max(item.shape[1] for item in maps)
    return [
        item
        if item.shape[:2] == (height, width)
        else nn.functional.interpolate(
            item.permute(2, 0, 1)[None], (height, width), mode="bilinear", align_corners=False
        )[0].permute(1, 2, 0)
        for item in maps
    ]


def kernel(smooth: Smooth, layer: str | None, layers: Sequence[LayerSpec], grid: int = 0) -> int:
    """The side of the average pool over a layer's scores.

    Args:
        smooth: a side; 0 or 1: no pool; "auto": the authors' for the layer, 3 for the second-last, 7 for the
            third-last. Earlier ones, of which the paper says nothing, have 7 too, and the map of all layers together
            has none. None is larger than a quarter of the layer's grid: that changes nothing on the authors' grids
            (14 and 28 locations a side), and spares those of 7 × 7.
        layer: its name; None: all layers together.
        layers: all, from the first to the last.
        grid: that finer layers were averaged down to; 0: none.

    Raises:
        UsageError: an even side, or a negative one.
    """
    if smooth != "auto":
        if smooth < 0 or (smooth and smooth % 2 == 0):
            raise UsageError(f"smooth: expected auto, 0 or an odd number of locations, got {smooth}")
        return smooth
    if layer is None:
        return 1
    place = [spec.name for spec in layers].index(layer)
    asked = min(layers[place].height, layers[place].width, grid or layers[place].height)
    side = min(KERNELS[min(len(layers) - 1 - place, len(KERNELS) - 1)], max(1, asked // 4))
    return side if side % 2 else side - 1


def smoothed(scores: Float[Tensor, "queries height width"], side: int) -> Float[Tensor, "queries height width"]:
    """Average pool of an odd side; at the edge over the locations that there are. 0 and 1 change nothing."""
    if side < 2:
        return scores
    return nn.functional.avg_pool2d(scores, side, stride=1, padding=side // 2, count_include_pad=False)
