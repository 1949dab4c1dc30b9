"""Which pictures fit, and rank statistics: against pairs counted one by one, and SciPy's Spearman."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from devil_pipe.stages.evaluate.bootstrap import Interval
from devil_pipe.stages.evaluate.language import Tagger
from devil_pipe.stages.evaluate.metrics import NotRun
from devil_pipe.stages.evaluate.naming import Namer
from devil_pipe.stages.units.fits import Nouns, aucs, correlations, find_nouns, fitting, holding, ranks
from devil_pipe.stages.units.score import Fit, Tie, figures, fits, ties

RANDOM = np.random.default_rng(0)
MAXIMA = RANDOM.integers(0, 6, size=(30, 4)).astype(np.float16)  # few values, so that many are equal
CHOSEN = RANDOM.random((3, 30)) > 0.6
NAMER = Namer(["a dog", "a cow", "a sea lion", "a lion"])
NOUNS = Nouns(None, NAMER)


def pairs(activation: np.ndarray, chosen: np.ndarray) -> float:
    """How often a chosen row is above another one, pair by pair."""
    won = [
        1.0 if high > low else 0.5 if high == low else 0.0 for high in activation[chosen] for low in activation[~chosen]
    ]
    return float(np.mean(won))


def test_auc_counts_pairs_and_correlation_is_spearmans() -> None:
    ranked = ranks(MAXIMA)
    area, correlated = aucs(ranked, CHOSEN), correlations(ranked, CHOSEN)
    for unit, thing in np.ndindex(4, 3):
        activation = MAXIMA[:, unit].astype(float)
        assert area[unit, thing] == pytest.approx(pairs(activation, CHOSEN[thing]))
        assert correlated[unit, thing] == pytest.approx(spearmanr(activation, CHOSEN[thing]).statistic)


def test_a_unit_that_never_changes_knows_nothing_and_a_thing_without_rows_is_no_figure() -> None:
    ranked = ranks(np.zeros((30, 1), np.float16))
    assert aucs(ranked, CHOSEN).ravel().tolist() == [0.5] * 3
    assert correlations(ranked, CHOSEN).ravel().tolist() == [0.0] * 3
    for constant in (np.zeros((1, 30), bool), np.ones((1, 30), bool)):
        assert np.isnan(aucs(ranks(MAXIMA), constant)).all()
        assert np.isnan(correlations(ranks(MAXIMA), constant)).all()


def test_a_caption_holds_whole_words() -> None:
    captions = [["A Dog barks."], ["a dogma"], ["two sea-lions", "A sea lion, seen twice"], ["the sea; lion"], [""]]
    found = fitting(["dog", "sea lion"], captions)
    assert found.tolist() == [[True, False, False, False, False], [False, False, True, True, False]]


def test_the_first_object_stands_for_the_noun_without_a_tagger() -> None:
    assert [NOUNS.of(text) for text in ("The sea lion by a dog", "nothing known", "")] == ["sea lion", "", ""]


TAGS = {"a": "DET", "the": "DET", "red": "ADJ", "of": "ADP", "in": "ADP", "runs": "VERB"}


class Words:
    """A pipeline that knows a few words' tags."""

    def pipe(self, texts: list[str], batch_size: int) -> list[list[object]]:
        def token(word: str) -> object:
            return type("Token", (), {"lower_": word.lower(), "pos_": TAGS.get(word.lower(), "NOUN")})()

        return [[token(word) for word in text.split()] for text in texts]


def test_a_taggers_main_noun_keeps_the_nouns_before_it() -> None:
    nouns = Nouns(Tagger(Words(), "some words"), NAMER)
    said = ["a red sea lion runs", "in front of a Cow", "runs", ""]
    assert [nouns.of(text) for text in said] == ["sea lion", "cow", "", ""]
    assert nouns.label == "some words"


def test_without_tagger_and_objects_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("DEVIL_PIPE_CACHE", str(tmp_path))
    monkeypatch.setattr("devil_pipe.stages.units.fits.load_tagger", _missing)
    assert isinstance(find_nouns(NAMER, objects=True), Nouns)
    reason = find_nouns(Namer([]), objects=False)
    assert isinstance(reason, str)
    assert "en-core-web-sm" in reason


def _missing() -> Tagger:
    from devil_pipe.store.errors import InputError

    raise InputError("no tagger")


TEXTS = ["a dog", "a cow", "", "a dog again", "a sea lion", "a lion"]
CAPTIONS = [[["a dog"], ["a cow"], ["a lion"], ["grass"]][number % 4] for number in range(24)]


def test_own_description_beside_those_of_all_other_units() -> None:
    maxima = np.random.default_rng(2).normal(size=(24, len(TEXTS))).astype(np.float16)
    found = fits(TEXTS, maxima, CAPTIONS, NOUNS)
    noun = [NOUNS.of(text) for text in TEXTS]
    chosen = {name: np.array([name in row[0].split() for row in CAPTIONS]) for name in ("dog", "cow", "lion")}
    for unit, fit in enumerate(found):
        activation = maxima[:, unit].astype(float)
        every = [pairs(activation, chosen[name]) if name in chosen else 0.5 for name in noun]
        assert fit.auc_of_all == pytest.approx(every[unit])
        assert fit.shuffled_auc_of_all == pytest.approx(np.mean(every[:unit] + every[unit + 1 :]))
        if noun[unit] not in chosen:
            assert fit.auc is None
            assert fit.gap is None
            assert ("no noun" if not noun[unit] else "“sea lion”") in fit.not_scored
            continue
        others = [pairs(activation, chosen[noun[other]]) for other in (0, 1, 3, 5) if other != unit]
        assert fit.pictures == chosen[noun[unit]].sum()
        assert fit.auc == pytest.approx(pairs(activation, chosen[noun[unit]]))
        assert fit.shuffled_auc == pytest.approx(np.mean(others))
        assert fit.gap == pytest.approx(fit.auc - np.mean(others))
        assert fit.correlation == pytest.approx(spearmanr(activation, chosen[noun[unit]]).statistic)


def test_one_unit_alone_has_nothing_to_be_compared_with() -> None:
    (found,) = fits(["a dog"], np.arange(24, dtype=np.float16)[:, None], CAPTIONS, NOUNS)
    assert found.auc is not None
    assert found.gap is None
    assert found.shuffled_auc_of_all is None
    assert found.not_scored == "no other unit's description can be scored"


def test_a_unit_is_tied_to_the_object_that_it_is_most_active_on() -> None:
    names = ["a dog", "a cow", "a lion", ""]
    rows = [{"object": names[number % 4]} for number in range(24)] + [{"object": "a sea lion"}]
    maxima = np.random.default_rng(3).normal(size=(25, 3)).astype(np.float16)
    maxima[0:24:4, 0] += 10  # the dog's
    maxima[1:24:4, 1] += 10  # the cow's
    maxima[24, 2] += 100  # the sea lion's, which is there once: too little to be tied by
    found = ties(["a dog", "a lion", "a cow"], maxima, rows, NAMER, level=0.95, least=2)
    assert [tie.object for tie in found[:2]] == ["a dog", "a cow"]
    assert [tie.tied for tie in found] == [True, True, False]
    assert [tie.named for tie in found] == [True, False, None]
    assert [tie.shuffled_named for tie in found] == [0.0, 0.5, None]
    assert found[0].auc == pytest.approx(1.0)
    assert found[2].object != "a sea lion"
    silent = ties(["a dog", "", "a cow"], maxima, rows, NAMER, level=0.95, least=2)
    assert silent[1].named is False  # a tied unit without a description was not named rightly
    assert silent[0].shuffled_named == 0.0


def test_an_index_without_objects_ties_nothing() -> None:
    found = ties(["a dog"], np.zeros((5, 1), np.float16), [{"object": ""}] * 5, Namer([]), level=0.9, least=1)
    assert found == [Tie()]


def test_holding_reads_the_index() -> None:
    rows = [{"object": "a dog"}, {"object": "a cow"}, {"object": "a dog"}]
    assert holding(["a dog", "a cow"], rows).tolist() == [[True, False, True], [False, True, False]]


def test_figures_are_means_over_units_that_have_both() -> None:
    fitted = [Fit("x", 3, 0.9, 0.5, 0.3, 0.1, 0.9, 0.4), Fit("y", 2, 0.7, 0.6, 0.1, 0.2), Fit("z", 1, 0.1), Fit()]
    tied = [Tie("a dog", 1.0, True, True, 0.25), Tie("a cow", 1.0, True, False, 0.5), Tie("a cow", 0.6)]
    found = figures(fitted, tied, seed=0, resamples=200)
    values = {name: score.value for name, score in found.items() if isinstance(score, Interval)}
    assert values == pytest.approx(
        {"auc": 0.8, "shuffled_auc": 0.55, "auc_gap": 0.25, "correlation": 0.2, "shuffled_correlation": 0.15}
        | {
            "auc_of_all": 0.9,
            "shuffled_auc_of_all": 0.4,
            "auc_of_all_gap": 0.5,
            "correlation_gap": 0.05,
            "named": 0.5,
            "shuffled_named": 0.375,
            "named_gap": 0.125,
        }
    )
    gap = found["auc_gap"]
    assert isinstance(gap, Interval)
    assert (gap.low, gap.high) == pytest.approx((0.1, 0.4))  # two units: the extremes are the units themselves
    nothing = figures([Fit()], [Tie()], seed=0, resamples=10)
    assert all(isinstance(score, NotRun) for score in nothing.values())
    assert set(nothing) == set(found)
