"""Gathered tables as Markdown, LaTeX and HTML: ours, the null control, the paper's figure and the difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from devil_pipe.pipeline.experiments.columns import Column
from devil_pipe.pipeline.experiments.figures import Cell, Figure
from devil_pipe.pipeline.experiments.gather import Gathered, Line

FORMATS = {"markdown": "md", "latex": "tex", "html": "html"}
"""Format → the ending of its files."""

NOTHING = "–"
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$", "±": r"$\pm$", "−": "$-$", "–": "--",
    "\u202f": r"\,", "→": r"$\to$", "≤": r"$\leq$",
}  # fmt: skip


@dataclass(frozen=True)
class GridRow:
    """One printed row; `kind` is ours, null, paper or difference."""

    kind: str
    label: tuple[str, ...]
    which: str
    cells: tuple[str, ...]
    pictures: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table as words alone, the same for every format."""

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[GridRow, ...]
    legend: tuple[str, ...]


def grid(table: Gathered) -> Grid:
    """The printed rows of a table: for each of its rows ours, the null control, the paper's and the difference.

    A small version of a table has no difference: its pictures and models are others.
    """
    head = (*table.head, "", *(_head(column) for column in table.columns), "pictures", "notes")
    rows = tuple(row for line in table.lines for row in _rows(line, table))
    return Grid(table.name, table.title, head, rows, tuple(_legend(table)))


def render(tables: Sequence[Gathered], form: str) -> str:
    """One or several tables in a format of `FORMATS`; the same input gives the same bytes."""
    template = _environment(form).get_template(f"tables.{FORMATS[form]}.j2")
    return template.render(tables=[grid(table) for table in tables])


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """A figure with a true minus sign, and none before a zero."""
    shown = round(value, digits) + 0.0
    return f"{shown:{'+' if signed else ''},.{digits}f}".replace("-", "−")


def figure(found: Figure, digits: int) -> str:
    """A mean with its interval over pictures and, of several seeds, standard deviation, least and greatest."""
    text = number(found.value, digits)
    if found.spread is not None:
        least, greatest = number(found.least, digits), number(found.greatest, digits)
        text += f" ± {number(found.spread, digits)} ({least} to {greatest}, {found.seeds} seeds)"
    if found.low is not None and found.high is not None:
        text += f" [{number(found.low, digits)}, {number(found.high, digits)}]"
    return text


def _head(column: Column) -> str:
    return f"{column.label} (less is better)" if column.lower_is_better else column.label


def _rows(line: Line, table: Gathered) -> Iterator[GridRow]:
    nothing = ("",) * len(line.label)
    paper = "the paper's" if not table.mirrored else "the paper's (other data)"
    if line.not_run:
        cells = tuple(NOTHING for _ in line.cells)
        yield GridRow("ours", line.label, "ours", cells, NOTHING, (line.not_run,))
    else:
        lacking = [f"{cell.column.label}: {cell.not_run}" for cell in line.cells if cell.not_run]
        notes = (*line.notes, *dict.fromkeys(lacking))
        yield GridRow("ours", line.label, "ours", tuple(map(_ours, line.cells)), line.pictures, notes)
        if any(cell.null for cell in line.cells):
            yield GridRow("null", nothing, "shuffled features", tuple(map(_null, line.cells)), "", ())
    if any(cell.paper is not None for cell in line.cells):
        yield GridRow("paper", nothing, paper, tuple(map(_paper, line.cells)), "", ())
    if not line.not_run and not table.mirrored and any(cell.paper is not None for cell in line.cells):
        told = tuple(_difference(cell) for cell in line.cells) if line.compared else (NOTHING,) * len(line.cells)
        why = () if line.compared else line.notes[:1]
        yield GridRow("difference", nothing, "difference", told, "", why)


def _ours(cell: Cell) -> str:
    return figure(cell.ours, cell.column.digits) if cell.ours else "not run"


def _null(cell: Cell) -> str:
    return figure(cell.null, cell.column.digits) if cell.null else ""


def _paper(cell: Cell) -> str:
    return NOTHING if cell.paper is None else f"{cell.paper:,.6g}"


def _difference(cell: Cell) -> str:
    return NOTHING if cell.difference is None else number(cell.difference, cell.column.digits, signed=True)


def _legend(table: Gathered) -> Iterator[str]:
    yield f"Made by `devil-pipe tables {table.name}` from the runs' own files."
    every = [cell for line in table.lines for cell in line.cells]
    cells = [cell for cell in every if cell.ours]
    if any(cell.ours and cell.ours.low is not None for cell in cells):
        yield "[…]: 95 % bootstrap interval over pictures; of several seeds the hull of their intervals."
    if any(cell.ours and cell.ours.spread is not None for cell in cells):
        yield "±: standard deviation over the seeds (n − 1), then the least and the greatest of them."
    if any(cell.null for cell in cells):
        yield "shuffled features: the null control, the same translator given all layers of another picture."
    if table.mirrored and any(cell.paper is not None for cell in every):
        yield "The paper's figures are of other data and other models: they show its claim; no difference is drawn."


def _environment(form: str) -> Environment:
    """Jinja with delimiters that LaTeX does not use, and escaping that fits the format."""
    env = Environment(
        autoescape=form == "html",
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        keep_trailing_newline=True,
    )
    escapes: dict[str, Callable[[str], str]] = {"markdown": _markdown, "latex": _latex}
    env.filters["text"] = escapes.get(form, str)
    return env


def _markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _latex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
