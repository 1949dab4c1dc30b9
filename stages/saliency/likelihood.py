"""Likelihood maps: how much likelier a query becomes by looking at one location of one layer (section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from devil_pipe.stages.evaluate.run import Trained
from devil_pipe.stages.train.batches import Features
from devil_pipe.stages.train.loop import translate
from devil_pipe.store.schema import LayerSpec


class LikelihoodMaps:
    """Computes maps for the pictures of a trained run's store."""

    def __init__(self, trained: Trained, grid: int, batch_size: int) -> None:
        """`grid` > 0 averages finer layers down to grid × grid locations (less to compute, smoother maps)."""
        self.trained, self.grid, self.batch_size = trained, grid, batch_size

    def locations(self, layer: LayerSpec, row: int) -> Float[Tensor, "height width channels"]:
        """The feature of every location of a layer, averaged down to the grid where that is coarser."""
        maps = torch.from_numpy(self.trained.store[layer.name].on_grid([row])[0]).float()
        height, width, _ = maps.shape
        if not 0 < self.grid < max(height, width):
            return maps
        size = (min(height, self.grid), min(width, self.grid))
        pooled = nn.functional.adaptive_avg_pool2d(maps.permute(2, 0, 1), size)
        return pooled.permute(1, 2, 0)

    def prefixes(self, layer: LayerSpec, vectors: Float[Tensor, "count channels"]) -> Float[Tensor, "count _ _"]:
        """Prefix tokens of single features of one layer, the other layers masked out."""
        place = self.trained.store.layers.index(layer)
        features = [torch.zeros(len(vectors), spec.channels) for spec in self.trained.store.layers]
        features[place] = vectors
        there = torch.ones(len(vectors), len(features), dtype=torch.bool)
        device = self.trained.language_model.device
        return translate(self.trained.translator, Features(features, there), [place], device=device)

    @torch.inference_mode()
    def maps(self, layer: LayerSpec, row: int, queries: Sequence[str]) -> Float[Tensor, "queries height width"]:
        """Log-likelihood of each query at each location minus the language model's own (nats, summed over tokens).

        Zero means: no likelier than without looking. The paper's plain score is this plus `prior`.
        """
        vectors = self.locations(layer, row)
        height, width, channels = vectors.shape
        model = self.trained.language_model
        texts = model.encode(queries)
        prefixes = self.prefixes(layer, vectors.reshape(-1, channels))
        parts = [model.query_scores(part, texts) for part in torch.split(prefixes, self.batch_size)]
        scores = torch.cat(parts).cpu() - self.prior(queries)
        return scores.T.reshape(len(queries), height, width)

    def prior(self, queries: Sequence[str]) -> Float[Tensor, " queries"]:
        """Log-likelihood of each query without any picture, nats summed over tokens."""
        model = self.trained.language_model
        return model.query_scores(None, model.encode(queries))[0].cpu()
