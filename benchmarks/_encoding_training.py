"""The demo's translator trained on each encoding, through the real stages; what is finished is not done again."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

SOURCE = Path(__file__).resolve().parents[1]
ENCODINGS = ("float16", "uint8", "partition:16", "pool:7")  # zstd changes no bit: encodings.py asserts it
DATA, BACKBONE = "demo", "effnet_lite0"


def train_on_each(seeds: int, factor: float, folder: Path, keep: Callable[[dict[str, Any]], None]) -> None:
    """Prepare once, extract each encoding, train and evaluate each seed; results are kept after every run.

    Args:
        seeds: runs of each encoding, seeds 0, 1, ….
        factor: of the demo's steps; below 1 the translators are unfinished, and 100 test pictures are scored, not 300.
        folder: the project; a second call with the same one goes on.
        keep: takes what goes into the results' JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _read(SOURCE / f"configs/data/{DATA}.yaml")
    if factor < 1:  # a third of the pictures to describe: a short look takes minutes
        pictures["demo"]["test"] = 100
    _write(folder, f"data/{DATA}", pictures)
    if not (folder / f"data/{DATA}/index.parquet").exists():
        _command(folder, "prepare", DATA)
    runs: list[dict[str, Any]] = []
    for seed in range(seeds):
        for encoding in ENCODINGS:
            runs.append(_one(folder, encoding, seed, factor))
            name = "trained" if factor == 1 else f"trained_shortened_to_{factor:g}"
            keep({name: {"runs": runs, "summary": _summary(runs), "command": _told(seeds, factor)}})
            print(f"encodings: {json.dumps(runs[-1])}", flush=True)


def _told(seeds: int, factor: float) -> str:
    return f"python benchmarks/encodings.py --train {seeds}" + (f" --steps {factor:g}" if factor != 1 else "")


def _one(folder: Path, encoding: str, seed: int, factor: float) -> dict[str, Any]:
    """Train and evaluate one run, or read what it left when it was finished."""
    store = f"{DATA}-{encoding.replace(':', '')}"
    name = f"{store}-seed{seed}-steps{factor:g}".replace(".", "_")
    values = _read(SOURCE / f"configs/stores/{DATA}-{BACKBONE}.yaml")
    _write(folder, f"stores/{store}", {**values, "encoding": encoding, "shard_rows": None})
    _write(folder, f"runs/{name}", _shortened(_read(SOURCE / "configs/runs/demo.yaml"), store, seed, factor))
    if not (folder / f"stores/{store}/manifest.json").exists():
        _command(folder, "extract", store)
    out, begun = folder / "runs" / name, time.monotonic()
    if not (out / "evaluate/metrics.json").exists():
        _command(folder, "train", name)
        _command(folder, "evaluate", name)
        print(f"encodings: {name} took {time.monotonic() - begun:.0f} s", flush=True)
    lines = [json.loads(line) for line in (out / "train/log.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = json.loads((out / "evaluate/metrics.json").read_text(encoding="utf-8"))
    scores = metrics["scores"]["all"]
    return {
        "encoding": encoding,
        "seed": seed,
        "validation_loss": [line["val_loss"] for line in lines if "val_loss" in line][-1],
        "cider": scores["cider"]["value"],
        "object_accuracy": scores["object_accuracy"]["value"],
        "test_loss": scores["loss"]["value"],
        "n_scored": metrics["n_scored"],
    }


def _shortened(run: dict[str, Any], store: str, seed: int, factor: float) -> dict[str, Any]:
    """The demo's run on another store, validated on every validation row."""
    train = run["train"]
    for phase in (train["phase"], train["warmup"]["phase"]):
        phase["steps"] = max(2, round(phase["steps"] * factor))
        phase["warmup_steps"] = min(phase["warmup_steps"], phase["steps"] // 2)
    train["validation_rows"] = 300
    return {**run, "store": store, "seed": seed, "train": train}


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and the mean difference to float16 of the same seed."""
    found: dict[str, Any] = {}
    base = {run["seed"]: run for run in runs if run["encoding"] == ENCODINGS[0]}
    for encoding in ENCODINGS:
        own = [run for run in runs if run["encoding"] == encoding]
        for key in ("validation_loss", "cider", "object_accuracy") if own else ():
            values = [run[key] for run in own]
            apart = [run[key] - base[run["seed"]][key] for run in own]
            found.setdefault(encoding, {"seeds": len(own)})[key] = {
                "mean": round(statistics.mean(values), 4),
                "deviation": round(statistics.stdev(values), 4) if len(values) > 1 else None,
                "against_float16": round(statistics.mean(apart), 4),
                "each_against_float16": [round(value, 4) for value in apart],
            }
    return found


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def _write(folder: Path, name: str, values: dict[str, Any]) -> None:
    path = folder / "configs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _command(folder: Path, *words: str) -> None:
    """A command of devil-pipe in the project, its log shown."""
    program = shutil.which("devil-pipe", path=str(Path(sys.executable).parent))
    assert program is not None, "run this with the Python that devil-pipe is installed for"
    subprocess.run([program, *words], cwd=folder, check=True)
