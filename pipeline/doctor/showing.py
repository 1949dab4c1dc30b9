"""Findings as lines for a person, or as JSON for a script."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.text import Text

from devil_pipe.pipeline.doctor.finding import Finding, State

SCHEMA = 1  # raised when a key of the JSON is renamed or taken away
_STYLE = {State.OK: "green", State.NOTE: "yellow", State.PROBLEM: "bold red"}
_WIDE = max(map(len, State))

Found = Mapping[str, Sequence[Finding]]


def count(found: Found) -> dict[str, int]:
    """How many findings there are of each state."""
    states = Counter(item.state for findings in found.values() for item in findings)
    return {state.value: states[state] for state in State}


def as_json(found: Found) -> str:
    """The findings as JSON: `schema`, `version`, `folder`, `counts` by state, and `findings`, a flat list.

    Each finding has `group`, `check` (a stable word), `state` ("ok", "note", "problem"), `what`, `mend` (a command for
    a shell, or "") and `advice` (words, or "").
    """
    findings = [{"group": group, **asdict(item)} for group, items in found.items() for item in items]
    about = {"schema": SCHEMA, "version": version("devil-pipe"), "folder": str(Path.cwd())}
    return json.dumps({**about, "counts": count(found), "findings": findings}, indent=2, ensure_ascii=False)


def show(found: Found, *, troubles_alone: bool = False) -> None:
    """Print one line a finding, by group, and under it how to mend it; the last line sums up."""
    console = Console(highlight=False, soft_wrap=True)  # a command has to stay on one line to be copied
    for group, items in found.items():
        shown = [item for item in items if not troubles_alone or item.state is State.PROBLEM]
        if shown:
            console.print(Text(group, style="bold"))
        for item in shown:
            console.print(Text.assemble("  ", (f"{item.state.value:<{_WIDE}}", _STYLE[item.state]), f"  {item.what}"))
            if item.mend:
                console.print(Text(f"  {'':<{_WIDE}}  to mend:  {item.mend}"))
            if item.advice:
                console.print(Text(f"  {'':<{_WIDE}}  {item.advice}", style="dim"))
    console.print(Text(summary(found)))


def summary(found: Found) -> str:
    """The last line."""
    numbers = count(found)
    problems, notes = numbers[State.PROBLEM], numbers[State.NOTE]
    if problems:
        groups = ", ".join(name for name, items in found.items() if any(one.state is State.PROBLEM for one in items))
        return f"{problems} problem{'s' * (problems > 1)} ({groups}), {notes} notes, {numbers[State.OK]} well"
    return f"no problems, {notes} notes, {numbers[State.OK]} well"
