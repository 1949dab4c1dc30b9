"""The page: what the templates show, gathered from the run's numbers, gallery and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from devil_pipe.pipeline.report import figures, tables
from devil_pipe.pipeline.report.gallery import Gallery, Marker, Picture, anchors, mentions
from devil_pipe.pipeline.report.metrics import ALL_LAYERS, BASELINES, MetricKind, Metrics, metric_kind, ordered_layers
from devil_pipe.stages.evaluate.naming import Namer

WHOLE = "whole"
STAGES = ("prepare", "extract", "train", "evaluate", "saliency")


@dataclass(frozen=True)
class Sentence:
    """A description with its quiet mark; `verdict` is "right", "wrong", "off" or ""."""

    text: str
    verdict: str
    reason: str
    marker: Marker | None = None

    @property
    def symbol(self) -> str:
        """The mark itself."""
        return {"right": "✓", "wrong": "✗", "off": "○"}.get(self.verdict, "")


@dataclass(frozen=True)
class Card:
    """One picture of the gallery as the template shows it."""

    anchor: str
    picture: Picture
    whole: Sentence | None
    layers: list[tuple[str, list[Sentence | None]]]


@dataclass(frozen=True)
class Tile:
    """One number of the page's head."""

    label: str
    value: str
    exact: float
    interval: str
    note: str


def environment(order: list[str] | None = None) -> Environment:
    """Jinja with escaping always on: descriptions and names are never trusted to be free of markup.

    `order` is the run's own order of layers, where it is known.
    """
    env = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["address"] = quote
    env.filters["label"] = tables.condition_label
    env.filters["signed"] = lambda value: tables.number(value, MetricKind("", 1), signed=True)
    env.filters["layer_order"] = lambda names: ordered_layers(names, order)
    env.filters["duration"] = duration
    env.globals["BLIND"] = tables.BLIND
    env.globals["number"] = tables.number
    env.globals["with_unit"] = tables.with_unit
    env.globals["interval"] = tables.interval
    env.globals["metric_kind"] = metric_kind
    return env


def render(
    metrics: Metrics,
    gallery: Gallery,
    log: Sequence[Mapping[str, Any]],
    config_text: str,
    hashes: Mapping[str, str],
) -> str:
    """The page's HTML; the same input gives the same bytes."""
    scores = tables.score_table(metrics)
    template = environment(metrics.layers).get_template("index.html.j2")
    return template.render(
        metrics=metrics,
        summary=tables.summary(metrics),
        banners=tables.banners(metrics),
        tiles=tiles(metrics, scores),
        scores=scores,
        novel=tables.novel_table(metrics),
        saliency=tables.saliency_table(metrics),
        score_figures=_score_figures(scores),
        curves=_curves(log),
        gallery=gallery,
        cards=cards(gallery, metrics),
        gradient=", ".join(gallery.scale.colours),
        zero=100 * gallery.scale.low / (gallery.scale.low - gallery.scale.high),
        config_text=config_text,
        hashes=hashes,
        times=[(name, metrics.seconds[name]) for name in _stage_order(metrics.seconds)],
        noun=tables.noun(metrics),
    )


def _stage_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (STAGES.index(name) if name in STAGES else len(STAGES), name))


def duration(seconds: float) -> str:
    """Seconds in the units a person reads: 42 s, 8 min 30 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def tiles(metrics: Metrics, scores: tables.Table) -> list[Tile]:
    """The head's four numbers, as far as the run has them."""
    rows = {row.key: row for row in scores.rows}
    found = []
    for key, label in (("object_accuracy", "object named"), ("cider", "CIDEr")):
        row = rows.get(key)
        if row is None or (own := row.cells[0]) is None or own.value is None:
            continue
        best = row.cells[row.best_control] if row.best_control is not None else None
        note = "" if best is None or best.value is None else f"best control {tables.with_unit(best.value, row.kind)}"
        value = tables.with_unit(own.value, row.kind)
        found.append(Tile(label, value, own.value, tables.interval(own, row.kind), note))
    gap = tables.loss_gap(metrics)
    if gap is not None:
        value = tables.number(gap, metric_kind("loss"), signed=True)
        found.append(Tile("loss gap", value, gap, "nats/token", "shuffled minus own features"))
    return found + _pointing_tile(metrics)


def _pointing_tile(metrics: Metrics) -> list[Tile]:
    """The deepest layer's pointing game off centre beside the centre prior."""
    table = tables.saliency_table(metrics)
    keys = [name for name, _ in table.columns]
    if "pointing_off_centre" not in keys:
        return []
    column, kind = keys.index("pointing_off_centre"), metric_kind("pointing_off_centre")
    cells = {row.key: row.cells[column] for row in table.rows}
    layers = [name for name in cells if name not in BASELINES]
    own, prior = cells[layers[-1]] if layers else None, cells.get("centre_prior")
    if own is None or own.value is None:
        return []
    note = "" if prior is None or prior.value is None else f"centre prior {tables.with_unit(prior.value, kind)}"
    label = f"pointing off centre, {layers[-1]}"
    return [Tile(label, tables.with_unit(own.value, kind), own.value, tables.interval(own, kind), note)]


def _score_figures(scores: tables.Table) -> list[tuple[str, Any]]:
    drawn = []
    for key in ("object_accuracy", "cider"):
        row = next((row for row in scores.rows if row.key == key), None)
        if row is None:
            continue
        rows = [
            figures.IntervalRow(tables.condition_label(name), cell.value, cell.low, cell.high, group == tables.SEEING)
            for (name, group), cell in zip(scores.columns, row.cells, strict=True)
            if cell is not None and cell.value is not None
        ]
        if rows:
            unit = row.kind.label + (", %" if row.kind.percent else "")
            drawn.append((row.kind.label, figures.interval_figure(rows, unit, row.kind.percent, f"fig-{key}")))
    return drawn


def _curves(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The two curves and the numbers their captions say."""
    last = {key: entry[key] for entry in log for key in ("val_loss", "val_loss_shuffled") if key in entry}
    accuracy = [entry["val_token_accuracy"] for entry in log if "val_token_accuracy" in entry]
    return {
        "language": figures.training_curve(log, "fig-language"),
        "alignment": figures.alignment_curve(log, "fig-alignment"),
        "gap": last["val_loss_shuffled"] - last["val_loss"] if len(last) == 2 else None,
        "token_accuracy": accuracy[-1] if accuracy else None,
    }


def cards(gallery: Gallery, metrics: Metrics) -> list[Card]:
    """The gallery's pictures with each sentence judged."""
    made = []
    namer = Namer([*gallery.objects, *(picture.object for picture in gallery.pictures)])
    for anchor, picture in zip(anchors(gallery), gallery.pictures, strict=True):
        layers = ordered_layers((name for name in picture.descriptions if name != ALL_LAYERS), metrics.layers)
        rows = [(layer, _layer_sentences(namer, picture, picture.descriptions[layer])) for layer in layers]
        whole = picture.descriptions.get(ALL_LAYERS)
        made.append(Card(anchor, picture, judged(namer, picture, whole) if isinstance(whole, str) else None, rows))
    return made


def _layer_sentences(namer: Namer, picture: Picture, said: str | dict[str, str]) -> list[Sentence | None]:
    """A layer's sentences in the order of the columns: whole layer, then each marker."""
    by_place = {WHOLE: said} if isinstance(said, str) else said
    sentences = [judged(namer, picture, by_place[WHOLE]) if WHOLE in by_place else None]
    for marker in picture.markers:
        sentences.append(judged(namer, picture, by_place[marker.id], marker) if marker.id in by_place else None)
    return sentences


def judged(namer: Namer, picture: Picture, text: str, marker: Marker | None = None) -> Sentence:
    """Mark a sentence by the object's name; on the background the scene's name is right and none is wrong."""
    if marker is not None and marker.where == "background":
        if picture.scene and mentions(text, picture.scene):
            return Sentence(text, "right", "names the scene", marker)
        if picture.object and namer.right(text, picture.object):
            return Sentence(text, "off", "names the object, though the marker lies on the background", marker)
        return Sentence(text, "", "", marker)
    if not picture.object:
        return Sentence(text, "", "", marker)
    if namer.right(text, picture.object):
        return Sentence(text, "right", "names the object", marker)
    return Sentence(text, "wrong", "does not name the object", marker)
