"""A project whose runs look finished: every file that a stage would leave, written by hand, and no work done."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from devil_pipe.pipeline import config
from devil_pipe.stages.extract.backbones import spec
from devil_pipe.stages.extract.layers import planned_layers
from devil_pipe.store.schema import Identity, LayerSpec

BASE, STORE, DATA = "base", "lite", "shapes"
SETTINGS = {"language_model": "gpt2", "phase": {"steps": 5}}
EXPERIMENT: dict[str, Any] = {
    "table": "mine",
    "title": "Mine",
    "base": BASE,
    "seeds": [1, 2, 3],
    "columns": ["C", "loss", "params"],
    "rows": {
        "both": {"label": ["both"]},
        "last": {
            "label": ["no layer dropout"],
            "condition": "last",
            "run_name": "base--none",
            "overrides": {"train": {"dropout": {"layer": 0.0}}},
        },
    },
}


def put(name: str, values: object) -> None:
    """One file of configs/, as the current folder has them."""
    path = Path("configs") / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def project(data: str = DATA) -> None:
    """The configurations of one data set, one store and one run, in the current folder."""
    put(f"data/{data}", {"source": "folder", "folder": {"pictures": "pictures"}})
    store = {"data": data, "backbone": "effnet_lite0", "weights": "random", "layers": ["s16", "s32"], "image_size": 64}
    put(f"stores/{STORE}", store)
    put(f"runs/{BASE}", {"store": STORE, "seed": 1, "train": SETTINGS})
    put("experiments/mine", EXPERIMENT)


def write(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def prepared(data: str = DATA, note: str = "") -> None:
    """What `prepare` leaves."""
    summary = {"source": "folder", "seed": 0, "pictures": 40, "index_digest": "ab" * 32, "note": note}
    write(config.DATA / data / "summary.json", summary)
    (config.DATA / data / "index.parquet").write_bytes(b"")


def extracted(store: str = STORE) -> Identity:
    """What `extract` leaves."""
    loaded, known = config.load_store(store), spec("effnet_lite0")
    identity = Identity(
        backbone=loaded.backbone,
        weights="random:0" if loaded.weights == "random" else "c" * 64,
        layers=_layers(loaded.layers),
        transform=known.transform(loaded.image_size).describe(),
        index="ab" * 32,
        rows=40,
    )
    write(loaded.out / "manifest.json", {"identity": identity.fields()})
    return identity


@cache
def _layers(names: tuple[str, ...]) -> tuple[LayerSpec, ...]:
    return planned_layers(spec("effnet_lite0"), names, 64)


def finished(run: config.Run, scores: dict[str, dict[str, Any]], *, weights: str = "c" * 64, **metrics: Any) -> None:
    """What `train` and `evaluate` leave; `scores` are condition → metric → score."""
    identity = extracted(run.store.name)
    recorded = run.train.model_dump(mode="json", exclude={"store", "data_dir", "out"})
    summary = {"config": recorded, "store_identity": identity.digest, "trainable_parameters": 2_500_000}
    write(run.train.out / "train/summary.json", summary | {"warmup": run.train.warmup.kind, "weights": weights})
    write(run.train.out / "train/seconds.json", {"train": 7200.0})
    (run.train.out / "checkpoint").mkdir(exist_ok=True)
    (run.train.out / "checkpoint/translator.safetensors").write_bytes(b"")
    (run.train.out / "predictions.parquet").write_bytes(b"")
    settings = run.evaluate.model_dump(mode="json", exclude={"run", "runtime", "store", "data_dir", "out"})
    known = {
        "store_identity": identity.digest,
        "evaluate_settings": settings,
        "layers": ["s16", "s32"],
        "n_scored": 30,
        "scores": {name: one for name, one in scores.items() if name != "shuffled"},
        "controls": {"shuffled": scores["shuffled"]},
    }
    write(run.train.out / "evaluate/metrics.json", known | metrics)
    write(run.train.out / "evaluate/seconds.json", {"evaluate": 360.0})


def scores(cider: float, width: float = 0.1) -> dict[str, dict[str, Any]]:
    """CIDEr of all layers, half of it of the last one and none of another picture's features; a loss beside each."""
    return {
        name: {"cider": interval(factor * cider, width), "loss": interval(2.0 - factor, 0.2)}
        for name, factor in (("all", 1.0), ("s16", 0.25), ("s32", 0.5), ("shuffled", 0.0))
    }


def interval(value: float, width: float) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}
