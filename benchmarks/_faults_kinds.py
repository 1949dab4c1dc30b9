"""What is done to a project: which stage, which fault, at which moment. A trial is a function of (seed, number)."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _faults_process import CHANGES, CLOCK, FULL, POWER, READ_ERROR, READS, SIGNAL, WRITE_ERROR, Arm
from _faults_project import BASES, ENCODINGS, NAME, World

DAY = 86_400
STAGES = {"extract": 38, "train": 38, "two workers": 16, "two at once": 8}
"""How many of a hundred trials; `two at once` is two same commands of either stage."""

MOMENTS = {
    "killed": (SIGNAL, CHANGES, signal.SIGKILL),
    "power lost": (POWER, CHANGES, 0),
    "Ctrl-C": (SIGNAL, CHANGES, signal.SIGINT),
    "SIGTERM": (SIGNAL, CHANGES, signal.SIGTERM),
    "disk full": (FULL, CHANGES, 0),
    "read error": (READ_ERROR, READS, 0),
    "write error": (WRITE_ERROR, CHANGES, 0),
    "clock jumps": (CLOCK, CHANGES, 0),
}
DAMAGES = ("bit flipped", "truncated", "swapped", "deleted", "old version", "file times", "leftovers")
LIMIT = "file size limit"
WORKERS = ("worker killed", "worker paused", "worker killed while paused", "both workers killed", "scheduler killed")
KINDS = (*MOMENTS, LIMIT, *DAMAGES)
_TIMES_AS_OFTEN = {"bit flipped": 4, "killed": 2, "power lost": 2, "truncated": 2, "swapped": 2, "old version": 2}

FILES = {
    "shard": f"stores/{NAME}/[0-9a-f]*/layer*/c.*",
    "metadata": f"stores/{NAME}/[0-9a-f]*/**/zarr.json",
    "rows": f"stores/{NAME}/[0-9a-f]*/*/c.0",
    "marker": f"stores/{NAME}/commits/*/*.json",
    "manifest": f"stores/{NAME}/manifest.json",
    "index": f"data/{NAME}/index.parquet",
    "data summary": f"data/{NAME}/summary.json",
    "training state": f"runs/{NAME}/train/state.safetensors",
    "best step": f"runs/{NAME}/train/best.safetensors",
    "log": f"runs/{NAME}/train/log.jsonl",
    "training summary": f"runs/{NAME}/train/s*.json",
    "weights": f"runs/{NAME}/checkpoint/translator.safetensors",
    "card": f"runs/{NAME}/checkpoint/config.yaml",
}


@dataclass(frozen=True)
class Trial:
    """One fault: everything that was drawn for it."""

    number: int
    seed: int
    encoding: str
    stage: str
    base: str
    kind: str
    file: str
    """The kind of file that is damaged; empty for other faults."""

    midway: bool
    """Whether files are damaged while the command runs, not before it."""

    moment: float
    """Where in the command's file operations it happens, as a share of them."""

    @property
    def command(self) -> str:
        """The command that is disturbed."""
        if self.stage == "two at once":
            return "extract" if self.number % 2 else "train"
        return "extract" if self.stage == "two workers" else self.stage

    def random(self) -> random.Random:
        """What is left to chance: which file, which byte."""
        return random.Random(f"{self.seed} {self.number} more")

    def facts(self) -> dict[str, Any]:
        """The trial as JSON."""
        return {**asdict(self), "moment": round(self.moment, 4)}


def draw(seed: int, number: int) -> Trial:
    """The trial of that number."""
    chance = random.Random(f"{seed} {number}")
    encoding = chance.choice(ENCODINGS)
    stage = chance.choices(list(STAGES), list(STAGES.values()))[0]
    base, kind, file, midway = chance.choice(BASES), "started twice", "", False
    if stage == "two workers":
        base, kind = (
            chance.choice(BASES[:2]),
            chance.choice([*WORKERS, "bit flipped", "truncated", "deleted", "clock jumps"]),
        )
    elif stage == "two at once":
        base = chance.choice(BASES[:2])
    else:
        kind = chance.choices(KINDS, [_TIMES_AS_OFTEN.get(kind, 1) for kind in KINDS])[0]
    if kind in ("bit flipped", "truncated", "deleted", "old version", "swapped"):
        file = _file(chance, kind, "extract" if stage == "two workers" else stage, base)
        midway = stage == "two workers" or chance.random() < 0.25
    return Trial(number, seed, encoding, stage, base, kind, file, midway, chance.random())


def _file(chance: random.Random, kind: str, stage: str, base: str) -> str:
    """A kind of file that is there, and for which this damage means something."""
    there = ["index", "data summary"]
    if stage == "train" or base != "nothing":
        there += ["shard", "shard", "shard", "metadata", "marker"]
    if stage == "train" or base == "finished":
        there += ["rows", "manifest"]
    if stage == "train" and base != "nothing":
        there += ["training state", "training state", "best step", "log"]
    if stage == "train" and base == "finished":
        there += ["weights", "card", "training summary"]
    if kind == "swapped":
        there = [file for file in there if file in ("shard", "marker")] or ["index"]
    return chance.choice(there)


def arm(trial: Trial, world: World) -> Arm | None:
    """What the process is armed with, if the fault is one of a moment."""
    stop = trial.midway or trial.stage == "two at once"
    if trial.kind not in MOMENTS and not stop:
        return None
    action, kinds, value = MOMENTS.get(trial.kind, (SIGNAL, CHANGES, signal.SIGSTOP))
    if trial.kind == "clock jumps":
        value = trial.random().choice([-400 * DAY, -DAY, -3600, 3600, DAY, 4000 * DAY])
    whole = world.operations[f"{trial.command} {trial.base} {kinds}"]
    return Arm(1 + int(trial.moment * whole), action, kinds, int(value), trial.number)


def damage(trial: Trial, world: World, project: Path) -> str:
    """Do to the files what the trial says; gives what was done, in words, or nothing where there was no such file."""
    chance = trial.random()
    if trial.kind == "file times":
        return _times(chance, project)
    if trial.kind == "leftovers":
        return _leftovers(chance, project)
    found = sorted(path for path in project.glob(FILES[trial.file]) if path.name[0] != "." and path.stat().st_size)
    current = [path for path in found if trial.kind == "old version" or _counts(path, project, world)]
    if not current:
        return ""
    path = chance.choice(current)
    act: dict[str, Callable[[], str]] = {
        "bit flipped": lambda: _flip(chance, path),
        "truncated": lambda: _truncate(chance, path),
        "deleted": lambda: _delete(path),
        "swapped": lambda: _swap(chance, path, current),
        "old version": lambda: _older(path, project, world),
    }
    done = act[trial.kind]()
    return f"{path.relative_to(project)}: {done}" if done else ""


def _counts(path: Path, project: Path, world: World) -> bool:
    """Whether a file belongs to the store of today's index, not to the older one beside it."""
    parts = path.relative_to(project).parts
    if parts[0] != "stores" or len(parts) < 4:
        return True
    folder = parts[3] if parts[2] == "commits" else parts[2]
    return not (world.older / "stores" / NAME / folder).exists()


def _flip(chance: random.Random, path: Path) -> str:
    content = bytearray(path.read_bytes())
    place, bit = chance.randrange(len(content)), chance.randrange(8)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([content[place] ^ 1 << bit]))
    return f"bit {bit} of byte {place} of {len(content)}"


def _truncate(chance: random.Random, path: Path) -> str:
    size = path.stat().st_size
    kept = chance.choice([0, size - 1, size // 2, chance.randrange(size)])
    os.truncate(path, kept)
    return f"cut to {kept} of {size} bytes"


def _delete(path: Path) -> str:
    path.unlink()
    return "deleted"


def _swap(chance: random.Random, path: Path, found: list[Path]) -> str:
    others = [other for other in found if other.parent == path.parent and other != path]
    if not others:
        return ""
    alike = [other for other in others if other.stat().st_size == path.stat().st_size]
    other = chance.choice(alike or others)
    aside = path.with_name(".aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)
    return f"swapped with {other.name}"


def _older(path: Path, project: Path, world: World) -> str:
    """Put the same file as it was with the older captions; of the store's folders, into today's."""
    relative = path.relative_to(project)
    source = world.older / relative
    if not source.exists():  # today's folder is named by today's identity
        (folder,) = [each.parent.name for each in (world.older / "stores" / NAME).glob("*/zarr.json")]
        parts = list(relative.parts)
        parts[3 if parts[2] == "commits" else 2] = folder
        source = world.older.joinpath(*parts)
    if not source.exists() or source.read_bytes() == path.read_bytes():
        return ""
    shutil.copyfile(source, path)
    return "as it was with the older captions"


def _times(chance: random.Random, project: Path) -> str:
    """Times of files in the far future and past."""
    for path in sorted(project.rglob("*")):
        moment = time.time() + chance.choice([-9000 * DAY, -DAY, DAY, 9000 * DAY])
        os.utime(path, (moment, moment))
    return "times of all files years off"


def _leftovers(chance: random.Random, project: Path) -> str:
    """What dead processes, of this machine or another, leave: half-written files and locks."""
    made = []
    for folder in sorted(path for path in project.rglob("*") if path.is_dir() and path.parts[-1] != "lm"):
        if chance.random() < 0.5:
            continue
        for name in (".c.0.0.0.00ff00ff.partial", ".manifest.json.0f.partial", ".state.safetensors.x1y2", ".lock"):
            (folder / name).write_bytes(b"4242 elsewhere.example\n")
            made.append(name)
    return f"{len(made)} files of dead processes"
