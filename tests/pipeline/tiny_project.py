"""A tiny project for the real DVC: drawn pictures with captions in a CSV, a backbone at random, a language model."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ..tiny import language_model

SOURCE = Path(__file__).resolve().parents[2]
DATA, STORE, RUN, OTHER = "squares", "squares-lite", "first", "second"
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220)}
SPLITS = ["train"] * 5 + ["val", "test", "test"]
COUNT = 24
STAGES = ("train", "evaluate", "saliency", "report")
PHASE = {"batch_size": 4, "lr": 0.001, "min_lr": 0.0001, "warmup_steps": 1}
RUN_VALUES: dict[str, Any] = {
    "store": STORE,
    "seed": 0,
    "train": {
        "language_model": "lm",
        "translator": {"layers": 1, "width": 16, "heads": 2, "feedforward": 32, "queries": 3},
        "phase": {"steps": 3, **PHASE},
        "validate_every": 3,
    },
    "evaluate": {"max_new_tokens": 3, "resamples": 10, "bertscore": {"model": "no-such-model", "num_layers": 1}},
    "saliency": {
        "pictures": 2,
        "gallery": 1,
        "max_new_tokens": 3,
        "resamples": 10,
        "faithfulness": {"pictures": 2, "steps": 2},
    },
}
STORE_VALUES: dict[str, Any] = {
    "data": DATA,
    "backbone": "effnet_lite0",
    "weights": "random",
    "layers": ["s16", "s32"],
    "image_size": 64,
    "encoding": "float16",
    "compute": "float32",
    "place": "",
    "shard_rows": 8,
    "runtime": {"batch_size": 8, "device": "cpu"},
}


def make(folder: Path) -> Path:
    """Pictures, configurations, language model, DVC's files and an empty git repository; nothing is run."""
    _draw(folder)
    captions = [f"a {name} square on grey" for name in COLOURS]
    language_model(folder / "lm", "gpt2", texts=captions)
    write(folder, f"data/{DATA}", {"source": "folder", "folder": {"pictures": "pictures", "captions": "captions.csv"}})
    write(folder, f"stores/{STORE}", STORE_VALUES)
    write(folder, f"runs/{RUN}", RUN_VALUES)
    list_runs(folder, RUN)
    for name in ("dvc.yaml", ".dvcignore", ".dvc/config"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(SOURCE / name, folder / name)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    (folder / ".gitignore").write_text("/data/\n/stores/\n/runs/\n/home/\n")
    return folder


def _draw(folder: Path) -> None:
    """COUNT pictures of 64 × 64, each unlike every other, and captions.csv."""
    (folder / "pictures").mkdir(parents=True)
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["file", "caption", "split", "object"])
        for number in range(COUNT):
            name = list(COLOURS)[number % len(COLOURS)]
            pixels = np.full((64, 64, 3), 100 + number, dtype=np.uint8)
            pixels[16:48, 16:48] = COLOURS[name]
            Image.fromarray(pixels).save(folder / f"pictures/{number:02d}.png")
            split = SPLITS[number % len(SPLITS)]
            lines.writerow([f"{number:02d}.png", f"a {name} square on grey", split, f"a {name} square"])


def write(folder: Path, name: str, values: dict[str, Any]) -> None:
    """One file of configs/."""
    path = folder / "configs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def list_runs(folder: Path, *runs: str) -> None:
    """configs/pipeline.yaml with these runs on the one store."""
    listed = {"data": [DATA], "stores": {STORE: {"data": DATA}}, "runs": {run: {"store": STORE} for run in runs}}
    write(folder, "pipeline", listed)


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment that the tests run in, without a network and with its own home."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_"))}
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "home"),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder / "home"),
    }
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
