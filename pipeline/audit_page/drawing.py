"""Intervals and curves as inline SVG, coloured by the page's CSS (light and dark)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup, escape

from devil_pipe.stages.audit.findings import Curve, Demand, Series

WIDE, HIGH = 640, 250
LEFT, RIGHT, TOP, FOOT = 34, 150, 12, 40
LINE = 15  # pixels between the names of two lines that end close together


def interval(demand: Demand) -> Markup:
    """A demand's figure with its interval, and the bound that it must be clear of; the bound is the upright line."""
    figure = demand.figure
    low, high = min(figure.low, demand.bound), max(figure.high, demand.bound)
    margin = 0.12 * (high - low) or 1.0

    def across(value: float) -> str:
        return f"{150 * (value - low + margin) / (high - low + 2 * margin):.1f}"

    bound = across(demand.bound)
    return Markup(
        f'<svg class="interval" viewBox="0 0 150 18" aria-hidden="true">'
        f'<line class="bound" x1="{bound}" x2="{bound}" y1="1" y2="17"/>'
        f'<line class="span" x1="{across(figure.low)}" x2="{across(figure.high)}" y1="9" y2="9"/>'
        f'<circle cx="{across(figure.value)}" cy="9" r="3.6"/></svg>'
    )


def curve(drawn: Curve) -> Markup:
    """Lines over named places, each with a name at its end and its intervals as upright strokes; 1 and 0 are ruled."""
    values = [bound for series in drawn.series for point in series.points for bound in (point.low, point.high)]
    low, high = min(0.0, *values), max(1.0, *values)
    parts = [f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escape(drawn.caption)}" class="curve">']
    for tick in (0.0, 0.5, 1.0):
        height = _down(tick, low, high)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for place, name in enumerate(drawn.places):
        middle = _across(place, len(drawn.places))
        for number, word in enumerate(name.split(", ")):
            parts.append(
                f'<text x="{middle:.1f}" y="{HIGH - FOOT + 18 + 14 * number}" text-anchor="middle">'
                f"{escape(word)}</text>"
            )
    for number, series in enumerate(drawn.series):
        parts += _line(series, number, low, high)
    parts += _names(drawn.series, low, high)
    return Markup("\n".join([*parts, "</svg>"]))


def _across(place: int, count: int) -> float:
    return LEFT + 24 + (WIDE - LEFT - RIGHT - 48) * place / max(count - 1, 1)


def _down(value: float, low: float, high: float) -> float:
    return TOP + (HIGH - TOP - FOOT) * (high - value) / (high - low)


def _line(series: Series, number: int, low: float, high: float) -> Iterator[str]:
    count = len(series.points)
    points = [(_across(place, count), point) for place, point in enumerate(series.points)]
    path = " ".join(f"{across:.1f},{_down(point.value, low, high):.1f}" for across, point in points)
    yield f'<g class="line l{number % 4}"><polyline points="{path}"/>'
    for across, point in points:
        upper, lower = _down(point.high, low, high), _down(point.low, low, high)
        yield f'<line class="span" x1="{across:.1f}" x2="{across:.1f}" y1="{upper:.1f}" y2="{lower:.1f}"/>'
        yield f'<circle cx="{across:.1f}" cy="{_down(point.value, low, high):.1f}" r="3.2"/>'
    yield "</g>"


def _names(lines: Sequence[Series], low: float, high: float) -> Iterator[str]:
    """Each line's name at its end, none over another, all within the figure."""
    ends = sorted((_down(series.points[-1].value, low, high), number) for number, series in enumerate(lines))
    above = 0.0
    heights = []
    for height, _ in ends:
        above = max(height, above + LINE)
        heights.append(above)
    over = max(0.0, heights[-1] - (HIGH - FOOT)) if heights else 0.0
    for (_, number), height in zip(ends, heights, strict=True):
        name, value = lines[number].label, lines[number].points[-1].value
        yield (
            f'<text class="name l{number % 4}" x="{WIDE - RIGHT + 6}" y="{height - over + 4:.1f}">'
            f"{escape(name)} {number_text(value)}</text>"
        )


def number_text(value: float, digits: int = 2, *, signed: bool = False) -> str:
    """A number as the page writes it, with a minus sign that is one; never a negative zero."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if signed else ''}.{digits}f}".replace("-", "−")
