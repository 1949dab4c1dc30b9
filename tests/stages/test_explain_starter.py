"""The translator that comes with the package: whole, small, honest about itself, and better than chance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from devil_pipe.stages.common.assets import asset
from devil_pipe.stages.evaluate.naming import Namer
from devil_pipe.stages.explain.explainer import Explainer
from devil_pipe.stages.explain.opening import DEMO
from devil_pipe.stages.prepare.config import DemoConfig
from devil_pipe.stages.prepare.demo import Composer
from devil_pipe.stages.train.sharing import from_pretrained
from devil_pipe.store.errors import InputError

PICTURES = 24


def test_it_is_whole_small_and_says_what_it_is() -> None:
    translator, card = from_pretrained(DEMO)
    assert sum(parameter.numel() for parameter in translator.parameters()) < 3_000_000
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < 10_000_000
    assert card.store.backbone == "effnet_lite0"
    assert not card.store.weights.startswith("random")
    told = (DEMO / "README.md").read_text(encoding="utf-8")
    assert "composites" in told
    assert "shuffled" in told or "another picture" in told  # a null control stands beside the scores
    text = "".join(path.read_text(encoding="utf-8") for path in DEMO.iterdir() if path.suffix in (".json", ".md"))
    assert "/root" not in text
    assert "/home" not in text
    assert {path.suffix for path in DEMO.iterdir()} == {".json", ".md", ".safetensors"}
    json.loads((DEMO / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def material() -> tuple[Path, Path]:
    try:
        asset("efficientnet-lite0"), asset("smollm2-135m")
        return asset("stamps"), asset("scenes")
    except InputError as error:
        pytest.skip(str(error))


def test_it_names_stamps_in_scenes_that_it_never_saw(material: tuple[Path, Path]) -> None:
    """New composites on test scenes, which the package's translator was not trained on: chance is about 1 in 600."""
    config = DemoConfig(novel_objects=0, test_novel=0, max_words=5, min_colours=60)
    composer = Composer(config, 20, *material)
    explainer = Explainer.from_pretrained()
    namer = Namer(composer.vocabulary.seen)
    right = 0
    for number in range(0, PICTURES * 9, 9):
        made = composer.compose("test", number)
        said = explainer.describe(made.picture, layer="s32", margin=False).text
        right += namer.right(said, made.object)
    assert right >= PICTURES // 4
