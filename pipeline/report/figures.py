"""Curves and intervals as inline SVG, drawn by matplotlib, coloured by the page's CSS (light and dark)."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Stand-ins that matplotlib can draw; in the SVG each becomes the page's own colour.
INK, FAINT, OWN, BLIND = "#010201", "#010202", "#010203", "#010204"
CSS_COLOURS = {INK: "var(--ink-2)", FAINT: "var(--rule)", OWN: "var(--own)", BLIND: "var(--blind)"}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a layer may be named with dollars
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
WIDTH = 5.4  # inches; 72 points each, so that on a phone a point is about a pixel


class IntervalRow(NamedTuple):
    """One line of an interval figure."""

    label: str
    value: float
    low: float | None
    high: float | None
    sees: bool


def training_curve(log: Sequence[Mapping[str, Any]], name: str) -> Markup | None:
    """Language phase: training loss, and validation loss with own and with shuffled features, gap shaded.

    Losses are in nats a token over optimizer steps. None where the log holds nothing of that phase.
    """
    training = _series(log, "language", "loss")
    own, shuffled = _series(log, "language", "val_loss"), _series(log, "language", "val_loss_shuffled")
    if not training and not own:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(2.9)
        _line(axes, training, INK, 0.9, alpha=0.55)
        _line(axes, own, OWN, 1.8, marker="o")
        _line(axes, shuffled, BLIND, 1.8, marker="o", dashes=(4, 2))
        if own and [step for step, _ in own] == [step for step, _ in shuffled]:
            steps, low = zip(*own, strict=True)
            high = [loss for _, loss in shuffled]
            axes.fill_between(steps, low, high, color=OWN, alpha=0.13, linewidth=0)
        labels = [
            (own, OWN, "own"),
            (shuffled, BLIND, "shuffled"),
        ]
        _end_labels(axes, labels)
        axes.set(xlabel="step", ylabel="loss, nats/token")
        return _svg(figure, name, "Loss of the language phase over steps: training, validation, shuffled")


def alignment_curve(log: Sequence[Mapping[str, Any]], name: str) -> Markup | None:
    """Alignment warm-up: training and validation loss over steps; None where no warm-up ran."""
    training = _series(log, "alignment", "loss")
    validation = _series(log, "alignment", "val_alignment_loss")
    if not training and not validation:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(2.9)
        _line(axes, training, INK, 0.9, alpha=0.55)
        _line(axes, validation, OWN, 1.8, marker="o")
        _end_labels(axes, [(validation, OWN, "validation")])
        axes.set(xlabel="step", ylabel="alignment loss, nats/token")
        return _svg(figure, name, "Alignment loss over steps: training and validation")


def interval_figure(rows: Sequence[IntervalRow], unit: str, percent: bool, name: str) -> Markup:
    """One metric for every condition: a dot with its 95 % interval; blind controls drawn hollow."""
    factor = 100 if percent else 1
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x", "axes.spines.left": False}):
        figure, axes = _canvas(0.62 + 0.235 * len(rows))
        for position, row in enumerate(rows):
            colour = OWN if row.sees else BLIND
            if row.low is not None and row.high is not None:
                axes.plot(
                    [row.low * factor, row.high * factor],
                    [position, position],
                    color=colour,
                    linewidth=2.4,
                    alpha=0.45,
                    solid_capstyle="round",
                )
            face = colour if row.sees else "none"
            axes.plot([row.value * factor], [position], "o", markersize=5.5, mec=colour, mfc=face)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(left=min(0, *axes.get_xlim()))
        axes.set_xlabel(unit)
        return _svg(figure, name, f"{unit} with 95 % intervals for each condition; the table holds the numbers")


def _series(log: Sequence[Mapping[str, Any]], phase: str, key: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[key]) for entry in log if entry["phase"] == phase and key in entry]


def _canvas(height: float) -> tuple[Any, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _line(
    axes: Any,
    series: list[tuple[int, float]],
    colour: str,
    width: float,
    *,
    alpha: float = 1.0,
    marker: str = "",
    dashes: tuple[int, int] | None = None,
) -> None:
    if not series:
        return
    steps, losses = zip(*series, strict=True)
    (line,) = axes.plot(steps, losses, color=colour, linewidth=width, alpha=alpha, marker=marker, markersize=3)
    if dashes:
        line.set_dashes(dashes)


def _end_labels(axes: Any, labels: list[tuple[list[tuple[int, float]], str, str]]) -> None:
    """Name each curve at its last point, in its own colour, in place of a legend; never one over another."""
    ends = sorted((series[-1][1], series[-1][0], colour, text) for series, colour, text in labels if series)
    low, high = axes.get_ylim()
    below = float("-inf")
    for loss, step, colour, text in ends:
        height = max(loss, below + 0.07 * (high - low))
        below = height
        axes.annotate(
            f"{text} {loss:.2f}",
            (step, height),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold",
            annotation_clip=False,
        )


def _svg(figure: Any, name: str, title: str) -> Markup:
    """The figure as an SVG element fit for inlining: own ids, the page's fonts and colours, no addresses."""
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawn = text.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', drawn)
    if box is None:  # pragma: no cover - matplotlib always writes one
        raise AssertionError("matplotlib wrote an SVG without a viewBox")
    head = f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(title)}">'
    drawn = head + drawn[drawn.index(">") + 1 :]
    drawn = re.sub(r"<!--.*?-->|<style.*?</style>|<defs>\s*</defs>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'<g id="[^"]+"', "<g", drawn).replace("xlink:href", "href")
    drawn = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', drawn)
    drawn = re.sub(r'(href="#|url\(#)', rf"\1{name}-", drawn)
    drawn = re.sub(r"font: ?(\w+ )?([\d.]+px) [^;\"]*", r"font-size: \2; font-weight: \1", drawn)
    drawn = re.sub(r"font-family:[^;\"]*;? ?|; font-weight: (?=[;\"])", "", drawn)
    # matplotlib escapes every text it draws, so the drawing is markup as it stands.
    for stand_in, colour in CSS_COLOURS.items():
        drawn = drawn.replace(stand_in, colour)
    return Markup(re.sub(r">\s+<", ">\n<", drawn))
