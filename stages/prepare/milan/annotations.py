"""annotations.csv: a line for each description that a person gave of a unit, three lines a unit."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from devil_pipe.stages.prepare.checks import BrokenError, clean_caption
from devil_pipe.store.errors import InputError

EACH = 3
"""Annotations of a unit; MILAN's library leaves out units with fewer and takes the first three of more."""
COLUMNS = ("layer", "unit", "summary")
_DIGITS = 10  # of a unit's number, which has four at most: more would not fit the file's integers


@dataclass(frozen=True)
class Unit:
    """A channel of a layer, and what people called it."""

    layer: str
    number: int
    captions: tuple[str, ...]
    line: int
    """The line of annotations.csv that names it first, for messages."""


@dataclass(frozen=True)
class Annotated:
    """The units with three annotations, in the order in which annotations.csv first names them."""

    units: list[Unit]
    with_fewer: int
    """Units left out because they have fewer than three."""
    spare: int
    """Annotations left out because their unit has three already."""


def read_annotations(content: bytes, where: str) -> Annotated:
    """The units of an annotations.csv; `where` names it in messages.

    The order is that of MILAN's own data set, in which its published splits count.

    Raises:
        InputError: no CSV, a missing column, a layer, number or text that is none, or no unit with three annotations.
    """
    found: dict[tuple[str, int], list[str]] = {}
    lines: dict[tuple[str, int], int] = {}
    for line, layer, number, text in _lines(content, where):
        found.setdefault((layer, number), []).append(text)
        lines.setdefault((layer, number), line)
    full = {unit: texts for unit, texts in found.items() if len(texts) >= EACH}
    if not full:
        raise InputError(f"{where}: expected units with {EACH} annotations, got {len(found)} units with fewer")
    units = [Unit(*unit, tuple(texts[:EACH]), lines[unit]) for unit, texts in full.items()]
    spare = sum(len(texts) - EACH for texts in full.values())
    return Annotated(units, with_fewer=len(found) - len(full), spare=spare)


def _lines(content: bytes, where: str) -> Iterator[tuple[int, str, int, str]]:
    """Line, layer, unit and description of each row."""
    # Bytes that are no UTF-8 come through as lone surrogates, so that the message can name their line.
    text = content.decode("utf-8-sig", errors="surrogateescape")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    begin = 1
    try:
        columns = reader.fieldnames or []
        for name in COLUMNS:
            if name not in columns:
                raise InputError(f"{where}, line 1: expected a column {name!r}, got {', '.join(columns) or 'none'}")
        begin = reader.line_num + 1
        for values in reader:
            at = f"{where}, line {begin}"
            if None in values or None in values.values():
                raise InputError(f"{at}: expected {len(columns)} cells, got another number: cut short or badly quoted")
            yield begin, *_cells(values, at)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{where}, line {begin}: expected CSV: {error}") from None


def _cells(values: dict[str, str], at: str) -> tuple[str, int, str]:
    layer, unit = values["layer"].strip(), values["unit"].strip()
    if not layer.isprintable() or not layer or "/" in layer:
        raise InputError(f"{at}: column 'layer': expected a layer's name, got {layer!r}")
    if not (unit.isascii() and unit.isdigit() and len(unit) < _DIGITS):
        raise InputError(f"{at}: column 'unit': expected a whole number from 0, got {unit!r:.80}")
    try:
        text = clean_caption(values["summary"])
    except BrokenError as error:
        raise InputError(f"{at}: column 'summary': expected a description in UTF-8, got {error}") from None
    if text.lower() == "nan":
        raise InputError(f"{at}: column 'summary': expected a description, got {text!r}: an empty cell")
    return layer, int(unit), text
