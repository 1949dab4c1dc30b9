"""Evaluation of the tiny run: every row under every condition, controls that know nothing, and sums by hand."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from devil_pipe.pipeline.config import Run
from devil_pipe.stages.evaluate import conditions
from devil_pipe.stages.evaluate.conditions import Conditions
from devil_pipe.stages.evaluate.naming import Namer
from devil_pipe.stages.evaluate.run import distinct, open_run
from devil_pipe.stages.evaluate.run import run as evaluate
from devil_pipe.stages.train.batches import Features
from devil_pipe.store.errors import InputError

from .. import tiny

LAYERS = [layer.name for layer in tiny.LAYERS]
CONTROLS = ["shuffled", "mean", "zero", "lm_alone"]
METRICS = {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider", "spice", "bertscore", "loss"}
METRICS |= {"object_accuracy"}
TESTED = tiny.SPLITS["test"] - 1  # the last one is broken


@pytest.fixture(scope="module")
def metrics(evaluated: Path) -> dict[str, Any]:
    return json.loads((evaluated / "evaluate" / "metrics.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def predictions(evaluated: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of predictions.parquet by condition, the test split's alone."""
    found = defaultdict(list)
    for row in pq.read_table(evaluated / "predictions.parquet").to_pylist():
        if row["split"] == "test":
            found[row["condition"]].append(row)
    return found


def test_every_row_of_the_index_is_scored_or_counted_as_broken(metrics: dict[str, Any]) -> None:
    assert metrics["n_index"] == metrics["n_scored"] + metrics["n_broken"] == tiny.SPLITS["test"]
    assert metrics["n_broken"] == 1


def test_without_broken_rows_all_are_scored(metrics: dict[str, Any]) -> None:
    assert metrics["novel_objects"]["n"] == tiny.SPLITS["test_novel"]


def test_predictions_hold_every_row_under_every_condition(evaluated: Path, run: Run) -> None:
    table = pq.read_table(evaluated / "predictions.parquet")
    found = Counter((row["split"], row["condition"], row["key"]) for row in table.to_pylist())
    keys = {split: [f"{split}{number:03d}" for number in range(count)] for split, count in tiny.SPLITS.items()}
    expected = {("test", name, key) for name in ["all", *LAYERS, *CONTROLS] for key in keys["test"][:TESTED]}
    expected |= {("test_novel", name, key) for name in ["all", *LAYERS] for key in keys["test_novel"]}
    assert set(found) == expected
    assert set(found.values()) == {1}


def test_predictions_repeat_the_index(evaluated: Path, run: Run) -> None:
    index = pq.read_table(run.evaluate.data_dir / "index.parquet").to_pylist()
    for row in pq.read_table(evaluated / "predictions.parquet").to_pylist():
        entry = index[row["row"]]
        assert (row["key"], row["split"], row["object"]) == (entry["key"], entry["split"], entry["object"])
        assert row["references"] == entry["captions"]
        assert row["description"] == " ".join(row["description"].split())


def test_controls_without_sight_say_one_thing(predictions: dict[str, list[dict[str, Any]]]) -> None:
    for name in ("mean", "zero", "lm_alone"):
        assert len({row["description"] for row in predictions[name]}) == 1
    assert len({row["description"] for row in predictions["all"]}) > 1


def test_shuffled_descriptions_are_those_of_other_pictures(predictions: dict[str, list[dict[str, Any]]]) -> None:
    said = {name: Counter(row["description"] for row in predictions[name]) for name in ("all", "shuffled")}
    assert said["all"] == said["shuffled"]
    pairs = zip(predictions["all"], predictions["shuffled"], strict=True)
    assert any(own["description"] != other["description"] for own, other in pairs)


def test_the_features_are_what_helps(metrics: dict[str, Any]) -> None:
    own = metrics["scores"]["all"]["loss"]["value"]
    assert all(own < metrics["controls"][name]["loss"]["value"] for name in CONTROLS)


def test_metrics_keep_to_their_schema(metrics: dict[str, Any]) -> None:
    assert set(metrics["scores"]) == {"all", *LAYERS}
    assert set(metrics["controls"]) == set(CONTROLS)
    assert set(metrics["distinct"]) == {"all", *LAYERS, *CONTROLS}
    assert set(metrics["novel_objects"]["scores"]) == {"all", *LAYERS}
    parts = (metrics["scores"], metrics["controls"], metrics["novel_objects"]["scores"])
    for scores in (item for part in parts for item in part.values()):
        assert set(scores) == METRICS
        for score in scores.values():
            assert set(score) in ({"value", "low", "high"}, {"not_run"})
            assert "not_run" in score or score["low"] <= score["high"]
    for key in ("run", "data", "data_note", "seed", "weights", "warmup", "store_identity", "bertscore_settings"):
        assert key in metrics
    assert (metrics["run"], metrics["seed"], metrics["weights"]) == (tiny.NAME, 1, "random:0")


def test_a_model_that_is_not_there_costs_bertscore_alone(metrics: dict[str, Any]) -> None:
    for part in ("scores", "controls"):
        for scores in metrics[part].values():
            assert "no-such-model" in scores["bertscore"]["not_run"]
            assert all("value" in scores[name] for name in METRICS - {"bertscore", "spice"})
    assert metrics["bertscore_settings"] == "not run"


def test_the_loss_is_a_mean_over_tokens(
    metrics: dict[str, Any], predictions: dict[str, list[dict[str, Any]]], run: Run
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.train.language_model)
    for name, scores in (metrics["scores"] | metrics["controls"]).items():
        rows = predictions[name]
        tokens = [len(tokenizer(row["references"][0], add_special_tokens=False)["input_ids"]) + 1 for row in rows]
        nats = [row["loss"] * count for row, count in zip(rows, tokens, strict=True)]
        assert scores["loss"]["value"] == pytest.approx(sum(nats) / sum(tokens), rel=1e-5)


def test_object_accuracy_is_the_share_named_right(
    metrics: dict[str, Any], predictions: dict[str, list[dict[str, Any]]]
) -> None:
    namer = Namer([*tiny.OBJECTS, *tiny.NOVEL])
    for name, scores in (metrics["scores"] | metrics["controls"]).items():
        rows = predictions[name]
        assert [row["named"] for row in rows] == [namer.right(row["description"], row["object"]) for row in rows]
        assert scores["object_accuracy"]["value"] == pytest.approx(np.mean([row["named"] for row in rows]))


def test_distinct_is_the_share_of_different_texts(
    metrics: dict[str, Any], predictions: dict[str, list[dict[str, Any]]]
) -> None:
    assert distinct(["a", "b", "a", "a"]) == 0.5
    for name in ("mean", "zero", "lm_alone"):
        assert metrics["distinct"][name]["value"] == pytest.approx(1 / TESTED, abs=1e-4)
    said = {row["description"] for row in predictions["all"]}
    assert metrics["distinct"]["all"]["value"] == pytest.approx(len(said) / TESTED, abs=1e-4)


def test_the_mean_feature_is_that_of_the_training_pictures(run: Run, trained: Path) -> None:
    opened = open_run(trained, run.evaluate.store, run.evaluate.data_dir, "cpu", "float32")
    made = Conditions(
        opened.store,
        opened.translator,
        opened.language_model,
        training_rows=opened.rows("train"),
        seed=0,
        max_new_tokens=3,
        batch_size=2,
    )
    for layer, found in zip(opened.store.layers, made.mean, strict=True):
        maps = opened.store[layer.name].stored(range(tiny.SPLITS["train"])).values.astype(np.float64)
        assert np.allclose(found[0].numpy(), maps.mean(axis=(0, 1)), atol=1e-5)
    everywhere = torch.ones(4, len(opened.store.layers), dtype=torch.bool)
    features, other = (
        Features([torch.randn(4, layer.channels) for layer in opened.store.layers], everywhere) for _ in range(2)
    )
    captions = [[5, 6], [7], [8, 9, 10], [11]]
    for name in ("mean", "zero", "lm_alone"):
        one, two = (made.outcome(name, item, captions) for item in (features, other))
        assert torch.equal(one.nats, two.nats)
        assert one.descriptions == two.descriptions
    mixed = Features([features.layers[0], other.layers[1]], everywhere)
    assert torch.equal(made.outcome("fine", features, captions).nats, made.outcome("fine", mixed, captions).nats)
    assert not torch.equal(
        made.outcome("coarse", features, captions).nats, made.outcome("coarse", mixed, captions).nats
    )


def test_the_mean_feature_is_over_the_rows_that_a_layer_knows_something_of() -> None:
    """Zeros that stand for nothing must not pull the mean towards zero."""
    layers = [torch.tensor([[2.0], [4.0], [9.0]]), torch.tensor([[7.0], [0.0], [0.0]])]
    there = torch.tensor([[True, True], [True, False], [True, False]])
    assert [item.tolist() for item in conditions._mean(Features(layers, there))] == [[[5.0]], [[7.0]]]


def test_a_split_without_pictures_is_named(run: Run, trained: Path) -> None:
    with pytest.raises(InputError, match=r"at least two pictures in the split 'testing', got 0"):
        evaluate(run.evaluate.model_copy(update={"split": "testing"}))


def test_another_store_is_named_on_both_sides(run: Run, trained: Path, tmp_path: Path) -> None:
    rows = tiny.pictures(tmp_path / "data")
    tiny.store(tmp_path / "store", rows, "another index", seed=7)
    with pytest.raises(InputError, match="another store") as caught:
        evaluate(run.evaluate.model_copy(update={"store": tmp_path / "store"}))
    assert "weights: 'random:0' against 'random:7'" in str(caught.value)


def test_nothing_trained_says_what_to_run(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `devil-pipe train` first"):
        evaluate(run.evaluate.model_copy(update={"out": tmp_path}))
