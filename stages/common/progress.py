"""Progress bars and log lines, for a person at a terminal or for a batch job's log."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")


class Mode(StrEnum):
    """How a command speaks."""

    HUMAN = "human"
    QUIET = "quiet"
    JSON_LINES = "json"


@dataclass
class _Voice:
    mode: Mode = Mode.HUMAN


_voice = _Voice()


def speak(mode: Mode) -> None:
    """Set for this process how log lines and progress appear."""
    _voice.mode = mode


def mode() -> Mode:
    """How this process speaks."""
    return _voice.mode


def log(message: str, **fields: object) -> None:
    """Say one line on standard error; under `--log-json` one JSON object with `time`, `message`, fields."""
    if _voice.mode is Mode.QUIET:
        return
    if _voice.mode is Mode.JSON_LINES:
        line = {"time": round(time.time(), 3), "message": message, **fields}
        print(json.dumps(line, ensure_ascii=False, default=str), file=sys.stderr, flush=True)
        return
    tail = "".join(f"  {name} {value}" for name, value in fields.items())
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(message + tail))


def warn(message: str) -> None:
    """Say a warning, also under `--quiet`: silence must not hide trouble."""
    if _voice.mode is Mode.JSON_LINES:
        log(message, level="warning")
    else:
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"warning: {message}", style="yellow"))


def fail(message: str) -> None:
    """Say why the command ends without having done what it was asked."""
    if _voice.mode is Mode.JSON_LINES:
        log(message, level="error")
    else:
        print(f"error: {message}", file=sys.stderr, flush=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "it")
        return Text("" if speed is None else f"{speed:,.1f} {unit}/s", style="cyan")


class Bar:
    """A progress bar that also counts in logs that are no terminal: a line every ten seconds."""

    def __init__(self, description: str, total: int | None, unit: str, start: int = 0) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done, self.start = start, start
        self._begun = self._said = time.monotonic()
        self._progress: Progress | None = None
        if _voice.mode is Mode.HUMAN and sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=False,
            )
            self._task = self._progress.add_task(description, total=total, completed=start, unit=unit, note="")
            self._progress.start()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units; `note` stands behind the bar."""
        self.done += count
        if self._progress is not None:
            self._progress.update(self._task, advance=count, note=note)
        elif time.monotonic() - self._said > 10:
            self._say(note)

    def _say(self, note: str) -> None:
        self._said = time.monotonic()
        rate = (self.done - self.start) / max(self._said - self._begun, 1e-9)
        fields: dict[str, object] = {"done": self.done, "rate": f"{rate:.1f} {self.unit}/s"}
        if self.total is not None:
            fields["of"] = self.total
            fields["left"] = f"{(self.total - self.done) / max(rate, 1e-9):.0f} s"
        log(self.description, **fields, **({"note": note} if note else {}))

    def close(self) -> None:
        """Take the bar down."""
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def bar(description: str, total: int | None, unit: str = "it", start: int = 0) -> Iterator[Bar]:
    """A `Bar` that is taken down on the way out, also after an error."""
    shown = Bar(description, total, unit, start)
    try:
        yield shown
    finally:
        shown.close()


def track(items: Iterable[T], description: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Iterate with a progress bar (rate and time left)."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(description, total, unit) as shown:
        for item in items:
            yield item
            shown.advance()
