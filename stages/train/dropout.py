"""The two dropouts of the method (section 3.3): whole locations before the mean, whole layers before the translator.

Unlike dropout of single numbers nothing is zeroed or rescaled: what is dropped takes no part. A whole batch is pooled
in one operation, straight from the type in which it is stored (benchmarks/spatial_dropout.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float16, Float32, Int64, UInt8
from torch import Tensor

from devil_pipe.store.layer import Stored


def draw(
    batch: int,
    places: int,
    rate: float,
    generator: torch.Generator,
    there: Bool[Tensor, "batch places"] | None = None,
) -> Bool[Tensor, "batch places"]:
    """Which places are kept, each with probability 1 − rate; a row that lost all of them is drawn again, alone.

    Args:
        batch: rows.
        places: locations of a map, or layers.
        rate: at least 0, below 1.
        generator: decides.
        there: places that can be kept at all, one a row at least; None: all of them.
    """
    keep = torch.rand(batch, places, generator=generator) >= rate
    if there is not None:
        assert bool(there.any(dim=1).all()), "a row without any place would be drawn for ever"
        keep &= there
    while (empty := ~keep.any(dim=1)).any():
        keep[empty] = torch.rand(int(empty.sum()), places, generator=generator) >= rate
        if there is not None:
            keep &= there
    return keep


class Share(NamedTuple):
    """Rows of a batch whose masks are drawn for all of it, so that they do not depend on who draws them."""

    whole: int
    """Rows of the batch in all processes."""

    rows: slice
    """Those that are pooled here."""


class _Bags(NamedTuple):
    """The kept locations of all pictures as rows of one table [batch · locations, channels]."""

    kept: Int64[Tensor, " kept"]
    offsets: Int64[Tensor, " batch"]
    """Where the rows of each picture begin."""

    counts: Float32[Tensor, " batch"]

    @classmethod
    def of(cls, keep: Bool[Tensor, "batch locations"]) -> _Bags:
        counts = keep.sum(dim=1)
        return cls(keep.flatten().nonzero().squeeze(1), counts.cumsum(0) - counts, counts.float())


def masked_mean(
    maps: Float16[Tensor, "batch locations channels"], keep: Bool[Tensor, "batch locations"]
) -> Float32[Tensor, "batch channels"]:
    """Mean over the kept locations of each picture, which must keep one at least; the kept rows alone are read.

    One `embedding_bag` over all pictures, which adds in float32 and rounds its result to float16 once: the error is
    at most 2⁻¹¹ of the mean, and 2⁻²⁴ where that is smaller. Each row is weighted by a power of two that brings the
    sum below the largest feature, so nothing overflows. Where everything is kept the mean is taken in float32.
    """
    if bool(keep.all()):
        return maps.mean(dim=1, dtype=torch.float32)
    bags = _Bags.of(keep)
    share, exponent = torch.frexp(bags.counts)  # counts = share · 2^exponent with a share from ½ to 1
    weights = torch.exp2(-exponent.float()).half().repeat_interleave(bags.counts.long())
    summed = torch.nn.functional.embedding_bag(
        bags.kept, maps.flatten(0, 1), bags.offsets, mode="sum", per_sample_weights=weights
    )
    return summed.float() / share[:, None]


def masked_mean_of_bytes(
    values: UInt8[Tensor, "batch locations channels"], keep: Bool[Tensor, "batch locations"]
) -> Float32[Tensor, "batch channels"]:
    """Mean over the kept locations of each picture, in steps of the quantisation; exact but for one rounding.

    The sum is a whole number below 2²⁴ on any grid up to 256 × 256, which float32 holds. Torch's bag of quantised
    rows wants a scale and an offset behind each row, here 1 and 0, so the kept rows are first copied beside them:
    together 5.7 times as fast as a bag over the kept rows made float16, which would round, too.
    """
    bags = _Bags.of(keep)
    channels = values.shape[2]
    rows = torch.empty(len(bags.kept), channels + 8, dtype=torch.uint8)
    rows[:, channels:] = torch.tensor([1.0, 0.0]).view(torch.uint8)
    torch.index_select(values.flatten(0, 1), 0, bags.kept, out=rows[:, :channels])
    summed: Tensor = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
        rows, torch.arange(len(bags.kept)), bags.offsets
    )
    return summed / bags.counts[:, None]


def pool(
    stored: Stored, rate: float, generator: torch.Generator, share: Share | None = None
) -> Float32[Tensor, "batch channels"]:
    """Spatial dropout and mean of one layer, straight from the stored type, with masks of its own.

    A partition's groups are random sets of locations already: a random (1 − rate) of them is kept, exactly (one at
    least), and their means are weighted by their sizes. Under an exemplar's mask nothing is dropped: a unit's mean is
    what it is. Without `share` masks are drawn for the stored rows alone.
    """
    values = torch.from_numpy(stored.values)
    whole, rows = share or Share(len(values), slice(None))
    if stored.exemplars is not None:
        return values[:, 0].float()
    if stored.group_sizes is not None:
        order = torch.rand(whole, values.shape[1], generator=generator)[rows].argsort(dim=1)
        return _mean_of_groups(values, stored.group_sizes, order[:, : max(1, round(values.shape[1] * (1 - rate)))])
    keep = draw(whole, values.shape[1], rate, generator)[rows]
    if stored.bounds is None:
        return masked_mean(values, keep)
    return _decoded(masked_mean_of_bytes(values, keep), torch.from_numpy(stored.bounds).float())


def whole_mean(stored: Stored) -> Float32[Tensor, "batch channels"]:
    """Mean over every location: what evaluation looks at. Exact for a partition as well."""
    return pool(stored, 0.0, torch.Generator())


def _mean_of_groups(
    means: Float16[Tensor, "batch groups channels"], sizes: tuple[int, ...], chosen: Int64[Tensor, "batch kept"]
) -> Float32[Tensor, "batch channels"]:
    batch, groups = means.shape[:2]
    weights = torch.tensor(sizes, dtype=torch.float32)[chosen]
    weights = weights / weights.sum(dim=1, keepdim=True)
    rows = chosen + groups * torch.arange(batch)[:, None]
    return torch.nn.functional.embedding_bag(rows, means.flatten(0, 1).float(), mode="sum", per_sample_weights=weights)


def _decoded(
    mean: Float32[Tensor, "batch channels"], bounds: Float32[Tensor, "batch 2 channels"]
) -> Float32[Tensor, "batch channels"]:
    """The mean of quantised values as the mean of what they stand for: the rule is linear, so it may come last."""
    low, high = bounds.unbind(dim=1)
    return low + mean * ((high - low) / 255)
