"""Every table of the page as CSV and as JSON, written beside it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from devil_pipe.pipeline.report.cards import Card
from devil_pipe.pipeline.report.gallery import Gallery
from devil_pipe.pipeline.report.metrics import Metrics, Score
from devil_pipe.pipeline.report.predictions import Described
from devil_pipe.pipeline.report.tables import Table

BESIDE = " | "


@dataclass(frozen=True)
class Export:
    """One table's lines, and what a reader of the file alone must know: where they come from, and of how many."""

    name: str
    about: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def csv(self) -> str:
        """A header and a line for each row; several references stand in one cell, parted by " | "."""
        fields = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow(
                {key: BESIDE.join(value) if isinstance(value, list) else value for key, value in row.items()}
            )
        return text.getvalue()

    @property
    def json(self) -> str:
        """`about` and `rows`; text as it is, no NaN."""
        return (
            json.dumps({"about": self.about, "rows": self.rows}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )


def files(exports: Sequence[Export]) -> dict[str, str]:
    """Each export's two files, by their paths relative to the page."""
    return {
        f"tables/{export.name}.{kind}": getattr(export, kind)
        for export in exports
        if export.rows
        for kind in ("csv", "json")
    }


def exports(
    metrics: Metrics,
    tables: Sequence[Table | None],
    log: Sequence[Mapping[str, Any]],
    cards: Sequence[Card],
    gallery: Gallery,
    described: Sequence[Described],
) -> list[Export]:
    """All tables of a run."""
    about = {"run": metrics.run, "data": metrics.data, "data_note": metrics.data_note, "seed": metrics.seed}

    def export(name: str, stage: str, rows: list[dict[str, Any]], **more: object) -> Export:
        return Export(name, {**about, "command": f"devil-pipe {stage} {metrics.run}", **more}, rows)

    made = [
        export(
            table.name, "saliency" if table.name == "saliency" else "evaluate", list(_scores(table)), over=table.noun
        )
        for table in tables
        if table is not None
    ]
    drawn = {"gallery_seed": gallery.seed}
    failures = gallery.failures
    shown = [item.model_dump(exclude={"picture"}) for item in failures.pictures]
    return [
        *made,
        export("training", "train", [dict(entry) for entry in log]),
        export("gallery", "saliency", list(_sentences(cards)), **drawn),
        export("maps", "saliency", list(_maps(gallery)), unit="nats over the language model's prior", **drawn),
        export("failures", "saliency", shown, looked=failures.looked, failed=failures.failed, **drawn),
        export("descriptions", "evaluate", [asdict(item) for item in described], unit="nats a token"),
    ]


def scores_csv(metrics: Metrics) -> str:
    """Every score as one tidy line: part, condition, metric, value, low, high, not_run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["part", "condition", "metric", "value", "low", "high", "not_run"])
    writer.writerows(_tidy(metrics))
    return text.getvalue()


def _scores(table: Table) -> Iterator[dict[str, Any]]:
    for row in table.rows:
        for column, score in zip(table.columns, row.cells, strict=True):
            if score is not None:
                values = score.model_dump(include={"value", "low", "high", "not_run"})
                yield {"condition": row.key, "control": not row.sees, "metric": column.key, **values}


def _sentences(cards: Sequence[Card]) -> Iterator[dict[str, Any]]:
    for card in cards:
        picture = card.picture
        about = {"key": picture.key, "split": picture.split, "object": picture.object, "reference": picture.reference}
        places = ["whole", *(marker.id for marker in picture.markers)]
        said = [("all", "whole", card.whole)]
        said += [(layer.name, *pair) for layer in card.layers for pair in zip(places, layer.said, strict=True)]
        for layer, place, sentence in said:
            if sentence is not None:
                where = sentence.marker.where if sentence.marker else ""
                more = {"description": sentence.text, "verdict": sentence.reason}
                yield {**about, "layer": layer, "place": place, "where": where, **more}


def _maps(gallery: Gallery) -> Iterator[dict[str, Any]]:
    for picture in gallery.pictures:
        for query in picture.queries:
            for layer, shown in query.maps.items():
                asked = {"key": picture.key, "query": query.text, "present": query.present, "layer": layer}
                yield {**asked, "min": shown.min, "max": shown.max, "file": shown.overlay}


def _tidy(metrics: Metrics) -> Iterator[list[object]]:
    novel = metrics.novel_objects.scores if metrics.novel_objects else {}
    parts: dict[str, Mapping[str, Mapping[str, Score | int]]] = {
        "scores": metrics.scores,
        "controls": metrics.controls,
        "distinct": {name: {"distinct": share} for name, share in metrics.distinct.items()},
        "novel_objects": novel,
        "saliency": metrics.saliency,
    }
    for part, conditions in parts.items():
        for condition, scores in conditions.items():
            for key, score in scores.items():
                if isinstance(score, Score):
                    yield [part, condition, key, score.value, score.low, score.high, score.not_run]
