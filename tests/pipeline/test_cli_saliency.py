"""`devil-pipe saliency` on pictures: what it writes and says of a translator that was taught three colours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from devil_pipe.pipeline.cli import app
from devil_pipe.stages.evaluate.language import Tagger
from devil_pipe.stages.explain.explainer import Explainer

from ..stages import colours_fixture as colours

LAYERS = {"all": (4, 8), "coarse": (2, 3), "fine": (4, 8)}
QUERIES = ["a dog", "a cow"]


@pytest.fixture(scope="module")
def explainer(tmp_path_factory: pytest.TempPathFactory) -> Explainer:
    torch.set_num_threads(1)
    made = colours.own(tmp_path_factory.mktemp("lm") / "lm", steps=150)
    return Explainer.from_module(
        made.translator, made.card, made.module, colours.TAPS, language_model=made.language_model
    )


@pytest.fixture(autouse=True)
def _opened(explainer: Explainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which explainer is opened is `asking`'s affair, and tested with it; here it is one of a module's own."""
    monkeypatch.setattr("devil_pipe.pipeline.asking.open_explainer", lambda *_names, **_options: explainer)
    monkeypatch.chdir(tmp_path)
    colours.halves("a dog", "a cow").save("picture.png")


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["saliency", *words])


def asked(*words: str) -> dict[str, Any]:
    """What --json says of the first picture."""
    queries = [word for query in QUERIES for word in ("--query", query)]
    result = call("picture.png", *queries, "--json", "--smooth", "0", *words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["data_note"] == "Two colours."
    return found  # type: ignore[no-any-return]


def test_maps_show_where_the_words_are(explainer: Explainer) -> None:
    """The dog is on the left half, the cow on the right, at every layer and for all of them together."""
    found = asked()
    assert found["settings"]["scale"] == [-20.0, 20.0]
    assert set(found["pictures"][0]["layers"]) == set(LAYERS)
    for name, said in found["pictures"][0]["layers"].items():
        assert tuple(said["grid"]) == LAYERS[name]
        dog, cow = said["queries"]
        assert (dog["query"], cow["query"]) == ("a dog", "a cow")
        assert dog["at"][0] < 100 < cow["at"][0]
        assert dog["max"] > dog["mean"] > dog["min"]
    with np.load("maps/picture.npz", allow_pickle=False) as arrays:
        for name, (height, width) in LAYERS.items():
            assert arrays[name].dtype == np.float32
            assert arrays[name].shape == (2, height, width)
            assert arrays[f"{name}/queries"].tolist() == QUERIES
            dog, cow = arrays[name].reshape(2, height, width)
            left, right = slice(0, width // 2), slice(width - width // 2, width)
            assert dog[:, left].mean() > dog[:, right].mean() + 1
            assert cow[:, right].mean() > cow[:, left].mean() + 1
            model = explainer.language_model
            prior = model.query_scores(None, model.encode(QUERIES))[0].tolist()
            assert arrays[f"{name}/prior"].tolist() == pytest.approx(prior, abs=1e-4)


def test_files_of_a_picture() -> None:
    asked("--out", "here", "--layers", "fine")
    names = sorted(path.name for path in Path("here").iterdir())
    overlays = [f"picture-{layer}-{n}-{q}.png" for layer in ("all", "fine") for n, q in enumerate(("a_dog", "a_cow"))]
    assert names == sorted(["picture.npz", "picture.png", *overlays])
    with Image.open("picture.png") as picture:
        for name in overlays:
            with Image.open(Path("here") / name) as overlay:
                assert overlay.size == picture.size
    red, _, blue = np.asarray(Image.open("here/picture-fine-0-a_dog.png"), dtype=int)[50, 20]
    assert red > blue  # likelier than without looking


def test_the_papers_score_tokens_and_upsampling() -> None:
    plain, mean = asked("--plain"), asked("--per-token")
    above = asked("--upsample")
    with np.load("maps/picture.npz") as arrays:
        assert arrays["coarse"].shape == (2, 100, 200)
    for name in LAYERS:
        for one, per_token, other in zip(
            *(found["pictures"][0]["layers"][name]["queries"] for found in (plain, mean, above)), strict=True
        ):
            assert one["max"] - one["prior"] == pytest.approx(other["max"], abs=1e-3)
            assert per_token["max"] * other["tokens"] == pytest.approx(other["max"], abs=1e-3)
    assert plain["settings"]["scale"] == [-20.0, 0.0]
    assert "log-likelihood" in plain["settings"]["score"]


def test_zero_may_be_a_grey_picture(explainer: Explainer) -> None:
    """Asked about the grey picture itself, the layer of one colour everywhere says zero everywhere."""
    Image.new("RGB", (64, 64), (128, 128, 128)).save("picture.png")
    found = asked("--zero", "grey")
    for said in found["pictures"][0]["layers"].values():
        assert all(abs(query[key]) < 1e-3 for query in said["queries"] for key in ("min", "max"))
        assert all(query["zero"] != pytest.approx(query["prior"], abs=0.01) for query in said["queries"])
    colours.halves("a dog", "a cow").save("picture.png")
    grey, prior = asked("--zero", "grey"), asked()
    for name, said in grey["pictures"][0]["layers"].items():
        for one, other in zip(said["queries"], prior["pictures"][0]["layers"][name]["queries"], strict=True):
            assert one["max"] + one["zero"] == pytest.approx(other["max"] + other["zero"], abs=1e-3)
            assert other["zero"] == other["prior"]


def test_two_pictures_of_one_name_have_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    colours.halves("a cow", "a dog").save("other/picture.png")
    result = call("picture.png", "other/picture.png", "--query", "a dog", "--layers", "coarse")
    assert result.exit_code == 0, result.output
    assert {path.name for path in Path("maps").glob("*.npz")} == {"picture-1.npz", "picture-2.npz"}
    assert re.findall(r"^\S.*picture\.png \(200 × 100\)", result.stdout, re.MULTILINE)
    assert len(re.findall(r"    a dog: most [+-]\d+\.\d at \d+,\d+", result.stdout)) == 4


class _Nouns:
    """Every word that is no article is a noun."""

    def pipe(self, texts: Iterable[str], **_options: object) -> Iterable[Any]:
        from spacy.lang.en import English
        from spacy.tokens import Doc

        vocab = English().vocab
        for text in texts:
            words = text.split()
            yield Doc(vocab, words=words, pos=["DET" if word == "a" else "NOUN" for word in words])


def test_the_words_of_a_place_are_looked_for_at_the_layer_that_said_them(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "devil_pipe.stages.evaluate.language.load_tagger",
        lambda: Tagger(_Nouns(), "a test's"),  # type: ignore[arg-type]
    )
    result = call("picture.png", "--from-description", "20,50", "--json", "--smooth", "0")
    assert result.exit_code == 0, result.output
    for name, said in json.loads(result.stdout)["pictures"][0]["layers"].items():
        layer = None if name == "all" else name
        expected = explainer.describe("picture.png", layer=layer, at=(20, 50), margin=False).text
        assert said["description"] == expected
        assert said["queries"][0]["query"] == expected == "a dog"
        assert said["queries"][0]["at"][0] < 100
    assert Path("maps/picture.png").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["picture.png"], 2, "picture.png is a file: say what to look for in it with --query"),
        (["one", "two"], 2, "expected one run, got 2 names"),
        (["--run", "demo"], 2, "--run is for pictures"),
        (["demo", "--plain"], 2, "--plain is for pictures"),
        (["--query", "a dog"], 2, "expected pictures"),
        (["demo", "--query", "a dog"], 1, "demo: expected a picture"),
        (["picture.png", "--query", " "], 2, "query: expected a word"),
        (["picture.png", "--query", "a dog", "--smooth", "2"], 2, "--smooth: expected auto, 0 or an odd"),
        (["picture.png", "--query", "a dog", "--zero", "one"], 2, "--zero: expected prior"),
        (["picture.png", "--query", "a dog", "--zero", "grey", "--plain"], 2, "without --plain, grey"),
        (["picture.png", "--query", "a dog", "--scale", "0"], 2, "--scale: expected nats above 0"),
        (["picture.png", "--query", "a dog", "--layers", "fin"], 2, "--layers: expected some of fine, coarse, got fin"),
        (["picture.png", "--from-description", "here"], 2, "--from-description: expected X,Y in pixels"),
        (["picture.png", "--from-description", "200,50"], 2, "picture.png: --from-description: .*200 × 100 pixels"),
        (["nothing-of-the-kind"], 2, "configs/runs/nothing-of-the-kind.yaml: no such file"),
    ],
)
def test_mistakes_are_said_in_words(words: list[str], code: int, message: str) -> None:
    result = call(*words)
    assert result.exit_code == code, result.output
    assert re.search(message, " ".join(result.output.split())), result.output
    assert not Path("maps").exists()


def test_without_anything_to_look_for_the_stage_of_a_run_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.saliency = f"the saliency of {name}"

    monkeypatch.setattr("devil_pipe.pipeline.config.Run", Named)
    monkeypatch.setattr("devil_pipe.stages.saliency.run.run", begun.append)
    monkeypatch.setattr("devil_pipe.pipeline.config.first", lambda _kind: "first")
    assert call("demo").exit_code == 0
    assert call().exit_code == 0
    assert begun == ["the saliency of demo", "the saliency of first"]
