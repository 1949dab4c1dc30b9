"""The project's configurations: each file of configs/ is read as the commands read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devil_pipe.pipeline import config
from devil_pipe.pipeline.doctor.finding import Finding, Wish, note, ok, problem
from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.stages.prepare.config import PrepareConfig
from devil_pipe.store.errors import UsageError

PIPELINE = config.CONFIGS / "pipeline.yaml"


@dataclass
class Listed:
    """What configs/pipeline.yaml lists, as far as it can be read."""

    data: dict[str, PrepareConfig] = field(default_factory=dict)
    stores: dict[str, ExtractConfig] = field(default_factory=dict)
    runs: dict[str, config.Run] = field(default_factory=dict)


def is_project() -> bool:
    """Whether the folder holds anything of a project."""
    return config.CONFIGS.is_dir() or Path("dvc.yaml").is_file()


def readable() -> tuple[Listed, list[str]]:
    """What the pipeline lists and can be read, and what the loaders say of the rest."""
    found, said = Listed(), []
    try:
        listing = config.read_pipeline() if PIPELINE.is_file() else None
    except UsageError as error:
        return found, [str(error)]
    kinds: tuple[tuple[Any, dict[str, Any], Callable[[str], Any]], ...] = (
        (listing and listing.data, found.data, config.load_data),
        (listing and listing.stores, found.stores, config.load_store),
        (listing and listing.runs, found.runs, config.Run),
    )
    for names, kept, load in kinds:
        for name in names or ():
            try:
                kept[name] = load(name)
            except UsageError as error:
                said.append(_told(error, PIPELINE))
    return found, said


def _told(error: UsageError, path: Path) -> str:
    """An error's text, which names the file that is wrong; that of one that is not there, with who asks for it."""
    text = str(error)
    return text if Path(text.partition(":")[0]).is_file() else f"{path}: {text}"


def look(_: Wish) -> Iterator[Finding]:
    """Read every configuration; a mistake is named by file and key."""
    if not is_project():
        what = "this folder holds no project (neither configs/ nor dvc.yaml)"
        yield note("project.configuration", what, "devil-pipe new my-project", "or go to a project's folder")
        return
    from devil_pipe.pipeline.experiments import experiment

    said: dict[str, None] = dict.fromkeys(readable()[1])
    count = 0
    loaders: dict[str, Callable[[str], Any]] = {
        "data": config.load_data,
        "stores": config.load_store,
        "runs": config.Run,
        "experiments": experiment.load,
    }
    for kind, load in loaders.items():
        for path in sorted((config.CONFIGS / kind).glob("*.yaml")):
            count += 1
            try:
                load(path.stem)
            except UsageError as error:
                said[_told(error, path)] = None
    for line in said:
        yield problem("project.configuration", line, advice="edit that file; docs/ has a page for each kind")
    if not PIPELINE.is_file():
        yield problem("project.configuration", f"{PIPELINE}: no such file, and dvc.yaml reads it", advice=_LISTS)
    elif not said:
        yield ok("project.configuration", f"{config.CONFIGS}/: {count} files read")


_LISTS = "it lists what `dvc repro` makes: data: [], stores: {}, runs: {} is the least it may say"
