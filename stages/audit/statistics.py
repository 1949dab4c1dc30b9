"""The figures of the checks that no library of ours gives: ranks, areas, agreement of maps."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata, spearmanr

from devil_pipe.stages.saliency.localisation import enlarge

STILL = 0.05
"""Nats: maps that differ nowhere by more are the same map; what ranks say of less is rounding."""


def average_precision(values: Float[np.ndarray, "_ _"], mask: Bool[np.ndarray, "rows columns"]) -> float:
    """Average precision of the upsampled map's pixels as a detector of the mask's: Σ (Rₙ − Rₙ₋₁) Pₙ over thresholds.

    Pixels of one value come in together. A flat map has the mask's share of the picture. Needs a mask with pixels.
    """
    large, inside = enlarge(values, *mask.shape).ravel(), mask.ravel()
    order = np.argsort(-large, kind="stable")
    hits = np.cumsum(inside[order])
    ends = np.append(np.flatnonzero(np.diff(large[order])), large.size - 1)
    precision = hits[ends] / (ends + 1)
    gained = np.diff(hits[ends], prepend=0) / hits[-1]
    return float((precision * gained).sum())


def auroc(there: Float[np.ndarray, " present"], not_there: Float[np.ndarray, " absent"]) -> float:
    """The probability that a value of what is there lies above one of what is not; ties count half."""
    ranks = rankdata(np.concatenate([there, not_there]))[: there.size]
    above = ranks.sum() - there.size * (there.size + 1) / 2
    return float(above / (there.size * not_there.size))


def agreement(one: Float[np.ndarray, "height width"], other: Float[np.ndarray, "height width"]) -> float:
    """Spearman's rank correlation of two maps.

    Maps that are the same up to rounding agree wholly, flat ones too; a flat map ranks nothing, so it agrees with no
    other.
    """
    if np.abs(one - other).max() <= STILL:
        return 1.0
    if min(np.ptp(one), np.ptp(other)) <= STILL:
        return 0.0
    return float(spearmanr(one.ravel(), other.ravel()).statistic)


def calibrated(scores: Float[np.ndarray, "descriptions pictures"]) -> Float[np.ndarray, "descriptions pictures"]:
    """Log-likelihoods of descriptions after pictures' features, less what each picture gives them all on the mean.

    Some features make every text likelier, and would win every ranking. Every picture's mean is over the same
    descriptions: were some left out for some pictures, one of two pictures that are described alike would always win.
    """
    return np.asarray(scores - scores.mean(axis=0))


def chance_of_rank(
    scores: Float[np.ndarray, "descriptions pictures"], own: Int[np.ndarray, " descriptions"], k: int
) -> Float[np.ndarray, " descriptions"]:
    """For each description, the probability that its own picture is among the first k; ties are broken at random."""
    mine = scores[np.arange(len(scores)), own][:, None]
    better, tied = (scores > mine).sum(axis=1), (scores == mine).sum(axis=1)
    return np.asarray(np.clip((k - better) / tied, 0, 1), dtype=np.float64)
