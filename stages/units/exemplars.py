"""A unit's top pictures, as the backbone saw them, and where in them the unit is active."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor, nn

from devil_pipe.stages.common.decoding import PictureError, as_rgb, open_picture
from devil_pipe.stages.extract.pictures import INTERPOLATIONS, Transform, sides
from devil_pipe.stages.extract.units import mask_weights, unit_means
from devil_pipe.stages.prepare.index import read_picture
from devil_pipe.store.errors import InputError

KEPT = 256
"""Frames held in memory: units of a layer share many of their pictures."""

_DIM = 0.42


class Frames:
    """Pictures of an index in the backbone's frame: resized as for extraction, before channels are scaled."""

    def __init__(self, index: Sequence[Mapping[str, Any]], root: Path, transform: Transform) -> None:
        """`root` is the index's folder, `transform` that of the store."""
        self.index, self.root, self.transform = index, root, transform
        self.size = sides(transform.size)
        """Height and width."""

        self._frame = lru_cache(KEPT)(self._read)

    def __call__(self, rows: Sequence[int]) -> UInt8[np.ndarray, "rows 3 height width"]:
        """The frames of some rows. Raises InputError for a picture that is gone or does not decode any more."""
        return np.stack([self._frame(int(row)) for row in rows])

    def _read(self, row: int) -> UInt8[np.ndarray, "3 height width"]:
        entry = self.index[row]
        try:
            picture = as_rgb(open_picture(read_picture(entry, self.root)))
        except PictureError as error:
            raise InputError(
                f"key {entry['key']!r}: expected the picture that features were made of: {error}; "
                "run `devil-pipe prepare` and `devil-pipe extract` again"
            ) from None
        height, width = self.size
        resized = picture.resize((width, height), INTERPOLATIONS[self.transform.interpolation])
        return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def masks_of(
    activations: Float[np.ndarray, "exemplars rows columns"], threshold: float, size: tuple[int, int]
) -> Bool[np.ndarray, "exemplars height width"]:
    """Where a unit is active: its map, bilinearly upsampled to the picture, lies above the threshold.

    Each value stands at the middle of its location.

    Args:
        activations: the unit's maps on its exemplars.
        threshold: the quantile of all its activations.
        size: height and width of the pictures.
    """
    maps = torch.from_numpy(activations.astype(np.float32))[:, None]
    large = nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)[:, 0]
    return (large > threshold).numpy()


def unit_feature(
    maps: Float[Tensor, "exemplars rows columns channels"], masks: Bool[np.ndarray, "exemplars height width"]
) -> tuple[Float[Tensor, " channels"], int]:
    """A unit's feature: the mean under each exemplar's mask, then over the exemplars whose mask reaches a location.

    Returns:
        The feature, and of how many exemplars it is; of none it is zero.
    """
    weights = mask_weights(torch.from_numpy(masks), maps.shape[1], maps.shape[2])
    means, counts = unit_means(maps.flatten(1, 2), weights, torch.zeros(len(maps), dtype=torch.long), 1)
    return means[0], int(counts[0])


def shaded(
    images: UInt8[np.ndarray, "exemplars 3 height width"], masks: Bool[np.ndarray, "exemplars height width"]
) -> UInt8[np.ndarray, "exemplars height width 3"]:
    """The pictures in colour under their masks, dark and grey elsewhere."""
    pixels = images.transpose(0, 2, 3, 1).astype(np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.where(masks[..., None], pixels, _DIM * grey[..., None]).astype(np.uint8)


def mosaic(tiles: UInt8[np.ndarray, "exemplars height width 3"], columns: int, side: int, gap: int) -> Image.Image:
    """Tiles in rows of `columns`, each `side` pixels wide, with transparent gaps."""
    height = round(side * tiles.shape[1] / tiles.shape[2])
    rows, across = -(-len(tiles) // columns), min(columns, len(tiles))
    whole = Image.new("RGBA", (across * (side + gap) - gap, rows * (height + gap) - gap))
    for place, tile in enumerate(tiles):
        down, right = divmod(place, columns)
        small = Image.fromarray(tile).resize((side, height), Image.Resampling.LANCZOS)
        whole.paste(small, (right * (side + gap), down * (height + gap)))
    return whole
