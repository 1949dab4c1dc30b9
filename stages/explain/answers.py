"""What can be asked of a picture, and what is answered: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from torch import Tensor

Point = tuple[float, float]
"""x and y in pixels of the upright picture, from its upper left corner."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the upright picture."""

ZERO = 0.1
"""Nats that are none: rounding, in bfloat16 above all, gives or takes so many."""


@dataclass(frozen=True)
class Looked:
    """A picture through the backbone, to be asked as often as one likes."""

    size: tuple[int, int]
    """Width and height in pixels, upright."""

    maps: dict[str, Float[Tensor, "_ _ _"]]
    """The feature map [height, width, channels] of each layer, float32 on the CPU."""


@dataclass(frozen=True)
class Asked:
    """One feature to be described: of a layer, or of all together; at a place, in a box, or over the whole picture."""

    layer: str | None
    at: Point | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Margin:
    """How much likelier a description is with its features than without, in nats (see `margin.py`)."""

    nats: float
    low: float
    """2.5th percentile over resampled spatial masks."""

    high: float
    """97.5th percentile."""

    resamples: int


@dataclass(frozen=True)
class Description:
    """What a feature says, and how far to trust it."""

    text: str
    layer: str | None
    row: int | None
    """Of the location on the layer's grid; None for boxes, whole layers, and all layers together."""

    column: int | None
    box: Box | None
    """What the described locations cover, in pixels of the picture; None for the whole of it, and for all layers."""

    margin: Margin | None
    agreement: float | None
    """Share of the resampled features that are described in the very same words."""

    @property
    def weak(self) -> bool | None:
        """Whether the margin's interval holds zero or lies below it: the words may say no more than a guess would."""
        return None if self.margin is None else self.margin.low <= ZERO

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, rounded to what they are good for."""
        margin = None
        if self.margin is not None:
            values = {name: round(getattr(self.margin, name), 3) for name in ("nats", "low", "high")}
            margin = {**values, "resamples": self.margin.resamples}
        return {
            "text": self.text,
            "row": self.row,
            "column": self.column,
            "box": None if self.box is None else [round(side, 2) for side in self.box],
            "margin": margin,
            "agreement": self.agreement,
            "weak": self.weak,
        }


@dataclass(frozen=True)
class SaliencyMap:
    """Where a query is likely."""

    query: str
    layer: str | None
    """None: all layers together."""

    values: Float32[np.ndarray, "_ _"]
    """Nats above the language model's prior, or the plain log-likelihood; one a location, or a pixel if upsampled."""

    prior: float
    """The query's log-likelihood without any picture, in nats (a token's mean where that was asked)."""

    tokens: int
    """Of the query."""
