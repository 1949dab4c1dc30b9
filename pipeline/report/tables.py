"""The page's tables out of the run's numbers: a row for each condition, a column for each metric; no HTML here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from devil_pipe.pipeline.report.anchors import anchor
from devil_pipe.pipeline.report.metrics import (
    ALL_LAYERS,
    BASELINES,
    METRICS,
    MetricKind,
    Metrics,
    Score,
    Scores,
    metric_kind,
    ordered_layers,
)

CONTROL_LABELS = {
    "shuffled": "shuffled features",
    "mean": "mean feature",
    "zero": "zero feature",
    "lm_alone": "language model alone",
}
BASELINE_LABELS = {"centre_prior": "centre prior", "random": "random map"}
DISTINCT = MetricKind("distinct descriptions", 1, percent=True)


@dataclass(frozen=True)
class Gap:
    """How far the translator with all layers lies from the best control; positive is better."""

    value: float
    control: str
    apart: bool | None
    """Whether the two 95 % intervals do not touch; None where one has no interval."""


@dataclass(frozen=True)
class Column:
    """One metric."""

    key: str
    kind: MetricKind
    not_run: str = ""
    """The reason, where no row of the column ran, for one and the same reason."""
    gap: Gap | None = None


@dataclass(frozen=True)
class Row:
    """One condition, its cells in the order of the columns; a cell is None where the run holds nothing."""

    key: str
    anchor: str
    sees: bool
    cells: list[Score | None]

    @property
    def label(self) -> str:
        """The condition's name in words."""
        return condition_label(self.key)


@dataclass(frozen=True)
class Table:
    """Rows and columns of scores, and what its files and its addresses are called."""

    name: str
    columns: list[Column]
    rows: list[Row]
    noun: str = field(default="", kw_only=True)
    """What the scores are means over, with its number: "300 pictures"."""

    def cell(self, row: str, column: str) -> Score | None:
        """The cell of a condition and a metric; None where there is none."""
        place = next((place for place, item in enumerate(self.columns) if item.key == column), None)
        cells = next((item.cells for item in self.rows if item.key == row), None)
        return None if place is None or cells is None else cells[place]

    def column(self, key: str) -> Column | None:
        """A metric's column, if there is one."""
        return next((item for item in self.columns if item.key == key), None)

    @property
    def has_gaps(self) -> bool:
        """Whether any column compares the translator with its controls."""
        return any(item.gap for item in self.columns)

    @property
    def reasons(self) -> list[tuple[str, list[str]]]:
        """Why scores are missing: each reason with the metrics that it holds for."""
        found: dict[str, list[str]] = {}
        for place, column in enumerate(self.columns):
            for reason in {cell.not_run for row in self.rows if (cell := row.cells[place]) and cell.not_run}:
                found.setdefault(reason, []).append(column.kind.label)
        return sorted(found.items())


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
    """All layers and each layer above the null controls, with the gap to the best control under each metric."""
    seeing = [ALL_LAYERS, *metrics.layer_names()]
    controls = [name for name in CONTROL_LABELS if name in metrics.controls]
    controls += sorted(set(metrics.controls) - set(controls))
    scores: dict[str, Mapping[str, Score]] = {**metrics.scores, **metrics.controls}
    columns = _columns(scores, controls)
    if metrics.distinct:
        scores = {name: {**scores[name], **_share(metrics, name)} for name in scores}
        columns.append(Column("distinct", DISTINCT))
    rows = [_row(anchor("layer", name), name, True, scores, columns) for name in seeing]
    rows += [_row(anchor("control", name), name, False, scores, columns) for name in controls]
    return Table("scores", columns, rows, noun=f"{metrics.n_scored} {metrics.things}")


def _share(metrics: Metrics, name: str) -> dict[str, Score]:
    return {"distinct": metrics.distinct[name]} if name in metrics.distinct else {}


def novel_table(metrics: Metrics) -> Table | None:
    """Scores on objects that training never showed; None where the run has none."""
    novel = metrics.novel_objects
    if novel is None or not novel.n or not novel.scores:
        return None
    names = [name for name in (ALL_LAYERS, *metrics.layer_names(), *CONTROL_LABELS) if name in novel.scores]
    names += sorted(set(novel.scores) - set(names))
    columns = _columns(novel.scores, [])
    rows = [_row(anchor("novel", name), name, name not in CONTROL_LABELS, novel.scores, columns) for name in names]
    return Table("novel", columns, rows, noun=f"{novel.n} {metrics.things}")


def saliency_table(metrics: Metrics) -> Table:
    """One row for each layer, then the baselines; the columns are the scores of maps."""
    layers = ordered_layers((name for name in metrics.saliency if name not in BASELINES), metrics.layers)
    names = [*layers, *(name for name in BASELINES if name in metrics.saliency)]
    parts: Scores = {
        name: {key: score for key, score in metrics.saliency[name].items() if isinstance(score, Score)}
        for name in names
    }
    columns = _columns(parts, [])
    rows = [_row(anchor("saliency", name), name, name not in BASELINES, parts, columns) for name in names]
    count = (metrics.model_extra or {}).get("n")
    return Table("saliency", columns, rows, noun=f"{count} pictures" if isinstance(count, int) else "")


def _columns(scores: Mapping[str, Mapping[str, Score]], controls: Sequence[str]) -> list[Column]:
    """The metrics that any condition has, the well-known ones first."""
    found = {key for part in scores.values() for key in part}
    keys = [key for key in METRICS if key in found] + sorted(found - set(METRICS))
    return [_column(key, scores, controls) for key in keys]


def _column(key: str, scores: Mapping[str, Mapping[str, Score]], controls: Sequence[str]) -> Column:
    kind = metric_kind(key)
    reasons = {part[key].not_run for part in scores.values() if key in part}
    reason = (reasons.pop() or "") if len(reasons) == 1 else ""
    best = _best({name: scores[name].get(key) for name in controls}, kind)
    gap = None if best is None else _gap(scores[ALL_LAYERS].get(key), scores[best][key], best, kind)
    return Column(key, kind, reason, gap)


def _row(
    address: str, name: str, sees: bool, scores: Mapping[str, Mapping[str, Score]], columns: Sequence[Column]
) -> Row:
    return Row(name, address, sees, [scores[name].get(column.key) for column in columns])


def _best(cells: Mapping[str, Score | None], kind: MetricKind) -> str | None:
    """The control that comes nearest to beating the translator."""
    ran = [
        (-cell.value if kind.lower_is_better else cell.value, name)
        for name, cell in cells.items()
        if cell is not None and cell.value is not None
    ]
    return max(ran, key=lambda pair: pair[0])[1] if ran else None


def _gap(own: Score | None, best: Score, control: str, kind: MetricKind) -> Gap | None:
    if own is None or own.value is None or best.value is None:
        return None
    sign = -1 if kind.lower_is_better else 1
    apart = None
    if own.low is not None and own.high is not None and best.low is not None and best.high is not None:
        apart = own.high < best.low if kind.lower_is_better else own.low > best.high
    return Gap(sign * (own.value - best.value), control, apart)
