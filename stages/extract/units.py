"""A unit of a network as its exemplars show it: the mean over their masks' locations, then over the exemplars.

Exemplars and masks are MILANNOTATIONS' (`stages/prepare/milan/`). What a row of such a store means: `store/SPEC.md`, 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Float32, Int64
from PIL import Image
from torch import Tensor, nn

from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.stages.prepare.index import OK
from devil_pipe.stages.prepare.milan.units import Exemplars, read_unit, units_of
from devil_pipe.store.errors import InputError
from devil_pipe.store.schema import EXEMPLARS, LayerSpec

MILANNOTATIONS = 15  # exemplars of each of its units


@dataclass(frozen=True)
class Unit:
    """A decoded row: the pixels of its exemplars, and what each location of each layer weighs."""

    pixels: Float32[Tensor, "exemplars 3 size size"]
    weights: Mapping[str, Float32[Tensor, "exemplars locations"]]


def decode_unit(row: Mapping[str, object], root: Path, transform: Transform, layers: Sequence[LayerSpec]) -> Unit | str:
    """The exemplars of an index's row, ready for the backbone; a reason where no layer would see anything of them.

    Raises:
        InputError: see `read_unit`.
    """
    found: Exemplars = read_unit(row, root)
    pictures = [transform(Image.fromarray(np.moveaxis(image, 0, 2))) for image in found.images]
    masks = torch.from_numpy(found.masks)
    weights = {layer.name: mask_weights(masks, layer.height, layer.width) for layer in layers}
    if not any(bool(item.any()) for item in weights.values()):
        return "no exemplar's mask reaches a location of any layer"
    return Unit(torch.stack(pictures), weights)


def mask_weights(
    masks: Bool[Tensor, "exemplars rows columns"], height: int, width: int
) -> Float32[Tensor, "exemplars locations"]:
    """What each location of a grid weighs: the mask, bilinearly resized without smoothing, as MILAN's own pooling.

    Of one location alone, a vector of the whole picture, no mask chooses a part: it counts where the mask has a pixel.
    """
    if (height, width) == (1, 1):
        return masks.flatten(1).any(dim=1, keepdim=True).float()
    size = (height, width)
    return nn.functional.interpolate(masks[:, None].float(), size, mode="bilinear", align_corners=False).flatten(1)


def unit_means(
    maps: Float[Tensor, "pictures locations channels"],
    weights: Float32[Tensor, "pictures locations"],
    units: Int64[Tensor, " pictures"],
    count: int,
) -> tuple[Float32[Tensor, "units channels"], Int64[Tensor, " units"]]:
    """Each unit's mean over its valid exemplars, and how many these are; zeros where there are none.

    An exemplar whose weights are all zero is not valid.

    Args:
        maps: feature maps of every exemplar of some units.
        weights: of their locations.
        units: the place, from 0, of each exemplar's unit.
        count: units.
    """
    total = weights.sum(dim=1)
    valid = total > 0
    pooled = torch.bmm(weights[:, None], maps.float())[:, 0] / total.where(valid, torch.ones_like(total))[:, None]
    exemplars = torch.zeros(count, dtype=torch.long, device=maps.device).index_add_(0, units, valid.long())
    summed = pooled.new_zeros(count, maps.shape[2]).index_add_(0, units[valid], pooled[valid])
    return summed / exemplars.clamp(min=1)[:, None], exemplars


def encode_units(maps: Tensor, layer: LayerSpec, items: Sequence[Unit]) -> dict[str, np.ndarray]:
    """The arrays of one layer for some units, by name: float16 [units, 1, C], and exemplars uint8 [units, 1, 1].

    Args:
        maps: feature maps [pictures, H·W, C] of the units' exemplars, one unit after another.
        layer: whose they are.
        items: the units.
    """
    weights = torch.cat([item.weights[layer.name] for item in items]).to(maps.device)
    places = torch.repeat_interleave(torch.tensor([len(item.pixels) for item in items])).to(maps.device)
    means, exemplars = unit_means(maps, weights, places, len(items))
    return {
        layer.name: means[:, None].to(torch.float16).cpu().numpy(),
        layer.name + EXEMPLARS: exemplars[:, None, None].to(torch.uint8).cpu().numpy(),
    }


def exemplars_a_row(index: pa.Table, config: ExtractConfig) -> int:
    """Pictures that a row of the index stands for: 1, or a unit's exemplars.

    Raises:
        InputError: pictures and units in one index, or an encoding that is for the other of them.
    """
    usable = index.filter(pc.equal(index["status"], OK))
    units = usable.filter(units_of(usable))
    if 0 < len(units) < len(usable):
        raise InputError(f"{config.data_dir}: expected pictures or units of a network, got both in one index")
    if bool(len(units)) != (config.stored_as.reduce == "units"):
        of_pictures = "float16, uint8, partition:GROUPS or pool:SIDE"
        wanted, held = ("units", "units") if len(units) else (of_pictures, "pictures")
        raise InputError(
            f"encoding: expected {wanted} for {config.data_dir}, which holds {held}, got {config.encoding!r}"
        )
    return pc.max(units["size"]).as_py() or 1
