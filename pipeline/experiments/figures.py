"""Figures of a table: means over seeds with their spread, means over rows, and a cell of ours beside the paper's."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from devil_pipe.pipeline.experiments.columns import Column


@dataclass(frozen=True)
class Figure:
    """One figure over the seeds of a row, on the paper's scale."""

    value: float
    """The mean over the seeds."""

    low: float | None
    """The least lower bound of the seeds' 95 % intervals over pictures; `high` the greatest upper one."""

    high: float | None
    seeds: int
    spread: float | None
    """Standard deviation over the seeds (n − 1); None for one seed, and for a mean of rows."""

    least: float
    greatest: float


@dataclass(frozen=True)
class Cell:
    """A row's figure in one column: ours, its null control, the paper's, and their difference."""

    column: Column
    ours: Figure | None
    null: Figure | None
    paper: float | None
    difference: float | None
    """Ours less the paper's; None where they cannot be compared."""

    not_run: str
    """Why there is no figure of ours; "" where there is one."""


def over_seeds(scores: Sequence[Mapping[str, Any]], factor: float) -> Figure:
    """The mean of one score over a row's seeds; each is a stage's `value`, with or without `low` and `high`."""
    values = [factor * float(score["value"]) for score in scores]
    bounded = all("low" in score for score in scores)
    return Figure(
        value=statistics.fmean(values),
        low=factor * min(float(score["low"]) for score in scores) if bounded else None,
        high=factor * max(float(score["high"]) for score in scores) if bounded else None,
        seeds=len(values),
        spread=statistics.stdev(values) if len(values) > 1 else None,
        least=min(values),
        greatest=max(values),
    )


def mean_cell(column: Column, parts: Sequence[Cell], paper: float | None, compared: bool) -> Cell:
    """The mean of other rows' cells, each counted alike; no interval is claimed for it."""
    ours = [part.ours for part in parts if part.ours is not None]
    if len(ours) < len(parts):
        why = next(part.not_run for part in parts if part.ours is None)
        return Cell(column, None, None, paper, None, why)
    mean = _over_rows(ours)
    null = [part.null for part in parts if part.null is not None]
    difference = mean.value - paper if paper is not None and compared else None
    return Cell(column, mean, _over_rows(null) if len(null) == len(parts) else None, paper, difference, "")


def _over_rows(parts: Sequence[Figure]) -> Figure:
    values = [part.value for part in parts]
    seeds = min(part.seeds for part in parts)
    return Figure(statistics.fmean(values), None, None, seeds, None, min(values), max(values))
