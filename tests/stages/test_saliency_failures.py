"""The failures that a gallery shows: found by rule, and their margins against one forward at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from devil_pipe.pipeline.config import Run
from devil_pipe.stages.evaluate.run import Trained, open_run
from devil_pipe.stages.saliency import failures
from devil_pipe.stages.saliency.config import SaliencyConfig
from devil_pipe.stages.train.translator import Translator


@pytest.fixture(scope="module")
def opened(run: Run, trained: Path) -> Trained:
    return open_run(trained, run.saliency.store, run.saliency.data_dir, "cpu", "float32")


@pytest.fixture
def config(run: Run, tmp_path: Path) -> SaliencyConfig:
    return run.saliency.model_copy(update={"out": tmp_path, "gallery": 100})


def prefix(opened: Trained, row: int) -> torch.Tensor:
    """The translator's own output for the mean over each layer's locations, one row alone."""
    stored = [opened.store[layer.name].stored([row]).values[0] for layer in opened.store.layers]
    means = [torch.from_numpy(values.astype(np.float32)).mean(dim=0)[None] for values in stored]
    translator: Translator = opened.translator
    with torch.no_grad():
        made: torch.Tensor = translator(means, torch.ones(1, len(means), dtype=torch.bool))[0]
    return made


def log_likelihood(opened: Trained, row: int, text: str) -> float:
    """Of a text and its end after a row's prefix, read twice as the tiny run does, by one whole forward."""
    model = opened.language_model
    once = torch.cat([model.embedding(torch.tensor([model.bos])), prefix(opened, row)])
    before = torch.cat([once, once, once[:1]])
    ids = [*model.tokenizer(text, add_special_tokens=False)["input_ids"], model.eos]
    with torch.no_grad():
        given = torch.cat([before, model.embedding(torch.tensor(ids))])
        logs = model.model(inputs_embeds=given[None]).logits[0].double().log_softmax(dim=-1)
    return float(sum(logs[len(before) - 1 + place, token] for place, token in enumerate(ids)))


def test_margins_are_a_row_s_own_features_against_the_next_row_s(opened: Trained, config: SaliencyConfig) -> None:
    rows = opened.rows("test")
    found = failures.build(config, opened, rows)
    assert found["looked"] == len(rows)
    assert len(found["pictures"]) == found["failed"] > 0
    places = {opened.index[row]["key"]: place for place, row in enumerate(rows)}
    for picture in found["pictures"]:
        place = places[picture["key"]]
        own, other = rows[place], rows[(place + 1) % len(rows)]
        text = picture["description"]
        expected = log_likelihood(opened, own, text) - log_likelihood(opened, other, text)
        assert picture["margin"] == pytest.approx(expected, abs=2e-3)
        assert picture["object"].split(" ", 1)[1] not in text
        with Image.open(config.out / "saliency" / picture["picture"]) as shown:
            assert shown.width > 0
    margins = [picture["margin"] for picture in found["pictures"]]
    assert margins == sorted(margins)


def test_no_more_are_shown_than_half_the_gallery(opened: Trained, config: SaliencyConfig) -> None:
    rows = opened.rows("test")
    every = failures.build(config, opened, rows)
    few = failures.build(config.model_copy(update={"gallery": 3}), opened, rows)
    assert few["pictures"] == every["pictures"][:2]
    assert (few["looked"], few["failed"]) == (every["looked"], every["failed"])


def test_without_objects_the_lowest_margins_of_all_are_shown(
    opened: Trained, config: SaliencyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for entry in opened.index:
        monkeypatch.setitem(entry, "object", "")
    rows = opened.rows("test")
    found = failures.build(config, opened, rows)
    assert found["failed"] is None
    assert len(found["pictures"]) == found["looked"] == len(rows)


def test_one_picture_or_no_gallery_gives_no_failures(opened: Trained, config: SaliencyConfig) -> None:
    nothing: dict[str, Any] = {"looked": 0, "failed": None, "pictures": []}
    assert failures.build(config, opened, opened.rows("test")[:1]) == nothing
    assert failures.build(config, opened, []) == nothing
    assert failures.build(config.model_copy(update={"gallery": 0}), opened, opened.rows("test")) == nothing
