"""Ranks, areas and agreement, against slow loops, closed forms and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from devil_pipe.stages.audit.statistics import agreement, auroc, average_precision, calibrated, chance_of_rank
from devil_pipe.stages.saliency.localisation import enlarge


def corner(size: int = 8) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[:4, :4] = True
    return mask


def test_average_precision_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    for _ in range(5):
        values, mask = random.integers(0, 4, (8, 8)).astype(float), random.random((8, 8)) < 0.3
        theirs = metrics.average_precision_score(mask.ravel(), enlarge(values, 8, 8).ravel())
        assert average_precision(values, mask) == pytest.approx(theirs)


def test_average_precision_of_a_perfect_a_flat_and_a_reversed_map() -> None:
    mask = corner()
    assert average_precision(mask.astype(float), mask) == 1
    assert average_precision(np.zeros((8, 8)), mask) == mask.mean()
    assert average_precision(-mask.astype(float), mask) < mask.mean() + 1e-9


def test_auroc_counts_pairs_and_halves_ties() -> None:
    random = np.random.default_rng(1)
    there, gone = random.integers(0, 5, 7).astype(float), random.integers(0, 5, 11).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a in there for b in gone]
    assert auroc(there, gone) == pytest.approx(np.mean(pairs))
    assert auroc(np.array([2.0]), np.array([1.0, 0.0])) == 1


def test_agreement_follows_ranks_and_knows_flat_maps() -> None:
    values = np.arange(12.0).reshape(3, 4)
    assert agreement(values, np.exp(values)) == pytest.approx(1)
    assert agreement(values, -values) == pytest.approx(-1)
    flat = np.full((3, 4), -3.0)
    assert agreement(flat, flat + 0.01) == 1, "rounding is no difference"
    assert agreement(values, flat) == 0, "a flat map ranks nothing"


def test_pictures_that_are_described_alike_share_the_first_place() -> None:
    """Two pairs of twins: each description is as likely after its picture's twin, and wins half of the time."""
    scores, own = np.kron(np.eye(2), np.full((2, 2), 9.0)), np.arange(4)
    assert chance_of_rank(calibrated(scores), own, 1).tolist() == [0.5] * 4


def test_a_picture_that_makes_every_text_likelier_wins_the_plain_ranking_alone() -> None:
    scores, own = np.eye(4, 6), np.arange(4)
    scores[:, 5] += 10
    assert chance_of_rank(scores, own, 1).tolist() == [0] * 4
    assert chance_of_rank(calibrated(scores), own, 1).tolist() == [1] * 4


def test_calibration_favours_nobody_without_knowledge() -> None:
    """Scores that know nothing find their own picture among 8 as often as chance does."""
    random = np.random.default_rng(3)
    own = np.arange(5)
    found = [chance_of_rank(calibrated(random.normal(size=(5, 8))), own, 1) for _ in range(2000)]
    assert np.mean(found) == pytest.approx(1 / 8, abs=0.01)


def test_equal_scores_share_the_first_places_by_chance() -> None:
    assert chance_of_rank(np.zeros((2, 10)), np.arange(2), 5).tolist() == [0.5, 0.5]
    assert chance_of_rank(np.array([[1.0, 2.0, 1.0]]), np.array([0]), 2).tolist() == [0.5]
    assert chance_of_rank(np.array([[1.0, 2.0, 1.0]]), np.array([1]), 1).tolist() == [1]
