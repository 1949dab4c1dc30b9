"""From a picture's bytes to the backbone's pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image, UnidentifiedImageError
from torch import Tensor


@dataclass(frozen=True)
class Transform:
    """Straight resize to a square (no crop: every location of the picture is explained), then channel scaling."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def describe(self) -> dict[str, Any]:
        """What enters the store's identity."""
        return {
            "resize": [self.size, self.size],
            "interpolation": "bicubic",
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def __call__(self, picture: Image.Image) -> Float32[Tensor, "3 size size"]:
        """Pixels in the backbone's scale, from a picture of any size and mode (alpha is put on white).

        Raises:
            ValueError: floating-point pixels, whose range nobody knows.
        """
        rgb = as_rgb(picture).resize((self.size, self.size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(rgb, dtype=np.float32)).permute(2, 0, 1) / 255
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        return (pixels - mean) / std

    def decode(self, content: bytes) -> Float32[Tensor, "3 size size"] | str:
        """Decode and transform; for a broken picture the reason in its place, so that one file stops nobody."""
        try:
            with Image.open(io.BytesIO(content)) as picture:
                picture.load()
                return self(picture)
        except UnidentifiedImageError:  # its message holds a memory address, which would differ in every run
            return "cannot be decoded: not a picture"
        except MemoryError:
            raise
        except Exception as error:  # a decoder that meets garbage may raise anything
            return f"cannot be decoded: {type(error).__name__}: {error}"[:200]


def as_rgb(picture: Image.Image) -> Image.Image:
    """Any picture as the backbone sees it: alpha on white, 16-bit grey scaled to 8. Raises ValueError for floats."""
    picture = _eight_bits(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """The picture, 16-bit grey levels scaled to 8: Pillow's own conversion cuts them off at 255."""
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if not picture.mode.startswith("I"):
        return picture
    levels = np.asarray(picture).astype(np.float64) / 257  # 65535 → 255
    return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
