"""CC3M from its lists of links to the report, by the commands that a user types and the real img2dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from devil_pipe.store.reader import FeatureStore

from ..stages.link_server import serving
from ..stages.test_prepare_cc3m import startable
from ..tiny import language_model
from .tiny_project import command, write

pytestmark = pytest.mark.slow

STORE, RUN = "cc3m-clip_rn50-random", "links"
TRAIN = [f"good/{number}.jpg" for number in range(8)] + ["404/90.jpg", "page/91.jpg"]
VAL = [f"good/{number}.jpg" for number in range(20, 24)] + ["410/92.jpg"]


def caption(path: str) -> str:
    return f"a picture called {path.split('/')[1]}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage, through CLIP's own ResNet-50 with random weights; the language model is tiny."""
    startable()
    folder = tmp_path_factory.mktemp("cc3m")
    section = {"image_size": 64, "shard_pictures": 10, "processes": 1, "threads": 8, "timeout": 5, "retries": 0}
    write(folder, "data/cc3m", {"source": "img2dataset", "img2dataset": {"shards": "links", "download": section}})
    write(folder, "pipeline", {"data": ["cc3m"], "stores": {}, "runs": {}})
    language_model(folder / "lm", "opt", texts=[caption(path) for path in TRAIN])
    run: dict[str, Any] = {
        "store": STORE,
        "train": {
            "language_model": "lm",
            "translator": {"layers": 1, "width": 16, "heads": 2, "feedforward": 32, "queries": 3},
            "phase": {"steps": 3, "batch_size": 4, "lr": 0.001, "min_lr": 0.0001, "warmup_steps": 1},
            "validate_every": 3,
        },
        "evaluate": {
            "split": "val",
            "max_new_tokens": 3,
            "resamples": 10,
            "bertscore": {"model": "no-such-model", "num_layers": 1},
        },
        "saliency": {"split": "val", "pictures": 1, "gallery": 1, "grid": 2, "max_new_tokens": 2, "resamples": 10}
        | {"faithfulness": {"pictures": 1}},
    }
    write(folder, f"runs/{RUN}", run)
    with serving() as server:
        for name, links in (("train.tsv", TRAIN), ("val.tsv", VAL)):
            lines = [f"{caption(path)}\t{server.url(path)}\n" for path in links]
            (folder / name).write_text("".join(lines), encoding="utf-8")
        say(folder, "prepare", "cc3m", "--tsv", "train.tsv", "--tsv-val", "val.tsv")
    say(folder, "extract", "--backbone", "clip_rn50", "--data", "cc3m", "--weights", "random")
    for stage in ("train", "evaluate", "saliency", "report"):
        say(folder, stage, RUN)
    return folder


def say(folder: Path, *words: str) -> None:
    done = command(folder, "devil_pipe.pipeline.cli", *words)
    assert done.returncode == 0, done.stdout + done.stderr


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_dead_links_are_counted_and_the_others_are_rows(project: Path) -> None:
    summary = read_json(project / "data/cc3m/summary.json")
    assert (summary["links"], summary["dead_links"]) == (15, 3)
    index = pq.read_table(project / "data/cc3m/index.parquet").to_pylist()
    expected = {(caption(path), "train") for path in TRAIN[:8]} | {(caption(path), "val") for path in VAL[:4]}
    assert {(row["captions"][0], row["split"]) for row in index if row["status"] == "ok"} == expected


def test_the_store_holds_every_picture_that_arrived(project: Path) -> None:
    store = FeatureStore(project / "stores" / STORE)
    assert int(store.valid().sum()) == 12
    assert [(layer.name, layer.channels, layer.height, layer.width) for layer in store.layers] == [
        ("L21", 512, 28, 28),
        ("L39", 1024, 14, 14),
        ("L49", 2048, 7, 7),
    ]
    assert store.identity.weights == "random:0"


def test_the_report_scores_the_validation_pictures_beside_the_controls(project: Path) -> None:
    metrics = read_json(project / f"runs/{RUN}/metrics.json")
    assert (metrics["n_index"], metrics["n_scored"]) == (4, 4)
    assert set(metrics["scores"]) == {"all", "L21", "L39", "L49"}
    assert {"shuffled", "mean", "zero", "lm_alone"} == set(metrics["controls"])
    page = (project / f"runs/{RUN}/report/index.html").read_text()
    assert "random:0" in page, "random weights are named where the scores stand"
    assert len(read_json(project / f"runs/{RUN}/saliency/gallery.json")["pictures"]) == 1
    faithfulness = read_json(project / f"runs/{RUN}/saliency/metrics.json")["faithfulness"]
    assert "clip_rn50: is no classifier" in faithfulness["not_run"]
