"""Bootstrap intervals against closed forms and slow loops."""

import math

import numpy as np
import pytest

from devil_pipe.stages.evaluate.bootstrap import (
    Interval,
    bootstrap_mean,
    bootstrap_statistic,
    bootstrap_statistics,
)


def test_interval_of_a_mean_is_the_normal_approximation() -> None:
    values = np.random.default_rng(7).normal(3.0, 2.0, size=400)
    found = bootstrap_mean(values, seed=0, resamples=4000)
    half = 1.959964 * values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_level_narrows_the_interval_as_the_normal_quantile_does() -> None:
    values = np.random.default_rng(8).normal(size=300)
    wide = bootstrap_mean(values, seed=0, resamples=4000, level=0.95)
    narrow = bootstrap_mean(values, seed=0, resamples=4000, level=0.6827)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(1.96, rel=0.08)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    found = [bootstrap_mean(generator.random(60), seed=run, resamples=400, level=0.9) for run in range(300)]
    covered = np.mean([one.low <= 0.5 <= one.high for one in found])
    assert 0.84 <= covered <= 0.95  # 0.9, with four standard errors of 300 runs and the percentile's known lack


def test_same_seed_draws_the_same_pictures() -> None:
    values = np.random.default_rng(2).random(50)
    one, other = bootstrap_mean(values, seed=3), bootstrap_mean(values + 1, seed=3)
    assert (other.value, other.low, other.high) == pytest.approx((one.value + 1, one.low + 1, one.high + 1))
    assert bootstrap_mean(values, seed=4) != one


def test_statistic_of_many_pictures_does_not_depend_on_how_it_is_batched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(5).random(40)
    whole = bootstrap_mean(values, seed=0, resamples=100)
    monkeypatch.setattr("devil_pipe.stages.evaluate.bootstrap._DRAWN_AT_ONCE", 41)
    assert bootstrap_mean(values, seed=0, resamples=100) == whole


def test_corpus_statistic_sees_whole_corpora() -> None:
    above, below = np.arange(1.0, 31.0), np.arange(31.0, 1.0, -1.0)
    seen: list[tuple[int, ...]] = []

    def share(drawn: np.ndarray) -> np.ndarray:
        seen.append(drawn.shape)
        return above[drawn].sum(axis=1) / below[drawn].sum(axis=1)

    found = bootstrap_statistic(share, 30, seed=0, resamples=500)
    assert found.value == pytest.approx(above.sum() / below.sum())
    assert found.low < found.value < found.high
    assert seen == [(1, 30), (500, 30)]
    generator, slow = np.random.default_rng(11), []
    for _ in range(4000):
        rows = generator.choice(30, 30)
        slow.append(sum(above[row] for row in rows) / sum(below[row] for row in rows))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(slow, [2.5, 97.5])), rel=0.06)


def test_several_statistics_share_their_resamples() -> None:
    values = np.random.default_rng(3).random(30)
    one, double = bootstrap_statistics(
        lambda drawn: np.stack([values[drawn].mean(axis=1), 2 * values[drawn].mean(axis=1)], axis=1), 30, seed=0
    )
    assert (double.low, double.high) == pytest.approx((2 * one.low, 2 * one.high))


def test_one_picture_and_equal_values_give_no_width() -> None:
    assert bootstrap_mean(np.array([0.25]), seed=0) == Interval(0.25, 0.25, 0.25)
    assert bootstrap_mean(np.full(9, 0.5), seed=0) == Interval(0.5, 0.5, 0.5)


def test_interval_as_json() -> None:
    assert Interval(0.5, 0.25, 0.75).as_json() == {"value": 0.5, "low": 0.25, "high": 0.75}


@pytest.mark.parametrize(
    ("values", "says"),
    [([], "at least one value"), ([1.0, math.nan], "row 1"), ([[1.0], [2.0]], r"2, ?1")],
)
def test_what_has_no_mean_is_refused(values: list[float], says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):  # TypeError: the tests' shape check, which comes first
        bootstrap_mean(np.array(values), seed=0)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_mean(np.ones(3), seed=0, level=95)
    with pytest.raises(ValueError, match="one resample"):
        bootstrap_mean(np.ones(3), seed=0, resamples=0)
