"""Any form of a picture as upright RGB: a file, a PIL image, an array, a tensor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from devil_pipe.stages.common.decoding import MOST_PIXELS, PictureError, as_rgb, open_picture
from devil_pipe.stages.common.files import expanded
from devil_pipe.store.errors import InputError
from devil_pipe.store.place import plain_file

Picture: TypeAlias = Image.Image | str | Path | np.ndarray | Tensor
"""A PIL image of any mode; a file; a uint8 array [height, width] or [height, width, 3 or 4]; a tensor
[3, height, width], float in [0, 1] or uint8."""


def as_picture(image: Picture, name: str = "picture") -> Image.Image:
    """The picture as upright RGB of 8 bits, what is transparent put on white (see `stages/common/decoding.py`).

    Args:
        image: in any of the forms of `Picture`.
        name: what errors call it, unless it is a file.

    Raises:
        InputError: no picture, damaged, too large, or an array of another shape, type or range.
    """
    try:
        if isinstance(image, str | Path):
            name = str(image)
            return open_picture(plain_file(expanded(image)).read_bytes())
        if isinstance(image, Image.Image):
            return _of_pillow(image)
    except PictureError as error:
        raise InputError(f"{name}: expected a picture: {error}") from None
    except OSError as error:
        raise InputError(f"{name}: expected a picture, and cannot read it: {error.strerror or error}") from None
    if isinstance(image, Tensor):
        return Image.fromarray(_of_tensor(image, name))
    if isinstance(image, np.ndarray):
        return as_rgb(Image.fromarray(_of_array(image, name)))
    raise InputError(
        f"{name}: expected a PIL image, a file's path, a uint8 array or a float tensor, got {type(image).__name__}"
    )


def _of_pillow(image: Image.Image) -> Image.Image:
    if image.width * image.height > MOST_PIXELS:
        raise PictureError(f"more than {MOST_PIXELS:,} pixels")
    if not image.width * image.height:
        raise PictureError("no pixels")
    try:
        image.load()  # of a file that was opened the pixels are read when they are asked for
    except MemoryError:
        raise
    except Exception as error:  # a decoder that meets garbage may raise anything
        raise PictureError(f"its pixels cannot be read: {error}") from None
    return as_rgb(image)


def _of_array(image: np.ndarray, name: str) -> np.ndarray:
    """The array, if it holds 8-bit pixels, rows first."""
    expected = f"{name}: expected an array [height, width, 3] of uint8"
    if image.dtype != np.uint8:
        hint = "; of values in [0, 1] that is (255 * array).round().astype('uint8')" if image.dtype.kind == "f" else ""
        raise InputError(f"{expected}, got {image.dtype}{hint}")
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))) or not image.size:
        hint = ""
        if image.ndim == 3 and image.shape[0] in (1, 3, 4):
            hint = "; channels come last in arrays: array.transpose(1, 2, 0)"
        elif image.ndim == 4:
            hint = "; pass one picture at a time"
        raise InputError(
            f"{expected}, or [height, width] in grey, or with 4 channels for RGBA, got {image.shape}{hint}"
        )
    return np.ascontiguousarray(image)


def _of_tensor(image: Tensor, name: str) -> np.ndarray:
    """A tensor's pixels, rows first, in 8 bits."""
    expected = f"{name}: expected a tensor [3, height, width] of floats in [0, 1]"
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        hint = ""
        if image.ndim == 4:
            hint = "; pass one picture of the batch"
        elif image.ndim == 3 and image.shape[2] == 3:
            hint = "; channels come first in tensors: tensor.permute(2, 0, 1)"
        raise InputError(f"{expected}, got shape {list(image.shape)}{hint}")
    pixels = image.detach().cpu()
    if pixels.dtype == torch.uint8:
        return pixels.permute(1, 2, 0).contiguous().numpy()
    if not pixels.is_floating_point():
        raise InputError(f"{expected}, got {str(pixels.dtype).removeprefix('torch.')}")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # also where a value is no number
        hint = "" if math.isnan(low) else "; pass it as it was before it was normalised, which is done here"
        raise InputError(f"{expected}, got values from {low:.3g} to {high:.3g}{hint}")
    return (pixels.float() * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
