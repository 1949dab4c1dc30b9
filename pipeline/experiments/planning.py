"""What an experiment would run, what of it exists, what it lacks, and what it takes in bytes and hours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from devil_pipe.pipeline import config
from devil_pipe.pipeline.experiments.experiment import Experiment, Rates, Row
from devil_pipe.pipeline.experiments.hours import Hours, hours_of
from devil_pipe.pipeline.experiments.missing import missing
from devil_pipe.pipeline.experiments.running import chosen_runs, stages_of
from devil_pipe.pipeline.experiments.state import State, layers_of, states
from devil_pipe.stages.common.files import read_object
from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.stages.extract.estimate import columns, layer_sizes, size
from devil_pipe.stages.prepare.config import PrepareConfig
from devil_pipe.store.errors import InputError

AGAIN = "run `devil-pipe prepare` again"
PUBLISHED_ROWS = {"cc3m": 3_334_173}
"""Links that Conceptual Captions published: 3,318,333 for training, 15,840 for validation; dead ones take no room."""


@dataclass(frozen=True)
class PlannedStore:
    """A store of the plan, and what it takes on disk."""

    name: str
    done: bool
    rows: int | None
    rows_from: str
    bytes: int | None
    """None where nobody knows how many pictures there are."""


@dataclass(frozen=True)
class PlannedTraining:
    """A run of the plan, with its stages, each done or with the reason why not."""

    name: str
    store: str
    seed: int
    steps: dict[str, int]
    stages: list[State]
    hours: Hours

    @property
    def left(self) -> list[State]:
        """The stages that would run."""
        return [state for state in self.stages if not state.done]


@dataclass(frozen=True)
class Plan:
    """The plan of a table."""

    table: str
    rows: list[dict[str, Any]]
    runs: list[PlannedTraining]
    stores: list[PlannedStore]
    missing: list[str]

    @property
    def bytes_left(self) -> int | None:
        """Of the stores that are still to be made; None where one of them is not known."""
        sizes = [store.bytes for store in self.stores if not store.done]
        return None if any(item is None for item in sizes) else sum(item or 0 for item in sizes)

    @property
    def hours_left(self) -> float | None:
        """Of all that is still to run; None where a rate is not known."""
        found = [run.hours.value for run in self.runs]
        return None if any(item is None for item in found) else round(sum(item or 0.0 for item in found), 2)

    def text(self, as_json: bool) -> str:
        """The plan for a person, or as JSON with sorted keys: the fields above, `bytes_left` and `hours_left`."""
        if as_json:
            values = asdict(self) | {"bytes_left": self.bytes_left, "hours_left": self.hours_left}
            return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
        return "\n".join([*self._rows(), *self._runs(), *self._stores(), *self._end()])

    def _rows(self) -> list[str]:
        rows = [("row", "what runs", "", "")]
        rows += [(row["row"], row["what"], "", "") for row in self.rows]
        return [f"{self.table}: {len(self.rows)} rows", *columns(rows), ""]

    def _runs(self) -> list[str]:
        if not self.runs:
            return []
        rows = [("run", "left to do", "steps", "hours")]
        for run in self.runs:
            left = ", ".join(_told(state) for state in run.left) or "nothing"
            rows.append((run.name, left, f"{sum(run.steps.values()):,}", run.hours.text))
        return [*columns(rows), ""]

    def _stores(self) -> list[str]:
        if not self.stores:
            return []
        rows = [("store", "pictures", "", "disk")]
        for store in self.stores:
            count = "not known before they are prepared" if store.rows is None else f"{store.rows:,} {store.rows_from}"
            disk = "not known" if store.bytes is None else size(store.bytes)
            rows.append((store.name, count, "", f"{disk}, there already" if store.done else disk))
        return [*columns(rows), ""]

    def _end(self) -> list[str]:
        disk = "not known" if self.bytes_left is None else size(self.bytes_left)
        hours = "not known (no measured rate)" if self.hours_left is None else f"{self.hours_left:,.2f}"
        uncounted = {stage for run in self.runs for stage in run.hours.unknown}
        if uncounted and self.hours_left is not None:
            hours += f" without {', '.join(sorted(uncounted))} (no measured rate)"
        rates = sorted({source for run in self.runs for source in run.hours.rates})
        return [
            f"disk: {disk} for the stores that are still to be made",
            f"hours: {hours}",
            *(f"  {line}" for line in rates),
            *(f"needs {line}" for line in self.missing),
        ]


def plan(name: str, experiments: Sequence[Experiment], given: Rates | None = None) -> Plan:
    """What the experiments of a table would run; reads configurations and the runs' own files, and fetches nothing.

    Args:
        name: of the table.
        experiments: its files.
        given: rates from the command line, before those of the files.
    """
    runs, stages = chosen_runs(experiments), stages_of(experiments)
    data = {run.run.store.data: config.load_data(run.run.store.data) for run in runs}
    state = {run.name: states(run.run, data[run.run.store.data], stages) for run in runs}
    finished = {
        stage: [run for run in runs if any(item.stage == stage and item.done for item in state[run.name])]
        for stage in stages
    }
    rates = {run.name: item.file.rates for item in experiments for run in item.all_runs()}
    found: list[PlannedTraining] = []
    stores: dict[str, PlannedStore] = {}
    for planned in runs:
        store, train, chain = planned.run.store, planned.run.train, state[planned.name]
        first = store.name not in stores  # a store is extracted for its first run alone
        stores.setdefault(store.name, _store(store, data[store.data], chain[1].done))
        left = [item.stage for item in chain if not item.done and (first or item.stage not in ("prepare", "extract"))]
        steps = {"alignment": train.warmup.phase.steps, "language": train.phase.steps}
        hours = hours_of(planned, left, stores[store.name].rows, given or rates[planned.name], finished)
        found.append(PlannedTraining(planned.name, store.name, train.seed, steps, chain, hours))
    lacking = {line for planned in runs for line in missing(planned, data[planned.run.store.data])}
    rows = [_row(item, key, row) for item in experiments for key, row in item.file.rows.items()]
    return Plan(name, rows, found, list(stores.values()), sorted(lacking))


def _told(state: State) -> str:
    """A stage that is left; the reason too where something else lies there."""
    return state.stage if state.why_not.startswith(("not ", "no ")) else f"{state.stage} ({state.why_not})"


def _row(item: Experiment, key: str, row: Row) -> dict[str, Any]:
    if row.published_only:
        what = "published figure only"
    elif row.needs:
        what = f"not run: needs {row.needs}"
    elif row.mean_of:
        what = f"mean of {row.mean_of.table}'s rows of {row.mean_of.method}"
    else:
        what = ", ".join(run.name for run in item.runs(key))
    return {"row": key, "file": item.name, "what": what, "condition": row.condition}


def _store(store: ExtractConfig, data: PrepareConfig, done: bool) -> PlannedStore:
    rows, rows_from = _rows_of(data)
    if rows is None:
        return PlannedStore(store.name, done, None, rows_from, None)
    layers = layers_of(store.backbone, store.layers, store.image_size)
    shard_rows = store.shard_rows or store.stored_as.shard_rows
    sizes = layer_sizes(layers, store.stored_as, rows, -(-rows // shard_rows), shard_rows, {})
    return PlannedStore(store.name, done, rows, rows_from, sum(layer.bytes for layer in sizes.values()))


def _rows_of(data: PrepareConfig) -> tuple[int | None, str]:
    """How many pictures a data set has: as its summary says, as its configuration says, or as was published."""
    path = data.out / "summary.json"
    if path.is_file():
        pictures = read_object(path, AGAIN).get("pictures")
        if not isinstance(pictures, int):
            raise InputError(f"{path}: pictures: expected a whole number, got {pictures!r:.80}; {AGAIN}")
        return pictures, "as prepared"
    if data.source == "demo":
        made = data.demo
        return made.train + made.val + made.test + made.test_novel, "as configured"
    if data.name in PUBLISHED_ROWS:
        return PUBLISHED_ROWS[data.name], "as published"
    return None, ""
