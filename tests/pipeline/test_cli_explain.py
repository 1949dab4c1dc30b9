"""`explain`: text, JSON and a figure of any picture, from a run, an export or the package's own translator."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from devil_pipe.pipeline.cli import app
from devil_pipe.stages.explain import opening
from devil_pipe.stages.explain.answers import Description, Margin
from devil_pipe.stages.explain.figure import COLOURS, LEFT, draw, wrapped
from devil_pipe.stages.explain.opening import open_backbone, transform_of
from devil_pipe.stages.explain.telling import Told
from devil_pipe.stages.extract.backbones import load, state_digest
from devil_pipe.stages.train import checkpoint
from devil_pipe.store.errors import InputError, UsageError

from .. import tiny
from . import explain_fixture
from .explain_fixture import LAYERS, RUN, SIDE

PLACES = ["--at", "60,6", "--at", "10,50.5", "--box", "0,0,40,64"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explain_fixture.project(tmp_path_factory.mktemp("project"))


@pytest.fixture(autouse=True)
def _inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def call(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def explain(*words: str) -> Result:
    """The command on the first picture, asking the run."""
    return call("explain", "pictures/000.png", "--run", RUN, "--device", "cpu", *words)


def test_json_has_every_answer_with_its_margin() -> None:
    result = explain(*PLACES, "--json", "--resamples", "5")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["backbone"], said["language_model"][-2:], said["data_note"]) == ("effnet_lite0", "lm", "Drawn shapes.")
    assert {key: said["margin"][key] for key in ("resamples", "dropped", "seed")} == {
        "resamples": 5,
        "dropped": 0.5,
        "seed": 0,
    }
    (found,) = said["pictures"]
    assert (found["picture"], found["width"], found["height"]) == ("pictures/000.png", SIDE, SIDE)
    assert [(place["x"], place["y"]) for place in found["places"]] == [(60, 6), (10, 50.5)]
    assert found["places"][0]["layers"]["s16"]["box"] == [48, 0, 64, 16]
    assert found["boxes"][0]["box"] == [0, 0, 40, 64]
    assert found["boxes"][0]["layers"]["s32"]["box"] == [0, 0, 32, 64]  # the locations whose middle lies in it
    groups = [found["layers"], *(part["layers"] for part in (*found["places"], *found["boxes"]))]
    assert [tuple(group) for group in groups] == [LAYERS] * 4
    for item in (found["all"], *(item for group in groups for item in group.values())):
        margin = item["margin"]
        assert margin["low"] <= margin["high"]
        assert margin["resamples"] == 5
        assert item["weak"] is (margin["low"] <= 0.1)
        assert item["agreement"] * 5 == pytest.approx(round(item["agreement"] * 5))


def test_the_text_names_pictures_layers_and_locations() -> None:
    result = explain("pictures/001.png", "--layers", "s32", "--at", "10,63", "--at", "63,63", "--box", "1,2,9,9")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [f"pictures/00{n}.png (64 × 64)" for n in (0, 1)]
    for start in ("  all layers: ", "  s32: ", "  in 1,2,9,9", "    s32: "):
        assert sum(line.startswith(start) for line in lines) == 2, start
    for column, x in ((0, 10), (1, 63)):
        assert sum(line == f"  at {x},63" for line in lines) == 2
        assert sum(line.startswith(f"    s32 (row 1, column {column} of 2×2): ") for line in lines) == 2
    assert "s16" not in result.stdout
    told = r"\[(weak: )?-?[\d.]+ nats, -?[\d.]+ to -?[\d.]+, the same words \d+%\]$"
    assert len(re.findall(told, result.stdout, re.MULTILINE)) == 10
    plain = explain("--no-margin").stdout
    assert "nats" not in plain
    assert "weak" not in plain


def test_the_packages_own_translator_answers_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("export", RUN, "demo").exit_code == 0
    words = ["explain", "pictures/000.png", "--device", "cpu", "--json", "--no-margin"]
    monkeypatch.setattr(opening, "DEMO", Path("nowhere").absolute())
    result = call(*words)
    assert result.exit_code == 1
    assert "no translator is named" in result.output
    monkeypatch.setattr(opening, "DEMO", Path("demo").absolute())
    result = call(*words, "--language-model", "lm")
    assert result.exit_code == 0, result.output
    own = explain("--json", "--no-margin")
    assert json.loads(result.stdout)["pictures"] == json.loads(own.stdout)["pictures"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--at", "0.5"], 2, "--at: expected X,Y in pixels"),
        (["--at", "0.25,0.5"], 2, r"looks like fractions of its 64 × 64 pixels; those would be --at 16,32"),
        (["--at", "64,0"], 2, r"pictures/000.png: --at: expected a place in the picture of 64 × 64"),
        (["--at", "nan,3"], 2, "--at: expected a place in the picture"),
        (["--box", "1,2,3"], 2, "--box: expected LEFT,TOP,RIGHT,BOTTOM"),
        (["--box", "5,5,5,9"], 2, "pictures/000.png: --box: .*which is empty"),
        (["--box", "0,0,65,9"], 2, "--box: expected a box inside the picture of 64 × 64"),
        (["--layers", "s33"], 2, r"layer 's33': expected one of s16, s32; did you mean 's32'\?"),
        (["--layers", ","], 2, "--layers: expected names"),
        (["--translator", "x"], 2, "got both"),
        (["--out", "a.jpg"], 2, "--out: expected the name of a PNG file"),
        (["no-such.png"], 1, "no-such.png: expected a picture"),
        (["text.png"], 1, "text.png: expected a picture"),
        (["--device", "tpu"], 1, "device 'tpu'"),
        (["--precision", "int4"], 2, "--precision: expected auto"),
        (["--language-model", "no/such-model"], 1, "language model 'no/such-model'"),
    ],
)
def test_mistakes_are_said_in_words(words: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("text.png").write_text("not a picture")
    result = explain(*words)
    said = " ".join(result.output.split())
    assert result.exit_code == code, result.output
    assert said.count("error: ") == 1
    assert re.search(message, said), said


def test_a_run_that_is_not_trained_says_so(project: Path) -> None:
    values = (project / "configs" / "runs" / f"{RUN}.yaml").read_text()
    (project / "configs" / "runs" / "later.yaml").write_text(values)
    result = call("explain", "pictures/000.png", "--run", "later")
    assert result.exit_code == 1
    assert "expected a trained translator, found none" in " ".join(result.output.split())
    assert call("explain", "pictures/000.png", "--run", "nope").exit_code == 2
    assert call("explain").exit_code == 2


def test_weights_of_another_digest_are_refused_naming_both() -> None:
    other = load("effnet_lite0", "random", 1)
    save_file(other.module.state_dict(), "other.safetensors")
    result = explain("--weights", "other.safetensors")
    assert result.exit_code == 1
    text = " ".join(result.output.split())
    assert "random:0" in text
    assert state_digest(other.module) in text


def test_a_language_model_of_another_width_is_refused() -> None:
    tiny.language_model(Path("wide"), hidden=32)
    result = explain("--language-model", "wide")
    assert result.exit_code == 1
    assert "16 wide, got one of width 32" in " ".join(result.output.split())


def test_a_function_named_by_a_translator_is_not_called_unless_trusted() -> None:
    _, card = checkpoint.load(Path("runs") / RUN / "checkpoint")
    function = "this_package_does_not.exist:build"
    store = card.store.model_copy(update={"backbone": function})
    with pytest.raises(UsageError, match=f"would be imported and called here.*--backbone {function}"):
        open_backbone(store, "auto", "")
    with pytest.raises(UsageError, match=r"this_package_does_not"):  # trusted: looked for, and not there
        open_backbone(store, "auto", function)
    with pytest.raises(UsageError, match="expected one of effnet_lite0"):  # a name of no function at all
        open_backbone(card.store.model_copy(update={"backbone": "nobody"}), "auto", "")


def test_random_weights_are_those_of_the_stores_seed() -> None:
    _, card = checkpoint.load(Path("runs") / RUN / "checkpoint")
    found = open_backbone(card.store.model_copy(update={"weights": "random:3"}), "auto", "")
    assert state_digest(found.module) == state_digest(load("effnet_lite0", "random", 3).module)
    assert state_digest(found.module) != state_digest(load("effnet_lite0", "random", 0).module)


def test_pictures_are_transformed_as_the_store_was() -> None:
    _, card = checkpoint.load(Path("runs") / RUN / "checkpoint")
    store = card.store
    expected = load("effnet_lite0", "random").spec.transform(SIDE)
    made = transform_of(store)
    assert made.describe() == expected.describe() == store.transform
    with Image.open("pictures/000.png") as picture:
        assert torch.equal(made(picture), expected(picture))
    older = {key: value for key, value in store.transform.items() if key not in ("orientation", "transparency")}
    assert transform_of(store.model_copy(update={"transform": older})) == made
    for strange in ({}, {**store.transform, "crop": 5}, {**store.transform, "interpolation": "psychic"}):
        with pytest.raises(InputError, match="translator's features"):
            transform_of(store.model_copy(update={"transform": strange}))


def test_a_figure_shows_pictures_with_their_markers(tmp_path: Path) -> None:
    """Each place and box has its colour in the picture's part, and its words at the right; what was said stays said."""
    out = tmp_path / "said.png"
    result = explain("pictures/001.png", *PLACES, "--out", str(out), "--resamples", "2")
    assert result.exit_code == 0, result.output
    with Image.open(out) as drawn:
        assert drawn.format == "PNG"
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    middle = int(LEFT * pixels.shape[1] / 11)
    for colour in COLOURS[:3]:
        near = np.abs(pixels - np.round(255 * np.array(to_rgb(colour)))).max(axis=2) < 3
        assert near[:, :middle].any(), colour
        assert near[:, middle:].any(), colour
    assert "all layers: " in result.stdout


@pytest.mark.parametrize("text", ["a dog in front of a lake and " * 20, "x" * 300, "", "$a_b$ \\frac 世界 " * 9])
def test_long_and_odd_texts_are_wrapped_and_drawn(text: str, tmp_path: Path) -> None:
    lines = wrapped(text, 2.0, 10.0)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(wrapped(line, 2.0, 10.0) == [line] for line in lines)
    assert len(wrapped(text, 4.0, 10.0)) <= len(lines)
    weak = Margin(1.0, -1.0, 2.0, 4)
    items = [Description(text, f"layer{n}.with.a.long.name", 0, 0, (0, 0, 9, 9), weak, 0.5) for n in range(4)]
    told = Told("a$b$.png", Image.new("RGB", (9, 400)), items[0], items, [((3.0, 3.0), items)], [])
    draw([told], "A note. " * 80, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.width == 1650
