"""From a picture's bytes to the backbone's pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch import Tensor

from devil_pipe.stages.common.decoding import PictureError, as_rgb, open_picture
from devil_pipe.stages.extract.config import Size

INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


def sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@dataclass(frozen=True)
class Transform:
    """Straight resize (no crop: every location of the picture is explained), then channel scaling."""

    size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"

    def describe(self) -> dict[str, Any]:
        """What enters the store's identity."""
        return {
            "resize": list(sides(self.size)),
            "interpolation": self.interpolation,
            "orientation": "exif",
            "transparency": "white",
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def __call__(self, picture: Image.Image) -> Float32[Tensor, "3 height width"]:
        """Pixels in the backbone's scale, from a picture of any size and mode, as `as_rgb` shows it.

        Raises:
            PictureError: floating-point or 32-bit pixels, whose range nobody knows.
        """
        height, width = sides(self.size)
        rgb = as_rgb(picture).resize((width, height), INTERPOLATIONS[self.interpolation])
        pixels = torch.from_numpy(np.array(rgb, dtype=np.float32)).permute(2, 0, 1) / 255
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        return (pixels - mean) / std

    def decode(self, content: bytes) -> Float32[Tensor, "3 height width"] | str:
        """Decode and transform; for a broken picture the reason in its place, so that one file stops nobody."""
        try:
            return self(open_picture(content))
        except PictureError as error:
            return f"cannot be decoded: {error}"
