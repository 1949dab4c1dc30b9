"""From a layer's feature maps to the arrays that the store keeps: on the backbone's device, before the copy out.

What each encoding costs and distorts was measured: docs/storage.md.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor, nn

from devil_pipe.store.schema import BOUNDS, Encoding, LayerSpec


def encode(
    maps: Float[Tensor, "batch locations channels"], layer: LayerSpec, encoding: Encoding, rows: Sequence[int]
) -> dict[str, np.ndarray]:
    """The arrays of one layer for some rows, by name; see SPEC.md for what they mean.

    Args:
        maps: full feature maps, any floating type, on any device.
        layer: whose they are.
        encoding: how they are stored.
        rows: their rows in the store; a partition is drawn for each row, whatever the batch.
    """
    if encoding.reduce == "partition":
        return {layer.name: _float16(_group_means(maps, layer, encoding.size, rows))}
    if encoding.reduce == "pool":
        return {layer.name: _float16(_pooled(maps, layer, encoding))}
    if encoding.values == "uint8":
        values, bounds = quantise(maps)
        return {layer.name: values.cpu().numpy(), layer.name + BOUNDS: _float16(bounds)}
    return {layer.name: _float16(maps)}


def quantise(
    maps: Float[Tensor, "batch locations channels"],
) -> tuple[UInt8[Tensor, "batch locations channels"], Float16[Tensor, "batch 2 channels"]]:
    """uint8 values, and bounds: what 0 and 255 stand for in each picture and channel.

    A value is at most half a step off, a step being a 255th of the bounds' distance. The bounds are rounded outward to
    float16, so that no value lies beyond them; what float16 holds exactly (a ReLU's zero, a constant) stays exact.
    """
    exact = maps.float()
    low, high = -_rounded_up(-exact.amin(dim=1)), _rounded_up(exact.amax(dim=1))
    step = ((high.float() - low.float()) / 255).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    values = ((exact - low.float()[:, None]) / step).round().clamp(0, 255).nan_to_num().to(torch.uint8)
    return values, torch.stack([low, high], dim=1)  # NaN and infinite maps show in the bounds: the writer refuses them


def _rounded_up(values: Float[Tensor, "batch channels"]) -> Float16[Tensor, "batch channels"]:
    """The values in float16, none smaller than it was; between 65504 and where float16 overflows, 65504."""
    nearest = values.half()
    spacing = (nearest.float().abs() * 2**-10).clamp(min=2**-24)  # at least one step of float16 there, at most two
    above = (nearest.float() + spacing).clamp(max=torch.finfo(torch.float16).max).half()
    return torch.where(nearest < values, above, nearest)


def partition(layer: LayerSpec, groups: int, row: int) -> np.ndarray:
    """Which group each location belongs to, int [locations]: drawn from the layer's name and the row alone."""
    sizes = layer.group_sizes(groups)
    order = np.random.default_rng([zlib.crc32(layer.name.encode()), row]).permutation(layer.locations)
    group = np.empty(layer.locations, dtype=np.int64)
    group[order] = np.repeat(np.arange(len(sizes)), sizes)
    return group


def _group_means(
    maps: Float[Tensor, "batch locations channels"], layer: LayerSpec, groups: int, rows: Sequence[int]
) -> Float[Tensor, "batch groups channels"]:
    sizes = layer.group_sizes(groups)
    members = torch.from_numpy(np.stack([partition(layer, groups, row) for row in rows]))
    weights = nn.functional.one_hot(members, len(sizes)).transpose(1, 2) / torch.tensor(sizes)[None, :, None]
    return weights.float().to(maps.device) @ maps.float()


def _pooled(
    maps: Float[Tensor, "batch locations channels"], layer: LayerSpec, encoding: Encoding
) -> Float[Tensor, "batch coarse channels"]:
    grid = layer.grid(encoding)
    assert grid is not None
    square = maps.float().transpose(1, 2).reshape(len(maps), layer.channels, layer.height, layer.width)
    return nn.functional.adaptive_avg_pool2d(square, grid).flatten(2).transpose(1, 2)


def _float16(values: Tensor) -> np.ndarray:
    return values.half().cpu().numpy()
