"""Likelihood maps against a slow loop over locations, and what the saliency stage of the tiny run leaves on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from devil_pipe.pipeline.config import Run
from devil_pipe.stages.evaluate.run import Trained, open_run
from devil_pipe.stages.saliency.likelihood import LikelihoodMaps
from devil_pipe.stages.saliency.run import run as saliency
from devil_pipe.store.schema import LayerSpec

from .. import tiny

QUERIES = ["a sea lion", "a", "a dog in front of a wall"]
LAYERS = [layer.name for layer in tiny.LAYERS]


@pytest.fixture(scope="module")
def opened(run: Run, trained: Path) -> Trained:
    return open_run(trained, run.saliency.store, run.saliency.data_dir, "cpu", "float32")


def log_likelihood(opened: Trained, before: torch.Tensor, text: str) -> float:
    """A text's log-likelihood after some embeddings, by one whole forward."""
    model = opened.language_model
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    given = torch.cat([before, model.embedding(torch.tensor(ids))])
    with torch.no_grad():
        logs = model.model(inputs_embeds=given[None]).logits[0].double().log_softmax(dim=-1)
    return float(sum(logs[len(before) - 1 + place, token] for place, token in enumerate(ids)))


def slow_map(opened: Trained, layer: LayerSpec, vectors: np.ndarray, query: str) -> np.ndarray:
    """vectors [height, width, channels]; each location on its own, minus the language model's prior."""
    model, place = opened.language_model, opened.store.layers.index(layer)
    bos = model.embedding(torch.tensor([model.bos]))
    keep = torch.tensor([[number == place for number in range(len(tiny.LAYERS))]])
    out = np.empty(vectors.shape[:2])
    for row, column in np.ndindex(out.shape):
        features = [torch.full((1, spec.channels), 7.0) for spec in opened.store.layers]
        features[place] = torch.from_numpy(vectors[row, column].astype(np.float32))[None]
        with torch.no_grad():
            prefix = opened.translator(features, keep)[0]
        before = torch.cat([bos, prefix, bos, prefix, bos])  # the tiny run reads its prefix twice
        out[row, column] = log_likelihood(opened, before, query) - log_likelihood(opened, bos, query)
    return out


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_a_map_is_a_loop_over_locations(opened: Trained, batch_size: int) -> None:
    for layer in opened.store.layers:
        found = LikelihoodMaps(opened, 0, batch_size).maps(layer, 3, QUERIES).numpy()
        vectors = opened.store[layer.name].stored([3]).values[0].reshape(layer.height, layer.width, layer.channels)
        for values, query in zip(found, QUERIES, strict=True):
            assert np.allclose(values, slow_map(opened, layer, vectors, query), atol=2e-4)


def test_a_grid_averages_whole_blocks_before_reading(opened: Trained) -> None:
    fine, coarse = opened.store.layers
    maps = LikelihoodMaps(opened, 2, 64)
    vectors = opened.store[fine.name].stored([3]).values[0].astype(np.float64).reshape(4, 4, -1)
    blocks = vectors.reshape(2, 2, 2, 2, -1).mean(axis=(1, 3))
    assert np.allclose(maps.locations(fine, 3).numpy(), blocks, atol=1e-5)
    assert np.allclose(
        maps.maps(fine, 3, QUERIES[:1])[0].numpy(), slow_map(opened, fine, blocks, QUERIES[0]), atol=2e-4
    )
    whole = LikelihoodMaps(opened, 0, 64)
    assert torch.equal(maps.locations(coarse, 3), whole.locations(coarse, 3))  # no finer than the grid: as it is


def test_the_prior_is_the_language_model_alone(opened: Trained) -> None:
    model = opened.language_model
    bos = model.embedding(torch.tensor([model.bos]))
    expected = [log_likelihood(opened, bos, query) for query in QUERIES]
    assert LikelihoodMaps(opened, 0, 4).prior(QUERIES).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def gallery(mapped: Path) -> dict[str, Any]:
    return json.loads((mapped / "saliency" / "gallery.json").read_text())  # type: ignore[no-any-return]


def test_the_gallery_keeps_to_its_schema(gallery: dict[str, Any], mapped: Path) -> None:
    assert {"seed", "scale", "pictures"} <= set(gallery)
    assert gallery["scale"]["low"] == -gallery["scale"]["high"] < 0
    assert len(gallery["pictures"]) == 2
    for entry in gallery["pictures"]:
        made = tiny.composite("test", int(entry["key"][-3:]))
        assert (entry["split"], entry["object"], entry["scene"]) == ("test", made.thing, made.scene)
        assert entry["reference"] == tiny.caption(made.thing, made.scene)
        assert set(entry["descriptions"]) == {"all", *LAYERS}
        assert all(set(entry["descriptions"][layer]) == {"whole", "A", "B"} for layer in LAYERS)
        texts = {query["text"]: query["present"] for query in entry["queries"]}
        absent = [text for text, present in texts.items() if not present]
        assert [text for text, present in texts.items() if present] == [made.thing, made.scene]
        assert len(absent) == 1
        assert absent[0] in {*tiny.OBJECTS, *tiny.NOVEL} - {made.thing}
        with Image.open(mapped / "saliency" / entry["picture"]) as picture:
            assert picture.size == (tiny.FRAME, tiny.FRAME)


def test_markers_lie_on_the_object_and_off_it(gallery: dict[str, Any]) -> None:
    for entry in gallery["pictures"]:
        down, right = tiny.composite("test", int(entry["key"][-3:])).box
        on, off = entry["markers"]
        assert (on["id"], on["where"], off["id"], off["where"]) == ("A", "object", "B", "background")
        assert on["colour"] != off["colour"]
        assert (int(on["y"] * 2), int(on["x"] * 2)) == (down, right)
        assert (int(off["y"] * 2), int(off["x"] * 2)) != (down, right)


def test_maps_and_overlays_are_those_of_the_gallery(
    gallery: dict[str, Any], mapped: Path, opened: Trained, run: Run
) -> None:
    keys = {entry["key"]: row for row, entry in enumerate(opened.index)}
    slow = LikelihoodMaps(opened, run.saliency.grid, 1)
    everything = []
    with np.load(mapped / "saliency" / "maps.npz", allow_pickle=False) as arrays:
        assert len(arrays) == len(gallery["pictures"]) * len(LAYERS)
        for number, entry in enumerate(gallery["pictures"]):
            texts = [query["text"] for query in entry["queries"]]
            for layer in opened.store.layers:
                values = arrays[f"{number:03d}/{layer.name}"]
                everything.append(values.ravel())
                assert np.allclose(values, slow.maps(layer, keys[entry["key"]], texts).numpy(), atol=1e-4)
                for place, query in enumerate(entry["queries"]):
                    shown = query["maps"][layer.name]
                    assert shown["min"] == pytest.approx(values[place].min(), abs=1e-3)
                    assert shown["max"] == pytest.approx(values[place].max(), abs=1e-3)
                    with Image.open(mapped / "saliency" / shown["overlay"]) as overlay:
                        assert overlay.size == (tiny.FRAME, tiny.FRAME)
    inside = np.abs(np.concatenate(everything)) <= gallery["scale"]["high"] + 0.01
    assert inside.mean() >= 0.98


def test_localisation_scores_every_layer_beside_maps_that_know_nothing(mapped: Path) -> None:
    metrics = json.loads((mapped / "saliency" / "metrics.json").read_text())
    assert metrics["n"] == metrics["n_off_centre"] == 4  # a quarter's centroid lies 0.25 off
    assert set(metrics["saliency"]) == {*LAYERS, "centre_prior", "random"}
    for scores in metrics["saliency"].values():
        assert set(scores) == {"pointing", "iou", "pointing_off_centre"}
        assert scores["pointing"] == scores["pointing_off_centre"]
        assert all(0 <= score["low"] <= score["value"] <= score["high"] <= 1 for score in scores.values())


def test_without_masks_there_is_a_gallery_and_a_reason(run: Run, trained: Path, tmp_path: Path) -> None:
    """The same pictures as plain data without objects, scenes and masks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(run.saliency.data_dir / "index.parquet")
    for name, empty in (("object", ""), ("scene", ""), ("mask_offset", 0), ("mask_size", 0)):
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        table = table.set_column(place, field, pa.array([empty] * table.num_rows, field.type))
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(table, data / "index.parquet")
    (data / "shards").symlink_to(run.saliency.data_dir / "shards")
    out = tmp_path / "run"
    out.mkdir()
    (out / "checkpoint").symlink_to(trained / "checkpoint")
    saliency(run.saliency.model_copy(update={"data_dir": data, "out": out}))
    metrics = json.loads((out / "saliency" / "metrics.json").read_text())
    assert (metrics["n"], metrics["saliency"]) == (0, {})
    assert "mask" in metrics["not_run"]
    for entry in json.loads((out / "saliency" / "gallery.json").read_text())["pictures"]:
        assert [(query["text"], query["present"]) for query in entry["queries"]] == [(entry["reference"], True)]
        assert all(0 < marker[axis] < 1 for marker in entry["markers"] for axis in "xy")
        assert {marker["where"] for marker in entry["markers"]} == {"anywhere"}
