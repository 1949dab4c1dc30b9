"""Bootstrap intervals: how far a score would move had other pictures been drawn.

Every interval is the percentile interval of Efron (1979) over resampled pictures. The same `seed`, `n` and
`resamples` draw the same pictures, so intervals of several conditions over one set of pictures are paired.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

# Indices that are drawn in one go; bounds the memory that a statistic needs for its gathered values.
_DRAWN_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Interval:
    """A score and its bootstrap interval, on the score's own scale."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """The three numbers by name."""
        return {"value": self.value, "low": self.low, "high": self.high}


def bootstrap_mean(
    values: Float[np.ndarray, " n"], *, seed: int, resamples: int = 1000, level: float = 0.95
) -> Interval:
    """The mean of one value for each picture, with its interval. One picture gives an interval of no width.

    Raises:
        ValueError: no values, not one value a picture, or one that is not finite.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or scores.size == 0:
        raise ValueError(f"expected a list of at least one value, got an array of shape {scores.shape}")
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"expected finite values, got {scores[row]} in row {row}")
    return bootstrap_statistic(
        lambda drawn: scores[drawn].mean(axis=1), scores.size, seed=seed, resamples=resamples, level=level
    )


def bootstrap_statistic(
    statistic: Callable[[Int[np.ndarray, "draws n"]], Float[np.ndarray, " draws"]],
    n: int,
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """A statistic of a whole corpus, with its interval.

    `statistic` takes index arrays, one resampled corpus of `n` pictures a row, and gives one number a row;
    the value is the statistic of the corpus itself. Raises as `bootstrap_statistics`.
    """
    return bootstrap_statistics(
        lambda drawn: statistic(drawn)[:, None], n, seed=seed, resamples=resamples, level=level
    )[0]


def bootstrap_statistics(
    statistic: Callable[[Int[np.ndarray, "draws n"]], Float[np.ndarray, "draws outputs"]],
    n: int,
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> list[Interval]:
    """Several statistics of the same resampled corpora: one interval for each column of the answer.

    Raises:
        ValueError: `n` or `resamples` below one, or `level` not between 0 and 1.
    """
    if n < 1 or resamples < 1:
        raise ValueError(f"expected at least one picture and one resample, got {n} and {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}")
    values = statistic(np.arange(n)[None])[0]
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWN_AT_ONCE // n)
    parts = [
        statistic(generator.integers(n, size=(min(rows, resamples - start), n))) for start in range(0, resamples, rows)
    ]
    tail = (1 - level) / 2
    lows, highs = np.quantile(np.concatenate(parts), [tail, 1 - tail], axis=0)
    return [Interval(*map(float, bounds)) for bounds in zip(values, lows, highs, strict=True)]
