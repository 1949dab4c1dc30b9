"""The page's tables and texts out of the run's numbers: nothing here knows HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from devil_pipe.pipeline.report.metrics import (
    ALL_LAYERS,
    BASELINES,
    METRICS,
    MetricKind,
    Metrics,
    Score,
    metric_kind,
    ordered_layers,
)

CONTROL_LABELS = {
    "shuffled": "shuffled features",
    "mean": "mean feature",
    "zero": "zero feature",
    "lm_alone": "language model alone",
}
BASELINE_LABELS = {"centre_prior": "centre prior", "random": "random"}
SEEING, BLIND = "each layer alone", "cannot see: null controls"
COLLAPSE_SHARE, BLIND_GAP = 0.1, 0.05


@dataclass(frozen=True)
class Gap:
    """How far the translator with all layers lies from the best control; positive is better."""

    value: float
    control: str
    apart: bool | None
    """Whether the two 95 % intervals do not touch; None where one has no interval."""


@dataclass(frozen=True)
class Row:
    """One metric (or one layer) of a table; a cell is None where the run holds nothing."""

    key: str
    kind: MetricKind
    cells: list[Score | None]
    gap: Gap | None = None
    best_control: int | None = None
    """Position of the best control among the cells."""

    @property
    def not_run(self) -> str | None:
        """The reason, where the whole row did not run for one and the same reason."""
        reasons = {cell.not_run if cell else None for cell in self.cells if cell is not None}
        return reasons.pop() if len(reasons) == 1 else None


@dataclass(frozen=True)
class Table:
    """Columns (name, group) and rows of scores."""

    columns: list[tuple[str, str]]
    rows: list[Row]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The groups of the columns behind the first one, in order, each with its number of columns."""
        return [(name, len(list(run))) for name, run in groupby(group for _, group in self.columns[1:])]


def number(value: float, kind: MetricKind, signed: bool = False) -> str:
    """A value as the page prints it: a percentage or a fixed number of digits, with a true minus sign."""
    shown = round(value * 100 if kind.percent else value, kind.digits) + 0.0  # no minus before a zero
    return f"{shown:{'+' if signed else ''}.{kind.digits}f}".replace("-", "−")


def with_unit(value: float, kind: MetricKind) -> str:
    """`number` with its per cent sign."""
    return number(value, kind) + ("\u202f%" if kind.percent else "")


def interval(score: Score, kind: MetricKind) -> str:
    """The 95 % interval in brackets, or nothing where none is known."""
    if score.low is None or score.high is None:
        return ""
    return f"[{number(score.low, kind)}, {number(score.high, kind)}]"


def condition_label(name: str) -> str:
    """A condition's name in words."""
    return CONTROL_LABELS.get(name) or BASELINE_LABELS.get(name) or ("all layers" if name == ALL_LAYERS else name)


def score_table(metrics: Metrics) -> Table:
    """All layers and each layer beside the null controls, one row for each metric, with gaps."""
    seeing = [ALL_LAYERS, *metrics.layer_names()]
    controls = [name for name in CONTROL_LABELS if name in metrics.controls]
    controls += sorted(set(metrics.controls) - set(controls))
    rows = []
    for key in _metric_keys([*metrics.scores.values(), *metrics.controls.values()]):
        own = [metrics.scores[name].get(key) for name in seeing]
        blind = [metrics.controls[name].get(key) for name in controls]
        best = _best(blind, metric_kind(key))
        gap = None if best is None else _gap(own[0], blind[best], controls[best], metric_kind(key))
        rows.append(Row(key, metric_kind(key), [*own, *blind], gap, None if best is None else len(own) + best))
    if metrics.distinct:
        share = MetricKind("distinct descriptions", 1, percent=True)
        rows.append(Row("distinct", share, [metrics.distinct.get(name) for name in (*seeing, *controls)]))
    columns = [(name, SEEING) for name in seeing] + [(name, BLIND) for name in controls]
    return Table(columns, rows)


def novel_table(metrics: Metrics) -> Table | None:
    """Scores on objects that training never showed; None where the run has none."""
    novel = metrics.novel_objects
    if novel is None or not novel.n or not novel.scores:
        return None
    names = [name for name in (ALL_LAYERS, *metrics.layer_names(), *CONTROL_LABELS) if name in novel.scores]
    names += sorted(set(novel.scores) - set(names))
    rows = [
        Row(key, metric_kind(key), [novel.scores[name].get(key) for name in names])
        for key in _metric_keys(list(novel.scores.values()))
    ]
    groups = [BLIND if name in CONTROL_LABELS else SEEING for name in names]
    return Table(list(zip(names, groups, strict=True)), rows)


def saliency_table(metrics: Metrics) -> Table:
    """One row for each layer, then the baselines; the columns are the scores of maps."""
    layers = ordered_layers((name for name in metrics.saliency if name not in BASELINES), metrics.layers)
    names = [*layers, *(name for name in BASELINES if name in metrics.saliency)]
    parts = {
        name: {key: score for key, score in metrics.saliency[name].items() if isinstance(score, Score)}
        for name in names
    }
    keys = _metric_keys(list(parts.values()))
    rows = [Row(name, metric_kind(name), [parts[name].get(key) for key in keys]) for name in names]
    return Table([(key, "") for key in keys], rows)


def loss_gap(metrics: Metrics) -> float | None:
    """Nats a token by which shuffled features are worse; None where either loss did not run."""
    own, shuffled = metrics.scores[ALL_LAYERS].get("loss"), metrics.controls.get("shuffled", {}).get("loss")
    if own is None or shuffled is None or own.value is None or shuffled.value is None:
        return None
    return shuffled.value - own.value


def noun(metrics: Metrics) -> str:
    """What the pictures are."""
    return "demo composites" if "composite" in metrics.data_note.lower() else f"pictures of “{metrics.data}”"


def summary(metrics: Metrics) -> str:
    """One sentence in plain words with the run's own numbers."""
    table = {row.key: row for row in score_table(metrics).rows}
    parts = []
    named, cider = table.get("object_accuracy"), table.get("cider")
    if named and (score := named.cells[0]) and score.value is not None:
        parts.append(
            f"it names the object in {with_unit(score.value, named.kind)} {interval(score, named.kind)} of them"
        )
    if cider and (score := cider.cells[0]) and score.value is not None:
        text = f"reaches CIDEr {number(score.value, cider.kind)} {interval(score, cider.kind)}"
        best = cider.cells[cider.best_control] if cider.best_control is not None else None
        if best and best.value is not None:
            text += f" against at most {number(best.value, cider.kind)} for a translator that cannot see"
        parts.append(text)
    gap = loss_gap(metrics)
    if gap is not None:
        more = "more" if gap < 0 else "less"
        loss = METRICS["loss"]
        parts.append(f"spends {number(abs(gap), loss)} nats a token {more} than with shuffled features")
    said = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else "no score ran"
    return f"On {metrics.n_scored} {noun(metrics)}, described from all layers of a frozen vision model, {said}."


def banners(metrics: Metrics) -> list[tuple[str, str]]:
    """What a reader must know before any number: (level, text), level "bad" or "warn"."""
    found = []
    if metrics.weights.lower().startswith("random"):
        found.append(("bad", "weights: random. The vision model was never trained: these numbers describe noise."))
    if metrics.n_scored != metrics.n_index:
        found.append(("bad", f"Only {metrics.n_scored} of {metrics.n_index} pictures were scored."))
    share = metrics.distinct.get(ALL_LAYERS)
    if share and share.value is not None and share.value < COLLAPSE_SHARE:
        percent = number(share.value, MetricKind("", 1, percent=True))
        found.append(("warn", f"Caption collapse: only {percent}\u202f% of the descriptions differ from each other."))
    gap = loss_gap(metrics)
    if gap is not None and gap < BLIND_GAP:
        found.append(
            (
                "warn",
                f"The loss with shuffled features is only {number(gap, MetricKind('', 3))} nats a token higher: "
                "the descriptions hardly depend on the picture.",
            )
        )
    return found


def scores_csv(metrics: Metrics) -> str:
    """Every score as one tidy line: part, condition, metric, value, low, high, not_run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["part", "condition", "metric", "value", "low", "high", "not_run"])
    writer.writerows(_tidy(metrics))
    return text.getvalue()


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


def _metric_keys(parts: Sequence[Mapping[str, Score]]) -> list[str]:
    found = {key for part in parts for key in part}
    return [key for key in METRICS if key in found] + sorted(found - set(METRICS))


def _best(cells: Sequence[Score | None], kind: MetricKind) -> int | None:
    ran = [
        (-cell.value if kind.lower_is_better else cell.value, position)
        for position, cell in enumerate(cells)
        if cell is not None and cell.value is not None
    ]
    return max(ran, key=lambda pair: pair[0])[1] if ran else None


def _gap(own: Score | None, best: Score | None, control: str, kind: MetricKind) -> Gap | None:
    if own is None or best is None or own.value is None or best.value is None:
        return None
    sign = -1 if kind.lower_is_better else 1
    apart = None
    if own.low is not None and own.high is not None and best.low is not None and best.high is not None:
        apart = own.high < best.low if kind.lower_is_better else own.low > best.high
    return Gap(sign * (own.value - best.value), control, apart)
