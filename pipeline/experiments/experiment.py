"""configs/experiments/NAME.yaml: rows of a table, each with the runs that give its figures.

A run is a file of configs/runs/ or is made from one: its values with a row's overrides laid over them, under one seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from devil_pipe.pipeline import config
from devil_pipe.pipeline.experiments.columns import COLUMNS
from devil_pipe.pipeline.experiments.paper import PaperTable, paper_tables
from devil_pipe.stages.common.files import write_text_atomic
from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.store.errors import UsageError

FOLDER = "experiments"
MADE = "# Written by `devil-pipe experiment` from configs/experiments/; edit that, not this.\n"
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Overrides(_Section):
    """Values that replace those of the base run, key by key."""

    store: dict[str, Any] = {}
    train: dict[str, Any] = {}
    evaluate: dict[str, Any] = {}
    saliency: dict[str, Any] = {}

    def __bool__(self) -> bool:
        """Whether anything is replaced."""
        return any((self.store, self.train, self.evaluate, self.saliency))


class Mean(_Section):
    """A row that is the mean of other rows, each counted alike."""

    table: str
    method: str = Field(description="what stands behind the last / of the rows' names")


class Rates(_Section):
    """How fast this was measured to go somewhere; hours follow from nothing else."""

    pictures_a_second: float | None = Field(None, gt=0, description="of extraction")
    seconds_a_step: float | None = Field(None, gt=0, description="of training")
    measured_on: str = Field(min_length=1)


class Row(_Section):
    """One row of a table."""

    label: tuple[str, ...] = Field((), description="its first cells; empty: the paper's")
    paper: str | None = Field(None, description="the row of the paper's table; by default its own name")
    base: str | None = Field(None, description="a file of configs/runs/; by default the experiment's")
    run_name: Word | None = Field(None, description="the name, without its seed, of the run that the overrides make")
    overrides: Overrides = Overrides()
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="empty: the experiment's, then the base's")
    condition: str = Field("all", description="all, a layer's name, last, or references")
    published_only: bool = Field(False, description="another's method, which is not run here")
    mean_of: Mean | None = None
    needs: str = Field("", description="what this project lacks for the row, in words")

    @model_validator(mode="after")
    def _overrides_are_named(self) -> Row:
        if bool(self.overrides) != bool(self.run_name):
            raise ValueError(f"run_name: expected one with overrides, and none without, got {self.run_name!r}")
        if sum((self.published_only, self.mean_of is not None, bool(self.needs))) > 1:
            raise ValueError("expected one of published_only, mean_of and needs at most")
        return self


class ExperimentFile(_Section):
    """One file: some rows of one table, and what they have in common."""

    table: Word
    title: str = ""
    mirrors: str | None = Field(None, description="the paper's table that a small one repeats")
    base: str | None = None
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    columns: tuple[str, ...] = Field((), description="empty: the paper's")
    rates: Rates | None = None
    rows: dict[str, Row] = Field(min_length=1)


@dataclass(frozen=True)
class PlannedRun:
    """A run by name, with the values that its files hold, or would."""

    name: str
    base: str
    run: config.Run
    values: dict[str, Any] | None
    """None where configs/runs/NAME.yaml is one that a person wrote."""

    store_values: dict[str, Any] | None
    """The same for configs/stores/."""

    def write(self) -> None:
        """Lay the run's files down, so that every command knows its name. Raises UsageError."""
        for kind, name, values in (
            ("stores", self.run.file.store, self.store_values),
            ("runs", self.name, self.values),
        ):
            if values is not None:
                _write(config.CONFIGS / kind / f"{name}.yaml", values)


@dataclass(frozen=True)
class Experiment:
    """One file, read: its rows and their runs."""

    name: str
    path: Path
    file: ExperimentFile
    paper: PaperTable | None
    """The table that it belongs to, or that it mirrors."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of `columns.COLUMNS`."""
        return self.file.columns or (self.paper.columns if self.paper else ())

    @property
    def mirrored(self) -> bool:
        """Whether this is a small version, whose figures are never compared with the paper's."""
        return self.file.mirrors is not None

    def runs(self, key: str) -> list[PlannedRun]:
        """The runs of a row, one for each seed; none where another's figure, a mean, or nothing can be run."""
        row = self.file.rows[key]
        base = row.base or self.file.base
        if row.published_only or row.mean_of or row.needs or base is None:
            return []
        try:
            return list(_runs(base, row, row.seeds or self.file.seeds))
        except UsageError as error:
            raise UsageError(f"{self.path}: rows.{key}: {error}") from None

    def all_runs(self) -> list[PlannedRun]:
        """The runs of all rows, each once. Raises UsageError where two of one name differ."""
        return distinct(run for key in self.file.rows for run in self.runs(key))


def names() -> list[str]:
    """The files of configs/experiments/, the paper's tables first."""
    found = [path.stem for path in (config.CONFIGS / FOLDER).glob("*.yaml")]
    return sorted(found, key=lambda name: (name.startswith("demo"), name))


def load(name: str) -> Experiment:
    """Read and check configs/experiments/NAME.yaml, its runs included.

    Raises:
        UsageError: names the file and the key.
    """
    if Path(name).name != name or not name or name.startswith("."):
        raise UsageError(f"expected the name of a file in {config.CONFIGS / FOLDER}/ without its ending, got {name!r}")
    path = config.CONFIGS / FOLDER / f"{name}.yaml"
    values = config.read_yaml(path)
    rows = values.get("rows")
    for key, row in rows.items() if isinstance(rows, dict) else ():
        config.validate(Row, {} if row is None else row, path, f"rows.{key}")  # first: it names a row's known keys
    file = config.validate(ExperimentFile, values, path)
    tables = paper_tables()
    of_paper = file.mirrors or file.table
    if file.mirrors and file.mirrors not in tables:
        raise UsageError(f"{path}: mirrors: expected one of {', '.join(tables)}, got {file.mirrors!r}")
    found = Experiment(name, path, file, tables.get(of_paper))
    unknown = [column for column in found.columns if column not in COLUMNS]
    if unknown or not found.columns:
        raise UsageError(f"{path}: columns: expected some of {', '.join(COLUMNS)}, got {unknown or 'none'}")
    for key, row in file.rows.items():
        _check_row(found, key, row)
    try:
        found.all_runs()
    except UsageError as error:
        raise UsageError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    return found


def of_table(table: str) -> list[Experiment]:
    """Every experiment of a table, in the order of the paper's rows.

    Raises:
        UsageError: there is no such table; names those there are.
    """
    known = _tables_of_files()
    found = [load(name) for name, of in known.items() if of == table] or [load(name) for name in known if name == table]
    if not found:
        listed = ", ".join(dict.fromkeys(known.values())) or "none"
        where = config.CONFIGS / FOLDER
        raise UsageError(f"expected a table or the name of a file in {where}/, got {table!r}; the tables are {listed}")
    order = list(found[0].paper.rows) if found[0].paper else []
    place = {key: number for number, key in enumerate(order)}
    return sorted(found, key=lambda item: min(place.get(key, len(place)) for key in item.file.rows))


def tables() -> list[str]:
    """The tables that configs/experiments/ has rows of, the paper's first."""
    return list(dict.fromkeys(_tables_of_files().values()))


def _tables_of_files() -> dict[str, str]:
    """File → the table that it says it belongs to; the files are not checked any further."""
    return {name: str(config.read_yaml(config.CONFIGS / FOLDER / f"{name}.yaml").get("table")) for name in names()}


def distinct(runs: Iterator[PlannedRun] | Sequence[PlannedRun]) -> list[PlannedRun]:
    """Each run once. Raises UsageError where two runs or stores of one name differ."""
    found: dict[str, PlannedRun] = {}
    stores: dict[str, ExtractConfig] = {}
    for run in runs:
        store = run.run.store
        if found.setdefault(run.name, run).values != run.values or stores.setdefault(store.name, store) != store:
            raise UsageError(f"two rows give the run {run.name}, or its store {store.name}, different values")
    return list(found.values())


def _check_row(found: Experiment, key: str, row: Row) -> None:
    where = f"{found.path}: rows.{key}"
    known = found.paper.rows if found.paper else {}
    paper = row.paper or (key if found.paper and not found.mirrored else None)
    if paper is not None and paper not in known:
        rows = ", ".join(known) or "none"
        raise UsageError(f"{where}: expected a row of the paper's table, one of {rows}, got {paper}")
    if not row.label and paper is None and key not in known:
        raise UsageError(f"{where}.label: missing; the paper has no such row whose label could stand here")
    if not (row.published_only or row.mean_of or row.needs or row.base or found.file.base):
        raise UsageError(f"{where}: expected a base (a file of configs/runs/), published_only, mean_of or needs")


def _runs(base: str, row: Row, seeds: Sequence[int]) -> Iterator[PlannedRun]:
    written = config.Run(base)
    values = config.read_yaml(written.path)
    for section in ("train", "evaluate", "saliency"):
        values[section] = _merged(values.get(section, {}), getattr(row.overrides, section))
    store_values = None
    if row.overrides.store:
        old = config.read_yaml(config.CONFIGS / "stores" / f"{written.file.store}.yaml")
        store_values = _merged(old, row.overrides.store)
        values["store"] = _store_name(store_values, row.overrides.store)
    for seed in seeds or (written.file.seed,):
        if not row.run_name and seed == written.file.seed:
            yield PlannedRun(base, base, written, None, None)
            continue
        name = f"{row.run_name or base}--seed{seed}"
        own = {**values, "seed": seed}
        yield PlannedRun(name, base, config.Run(name, own, store_values), own, store_values)


def _store_name(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    """A name that tells stores apart: what they are made of, and each other key that was replaced."""
    implied = {"data", "backbone", "runtime", *(["layers"] if "backbone" in overrides else [])}
    rest = [f"{key}-{value}" for key, value in overrides.items() if key not in implied]
    parts = (str(values["data"]), str(values["backbone"]), *rest)
    return "--".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part).strip("-") for part in parts)


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`new` laid over `old`, mapping by mapping; a mapping of another `kind` takes the old one's place whole."""
    both = dict(old)
    for key, value in new.items():
        inner = both.get(key)
        if isinstance(inner, dict) and isinstance(value, dict) and value.get("kind") in (None, inner.get("kind")):
            both[key] = _merged(inner, value)
        else:
            both[key] = value
    return both


def _write(path: Path, values: dict[str, Any]) -> None:
    if path.exists():
        if config.read_yaml(path) == values:
            return
        if not path.read_text(encoding="utf-8").startswith(MADE):
            raise UsageError(f"{path}: lies there with other values and was not written by an experiment: move it away")
    write_text_atomic(path, MADE + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
