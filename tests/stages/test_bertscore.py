"""BERTScore against the bert-score package called directly, with the demo's model."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from devil_pipe.stages.common.assets import asset
from devil_pipe.stages.evaluate.bertscore import bertscore, bertscore_conditions
from devil_pipe.stages.evaluate.bootstrap import Interval
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


@pytest.fixture(scope="module")
def model() -> Path:
    try:
        return asset("minilm-l6")
    except InputError as error:
        pytest.skip(str(error))


def bert(model: Path, hypotheses: Sequence[str], references: Sequence[Sequence[str]], **more: bool) -> Interval:
    return bertscore(hypotheses, references, model=model, num_layers=6, seed=0, resamples=50, **more)[0]


@pytest.mark.assets
@pytest.mark.parametrize("idf", [False, True])
def test_bertscore_is_bert_scores_own(model: Path, idf: bool) -> None:
    import bert_score
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        *_, best = bert_score.score(
            GOOD, REFERENCES, model_type=str(model), num_layers=6, idf=idf, nthreads=0, device="cpu"
        )
    finally:
        logging.enable_progress_bar()
    assert bert(model, GOOD, REFERENCES, idf=idf).value == pytest.approx(float(best.mean()), abs=1e-4)


@pytest.mark.assets
def test_bertscore_of_the_reference_is_one_and_of_nothing_zero(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    conditions = {
        "own": [texts[-1] for texts in REFERENCES],
        "good": GOOD,
        "moved": GOOD[1:] + GOOD[:1],
        "half": [REFERENCES[0][0], REFERENCES[1][0], REFERENCES[2][0], "", " ", "\u200b"],
        "empty": [""] * 6,
    }
    found, settings = bertscore_conditions(
        conditions, REFERENCES, model=model, num_layers=6, seed=0, resamples=50, name="minilm-l6"
    )
    assert found["own"].value == pytest.approx(1, abs=1e-5)
    assert found["own"].value > found["good"].value > found["moved"].value
    assert found["half"].value == pytest.approx(0.5, abs=1e-5)
    assert found["empty"] == Interval(0, 0, 0)
    assert settings.startswith("minilm-l6@")
    assert "_L6_no-idf_" in settings
    assert str(model) not in settings
    assert capfd.readouterr() == ("", "")


@pytest.mark.assets
def test_bertscore_settings_tell_models_apart_and_not_places(model: Path, tmp_path: Path) -> None:
    def settings(folder: Path, layers: int) -> str:
        return bertscore(["a"], [["a"]], model=folder, num_layers=layers, seed=0, name="m")[1]

    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for file in model.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    assert settings(copy, 6) == settings(model, 6) != settings(model, 5)
    (copy / "vocab.txt").write_text((copy / "vocab.txt").read_text() + "extra\n")
    assert settings(copy, 6) != settings(model, 6)


@pytest.mark.assets
def test_bertscore_mistakes_are_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which has none"):
        bert(model, ["a"], [["a"]], rescale_with_baseline=True)
    with pytest.raises(InputError, match="a layer that the model has, got 7"):
        bertscore(["a"], [["a"]], model=model, num_layers=7, seed=0)
    with pytest.raises(InputError, match="expected a folder with a model"):
        bertscore(["a"], [["a"]], model=tmp_path, num_layers=6, seed=0)
    (tmp_path / "t5").mkdir()
    with pytest.raises(InputError, match="without 't5'"):
        bertscore(["a"], [["a"]], model=tmp_path / "t5", num_layers=6, seed=0)
    with pytest.raises(ValueError, match="expected 2 hypotheses, got 1"):
        bert(model, ["a"], [["a"], ["b"]])


@pytest.mark.assets
def test_bertscore_rescales_by_the_shipped_baseline(model: Path) -> None:
    """The baseline of another model, to test the arithmetic: (F - b) / (1 - b) with b from its table."""
    raw = bert(model, GOOD, REFERENCES).value
    found, settings = bertscore(
        GOOD,
        REFERENCES,
        model=model,
        num_layers=6,
        seed=0,
        rescale_with_baseline=True,
        name="bert-base-uncased",
    )
    import bert_score

    table = Path(bert_score.__file__).parent / "rescale_baseline/en/bert-base-uncased.tsv"
    floor = float(table.read_text().splitlines()[1 + 6].split(",")[-1])
    assert found.value == pytest.approx((raw - floor) / (1 - floor))
    assert settings.endswith("-rescaled")
