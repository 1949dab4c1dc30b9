"""What the page says in words: the one-sentence summary, its head's numbers, and what must be known before any."""

from __future__ import annotations

from dataclasses import dataclass

from devil_pipe.pipeline.report import tables
from devil_pipe.pipeline.report.metrics import ALL_LAYERS, BASELINES, METRICS, MetricKind, Metrics, Score, metric_kind

COLLAPSE_SHARE, BLIND_GAP = 0.1, 0.05


@dataclass(frozen=True)
class Tile:
    """One number of the page's head."""

    label: str
    value: str
    exact: float
    interval: str
    note: str


def loss_gap(metrics: Metrics) -> float | None:
    """Nats a token by which shuffled features are worse; None where either loss did not run."""
    own, shuffled = metrics.scores[ALL_LAYERS].get("loss"), metrics.controls.get("shuffled", {}).get("loss")
    if own is None or shuffled is None or own.value is None or shuffled.value is None:
        return None
    return shuffled.value - own.value


def noun(metrics: Metrics) -> str:
    """What was described: pictures or units, and of which data."""
    composites = "composite" in metrics.data_note.lower()
    return "demo composites" if composites else f"{metrics.things} of “{metrics.data}”"


def duration(seconds: float) -> str:
    """Seconds in the units a person reads: 42 s, 8 min 30 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _best_control(scores: tables.Table, key: str) -> Score | None:
    """The best control's score of a metric, where it ran."""
    column = scores.column(key)
    return None if column is None or column.gap is None else scores.cell(column.gap.control, key)


def summary(metrics: Metrics) -> str:
    """One sentence in plain words with the run's own numbers."""
    table = tables.score_table(metrics)
    parts = []
    named, cider = table.cell(ALL_LAYERS, "object_accuracy"), table.cell(ALL_LAYERS, "cider")
    if named and named.value is not None:
        kind = metric_kind("object_accuracy")
        parts.append(
            f"it names the object in {tables.with_unit(named.value, kind)} {tables.interval(named, kind)} of them"
        )
    if cider and cider.value is not None:
        kind = metric_kind("cider")
        text = f"reaches CIDEr {tables.number(cider.value, kind)} {tables.interval(cider, kind)}"
        best = _best_control(table, "cider")
        if best and best.value is not None:
            text += f" against at most {tables.number(best.value, kind)} for a translator that cannot see"
        parts.append(text)
    gap = loss_gap(metrics)
    if gap is not None:
        more = "more" if gap < 0 else "less"
        parts.append(
            f"spends {tables.number(abs(gap), METRICS['loss'])} nats a token {more} than with shuffled features"
        )
    said = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else "no score ran"
    return f"On {metrics.n_scored} {noun(metrics)}, described from all layers of a frozen vision model, {said}."


def banners(metrics: Metrics) -> list[tuple[str, str]]:
    """What a reader must know before any number: (level, text), level "bad" or "warn"."""
    found = []
    if metrics.weights.lower().startswith("random"):
        found.append(("bad", "weights: random. The vision model was never trained: these numbers describe noise."))
    if metrics.n_scored != metrics.n_index:
        found.append(("bad", f"Only {metrics.n_scored} of {metrics.n_index} {metrics.things} were scored."))
    share = metrics.distinct.get(ALL_LAYERS)
    if share and share.value is not None and share.value < COLLAPSE_SHARE:
        percent = tables.number(share.value, MetricKind("", 1, percent=True))
        found.append(("warn", f"Caption collapse: only {percent}\u202f% of the descriptions differ from each other."))
    gap = loss_gap(metrics)
    if gap is not None and gap < BLIND_GAP:
        thing = metrics.things.removesuffix("s")
        found.append(
            (
                "warn",
                f"The loss with shuffled features is only {tables.number(gap, MetricKind('', 3))} nats a token "
                f"higher: the descriptions hardly depend on the {thing}.",
            )
        )
    return found


def tiles(metrics: Metrics, scores: tables.Table) -> list[Tile]:
    """The head's four numbers, as far as the run has them."""
    found = []
    for key, label in (("object_accuracy", "object named"), ("cider", "CIDEr")):
        own, kind = scores.cell(ALL_LAYERS, key), metric_kind(key)
        if own is None or own.value is None:
            continue
        best = _best_control(scores, key)
        note = "" if best is None or best.value is None else f"best control {tables.with_unit(best.value, kind)}"
        found.append(Tile(label, tables.with_unit(own.value, kind), own.value, tables.interval(own, kind), note))
    gap = loss_gap(metrics)
    if gap is not None:
        value = tables.number(gap, metric_kind("loss"), signed=True)
        found.append(Tile("loss gap", value, gap, "nats/token", "shuffled minus own features"))
    return found + _pointing_tile(metrics)


def _pointing_tile(metrics: Metrics) -> list[Tile]:
    """The deepest layer's pointing game off centre beside the centre prior."""
    table, key = tables.saliency_table(metrics), "pointing_off_centre"
    layers = [row.key for row in table.rows if row.key not in BASELINES]
    own = table.cell(layers[-1], key) if layers else None
    if own is None or own.value is None:
        return []
    prior, kind = table.cell("centre_prior", key), metric_kind(key)
    note = "" if prior is None or prior.value is None else f"centre prior {tables.with_unit(prior.value, kind)}"
    label = f"pointing off centre, {layers[-1]}"
    return [Tile(label, tables.with_unit(own.value, kind), own.value, tables.interval(own, kind), note)]
