"""Reading finished runs: the figures of each row over its seeds, the paper's beside them, or why there are none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devil_pipe.pipeline import config
from devil_pipe.pipeline.experiments.columns import COLUMNS, STAGES_OF, Column, Source
from devil_pipe.pipeline.experiments.experiment import Experiment, PlannedRun, Row, of_table
from devil_pipe.pipeline.experiments.figures import Cell, mean_cell, over_seeds
from devil_pipe.pipeline.experiments.missing import missing
from devil_pipe.pipeline.experiments.paper import PaperTable
from devil_pipe.pipeline.experiments.state import states
from devil_pipe.stages.evaluate import language
from devil_pipe.store.errors import InputError

NULL = "shuffled"
"""The null control that stands beside every caption score: the features of another picture."""


@dataclass(frozen=True)
class Line:
    """One row of a rendered table."""

    key: str
    label: tuple[str, ...]
    cells: tuple[Cell, ...]
    pictures: str
    """How many were scored."""

    runs: tuple[str, ...]
    notes: tuple[str, ...]
    """What a reader must know: the data, the warm-up, random weights."""

    not_run: str
    """Why the whole row has no figure of ours; "" where it has."""

    compared: bool
    """Whether the difference from the paper has a meaning."""


@dataclass(frozen=True)
class Gathered:
    """A table with all that is known of its rows."""

    name: str
    title: str
    head: tuple[str, ...]
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    mirrored: bool
    tagger: str
    """Which tagger counted the words, where one did."""


@dataclass
class _Found:
    """What one run's files say for a row."""

    metrics: dict[str, Any]
    summary: dict[str, Any]
    language: dict[str, Any]
    saliency: dict[str, Any]
    lacking: dict[Source, str]


def gather(table: str) -> Gathered:
    """Every row of a table, read from the files of its runs.

    Raises:
        UsageError: no such table, or a file that is not as it should be.
    """
    experiments = of_table(table)
    lines = [_line(item, key, row) for item in experiments for key, row in item.file.rows.items()]
    first = experiments[0]
    width = max(len(line.label) for line in lines)
    head = first.paper.head if first.paper and len(first.paper.head) == width else ("", *[""] * (width - 1))
    columns = tuple(COLUMNS[name] for name in first.columns)
    title = next((item.file.title for item in experiments if item.file.title), first.paper.title if first.paper else "")
    tagger = next((note for line in lines for note in line.notes if note.startswith("words by ")), "")
    return Gathered(table, title, head, columns, tuple(lines), first.mirrored, tagger)


def _line(item: Experiment, key: str, row: Row) -> Line:
    paper = item.paper.rows.get(row.paper or key) if item.paper else None
    label = row.label or (paper.label if paper else (key,))
    figures = paper.figures if paper else {}
    columns = [COLUMNS[name] for name in item.columns]
    why, runs = "", []
    if row.published_only:
        why = "published figure only: another's method, which is not run here"
    elif row.needs:
        why = f"not run: needs {row.needs}"
    elif row.mean_of:
        return _mean_line(item, key, row, label, figures)
    else:
        runs = item.runs(key)
        why = _unfinished(item, runs)
    if why:
        cells = tuple(Cell(column, None, None, figures.get(column.name), None, why) for column in columns)
        return Line(key, label, cells, "", tuple(run.name for run in runs), (), why, compared=False)
    found = [_read(run, item) for run in runs]
    against = _comparable(item, runs, found)
    cells = tuple(_cell(column, row, found, figures.get(column.name), against == "") for column in columns)
    counts = sorted({_count(one, columns) for one in found})
    pictures = "–".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
    names = tuple(run.name for run in runs)
    return Line(key, label, cells, pictures, names, _notes(found, against), "", compared=against == "")


def _unfinished(item: Experiment, runs: Sequence[PlannedRun]) -> str:
    """Which runs of a row are not done, and what would do them; "" where all are."""
    needed = {stage for name in item.columns for stage in STAGES_OF[COLUMNS[name].source]}
    stages = tuple(stage for stage in ("train", "evaluate", "saliency") if stage in needed)
    for run in runs:
        data = config.load_data(run.run.store.data)
        state = next((one for one in states(run.run, data, stages) if not one.done), None)
        if state is not None:
            wanted = [*missing(run, data), f"devil-pipe experiment {item.name}"]
            return f"not run: needs {'; '.join(wanted)} ({state.stage} {state.name}: {state.why_not})"
    return ""


def _read(run: PlannedRun, item: Experiment) -> _Found:
    folder = run.run.train.out
    sources = {COLUMNS[name].source for name in item.columns}
    metrics = _json(folder / "evaluate" / "metrics.json") if sources & {"evaluate", "language"} else {}
    found = _Found(metrics, _json(folder / "train" / "summary.json"), {}, {}, {})
    if sources & {"saliency", "faithfulness", "crops"}:
        found.saliency = _json(folder / "saliency" / "metrics.json")
    if "language" in sources:
        evaluate = run.run.evaluate
        try:
            found.language = language.of_run(folder, evaluate.split, seed=evaluate.seed, resamples=evaluate.resamples)
        except InputError as error:
            found.lacking["language"] = f"not run: needs {error}"
    return found


def _count(found: _Found, columns: Sequence[Column]) -> int:
    """Pictures that a row's figures are over."""
    parts = {column.source for column in columns}
    if len(parts) == 1 and parts <= {"faithfulness", "crops"}:
        return int(found.saliency.get(parts.pop(), {}).get("n", 0))
    return int(found.metrics.get("n_scored", found.saliency.get("n", 0)))


def _cell(column: Column, row: Row, found: Sequence[_Found], paper: float | None, comparable: bool) -> Cell:
    scores = [_score(one, column, row.condition) for one in found]
    reasons = [score.get("not_run") for score in scores if "value" not in score]
    if reasons:
        return Cell(column, None, None, paper, None, str(reasons[0]))
    ours = over_seeds(scores, column.factor)
    blind = [_score(one, column, NULL) for one in found] if column.source == "evaluate" else []
    null = over_seeds(blind, column.factor) if blind and all("value" in score for score in blind) else None
    difference = ours.value - paper if paper is not None and comparable else None
    return Cell(column, ours, null, paper, difference, "")


def _score(found: _Found, column: Column, condition: str) -> dict[str, Any]:
    """One run's score as its files hold it, `value` or `not_run`."""
    if column.source in found.lacking:
        return {"not_run": found.lacking[column.source]}
    if column.source == "train":
        return {"value": found.summary[column.metric]} if condition != NULL else {}
    layers = found.metrics.get("layers") or list(found.saliency.get("saliency", {}))
    name = layers[-1] if condition == "last" and layers else condition
    if column.source == "evaluate":
        parts: dict[str, Any] = {**found.metrics["scores"], **found.metrics["controls"]}
    elif column.source == "language":
        parts = found.language["conditions"]
    elif column.source in ("faithfulness", "crops"):
        return _of_saliency(found.saliency.get(column.source), column, condition)
    else:
        parts = found.saliency.get("saliency", {})
    missing = {"not_run": f"not run: needs {column.label} of {name!r}, which the run's files do not have"}
    score: dict[str, Any] = parts.get(name, {}).get(column.metric, missing)
    return score


def _of_saliency(part: dict[str, Any] | None, column: Column, condition: str) -> dict[str, Any]:
    """A score that the saliency stage gives when asked: of `LAYER/METHOD`, or the share of a size of crop."""
    if part is None:
        return {"not_run": f"not run: needs saliency.{column.source}.pictures above 0 in the run's file"}
    if "not_run" in part:
        return {"not_run": f"not run: {part['not_run']}"}
    layer, _, method = condition.partition("/")
    named = part["scores"].get(layer, {}).get(method) if column.source == "faithfulness" else part["share"].get(layer)
    score = None if named is None else named.get(column.metric)
    if score is None:
        return {"not_run": f"not run: needs {column.label} of {condition!r}, which the run's files do not have"}
    return score if isinstance(score, dict) else {"value": score}


def _comparable(item: Experiment, runs: Sequence[PlannedRun], found: Sequence[_Found]) -> str:
    """Why a row's figures cannot be set against the paper's; "" where they can."""
    if item.paper is None:
        return "no figure of the paper's"
    for run, one in zip(runs, found, strict=True):
        data = run.run.store.data
        if "composite" in str(_json(run.run.train.data_dir / "summary.json").get("note", "")).lower():
            return "demo composites, not comparable"
        if item.mirrored or not is_papers(data, item.paper):
            return f"pictures of {data}, not comparable"
        if str(one.summary.get("weights", "")).startswith("random"):
            return "random weights, not comparable"
    return ""


def is_papers(data: str, paper: PaperTable) -> bool:
    """Whether a data set is the one of a table of the paper, or one of those whose names begin so."""
    return data == paper.data or (paper.data.endswith("-") and data.startswith(paper.data))


def _notes(found: Sequence[_Found], against: str) -> tuple[str, ...]:
    notes = [against] if against else []
    for one in found:
        if one.summary.get("warmup", "none") != "none":
            notes.append(f"begun by the {one.summary['warmup']} warm-up (ours, not the paper's)")
        if one.language:
            notes.append(f"words by {one.language['tagger']}")
        if settings := one.metrics.get("bertscore_settings"):
            notes.append(f"BERTScore {settings}")
    return tuple(dict.fromkeys(notes))


def _mean_line(item: Experiment, key: str, row: Row, label: tuple[str, ...], figures: dict[str, float]) -> Line:
    """The mean over other rows, each counted alike; only where every one of them has run."""
    assert row.mean_of is not None, "asked for by its caller"
    columns = [COLUMNS[name] for name in item.columns]
    parts = [
        _line(_with_columns(other, item.columns), name, one)
        for other in of_table(row.mean_of.table)
        for name, one in other.file.rows.items()
        if name.endswith(f"/{row.mean_of.method}") and one.mean_of is None
    ]
    done = [part for part in parts if not part.not_run]
    if not parts or len(done) < len(parts):
        wanted = f"all {len(parts)} rows of {row.mean_of.table} for {row.mean_of.method}"
        why = f"not run: needs {wanted}; {len(done)} are there"
        cells = tuple(Cell(column, None, None, figures.get(column.name), None, why) for column in columns)
        return Line(key, label, cells, "", (), (), why, compared=False)
    compared = all(part.compared for part in parts)
    cells = tuple(
        mean_cell(column, [part.cells[place] for part in parts], figures.get(column.name), compared)
        for place, column in enumerate(columns)
    )
    notes = tuple(dict.fromkeys([f"mean of {len(parts)} rows", *(note for part in parts for note in part.notes)]))
    return Line(key, label, cells, "", tuple(run for part in parts for run in part.runs), notes, "", compared)


def _with_columns(item: Experiment, columns: tuple[str, ...]) -> Experiment:
    return Experiment(item.name, item.path, item.file.model_copy(update={"columns": columns}), item.paper)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a stage's JSON file, got: {error}; run its stage again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(found).__name__}; run its stage again")
    return found
