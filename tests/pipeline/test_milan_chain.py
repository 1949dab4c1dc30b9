"""MILANNOTATIONS from the published files to the report, by the commands that a user types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from devil_pipe.store.reader import FeatureStore

from ..stages.milan_fixture import members, write_zip
from ..tiny import language_model
from .tiny_project import command, write

pytestmark = pytest.mark.slow

NAME, SET = "milan-within-biggan-imagenet", "biggan/imagenet"
RUN = "units"
UNITS, EXEMPLARS, SIDE = 10, 3, 32


def say(folder: Path, *words: str, fails: int = 0) -> str:
    done = command(folder, "devil_pipe.pipeline.cli", *words)
    assert done.returncode == fails, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared, extracted through CLIP's own ResNet-50 with random weights, trained, evaluated and reported."""
    folder = tmp_path_factory.mktemp("milan")
    write_zip(folder / "zips/biggan-imagenet.zip", members(SET, UNITS, EXEMPLARS, SIDE))
    milan = {"experiment": "within-biggan-imagenet", "zips": "zips", "held_out": 0.25, "validation": 0.25}
    write(folder, f"data/{NAME}", {"source": "milan", "milan": milan})
    write(folder, "pipeline", {"data": [NAME], "stores": {}, "runs": {}})
    language_model(folder / "lm", "gpt2", texts=["dogs", "the sky", "grass in layer1 unit 1"])
    run: dict[str, Any] = {
        "store": f"{NAME}-clip_rn50-random",
        "train": {
            "language_model": "lm",
            "translator": {"layers": 1, "width": 16, "heads": 2, "feedforward": 32, "queries": 3},
            "phase": {"steps": 6, "batch_size": 4, "lr": 0.001, "min_lr": 0.0001, "warmup_steps": 1},
            "take": "best",
            "validate_every": 2,
        },
        "evaluate": {"max_new_tokens": 4, "resamples": 10, "bertscore": {"model": "no-such-model", "num_layers": 1}},
        "saliency": {"resamples": 10},
    }
    write(folder, f"runs/{RUN}", run)
    say(folder, "prepare", NAME)
    say(folder, "extract", "--backbone", "clip_rn50", "--data", NAME, "--weights", "random")
    for stage in ("train", "evaluate", "saliency", "report"):
        say(folder, stage, RUN)
    return folder


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_each_unit_is_a_row_in_one_of_three_splits(project: Path) -> None:
    index = pq.read_table(project / f"data/{NAME}/index.parquet").to_pylist()
    assert len(index) == 2 * UNITS
    assert all(len(row["captions"]) == 3 for row in index)
    splits = [row["split"] for row in index]
    assert {split: splits.count(split) for split in set(splits)} == {"train": 12, "val": 3, "test": 5}


def test_the_store_holds_a_mean_of_every_layer_for_each_unit(project: Path) -> None:
    store = FeatureStore(project / f"stores/{NAME}-clip_rn50-random")
    assert (store.rows, store.identity.encoding, store.identity.schema_version) == (2 * UNITS, "units", "1.2")
    assert [layer.name for layer in store.layers] == ["L21", "L39", "L49"]
    assert store.valid().all()
    for layer in store.layers:
        held = store[layer.name].stored(range(store.rows), verify=True)
        assert held.exemplars is not None
        assert held.exemplars.max() == EXEMPLARS
        assert len(np.unique(held.values.reshape(store.rows, -1), axis=0)) == store.rows


def test_every_unit_of_the_test_split_is_scored_against_its_three_references(project: Path) -> None:
    found = read_json(project / f"runs/{RUN}/evaluate/metrics.json")
    assert (found["n_index"], found["n_scored"], found["n_broken"]) == (5, 5, 0)
    assert set(found["controls"]) == {"shuffled", "mean", "zero", "lm_alone"}
    rows = pq.read_table(project / f"runs/{RUN}/predictions.parquet").to_pylist()
    assert {len(row["references"]) for row in rows} == {3}
    assert {row["split"] for row in rows} == {"test"}


def test_the_step_is_chosen_on_training_units(project: Path) -> None:
    summary = read_json(project / f"runs/{RUN}/train/summary.json")
    log = [json.loads(line) for line in (project / f"runs/{RUN}/train/log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["val_loss"] for line in log if "val_loss" in line}
    assert summary["taken"] == "best"
    assert summary["taken_step"] == min(losses, key=lambda step: losses[step])
    assert summary["captions"] == {"train": 36, "val": 9}


def test_there_are_no_maps_and_the_page_says_why(project: Path) -> None:
    why = "which have no locations"
    assert why in read_json(project / f"runs/{RUN}/saliency/metrics.json")["not_run"]
    assert why in (project / f"runs/{RUN}/report/index.html").read_text()


def test_a_dry_run_counts_every_exemplar(project: Path) -> None:
    words = ("extract", "--backbone", "effnet_lite0", "--data", NAME, "--weights", "random", "--dry-run", "--json")
    found = json.loads(command(project, "devil_pipe.pipeline.cli", *words).stdout)
    assert (found["rows"], found["exemplars"], found["encoding"]) == (2 * UNITS, EXEMPLARS, "units")
    channels, table = {"s8": 40, "s16": 112, "s32": 320}, 16 * 4096 + 4
    assert {name: layer["bytes"] for name, layer in found["layers"].items()} == {
        name: 2 * UNITS * (2 * count + 4 + 1 + 4) + 2 * table for name, count in channels.items()
    }


@pytest.mark.parametrize("encoding", ["float16", "partition:16"])
def test_another_encoding_is_refused(project: Path, encoding: str) -> None:
    words = ("extract", "--backbone", "effnet_lite0", "--data", NAME, "--weights", "random", "--encoding", encoding)
    said = " ".join(say(project, *words, fails=1).split())
    assert f"encoding: expected units for data/{NAME}, which holds units, got '{encoding}'" in said
