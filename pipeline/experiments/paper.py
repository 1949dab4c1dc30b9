"""The figures that the paper reports, as data: `paper.yaml` beside this file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PaperRow(_Part):
    """One row: its first cells, and its figures on the paper's scale."""

    label: tuple[str, ...]
    figures: dict[str, FiniteFloat] = {}
    note: str = ""


class PaperTable(_Part):
    """One table of the paper."""

    title: str
    data: str = Field(description="the name under configs/data that the paper's pictures have here, or its beginning")
    head: tuple[str, ...]
    """Names of the labels' cells."""
    columns: tuple[str, ...]
    rows: dict[str, PaperRow]


@cache
def paper_tables() -> dict[str, PaperTable]:
    """Every table by name: table1 … table6 and figure7."""
    text = (Path(__file__).parent / "paper.yaml").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, PaperTable]).validate_python(yaml.safe_load(text))
