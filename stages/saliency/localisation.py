"""Does a map point at the object? Pointing game and overlap with a mask, beside maps that know nothing."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from devil_pipe.stages.common.decoding import PictureError, open_picture
from devil_pipe.store.errors import InputError

Map = Float[np.ndarray, "height width"]
Mask = Bool[np.ndarray, "rows columns"]


def read_mask_image(content: bytes) -> Mask:
    """A mask from its PNG, turned as its picture is: what is brighter than middle grey belongs to the object.

    Raises:
        InputError: it cannot be decoded.
    """
    try:
        return np.asarray(open_picture(content, ground="black").convert("L")) > 127
    except PictureError as error:
        raise InputError(f"a mask cannot be decoded: {error}; run `devil-pipe prepare` again") from None


def enlarge(values: Map, rows: int, columns: int) -> Float[np.ndarray, "rows columns"]:
    """Bilinear upsampling to the picture's size, each value at the middle of its location."""
    picture = Image.fromarray(np.asarray(values, dtype=np.float32))
    return np.asarray(picture.resize((columns, rows), Image.Resampling.BILINEAR), dtype=np.float64)


def points_at(values: Map, mask: Mask) -> bool:
    """Pointing game: the upsampled map's highest pixel lies in the mask."""
    large = enlarge(values, *mask.shape)
    return bool(mask[np.unravel_index(int(large.argmax()), mask.shape)])


def overlap(values: Map, mask: Mask) -> float:
    """Intersection over union of the mask and as many of the map's highest pixels as the mask has.

    Equal areas need no threshold, which would have to be tuned for each kind of map.
    """
    large = enlarge(values, *mask.shape).ravel()
    area = int(mask.sum())
    chosen = np.zeros(large.size, dtype=bool)
    chosen[np.argsort(-large, kind="stable")[:area]] = True
    flat = mask.ravel()
    return float((chosen & flat).sum() / (chosen | flat).sum())


def centre_prior(size: int = 7) -> Map:
    """A map that is high in the middle of every picture, whatever is on it."""
    line = np.linspace(-1, 1, size)
    return -(line[:, None] ** 2 + line[None, :] ** 2)


def random_map(seed: int, picture: int, size: int = 7) -> Map:
    """Noise, another for each picture."""
    return np.random.default_rng([seed, picture]).random((size, size))


def distance_from_centre(mask: Mask) -> float:
    """How far the mask's centroid lies from the frame's middle, as a fraction of the frame (the larger axis counts)."""
    rows, columns = np.nonzero(mask)
    down, right = (rows.mean() + 0.5) / mask.shape[0] - 0.5, (columns.mean() + 0.5) / mask.shape[1] - 0.5
    return float(max(abs(down), abs(right)))
