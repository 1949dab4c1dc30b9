"""How well units and their descriptions fit, beside the descriptions of other units of the same layer.

A description of another unit is drawn from every other described unit of the layer, each as likely: what stands here as
`shuffled` is the mean over them all, which endless draws would come to. It knows the layer and the translator's habits,
and nothing of the unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from devil_pipe.stages.evaluate.bootstrap import bootstrap_mean
from devil_pipe.stages.evaluate.metrics import NotRun, Score
from devil_pipe.stages.evaluate.naming import Namer, bare
from devil_pipe.stages.units.fits import Nouns, aucs, correlations, fitting, holding, ranks


@dataclass(frozen=True)
class Fit:
    """A unit's activation on the pictures that fit its description."""

    noun: str = ""
    pictures: int = 0
    """Those that fit: a caption holds the noun."""

    auc: float | None = None
    shuffled_auc: float | None = None
    correlation: float | None = None
    shuffled_correlation: float | None = None
    auc_of_all: float | None = None
    """The AUC, or 0.5 where the description cannot be scored: it says nothing that these pictures could bear out."""

    shuffled_auc_of_all: float | None = None
    not_scored: str = ""

    @property
    def gap(self) -> float | None:
        """By how much the unit's own description fits better than another unit's."""
        return None if self.auc is None or self.shuffled_auc is None else self.auc - self.shuffled_auc


@dataclass(frozen=True)
class Tie:
    """The object that a unit is most active on, by the index, and whether the description names it."""

    object: str = ""
    auc: float | None = None
    tied: bool = False
    """Whether the AUC reaches the level from which on units are held to be tied to their object."""

    named: bool | None = None
    shuffled_named: float | None = None
    """The share of the layer's other units whose description names the object."""


def fits(
    texts: Sequence[str], maxima: Float[np.ndarray, "rows units"], captions: Sequence[Sequence[str]], nouns: Nouns
) -> list[Fit]:
    """How each unit of a layer fits its description, on rows that neither exemplars nor thresholds come from.

    Args:
        texts: a description a unit; "" is none.
        maxima: of the units on the rows.
        captions: of the rows.
        nouns: which finds what a description is about.
    """
    about = [nouns.of(text) for text in texts]
    different = sorted(set(about) - {""})
    chosen = fitting(different, captions)
    ranked = ranks(maxima)
    area, correlated = aucs(ranked, chosen), correlations(ranked, chosen)
    column = {noun: place for place, noun in enumerate(different)}
    places = [column.get(noun) for noun in about]
    fitted = [_fit(unit, about[unit], places, chosen, area[unit], correlated[unit]) for unit in range(len(texts))]
    return [
        replace(fit, auc_of_all=own, shuffled_auc_of_all=other)
        for fit, (own, other) in zip(fitted, _of_all(area, places), strict=True)
    ]


def _of_all(area: Float[np.ndarray, "units nouns"], places: Sequence[int | None]) -> list[tuple[float, float | None]]:
    """Own and other units' AUC that leave out no unit: what cannot be scored counts as knowing nothing."""
    known = np.nan_to_num(area, nan=0.5)
    table = np.stack([np.full(len(area), 0.5) if place is None else known[:, place] for place in places], axis=1)
    own, count = table.diagonal().tolist(), len(places) - 1
    if not count:
        return [(own[0], None)]
    others = ((table.sum(axis=1) - own) / count).tolist()
    return list(zip(own, others, strict=True))


def _fit(
    unit: int,
    noun: str,
    places: Sequence[int | None],
    chosen: Bool[np.ndarray, "nouns rows"],
    area: Float[np.ndarray, " nouns"],
    correlated: Float[np.ndarray, " nouns"],
) -> Fit:
    own = places[unit]
    if own is None:
        return Fit(not_scored="the description holds no noun")
    count = int(chosen[own].sum())
    if np.isnan(area[own]):
        held = "no" if not count else "every"
        return Fit(noun, count, not_scored=f"{held} picture's caption holds “{noun}”")
    others = [place for other, place in enumerate(places) if other != unit and place is not None]
    others = [place for place in others if not np.isnan(area[place])]
    found = Fit(noun, count, float(area[own]), correlation=float(correlated[own]))
    if not others:
        return replace(found, not_scored="no other unit's description can be scored")
    return replace(
        found,
        shuffled_auc=float(area[others].mean()),
        shuffled_correlation=float(correlated[others].mean()),
    )


def ties(
    texts: Sequence[str],
    maxima: Float[np.ndarray, "rows units"],
    rows: Sequence[Mapping[str, Any]],
    namer: Namer,
    *,
    level: float,
    least: int,
) -> list[Tie]:
    """Which object each unit of a layer is most active on, and whether it gets that object's name.

    Args:
        texts: a description a unit; "" is none.
        maxima: of the units on the rows.
        rows: of the index.
        namer: of all the index's objects.
        level: the AUC from which on a unit is tied to its object.
        least: fewest rows that an object must have to be looked at.
    """
    counted: dict[str, int] = {}
    for row in rows:
        counted[row["object"]] = counted.get(row["object"], 0) + 1
    objects = sorted(name for name, count in counted.items() if name and least <= count < len(rows))
    if not objects:
        return [Tie() for _ in texts]
    area = aucs(ranks(maxima), holding(objects, rows))
    named = [set(namer.named(text)) for text in texts]
    found = []
    for unit, best in enumerate(area.argmax(axis=1).tolist()):
        name, value = objects[best], float(area[unit, best])
        if value < level:
            found.append(Tie(name, value))
            continue
        right = [bare(name) in words for words in named]
        others = [right[other] for other, text in enumerate(texts) if other != unit and text]
        share = sum(others) / len(others) if others else None
        found.append(Tie(name, value, True, right[unit], share))
    return found


def figures(fitted: Sequence[Fit], tied: Sequence[Tie], *, seed: int, resamples: int) -> dict[str, Score]:
    """Means over units with 95 % bootstrap intervals over units; a reason where no unit could be scored.

    Returns:
        `auc`, `auc_of_all`, `correlation` and `named`, each with `shuffled_…` and `…_gap`, own minus shuffled. They are
        over the units that have both: `auc` and `correlation` leave out descriptions whose noun no caption holds,
        `auc_of_all` leaves out none, and `named` is over the units tied to an object.
    """
    pairs: dict[str, list[tuple[float, float]]] = {
        "auc": [(one.auc, one.shuffled_auc) for one in fitted if one.auc is not None and one.shuffled_auc is not None],
        "auc_of_all": [
            (one.auc_of_all, one.shuffled_auc_of_all)
            for one in fitted
            if one.auc_of_all is not None and one.shuffled_auc_of_all is not None
        ],
        "correlation": [
            (one.correlation, one.shuffled_correlation)
            for one in fitted
            if one.correlation is not None and one.shuffled_correlation is not None
        ],
        "named": [(float(bool(one.named)), one.shuffled_named) for one in tied if one.shuffled_named is not None],
    }
    why = {"named": "no unit is tied to an object"}
    found: dict[str, Score] = {}
    for name, values in pairs.items():
        for key, column in _columns(name, values).items():
            if len(column):
                found[key] = bootstrap_mean(column, seed=seed, resamples=resamples)
            else:
                found[key] = NotRun(why.get(name, "no unit's description could be scored"))
    return found


def _columns(name: str, values: Sequence[tuple[float, float]]) -> dict[str, np.ndarray]:
    both = np.array(values, dtype=np.float64).reshape(len(values), 2)
    return {name: both[:, 0], f"shuffled_{name}": both[:, 1], f"{name}_gap": both[:, 0] - both[:, 1]}
