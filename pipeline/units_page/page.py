"""What the page shows, gathered from the findings: its sentence, tiles, tables and the worst cases."""

from __future__ import annotations

import base64
import hashlib
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from jinja2 import FileSystemLoader
from markupsafe import Markup

from devil_pipe.pipeline.report.exports import Export
from devil_pipe.pipeline.report.images import Shown
from devil_pipe.pipeline.report.metrics import MetricKind, Score
from devil_pipe.pipeline.report.page import TEMPLATES, environment
from devil_pipe.pipeline.report.tables import Column, Row, Table, interval, number, with_unit
from devil_pipe.pipeline.report.words import Tile
from devil_pipe.stages.units.findings import Findings, Part, Unit, layers_row

OWN = Path(__file__).parent / "templates"
WORST = 6

_AREA = MetricKind("AUC, own description", 2)
_PERCENT = MetricKind("object named", 1, percent=True)
COLUMNS = {
    "auc": _AREA,
    "shuffled_auc": MetricKind("AUC, another unit’s", 2),
    "auc_gap": MetricKind("gap", 2),
    "auc_of_all_gap": MetricKind("gap, unscored as 0.5", 2),
    "correlation_gap": MetricKind("gap of rank correlations", 2),
    "named": _PERCENT,
    "shuffled_named": MetricKind("named by another unit’s", 1, percent=True),
    "named_gap": MetricKind("gap", 1, percent=True, unit="points"),
}
COUNTS = {
    "scored": MetricKind("units scored", 0),
    "tied": MetricKind("units tied to an object", 0),
}


def render(found: Findings, pictures: Mapping[tuple[str, int], Shown], beside: Collection[str]) -> str:
    """The page's HTML; the same findings give the same bytes.

    Args:
        found: all of it.
        pictures: the mosaic of each shown unit.
        beside: the tables' files, relative to the page.
    """
    order = [part.layer for part in found.parts]
    env = environment(order)
    env.loader = FileSystemLoader([OWN, TEMPLATES])
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    drawn = [unit for unit in found.units if (unit.layer, unit.unit) in found.shown]
    return env.get_template("units.html.j2").render(
        found=found,
        about=found.about,
        drawn=drawn,
        total=len(found.whole.units),
        pictures=pictures,
        beside=beside,
        script=Markup(script),
        script_digest=digest,
        summary=summary(found),
        banners=banners(found),
        tiles=tiles(found),
        table=layer_table(found),
        fit_worst=worst_fits(drawn),
        name_worst=worst_names(drawn),
        gradient="var(--tint), var(--tint)",
        zero=50,
    )


def exports(found: Findings) -> list[Export]:
    """The tables as files: every unit, and every layer's figures."""
    about = dict(found.about)
    layers = [layers_row(part) for part in (found.whole, *found.parts)]
    return [Export("units", about, [unit.row() for unit in found.units]), Export("layers", about, layers)]


def layer_table(found: Findings) -> Table:
    """Each layer's figures, above them those of all units together."""
    parts = [found.whole, *found.parts] if len(found.parts) > 1 else list(found.parts)
    named = any(part.tied for part in parts)
    keys = [key for key in COLUMNS if named or "named" not in key]
    counts = ["scored", *(["tied"] if named else [])]
    columns = [Column(key, COUNTS[key]) for key in counts] + [Column(key, COLUMNS[key]) for key in keys]
    rows = [Row(part.layer, f"layer-{part.layer}", True, _cells(part, counts, keys)) for part in parts]
    return Table("layers", columns, rows, noun=f"{len(found.whole.units)} units")


def _cells(part: Part, counts: Sequence[str], keys: Sequence[str]) -> list[Score | None]:
    numbers: list[Score | None] = [Score(value=float(getattr(part, key))) for key in counts]
    return numbers + [_score(part, key) for key in keys]


def _score(part: Part, key: str) -> Score:
    return Score.model_validate(part.figures[key].as_json())


def summary(found: Findings) -> str:
    """One sentence with the findings' own numbers."""
    about, whole = found.about, found.whole
    layers = "one layer" if len(found.parts) == 1 else f"{len(found.parts)} layers"
    text = (
        f"{len(whole.units)} units of {layers} of {about['backbone']}, each described from its {about['exemplars']} "
        f"top pictures among {about['scanned']:,}"
    )
    own, other = _score(whole, "auc"), _score(whole, "shuffled_auc")
    if own.value is not None and other.value is not None:
        text += (
            f". {whole.scored} of the descriptions are about something that captions of {about['scored_on']:,} other "
            f"pictures name: those that do activate the unit above the rest with AUC {number(own.value, _AREA)} "
            f"{interval(own, _AREA)}, those that fit another unit’s description with {number(other.value, _AREA)} "
            f"{interval(other, _AREA)}"
        )
    named, others = _score(whole, "named"), _score(whole, "shuffled_named")
    if named.value is not None and others.value is not None:
        text += (
            f". Of {whole.tied} units tied to one object, {with_unit(named.value, _PERCENT)} "
            f"{interval(named, _PERCENT)} get its name; from another unit’s description, "
            f"{with_unit(others.value, _PERCENT)}"
        )
    return text + "."


def banners(found: Findings) -> list[tuple[str, str]]:
    """What a reader must know before any number: (level, text), level "bad" or "warn"."""
    shown = []
    if str(found.about["weights"]).startswith("random"):
        shown.append(("bad", "weights: random. The vision model was never trained: its units mean nothing."))
    if (reason := _score(found.whole, "auc").not_run) is not None:
        shown.append(("warn", f"Descriptions were not scored: {reason}."))
    if layers := _overlapping(found, "auc_of_all_gap"):
        shown.append(("warn", f"{layers}: own descriptions fit units not measurably better than other units’ do."))
    if layers := _overlapping(found, "named_gap"):
        shown.append(("warn", f"{layers}: units tied to an object get its name not measurably more often than others."))
    return shown


def _overlapping(found: Findings, key: str) -> str:
    """The layers whose gap's interval reaches zero, in words."""
    low = {part.layer: _score(part, key).low for part in found.parts}
    return ", ".join(name for name, value in low.items() if value is not None and value <= 0)


def tiles(found: Findings) -> list[Tile]:
    """The head's numbers, as far as there are any."""
    shown = []
    for key, label, kind in (("auc", "AUC of own descriptions", _AREA), ("named", "object named", _PERCENT)):
        own, other = _score(found.whole, key), _score(found.whole, f"shuffled_{key}")
        if own.value is None or other.value is None:
            continue
        count = found.whole.scored if key == "auc" else found.whole.tied
        note = f"another unit’s {with_unit(other.value, kind)}; n = {count} units"
        shown.append(Tile(label, with_unit(own.value, kind), own.value, interval(own, kind), note))
    gap = _score(found.whole, "auc_gap")
    if gap.value is not None:
        value = number(gap.value, _AREA, signed=True)
        shown.append(Tile("AUC gap", value, gap.value, interval(gap, _AREA), "own minus another unit’s"))
    margins = [unit.said.margin for unit in found.units if unit.said is not None]
    if margins:
        middle = statistics.median(margins)
        kind = MetricKind("", 1)
        shown.append(Tile("median margin", number(middle, kind, signed=True), middle, "nats", "over the layer’s mean"))
    return shown


def worst_fits(units: Sequence[Unit]) -> list[Unit]:
    """The units whose own description fits them worst beside another unit's."""
    scored = [(unit.fit.gap, unit) for unit in units if unit.fit.gap is not None]
    return [unit for _, unit in sorted(scored, key=lambda pair: pair[0])][:WORST]


def worst_names(units: Sequence[Unit]) -> list[Unit]:
    """Units tied to an object that do not get its name, the most closely tied first."""
    missed = [unit for unit in units if unit.tie.tied and not unit.tie.named]
    return sorted(missed, key=lambda unit: -(unit.tie.auc or 0))[:WORST]
