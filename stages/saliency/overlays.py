"""Heat maps drawn over their picture: one fixed scale for all maps of a figure, zero is the language model's prior."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from PIL import Image

from devil_pipe.stages.common.files import replacing
from devil_pipe.stages.saliency.localisation import enlarge

COLOURS, PLAIN_COLOURS = "RdBu_r", "magma"


@dataclass(frozen=True)
class Scale:
    """What a colour means in nats, for all maps that are drawn together.

    It is never fitted to a map: on a scale of its own, a map of what is not in the picture looks as hot as any.
    """

    nats: float
    """The limit; what lies beyond is drawn as if it lay there."""

    plain: bool = False
    """The paper's score, which has no zero to turn at: from -nats up to 0. Otherwise from -nats to +nats."""

    per_token: bool = False
    zero: str = "the language model's prior"
    """What white stands for, in words."""

    @property
    def low(self) -> float:
        """The scale's lower end."""
        return -self.nats

    @property
    def high(self) -> float:
        """The scale's upper end."""
        return 0.0 if self.plain else self.nats

    @property
    def colours(self) -> str:
        """Matplotlib's name of the colours."""
        return PLAIN_COLOURS if self.plain else COLOURS

    @property
    def label(self) -> str:
        """What is measured, in words."""
        unit = "nats a token" if self.per_token else "nats"
        return f"log-likelihood, {unit}" if self.plain else f"{unit} above {self.zero}"

    def placed(self, values: Float[np.ndarray, "_ _"]) -> Float[np.ndarray, "_ _"]:
        """Values as fractions of the scale from 0 (its lower end) to 1."""
        return np.asarray(np.clip((values - self.low) / (self.high - self.low), 0, 1))


def overlay(values: Float[np.ndarray, "_ _"], picture: Image.Image, scale: Scale) -> Image.Image:
    """Lay a map over a greyed picture: red above the prior, blue below, nothing at it; of a plain score the likely."""
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float64) / 255
    large = scale.placed(enlarge(values, picture.height, picture.width))
    colour = colormaps[scale.colours](large)[..., :3]
    weight = (0.15 + 0.6 * (large if scale.plain else np.abs(2 * large - 1)))[..., None]
    return Image.fromarray(np.uint8(255 * ((1 - weight) * grey + weight * colour)))


def draw(values: Float[np.ndarray, "_ _"], picture: Image.Image, scale: float | Scale, path: Path) -> None:
    """Write an `overlay`; a plain number is a scale of so many nats above and below the prior."""
    chosen = scale if isinstance(scale, Scale) else Scale(scale)
    with replacing(path) as partial:
        overlay(values, picture, chosen).save(partial, format="PNG", optimize=True)
