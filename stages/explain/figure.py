"""Pictures with markers, and beside them what each layer says there: laid out like the paper's Figures 4, 5 and 10."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextToPath

from devil_pipe.stages.common.files import replacing
from devil_pipe.stages.explain.answers import Description
from devil_pipe.stages.explain.telling import MEANING, Told

# Inches.
WIDTH, EDGE, GAP = 11.0, 0.3, 0.35
PICTURE, TALLEST = 4.2, 5.2
NAMES, TRUST = 1.6, 1.75  # of the columns at most
LEFT = EDGE + PICTURE + 0.35  # of the text beside a picture
DPI, MOST_PIXELS = 150, 60_000

COLOURS = ("#12a150", "#e0218a", "#1f6fd6", "#e08a00", "#7a3fc9", "#00a0a0", "#c0392b", "#7f6b00")
"""Green and pink, as in the paper, and what tells itself from them; each marker has a letter, too."""

INK, SOFT, WEAK = "#1a1a1a", "#6b6b6b", "#858585"
SIZE, SMALL = 10.0, 8.0
UNIT = "nats (2.5 to 97.5 %)"


@dataclass(frozen=True)
class _Word:
    """A piece of text at a place of its column: inches from its left edge and from its upper edge."""

    x: float
    y: float
    text: str
    size: float = SIZE
    colour: str = INK
    weight: str = "normal"
    style: str = "normal"
    right: bool = False


@dataclass
class _Column:
    """Text laid out from the top down."""

    width: float
    names: float = 0.0
    """Of its width, for the layers' names."""

    words: list[_Word] = field(default_factory=list)
    height: float = 0.0

    def heading(self, text: str, colour: str = INK) -> None:
        self.height += 0.12 if self.height else 0.0
        for line in wrapped(text, self.width - TRUST, SIZE, "bold"):
            self.words.append(_Word(0, self.height, line, colour=colour, weight="bold"))
            self.height += _line(SIZE)

    def paragraph(self, text: str) -> None:
        for line in wrapped(text, self.width, SMALL):
            self.words.append(_Word(0, self.height, line, size=SMALL, colour=SOFT))
            self.height += _line(SMALL)

    def description(self, name: str, item: Description, colour: str) -> None:
        """The layer's name, what it says, and at the right how far to trust it."""
        weak = bool(item.weak)
        names = wrapped(name, self.names - 0.12, SIZE, "bold")
        said = wrapped(item.text or "(nothing)", self.width - self.names - (TRUST if item.margin else 0), SIZE)
        for row, line in enumerate(names):
            where = self.height + row * _line(SIZE)
            self.words.append(_Word(0, where, line, colour=WEAK if weak else colour, weight="bold"))
        for row, line in enumerate(said):
            where = self.height + row * _line(SIZE)
            self.words.append(
                _Word(self.names, where, line, colour=WEAK if weak else INK, style="italic" if weak else "normal")
            )
        if item.margin is not None:
            told = f"{item.margin.nats:.1f}  ({item.margin.low:.1f} to {item.margin.high:.1f})"
            told = f"weak  {told}" if weak else told
            # On the baseline of the larger words beside it.
            self.words.append(_Word(self.width, self.height + 0.025, told, size=SMALL, colour=SOFT, right=True))
        self.height += max(len(names), len(said)) * _line(SIZE) + 0.03


def _line(size: float) -> float:
    return size * 1.42 / 72


@lru_cache(maxsize=4096)
def _inches(text: str, size: float, weight: str) -> float:
    """How wide a piece of text is set."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter without a shape is drawn as a box
        font = FontProperties(size=size, weight=weight)
        return float(TextToPath().get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def wrapped(text: str, width: float, size: float, weight: str = "normal") -> list[str]:
    """Lines of at most so many inches; a word that is longer than a line is cut."""
    found: list[str] = []
    line, used, space = "", 0.0, _inches(" ", size, weight)
    for word in text.split():
        for part in _parts(word, width, size, weight):
            long = _inches(part, size, weight)
            if line and used + space + long > width:
                found.append(line)
                line, used = "", 0.0
            line, used = (f"{line} {part}", used + space + long) if line else (part, long)
    return [*found, line]


def _parts(word: str, width: float, size: float, weight: str) -> list[str]:
    """A word in pieces that fit a line, letter by letter; itself where it fits."""
    if _inches(word, size, weight) <= width:
        return [word]
    found, used = [""], 0.0
    for letter in word:
        long = _inches(letter, size, weight)
        if found[-1] and used + long > width:
            found.append("")
            used = 0.0
        found[-1] += letter
        used += long
    return found


def draw(told: Sequence[Told], note: str, path: Path) -> None:
    """Write a PNG: pictures below each other, each beside its descriptions, the deepest layer first.

    Args:
        told: one picture or more.
        note: on the data, for the foot.
        path: of the file.
    """
    columns = [_beside(one) for one in told]
    sizes = [_size(one) for one in told]
    heights = [max(column.height, high) for column, (_, high) in zip(columns, sizes, strict=True)]
    foot = _Column(WIDTH - 2 * EDGE)
    foot.paragraph(note)
    if any(item.margin for one in told for item in one.descriptions):
        foot.paragraph(MEANING)
    height = EDGE + sum(high + GAP for high in heights) + foot.height + EDGE
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    top = EDGE
    for one, column, size, high in zip(told, columns, sizes, heights, strict=True):
        _picture(figure, one, size, top)
        _write(figure, column, LEFT, top)
        top += high + GAP
    _write(figure, foot, EDGE, top)
    with replacing(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(partial, format="png", dpi=min(DPI, MOST_PIXELS / height))


def _size(told: Told) -> tuple[float, float]:
    """Width and height of a picture in inches."""
    width, height = told.picture.size
    scale = min(PICTURE / width, TALLEST / height)
    return width * scale, height * scale


def _marks(told: Told) -> Iterator[tuple[str, str]]:
    """Letter and colour of each place, then of each box."""
    for number in range(len(told.places) + len(told.boxes)):
        letter = chr(ord("A") + number) if number < 26 else str(number + 1)
        yield letter, COLOURS[number % len(COLOURS)]


def _beside(told: Told) -> _Column:
    """The text beside a picture."""
    longest = max(_inches(name, SIZE, "bold") for name in ("all", *(str(item.layer) for item in told.layers)))
    column = _Column(WIDTH - LEFT - EDGE, min(longest + 0.2, NAMES))
    if told.whole.margin is not None:
        column.words.append(_Word(column.width, 0.025, UNIT, size=SMALL, colour=SOFT, right=True))
    column.heading(f"{Path(told.name).name}, the whole picture")
    column.description("all", told.whole, INK)
    for item in reversed(told.layers):
        column.description(str(item.layer), item, INK)
    marks = _marks(told)
    heads = [(f"at {x:g}, {y:g}", found) for (x, y), found in told.places]
    heads += [(f"in {', '.join(f'{side:g}' for side in box)}", found) for box, found in told.boxes]
    for (head, found), (letter, colour) in zip(heads, marks, strict=True):
        column.heading(f"{letter}  {head}", colour)
        for item in reversed(found):
            column.description(str(item.layer), item, colour)
    return column


def _picture(figure: Figure, told: Told, size: tuple[float, float], top: float) -> None:
    """The picture with a marker at each place, the locations that hold it outlined, and each box."""
    across, down = figure.get_size_inches()
    left = EDGE + (PICTURE - size[0]) / 2
    axes = figure.add_axes((left / across, 1 - (top + size[1]) / down, size[0] / across, size[1] / down))
    width, height = told.picture.size
    axes.imshow(np.asarray(told.picture), extent=(0, width, height, 0), interpolation="lanczos")
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    marks = list(_marks(told))
    halo = [withStroke(linewidth=3, foreground="white")]
    for ((x, y), found), (letter, colour) in zip(told.places, marks, strict=False):
        for item in found:
            if item.box is not None:
                _outline(axes, item.box, colour, 0.9)
        axes.plot(x, y, "o", markersize=9, color=colour, markeredgecolor="white", markeredgewidth=1.5, clip_on=False)
        axes.annotate(
            letter, (x, y), (7, 5), textcoords="offset points", color=colour, weight="bold", path_effects=halo
        )
    for (box, _), (letter, colour) in zip(told.boxes, marks[len(told.places) :], strict=True):
        _outline(axes, box, colour, 2.2)
        axes.annotate(
            letter,
            box[:2],
            (4, -4),
            textcoords="offset points",
            va="top",
            color=colour,
            weight="bold",
            path_effects=halo,
        )


def _outline(axes: Axes, box: tuple[float, float, float, float], colour: str, line: float) -> None:
    left, top, right, bottom = box
    for width, edge in ((line + 1.2, "white"), (line, colour)):
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, linewidth=width, edgecolor=edge))


def _write(figure: Figure, column: _Column, left: float, top: float) -> None:
    across, down = figure.get_size_inches()
    for word in column.words:
        figure.text(
            (left + word.x) / across,
            1 - (top + word.y) / down,
            word.text,
            size=word.size,
            color=word.colour,
            weight=word.weight,
            style=word.style,
            ha="right" if word.right else "left",
            va="top",
            parse_math=False,
        )
