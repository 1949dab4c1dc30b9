"""`export` and `explain`: a tiny translator taken to an empty folder and used from there, live, on any picture."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from devil_pipe.pipeline.cli import app
from devil_pipe.stages.explain.describe import Explainer, open_backbone, transform_of
from devil_pipe.stages.extract.backbones import load, state_digest
from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.stages.extract.run import run as extract
from devil_pipe.stages.prepare.config import FolderConfig, PrepareConfig
from devil_pipe.stages.prepare.run import run as prepare
from devil_pipe.stages.train import checkpoint
from devil_pipe.stages.train.batches import whole_features
from devil_pipe.stages.train.config import TranslatorConfig
from devil_pipe.stages.train.language_model import LanguageModel
from devil_pipe.stages.train.loop import translate
from devil_pipe.stages.train.translator import build
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.reader import FeatureStore

from .. import tiny
from ..conftest import draw_pictures

CPU = torch.device("cpu")
LAYERS = ("s16", "s32")
SIDE = 64


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures through a real backbone's architecture with random weights, and a translator of its features."""
    root = tmp_path_factory.mktemp("project")
    listing = draw_pictures(root / "pictures", 6)
    values: dict[str, Any] = {"pictures": root / "pictures", "captions": listing}
    prepare(PrepareConfig(name="drawn", source="folder", folder=FolderConfig(**values), out=root / "data" / "drawn"))
    store = {"data": "drawn", "backbone": "effnet_lite0", "weights": "random", "layers": list(LAYERS)}
    store |= {"image_size": SIDE}
    places = {"data_dir": root / "data" / "drawn", "out": root / "stores" / "drawn"}
    extract(ExtractConfig.model_validate({"name": "drawn", **store, **places}))
    tiny.language_model(root / "lm", taught=True)
    identity = FeatureStore(root / "stores" / "drawn").identity
    config = TranslatorConfig(layers=1, width=16, heads=2, feedforward=32, queries=3)
    torch.manual_seed(0)
    translator = build(config, identity.layers, 16, 3.0)
    card = checkpoint.Card(
        translator=config,
        prefix_norm=3.0,
        prefix_repeats=2,
        language_model=str(root / "lm"),
        store=identity,
        warmup="none",
        seed=0,
        data_note="Drawn shapes.",
    )
    checkpoint.save(root / "runs" / "tiny" / "checkpoint", translator, card)
    for name, content in {"stores/drawn": store, "runs/tiny": {"store": "drawn"}}.items():
        path = root / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    return root


@pytest.fixture(scope="module")
def shared(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported translator, alone in an empty folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        result = call("export", "tiny", "made/here", "--licence", "cc0-1.0")
    assert result.exit_code == 0, result.output
    return (project / "made" / "here").rename(tmp_path_factory.mktemp("empty") / "translator")


def call(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def explain(project: Path, shared: Path, *words: str) -> Result:
    """The command on the first picture, with the language model named."""
    given = ["--translator", str(shared), "--language-model", str(project / "lm"), "--device", "cpu"]
    return call("explain", str(project / "pictures" / "000.png"), *given, *words)


def test_an_exported_translator_works_from_an_empty_folder(project: Path, shared: Path) -> None:
    """In a process of its own; what it says is what the run says of the picture's row in the store."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "devil_pipe.pipeline.cli", "explain", str(project / "pictures" / "000.png")),
            *(
                "--translator",
                "translator",
                "--language-model",
                str(project / "lm"),
                "--at",
                "0.9,0.1",
                "--json",
                "--precision",
                "float32",
            ),
        ],
        cwd=shared.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "random weights" in done.stderr
    said = json.loads(done.stdout)
    assert (said["backbone"], said["weights"], said["data_note"]) == ("effnet_lite0", "random:0", "Drawn shapes.")
    (found,) = said["pictures"]
    assert found["all"] == of_store(project, None)
    assert found["layers"] == {name: of_store(project, name) for name in LAYERS}
    (place,) = found["places"]
    assert (place["x"], place["y"]) == (0.9, 0.1)
    assert place["layers"]["s16"] == {"row": 0, "column": 3, "text": of_store(project, "s16", (0, 3))}
    assert place["layers"]["s32"] == {"row": 0, "column": 1, "text": of_store(project, "s32", (0, 1))}
    assert len({found["all"], *found["layers"].values()}) > 1


def of_store(project: Path, layer: str | None, spot: tuple[int, int] | None = None) -> str:
    """What the translator says of the first picture's stored features."""
    translator, card = checkpoint.load(project / "runs" / "tiny" / "checkpoint")
    store = FeatureStore(project / "stores" / "drawn")
    model = LanguageModel(str(project / "lm"), device=CPU, dtype=torch.float32, repeats=card.prefix_repeats)
    features = whole_features(store, [0])
    chosen = None if layer is None else [LAYERS.index(layer)]
    if spot is not None and layer is not None:
        vector = store[layer].on_grid([0])[0][spot]
        features.layers[LAYERS.index(layer)] = torch.from_numpy(vector.astype(np.float32))[None]
    return model.write(translate(translator, features, chosen, device=CPU), 20)[0]


def test_a_run_is_explained_without_an_export(project: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    words = ["explain", "pictures/000.png", "--device", "cpu", "--json"]
    own = call(*words, "--run", "tiny")
    assert own.exit_code == 0, own.output
    other = explain(project, shared, "--json")
    assert json.loads(own.stdout)["pictures"][0]["layers"] == json.loads(other.stdout)["pictures"][0]["layers"]


def test_the_text_names_pictures_layers_and_locations(project: Path, shared: Path) -> None:
    second = str(project / "pictures" / "001.png")
    result = explain(project, shared, second, "--layer", "s32", "--at", "0.1,0.9", "--at", "1,1")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.endswith(".png")] == [str(project / "pictures" / "000.png"), second]
    assert sum(line.startswith("  all layers: ") for line in lines) == 2
    assert sum(line.startswith("  s32: ") for line in lines) == 2
    assert sum(line.startswith("    s32 (row 1, column 0 of 2×2): ") for line in lines) == 2
    assert sum(line.startswith("    s32 (row 1, column 1 of 2×2): ") for line in lines) == 2
    assert "s16" not in result.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--at", "0.5"], 2, "--at: expected X,Y"),
        (["--at", "1.5,0"], 2, "fractions of width and height"),
        (["--layer", "s8"], 1, "layer 's8'.*s16, s32"),
        (["--run", "tiny"], 2, "one of them"),
        (["no-such.png"], 1, "no-such.png: expected a picture"),
        (["--device", "tpu"], 1, "device 'tpu'"),
        (["--precision", "int4"], 2, "--precision: expected auto"),
        (["--language-model", "no/such-model"], 1, "language model 'no/such-model'"),
    ],
)
def test_mistakes_are_said_in_words(
    project: Path, shared: Path, words: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = explain(project, shared, *words)
    assert result.exit_code == code, result.output
    assert " ".join(result.output.split()).count("error: ") == 1
    assert re.search(message, " ".join(result.output.split())), result.output


def test_a_broken_picture_is_named(project: Path, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    result = explain(project, shared, str(tmp_path / "text.png"))
    assert result.exit_code == 1
    assert "text.png: expected a picture" in result.output


def test_weights_of_another_digest_are_refused_naming_both(project: Path, shared: Path, tmp_path: Path) -> None:
    other = load("effnet_lite0", "random", 1)
    save_file(other.module.state_dict(), tmp_path / "other.safetensors")
    result = explain(project, shared, "--weights", str(tmp_path / "other.safetensors"))
    assert result.exit_code == 1
    text = " ".join(result.output.split())
    assert "random:0" in text
    assert state_digest(other.module) in text


def test_a_language_model_of_another_width_is_refused(project: Path, shared: Path, tmp_path: Path) -> None:
    tiny.language_model(tmp_path / "wide", hidden=32)
    result = explain(project, shared, "--language-model", str(tmp_path / "wide"))
    assert result.exit_code == 1
    assert "16 wide, got one of width 32" in " ".join(result.output.split())


def test_a_function_named_by_a_translator_is_not_called_unless_trusted(project: Path) -> None:
    _, card = checkpoint.load(project / "runs" / "tiny" / "checkpoint")
    function = "this_package_does_not.exist:build"
    store = card.store.model_copy(update={"backbone": function})
    with pytest.raises(UsageError, match=f"would be imported and called here.*--backbone {function}"):
        open_backbone(store, "auto", "")
    with pytest.raises(UsageError, match=r"this_package_does_not"):  # trusted: looked for, and not there
        open_backbone(store, "auto", function)
    with pytest.raises(UsageError, match="expected one of effnet_lite0"):  # a name of no function at all
        open_backbone(card.store.model_copy(update={"backbone": "nobody"}), "auto", "")


def test_pictures_are_transformed_as_the_store_was(project: Path) -> None:
    _, card = checkpoint.load(project / "runs" / "tiny" / "checkpoint")
    store = card.store
    expected = load("effnet_lite0", "random").spec.transform(SIDE)
    made = transform_of(store)
    assert made.describe() == expected.describe() == store.transform
    with Image.open(project / "pictures" / "000.png") as picture:
        assert torch.equal(made(picture), expected(picture))
    older = {key: value for key, value in store.transform.items() if key not in ("orientation", "transparency")}
    assert transform_of(store.model_copy(update={"transform": older})) == made
    for strange in ({}, {**store.transform, "crop": 5}, {**store.transform, "interpolation": "psychic"}):
        with pytest.raises(InputError, match="translator's features"):
            transform_of(store.model_copy(update={"transform": strange}))


def test_layers_of_other_shapes_are_refused(project: Path) -> None:
    translator, card = checkpoint.load(project / "runs" / "tiny" / "checkpoint")
    layers = (card.store.layers[0].model_copy(update={"height": 5}), *card.store.layers[1:])
    wrong = replace(card, store=card.store.model_copy(update={"layers": layers}))
    model = LanguageModel(str(project / "lm"), device=CPU, dtype=torch.float32)
    with pytest.raises(InputError, match="expected layers"):
        Explainer(translator, wrong, load("effnet_lite0", "random"), model)


def test_export_says_what_is_missing(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(project)
    assert call("export", "nope", str(tmp_path / "out")).exit_code == 2
    (tmp_path / "out").write_text("")
    result = call("export", "tiny", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "got a file" in result.output
