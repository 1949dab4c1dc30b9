"""Heat maps drawn over their picture: one fixed scale for all maps of a figure, zero is the language model's prior."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from PIL import Image

from devil_pipe.stages.common.files import replacing
from devil_pipe.stages.saliency.localisation import enlarge

COLOURS = "RdBu_r"


def draw(values: Float[np.ndarray, "height width"], picture: Image.Image, scale: float, path: Path) -> None:
    """Lay the map over a greyed picture: red above the prior, blue below, nothing at it. Clipped at ± scale nats."""
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float64) / 255
    large = np.clip(enlarge(values, picture.height, picture.width) / scale, -1, 1)
    colour = colormaps[COLOURS]((large + 1) / 2)[..., :3]
    weight = (0.15 + 0.6 * np.abs(large))[..., None]
    mixed = Image.fromarray(np.uint8(255 * ((1 - weight) * grey + weight * colour)))
    with replacing(path) as partial:
        mixed.save(partial, format="PNG", optimize=True)
