"""The two dropouts of the method (section 3.3): whole locations before the mean, whole layers before the translator.

Unlike dropout of single numbers nothing is zeroed or rescaled: what is dropped takes no part.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float16, Float32
from torch import Tensor


def draw(batch: int, places: int, rate: float, generator: torch.Generator) -> Bool[Tensor, "batch places"]:
    """Which places are kept, each with probability 1 − rate; a row that lost all of them is drawn again, alone."""
    keep = torch.rand(batch, places, generator=generator) >= rate
    while (empty := ~keep.any(dim=1)).any():
        keep[empty] = torch.rand(int(empty.sum()), places, generator=generator) >= rate
    return keep


def masked_mean(
    maps: Float16[Tensor, "batch locations channels"], keep: Bool[Tensor, "batch locations"]
) -> Float32[Tensor, "batch channels"]:
    """Mean over the kept locations of each picture, reading the kept rows alone.

    One `embedding_bag` over all pictures: in float16 it is about five times as fast as a loop over pictures, with a
    relative error of 3e-4. Where everything is kept, the plain mean in float32 is exact and as fast.
    """
    if bool(keep.all()):
        return maps.mean(dim=1, dtype=torch.float32)
    kept = keep.flatten().nonzero().squeeze(1)
    counts = keep.sum(dim=1)
    offsets = counts.cumsum(0) - counts
    pooled = torch.nn.functional.embedding_bag(kept, maps.flatten(0, 1), offsets, mode="mean").float()
    if not bool(pooled.isfinite().all()):  # float16 adds up before it divides: large features overflow there
        pooled = torch.nn.functional.embedding_bag(kept, maps.flatten(0, 1).float(), offsets, mode="mean")
    return pooled


def pool(
    maps: list[Float16[Tensor, "batch _ _"]], rate: float, generator: torch.Generator
) -> list[Float[Tensor, "batch _"]]:
    """Spatial dropout and mean for every layer, each with masks of its own; rate 0 is the plain mean."""
    return [masked_mean(item, draw(item.shape[0], item.shape[1], rate, generator)) for item in maps]
