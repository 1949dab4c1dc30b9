"""All maps of a picture in one look: a row for each layer, a column for each query, one colour scale."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from devil_pipe.stages.common.files import replacing
from devil_pipe.stages.saliency.overlays import Scale, overlay

INK, FAINT, GREEN = "#1c1c1c", "#6b6b6b", "#00a651"
SIDE = 2.35  # inches along a cell's longer side
STYLE = {"font.family": "sans-serif", "font.size": 9, "text.color": INK, "axes.labelcolor": INK, "figure.dpi": 130}


@dataclass(frozen=True)
class Row:
    """What one layer (or all together) shows."""

    name: str
    grid: tuple[int, int]
    queries: Sequence[str]
    maps: Sequence[Float[np.ndarray, "_ _"]]
    """One a query, on a grid of any size."""

    said: str = ""
    """The description that the queries were taken from."""

    box: tuple[float, float, float, float] | None = None
    """The location that it is of: left, top, right and bottom in pixels of the picture."""


def draw_grid(
    rows: Sequence[Row],
    picture: Image.Image,
    scale: Scale,
    notes: Sequence[str],
    path: Path,
    at: tuple[float, float] | None = None,
) -> None:
    """Write the figure as a PNG.

    Args:
        rows: from top to bottom; where they have the same queries, these stand once, above the columns.
        picture: on which everything is drawn.
        scale: of all maps.
        notes: for the foot.
        path: of the PNG.
        at: a place to be marked, in pixels.
    """
    layout = _Layout(rows, picture.size, notes)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(layout.width, layout.height))
        for number, row in enumerate(rows):
            cells = [layout.cell(figure, number, column) for column in range(1, len(row.queries) + 1)]
            for axes, query, values in zip(cells, row.queries, row.maps, strict=True):
                axes.imshow(np.asarray(overlay(values, picture, scale)))
                if number == 0 or not layout.shared:
                    text = textwrap.shorten(query, int(13 * layout.across), placeholder="…")
                    axes.set_title(text, fontsize=9.5, pad=4)
            beside = cells[0]
            if number == 0 or layout.told:
                first = layout.cell(figure, number, 0)
                _photograph(first, picture, row, at)
                beside = first if layout.told else beside
            if row.said:
                text = "\n".join(
                    textwrap.wrap(f"“{row.said}”", int(17 * layout.across), max_lines=2, placeholder=" …”")
                )
                first.text(0, -0.04, text, transform=first.transAxes, va="top", fontsize=8, style="italic")
            beside.set_ylabel(f"{row.name}\n{row.grid[0]} × {row.grid[1]}", rotation=0, ha="right", va="center")
        _colour_bar(figure, scale, layout)
        place = layout.edge / layout.width, (layout.foot - 0.12) / layout.height
        figure.text(*place, "\n".join(layout.lines), va="top", color=FAINT, fontsize=7.5)
        with replacing(path) as partial:
            figure.savefig(partial, format="png")


class _Layout:
    """Where everything stands, in inches: picture, labels, maps; or, with descriptions, labels, pictures, maps."""

    right, gap = 1.0, 0.09

    def __init__(self, rows: Sequence[Row], size: tuple[int, int], notes: Sequence[str]) -> None:
        columns = max(len(row.queries) for row in rows)
        self.shared = len({tuple(row.queries) for row in rows}) == 1
        self.told = any(row.said for row in rows)
        self.across, self.down = (SIDE * side / max(size) for side in size)
        labels = 0.12 + 0.075 * max(len(row.name) for row in rows)
        self.edge, self.beside = (labels, self.gap) if self.told else (0.12, labels)
        self.title = 0.3
        self.pitch = self.down + self.gap + (0.36 if self.told else 0) + (0 if self.shared else self.title)
        self.width = self.edge + self.across + self.beside + columns * (self.across + self.gap) + self.right
        self.lines = [line for note in notes for line in textwrap.wrap(note, int(15 * (self.width - self.edge)))]
        self.foot = 0.25 + 0.15 * len(self.lines)
        self.height = (self.title if self.shared else 0) + len(rows) * self.pitch + self.foot

    def cell(self, figure: Figure, row: int, column: int) -> Any:
        """Axes without ticks; column 0 is the picture's."""
        start = self.edge + (self.across + self.beside + (column - 1) * (self.across + self.gap) if column else 0)
        bottom = self.height - self.title - row * self.pitch - self.down
        place = start / self.width, bottom / self.height, self.across / self.width, self.down / self.height
        axes = figure.add_axes(place)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes


def _photograph(axes: Any, picture: Image.Image, row: Row, at: tuple[float, float] | None) -> None:
    axes.imshow(np.asarray(picture))
    if row.box is not None:
        left, top, right, bottom = row.box
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec="white", lw=2.2))
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=GREEN, lw=1.2))
    if at is not None:
        axes.plot(*at, "o", ms=6, mfc=GREEN, mec="white", mew=1.2)
    axes.set(xlim=(-0.5, picture.width - 0.5), ylim=(picture.height - 0.5, -0.5))


def _colour_bar(figure: Figure, scale: Scale, layout: _Layout) -> None:
    tall = min(layout.height - layout.title - layout.foot, 3.2)
    start, bottom = layout.width - layout.right + 0.12, layout.height - layout.title - tall
    axes = figure.add_axes((start / layout.width, bottom / layout.height, 0.13 / layout.width, tall / layout.height))
    bar = figure.colorbar(ScalarMappable(Normalize(scale.low, scale.high), scale.colours), cax=axes)
    bar.outline.set_visible(False)
    middle = (scale.low + scale.high) / 2
    ends = [f"≤ {scale.low:g}", f"{middle:g}", "0" if scale.plain else f"≥ +{scale.high:g}"]
    bar.set_ticks([scale.low, middle, scale.high], labels=ends)
    axes.tick_params(length=0, labelsize=8)
    axes.set_ylabel(scale.label, fontsize=8, color=FAINT, labelpad=-2)
