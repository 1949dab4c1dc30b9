"""A finished run's files as the stages write them, with tiny pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from devil_pipe.pipeline.report.config import ReportConfig

RUN = "demo"
LAYERS = ["stride8", "stride16", "stride32"]
CONDITIONS = {
    "all": (0.8133, 2.914, 2.104),
    "stride8": (0.0833, 0.41, 3.61),
    "stride16": (0.3467, 1.22, 2.95),
    "stride32": (0.79, 2.71, 2.16),
    "shuffled": (0.01, 0.2984, 4.2),
    "mean": (0.004, 0.27, 3.9),
    "zero": (0.0, 0.21, 4.02),
    "lm_alone": (0.0, 0.07, 5.31),
}


def scored(value: float, spread: float) -> dict[str, float]:
    return {"value": value, "low": max(value - spread, 0.0), "high": value + spread}


def condition_scores(accuracy: float, cider: float, loss: float) -> dict[str, Any]:
    return {
        "object_accuracy": scored(accuracy, 0.0437),
        "cider": scored(cider, 0.1833),
        "loss": scored(loss, 0.0711),
        "meteor": scored(0.1 + cider / 10, 0.011),
        "spice": {"not_run": "needs the Stanford CoreNLP 3.6.0 jars"},
        **{f"bleu_{order}": scored((0.2 + cider / 5) / order, 0.0123) for order in (1, 2, 3, 4)},
    }


def gallery_picture(key: str, saliency: Path, **changes: Any) -> dict[str, Any]:
    names = ["zebra", "lake", "violin"]
    queries = []
    for name in names:
        maps = {}
        for layer in LAYERS:
            overlay = f"overlays/{key}-{name}-{layer}.png"
            draw(saliency / overlay, (200, 40, 40, 128))
            maps[layer] = {"overlay": overlay, "min": -1.25, "max": 3.5}
        queries.append({"text": name, "present": name != "violin", "maps": maps})
    draw(saliency / f"gallery/{key}.png", (90, 140, 90, 255))
    by_layer = {"whole": "a zebra in front of a lake", "A": "a zebra", "B": "a lake with trees"}
    return {
        "key": key,
        "split": "test",
        "object": "a zebra",
        "scene": "a lake",
        "reference": "a zebra in front of a lake",
        "picture": f"gallery/{key}.png",
        "markers": [
            {"id": "A", "x": 0.4, "y": 0.55, "colour": "#0b6b74", "where": "object"},
            {"id": "B", "x": 0.85, "y": 0.1, "colour": "#a4551e", "where": "background"},
        ],
        "descriptions": {"all": "a zebra in front of a lake", **dict.fromkeys(LAYERS, by_layer)},
        "queries": queries,
        **changes,
    }


def failure(key: str, saliency: Path) -> dict[str, Any]:
    draw(saliency / f"failures/{key}.png", (30, 60, 200, 255))
    return {
        "key": key,
        "split": "test",
        "object": "a crowned crane",
        "reference": "a crowned crane in front of a kitchen",
        "picture": f"failures/{key}.png",
        "description": "a crane in front of a chalkboard",
        "margin": -0.375,
    }


def predictions() -> list[dict[str, Any]]:
    """Three pictures under two conditions each; the third is of a novel object, where no control ran."""
    rows = []
    for row, (key, split, description, named) in enumerate(
        [
            ("000000001", "test", "a zebra in front of a lake", True),
            ("000000002", "test", "a horse on grass", False),
            ("000000003", "test_novel", "a thing", False),
        ]
    ):
        about = {"row": row, "key": key, "split": split, "references": ["a zebra in front of a lake"]}
        about |= {"object": "a zebra", "named": named}
        rows.append(about | {"condition": "all", "description": description, "loss": 1.5 + row / 4})
        if split == "test":
            rows.append(about | {"condition": "shuffled", "description": "a violin", "loss": 4.0})
    return rows


def draw(path: Path, colour: tuple[int, int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (4, 4), colour).save(path)


def put(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def log_lines() -> str:
    lines: list[dict[str, Any]] = []
    for step in range(0, 901, 100):
        lines.append({"step": step, "phase": "alignment", "seconds": step / 3, "loss": 6 - step / 200, "lr": 1e-3})
    lines.append({"step": 900, "phase": "alignment", "val_alignment_loss": 1.9, "val_token_accuracy": 0.634})
    for step in range(5, 51, 5):
        lines.append({"step": step, "phase": "language", "seconds": 300.0 + step, "loss": 3 - step / 60, "lr": 1e-4})
    for step in (25, 50):
        values = {"val_loss": 2.9 - step / 70, "val_loss_shuffled": 4.2}
        lines.append({"step": step, "phase": "language", "seconds": 300.0 + step, **values})
    return "\n".join(json.dumps(line) for line in lines) + "\n"


def build(folder: Path, edit: Callable[[dict[str, Any]], None] | None = None) -> ReportConfig:
    """A finished run's files, as the stages write them; `edit` may change any of them before they are written."""
    scores = {name: condition_scores(*values) for name, values in CONDITIONS.items()}
    hits = {"pointing": scored(0.9, 0.03), "iou": scored(0.41, 0.02), "pointing_off_centre": scored(0.84, 0.05)}
    files: dict[str, Any] = {
        "evaluate/metrics.json": {
            "run": RUN,
            "data": "demo",
            "seed": 7,
            "n_index": 300,
            "n_scored": 300,
            "scores": {name: scores[name] for name in ("all", *LAYERS)},
            "controls": {name: scores[name] for name in ("shuffled", "mean", "zero", "lm_alone")},
            "distinct": {"all": {"value": 0.71}, "stride8": {"value": 0.12}},
            "novel_objects": {"n": 40, "scores": {"all": condition_scores(0.05, 0.8, 3.9)}},
            "bertscore_settings": "minilm-l6_L6_no-idf",
            "data_note": "demo composites: stamps on photographs; no natural pictures",
        },
        "saliency/metrics.json": {
            "saliency": {**dict.fromkeys([*LAYERS, "random"], hits), "centre_prior": {"pointing": scored(0.6, 0.05)}},
        },
        "saliency/gallery.json": {
            "seed": 11,
            "scale": {"low": -4.0, "high": 4.0},
            "pictures": [gallery_picture("000000001", folder / "saliency")],
            "failures": {"looked": 40, "failed": 9, "pictures": [failure("000000007", folder / "saliency")]},
        },
        "saliency/seconds.json": {"seconds": 31.5},
        "train/summary.json": {
            "trainable_parameters": 7_512_345,
            "seconds": 512.25,
            "steps": {"alignment": 900, "language": 50},
            "warmup": "alignment",
            "weights": "efficientnet-lite0 (ImageNet)",
            "store_identity": "ab" * 32,
        },
        "train/log.jsonl": log_lines(),
        "checkpoint/config.yaml": "run: demo\nlearning_rate: 0.001\n",
        "checkpoint/translator.safetensors": "weights",
        "predictions.parquet": predictions(),
    }
    if edit is not None:
        edit(files)
    for name, value in files.items():
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(value), folder / name)
        else:
            put(folder / name, value)
    return ReportConfig(run=RUN, run_dir=folder)
