"""`export`: a tiny translator taken to an empty folder and used from there; what is missing is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from devil_pipe.pipeline.cli import app
from devil_pipe.stages.train import checkpoint
from devil_pipe.stages.train.batches import whole_features
from devil_pipe.stages.train.language_model import LanguageModel
from devil_pipe.stages.train.loop import translate
from devil_pipe.store.reader import FeatureStore

from . import explain_fixture
from .explain_fixture import LAYERS, RUN

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explain_fixture.project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def shared(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported translator, alone in an empty folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        result = call("export", RUN, "made/here", "--licence", "cc0-1.0")
    assert result.exit_code == 0, result.output
    return (project / "made" / "here").rename(tmp_path_factory.mktemp("empty") / "translator")


def call(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def test_an_exported_translator_works_from_an_empty_folder(project: Path, shared: Path) -> None:
    """In a process of its own; what it says is what the run says of the picture's row in the store."""
    words = ["explain", str(project / "pictures" / "000.png"), "--translator", "translator", "--at", "60,6", "--json"]
    words += ["--language-model", str(project / "lm"), "--precision", "float32", "--no-margin"]
    done = subprocess.run(
        [sys.executable, "-m", "devil_pipe.pipeline.cli", *words],
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
    assert found["all"]["text"] == of_store(project, None)
    assert {name: item["text"] for name, item in found["layers"].items()} == {
        name: of_store(project, name) for name in LAYERS
    }
    (place,) = found["places"]
    assert (place["x"], place["y"]) == (60, 6)
    for name, spot in {"s16": (0, 3), "s32": (0, 1)}.items():
        there = place["layers"][name]
        assert (there["row"], there["column"], there["text"]) == (*spot, of_store(project, name, spot))
        assert (there["margin"], there["agreement"], there["weak"]) == (None, None, None)
    assert said["margin"] is None
    assert len({item["text"] for item in (found["all"], *found["layers"].values())}) > 1


def of_store(project: Path, layer: str | None, spot: tuple[int, int] | None = None) -> str:
    """What the translator says of the first picture's stored features."""
    translator, card = checkpoint.load(project / "runs" / RUN / "checkpoint")
    store = FeatureStore(project / "stores" / "drawn")
    model = LanguageModel(str(project / "lm"), device=CPU, dtype=torch.float32, repeats=card.prefix_repeats)
    features = whole_features(store, [0])
    chosen = None if layer is None else [LAYERS.index(layer)]
    if spot is not None and layer is not None:
        vector = store[layer].on_grid([0])[0][spot]
        features.layers[LAYERS.index(layer)] = torch.from_numpy(vector.astype(np.float32))[None]
    return model.write(translate(translator, features, chosen, device=CPU), 20)[0]


def test_export_says_what_is_missing(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(project)
    assert call("export", "nope", str(tmp_path / "out")).exit_code == 2
    (tmp_path / "out").write_text("")
    result = call("export", RUN, str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "got a file" in result.output
