"""The alignment warm-up examined: loss gap, named objects and words against seconds of training, with it and without.

`python benchmarks/warmup.py`: the small demo (44 objects), three seeds, with and without at equal time.
`… --arms large`: the same with the paper's 88 M translator.
`… --arms free`: captions of free word order (Tux Paint's sentences, openclipart's titles, Fluent's labels): targets by
position, as a bag of words, and no warm-up.
`… --draw`: the curves of all that is kept in results/warmup.json, as results/warmup.svg; `--table`: their ends.

Time is processor seconds over the number of cores, of training alone: other work on the machine does not count, and
neither does looking (losses, descriptions). Each arm of a comparison has the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from _measure import RESULTS, machine
from _warmup_data import free_captions
from _warmup_drawing import draw, table
from _warmup_looking import Looking

from devil_pipe.stages.common.progress import Mode, speak
from devil_pipe.stages.train.batches import BatchSource
from devil_pipe.stages.train.config import TrainConfig
from devil_pipe.stages.train.loop import learning_rate, make_optimizer
from devil_pipe.stages.train.run import _accelerator, assemble
from devil_pipe.stages.train.step import Step
from devil_pipe.store.reader import FeatureStore

SOURCE = Path(__file__).resolve().parents[1]
RESULT = RESULTS / "warmup.json"
WITHOUT: dict[str, Any] = {"kind": "none", "pull": 0.0, "pull_from": 0.0, "keep": 0.0, "phase": {"steps": 0}}
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "small": {"warm-up": {}, "none": {"warmup": WITHOUT, "prefix_repeats": 1}},
    "large": {
        "warm-up": {"translator": {}, "lr": 3.0e-4},
        "none": {"translator": {}, "lr": 3.0e-4, "warmup": WITHOUT, "prefix_repeats": 1},
    },
    "free": {
        "by position": {"warmup": {"targets": "position"}},
        "bag of words": {"warmup": {"targets": "bag"}},
        "none": {"warmup": WITHOUT, "prefix_repeats": 1},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", choices=tuple(ARMS), default="small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=200.0, help="of training, each arm")
    parser.add_argument("--aligned", type=float, default=0.45, help="share of it for the warm-up; the demo's settings")
    parser.add_argument("--looks", type=int, default=5, help="points of a curve")
    parser.add_argument("--rows", type=int, default=100, help="validation pictures that are looked at")
    parser.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="as in runtime.train"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "devil-pipe-warmup")
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.draw or given.table:
        kept = _kept()
        draw(kept, RESULTS / "warmup.svg") if given.draw else print("\n".join(table(kept)))
        return
    speak(Mode.QUIET)
    store = _store(given.folder, "free" if given.arms == "free" else "small")
    for seed in range(1, given.seeds + 1):
        for arm, changes in ARMS[given.arms].items():
            key = f"{given.arms}/{arm}/seed{seed}"
            known = _kept().get("runs", {}).get(key)
            mine = {"seconds": given.seconds, "rows": given.rows, "aligned": given.aligned}
            if given.precision != "auto":
                mine["precision"] = given.precision
            if known and {name: known.get(name) for name in mine} == mine:
                continue
            run = _train(_config(given.folder, store, changes, seed, given.precision), changes, given)
            run |= {**mine, "seed": seed, "arm": arm, "study": given.arms, "command": _told(given)}
            _keep(key, run)
            print(f"warmup: {key}: {json.dumps(run['curve'][-1])}", flush=True)


def _told(given: argparse.Namespace) -> str:
    """The command, without where it kept its files."""
    names = ("arms", "seconds", "aligned", "looks", "seeds", "rows")
    names += ("precision",) if given.precision != "auto" else ()
    return " ".join(["python benchmarks/warmup.py", *(f"--{name} {getattr(given, name)}" for name in names)])


def _config(folder: Path, store: str, changes: dict[str, Any], seed: int, precision: str) -> TrainConfig:
    """The small demo's training with an arm's changes; numbers of steps come from the time, later."""
    train: dict[str, Any] = yaml.safe_load((SOURCE / "configs/runs/demo-small.yaml").read_text())["train"]
    warmup = changes.get("warmup", {})
    train["warmup"] = warmup if warmup.get("kind") == "none" else {**train["warmup"], **warmup}
    train |= {key: value for key, value in changes.items() if key not in ("warmup", "lr")}
    common = {
        "run": "study",
        "seed": seed,
        "validate_every": 10**9,
        "runtime": {"tracker": "none", "precision": precision},
    }
    paths = {"store": str(folder / "stores" / store), "data_dir": folder / "data" / store, "out": folder / "out"}
    return TrainConfig.model_validate({**train, **common, **paths})


def _train(config: TrainConfig, changes: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Train for the given time, and look at what was learned along the way."""
    accelerator = _accelerator(config)
    parts = assemble(config, accelerator, FeatureStore(config.store))
    model = accelerator.prepare(parts.translator)
    step = Step(accelerator, model, parts.language_model, parts.alignment, config.warmup.keep)
    looking = Looking(parts, given.rows, config.data_dir)
    aligned = given.seconds * given.aligned if parts.alignment else 0.0
    phases = {"alignment": aligned, "language": given.seconds - aligned}
    marks = list(np.linspace(0, given.seconds, given.looks + 1)[1:])
    spent, curve, steps = 0.0, [], {}
    for name, seconds in phases.items():
        if not seconds:
            continue
        phase = config.warmup.phase if name == "alignment" else config.phase
        made = phase.model_copy(update={"lr": changes["lr"]} if "lr" in changes else {})
        optimizer = accelerator.prepare(make_optimizer(parts.translator, made))
        source = BatchSource(
            parts.store, parts.train, config.dropout, batch_size=made.batch_size, window=made.length_window,
            seed=config.seed * 2 + (name == "language"),
        )  # fmt: skip
        begun, end = spent, spent + seconds
        for count, (number, batch) in enumerate(source.stream(0, 10**9), start=1):
            clock = _cpu()
            done = (spent - begun) / seconds
            planned = made.model_copy(update={"steps": 1000})  # the rate decays with the time, not with the steps
            rate = learning_rate(planned.model_copy(update={"warmup_steps": 1}), min(int(1000 * done) + 1, 999))
            warm = min(1.0, count / max(made.warmup_steps, 1))
            for group in optimizer.param_groups:
                group["lr"] = rate * warm
            step.gradient(name, batch, done)
            if made.clip_norm:
                torch.nn.utils.clip_grad_norm_(parts.translator.parameters(), made.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            spent += _cpu() - clock
            steps[name] = number + 1
            last = name == "language" and spent >= end
            while marks and (last or (len(marks) > 1 and spent >= marks[0])):  # the last look is at the end, and whole
                marks.pop(0)
                curve.append({"seconds": round(spent, 1), "phase": name, **looking.look(whole=last)})
            if spent >= end:
                break
    return {
        "steps": steps, "curve": curve,
        "trainable_parameters": sum(item.numel() for item in parts.translator.parameters()),
        "language_model": config.language_model, **looking.facts,
    }  # fmt: skip


def _cpu() -> float:
    return time.process_time() / (os.cpu_count() or 1)


def _store(folder: Path, which: str) -> str:
    """Prepare and extract through the commands, once; returns the store's name."""
    name = f"study-{which}"
    if which == "small":
        data = yaml.safe_load((SOURCE / "configs/data/demo-small.yaml").read_text())
    else:
        data = free_captions(folder / "free")
    store = yaml.safe_load((SOURCE / "configs/stores/demo-small-effnet_lite0.yaml").read_text())
    for kind, values in (("data", data), ("stores", {**store, "data": name})):
        path = folder / "configs" / kind / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False))
    program = shutil.which("devil-pipe", path=str(Path(sys.executable).parent))
    assert program is not None, "run this with the Python that devil-pipe is installed for"
    if not (folder / f"data/{name}/index.parquet").exists():
        subprocess.run([program, "prepare", name], cwd=folder, check=True)
    if not (folder / f"stores/{name}/manifest.json").exists():
        subprocess.run([program, "extract", name], cwd=folder, check=True)
    return name


def _kept() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    return found


def _keep(key: str, run: dict[str, Any]) -> None:
    """Put a run into results/warmup.json beside what lies there."""
    kept = _kept()
    kept |= {"benchmark": "warmup", **machine(), "runs": {**kept.get("runs", {}), key: run}}
    RESULTS.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
