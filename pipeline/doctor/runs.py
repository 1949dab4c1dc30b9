"""Runs: whether their translators can be read, and whether the features they were trained on are still there."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from devil_pipe.pipeline import config
from devil_pipe.pipeline.doctor.finding import Finding, Wish, note, ok, problem
from devil_pipe.pipeline.doctor.stores import OLD
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.place import place
from devil_pipe.store.schema import Identity, Manifest, parse_record
from devil_pipe.store.survey import one_line
from devil_pipe.store.writer import MANIFEST

_PARTIAL = re.compile(r"\..+\.[a-z0-9_]{8}")  # as `replacing` of stages/common/files.py names them
_WEIGHTS = "translator.safetensors"


def look(wish: Wish) -> Iterator[Finding]:
    """Look at each folder under runs/."""
    for folder in sorted(path for path in config.RUNS.glob("*") if path.is_dir()):
        try:
            yield from _one(folder, wish)
        except OSError as error:
            advice = "see to the disk or to the rights on it"
            yield problem("runs", f"{folder.name}: cannot be read: {error}", advice=advice)


def _one(folder: Path, wish: Wish) -> Iterator[Finding]:
    train = shlex.join(["devil-pipe", "train", folder.name])
    try:
        run = config.Run(folder.name)
    except UsageError:
        train, run = "", None
    advice = "" if run else f"configs/runs/{folder.name}.yaml is not there or cannot be read; put it back first"
    for path in sorted((folder / "train").glob("*.safetensors")):
        if fault := _fault(path):
            yield problem("runs", f"{path}: {fault}", shlex.join(["rm", str(path)]), "training then starts again")
    checkpoint = folder / "checkpoint"
    if not (checkpoint / _WEIGHTS).is_file():
        begun = (folder / "train" / "state.safetensors").is_file()
        what = "training was stopped, and goes on where it was" if begun else "holds no translator yet"
        yield note("runs", f"{folder.name}: {what}", train, advice)
    elif fault := _fault(checkpoint / _WEIGHTS):
        yield problem("runs", f"{checkpoint / _WEIGHTS}: {fault}", train, advice)
    elif wish.quick:
        yield ok("runs", f"{folder.name}: has a translator")
    else:
        yield from _trained(checkpoint, run, train, advice, wish)
    yield from _left_behind(folder)


def _fault(path: Path) -> str:
    """What a safetensors file's header and length say against it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        return f"cannot be read: {one_line(error)}"
    return ""


def _trained(checkpoint: Path, run: config.Run | None, train: str, advice: str, wish: Wish) -> Iterator[Finding]:
    """A translator and the store it was trained on."""
    from devil_pipe.stages.train.checkpoint import load, read_card

    name = checkpoint.parent.name
    try:
        card = read_card(config.read_yaml(checkpoint / "config.yaml"), checkpoint / "config.yaml")
        if wish.deep:
            load(checkpoint)
    except InputError as error:
        yield problem("runs", f"{name}: {one_line(error)}", train, advice)
        return
    if run is None:
        yield note("runs", f"{name}: its translator can be read", advice=advice)
        return
    location = run.store.location
    extract = shlex.join(["devil-pipe", "extract", run.file.store])
    if "://" in location and not wish.network:
        what = f"{name}: its translator can be read (its store {location} is only looked at with --network)"
        yield ok("runs", what)
        return
    there = _identity(location)
    if there is None:
        what = f"{name}: its translator can be read, but its store {run.file.store} is not there whole"
        yield note("runs", what, extract, "evaluate and saliency need it; explain does not")
    elif there != card.store:
        differ = one_line(ValueError("; ".join(card.store.differences(there))))
        what = f"{name}: was trained on another store than {run.file.store} is now (trained on against now): {differ}"
        yield problem("runs", what, train, "that trains again; or put the old configuration back and extract")
    else:
        what = f"{name}: its translator can be read, and its store {run.file.store} is the one it was trained on"
        yield ok("runs", what)


def _identity(location: str) -> Identity | None:
    """What the store there is of; None where there is no finished one."""
    lies = place(location)
    with suppress(FileNotFoundError, NotADirectoryError, InputError):
        return parse_record(Manifest, lies.read([MANIFEST])[0], lies.show(MANIFEST)).identity
    return None


def _left_behind(folder: Path) -> Iterator[Finding]:
    """Temporary files that a killed command left; young ones may be in use."""
    hidden = (path for path in folder.rglob(".*") if path.is_file() and _PARTIAL.fullmatch(path.name))
    old = sorted(path for path in hidden if time.time() - path.stat().st_mtime > OLD)
    if old:
        what = f"{folder.name}: {len(old)} temporary files of a command that was killed, such as {old[0].name}"
        yield note("runs", what, shlex.join(["rm", *map(str, old)]))
