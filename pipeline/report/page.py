"""The page: what the templates show, gathered from the run's numbers, gallery and files."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from devil_pipe.pipeline.report import figures, tables, words
from devil_pipe.pipeline.report.anchors import anchor
from devil_pipe.pipeline.report.cards import Card
from devil_pipe.pipeline.report.gallery import Gallery
from devil_pipe.pipeline.report.images import Shown
from devil_pipe.pipeline.report.metrics import MetricKind, Metrics, metric_kind, ordered_layers
from devil_pipe.pipeline.report.predictions import Described, draw

STAGES = ("prepare", "extract", "train", "evaluate", "saliency")
DRAWN = 100  # rows of the table of descriptions; the files beside it hold all
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Content:
    """Everything that a page is made of."""

    metrics: Metrics
    scores: tables.Table
    novel: tables.Table | None
    saliency: tables.Table
    gallery: Gallery
    cards: Sequence[Card]
    described: Sequence[Described]
    log: Sequence[Mapping[str, Any]]
    config_text: str
    hashes: Mapping[str, str]


def environment(order: list[str] | None = None) -> Environment:
    """Jinja with escaping always on: descriptions and names are never trusted to be free of markup.

    `order` is the run's own order of layers, where it is known.
    """
    env = Environment(
        autoescape=True,
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["address"] = quote
    env.filters["label"] = tables.condition_label
    env.filters["signed"] = lambda value, digits=1: tables.number(value, MetricKind("", digits), signed=True)
    env.filters["layer_order"] = lambda names: ordered_layers(names, order)
    env.filters["duration"] = words.duration
    env.globals["anchor"] = anchor
    env.globals["number"] = tables.number
    env.globals["with_unit"] = tables.with_unit
    env.globals["interval"] = tables.interval
    env.globals["metric_kind"] = metric_kind
    return env


def render(content: Content, images: Mapping[str, Shown], beside: Collection[str]) -> str:
    """The page's HTML; the same input gives the same bytes.

    `images` are the files of every picture and overlay, `beside` the tables' files, relative to the page.
    """
    metrics, gallery = content.metrics, content.gallery
    # Read as it stands: what the policy allows is the digest of these very bytes.
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment(metrics.layers).get_template("index.html.j2")
    return template.render(
        content=content,
        metrics=metrics,
        gallery=gallery,
        cards=content.cards,
        images=images,
        beside=beside,
        script=Markup(script),
        script_digest=digest,
        thing=metrics.things.removesuffix("s"),
        noun=words.noun(metrics),
        summary=words.summary(metrics),
        banners=words.banners(metrics),
        tiles=words.tiles(metrics, content.scores),
        score_figures=_score_figures(content.scores),
        curves=_curves(content.log),
        drawn=draw(content.described, DRAWN, metrics.seed),
        addresses={card.picture.key: card.anchor for card in content.cards},
        gradient=", ".join(gallery.scale.colours),
        zero=100 * gallery.scale.low / (gallery.scale.low - gallery.scale.high),
        times=[(name, metrics.seconds[name]) for name in _stage_order(metrics.seconds)],
    )


def _stage_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (STAGES.index(name) if name in STAGES else len(STAGES), name))


def _score_figures(scores: tables.Table) -> list[tuple[str, Any]]:
    drawn = []
    for key in ("object_accuracy", "cider"):
        rows = [
            figures.IntervalRow(row.label, cell.value, cell.low, cell.high, row.sees)
            for row in scores.rows
            if (cell := scores.cell(row.key, key)) is not None and cell.value is not None
        ]
        if rows:
            kind = metric_kind(key)
            unit = kind.label + (", %" if kind.percent else "")
            drawn.append((kind.label, figures.interval_figure(rows, unit, kind.percent, f"fig-{key}")))
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
