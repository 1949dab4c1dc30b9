"""What was found of units, as plain values: for tables, JSON and the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from devil_pipe.stages.evaluate.metrics import Score
from devil_pipe.stages.units.describe import Said
from devil_pipe.stages.units.score import Fit, Tie


@dataclass(frozen=True)
class Unit:
    """One unit: where it is active, what it says, and how well that fits."""

    layer: str
    unit: int
    exemplars: list[str]
    """Keys of the pictures on which it is most active, the most active first."""

    peaks: list[float]
    """Its maximum over each one's locations."""

    threshold: float
    """The quantile of its activations that masks are cut at."""

    masked: int
    """Exemplars whose mask reaches a location; the feature is a mean over them."""

    said: Said | None
    """None where no exemplar's mask reaches a location."""

    fit: Fit
    tie: Tie

    @property
    def text(self) -> str:
        """The description; "" where there is none."""
        return "" if self.said is None else self.said.text

    @property
    def address(self) -> str:
        """LAYER-UNIT."""
        return f"{self.layer}-{self.unit}"

    def row(self) -> dict[str, Any]:
        """One flat line of plain values."""
        fit, tie = self.fit, self.tie
        return {
            "layer": self.layer,
            "unit": self.unit,
            "description": self.text,
            "margin": _rounded(None if self.said is None else self.said.margin),
            "noun": fit.noun,
            "pictures": fit.pictures,
            "auc": _rounded(fit.auc),
            "shuffled_auc": _rounded(fit.shuffled_auc),
            "correlation": _rounded(fit.correlation),
            "shuffled_correlation": _rounded(fit.shuffled_correlation),
            "auc_of_all": _rounded(fit.auc_of_all),
            "shuffled_auc_of_all": _rounded(fit.shuffled_auc_of_all),
            "not_scored": fit.not_scored,
            "object": tie.object,
            "object_auc": _rounded(tie.auc),
            "tied": tie.tied,
            "named": tie.named,
            "shuffled_named": _rounded(tie.shuffled_named),
            "threshold": _rounded(self.threshold, 6),
            "masked": self.masked,
            "peak": _rounded(self.peaks[0], 6),
            "exemplars": list(self.exemplars),
        }


@dataclass(frozen=True)
class Part:
    """A layer's units, or those of all layers, and their figures."""

    layer: str
    """ "all" for all together."""

    units: Sequence[Unit]
    figures: dict[str, Score]
    mean_text: str = ""
    """What the layer's mean feature says, which is what the translator says of nothing in particular."""

    @property
    def described(self) -> int:
        """Units with a description."""
        return sum(unit.said is not None for unit in self.units)

    @property
    def scored(self) -> int:
        """Units whose description was scored beside another unit's."""
        return sum(unit.fit.gap is not None for unit in self.units)

    @property
    def tied(self) -> int:
        """Units tied to an object, with other units' descriptions to compare with."""
        return sum(unit.tie.tied and unit.tie.shuffled_named is not None for unit in self.units)

    def as_dict(self) -> dict[str, Any]:
        """Counts and figures."""
        return {
            "layer": self.layer,
            "units": len(self.units),
            "described": self.described,
            "scored": self.scored,
            "tied": self.tied,
            "mean_feature_says": self.mean_text,
            "figures": {name: score.as_json() for name, score in self.figures.items()},
        }


@dataclass(frozen=True)
class Findings:
    """All that a run of the command found."""

    about: dict[str, Any]
    """What a figure's reader has to know: data, n, seeds, settings, the command."""

    parts: Sequence[Part]
    whole: Part
    shown: frozenset[tuple[str, int]]
    """The units on the page, a random sample of each layer."""

    @property
    def units(self) -> Iterator[Unit]:
        """Every unit, layer by layer."""
        for part in self.parts:
            yield from part.units

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the units."""
        return {**self.about, "layers": [part.as_dict() for part in self.parts], "all": self.whole.as_dict()}


def layers_row(part: Part) -> dict[str, Any]:
    """A layer's figures as one flat line."""
    found = part.as_dict()
    figures = found.pop("figures")
    for name, score in figures.items():
        found |= {name if key == "value" else f"{name}_{key}": value for key, value in score.items()}
    return found


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(float(value), digits)
