"""The training log: one JSON object a line, cut back to the last saved step when a run goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import google_crc32c

from devil_pipe.stages.common.files import write_text_atomic
from devil_pipe.stages.common.progress import warn
from devil_pipe.store.errors import InputError
from devil_pipe.store.place import plain_file

PHASES = ("alignment", "language")


class Journal:
    """Appends entries that carry `phase` and `step`."""

    def __init__(self, path: Path, phase: str | None = None, step: int = 0, checksum: str = "") -> None:
        """Start the log, or keep what was logged before `step` of `phase`; warns where its checksum is another."""
        self.path = path
        kept = [] if phase is None else [line for line in self.entries(path) if _before(line, phase, step)]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        if checksum and checksum != _checksum(text.encode()):
            warn(f"{path}: the entries up to step {step} are not those that were written: do not trust its curves")
        write_text_atomic(path, text)

    @staticmethod
    def entries(path: Path) -> list[dict[str, Any]]:
        """All whole lines of a log, without one that a kill cut short. Raises InputError for what is no entry."""
        if not path.exists():
            return []
        lines = plain_file(path).read_bytes().splitlines(keepends=True)
        return [_entry(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.endswith(b"\n")]

    def settle(self) -> str:
        """Have the log on the disk before the state that belongs to it; gives its checksum."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            return _checksum(file.read())

    def add(self, **entry: Any) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _checksum(content: bytes) -> str:
    return f"{google_crc32c.value(content):08x}"


def _entry(line: bytes, where: str) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = json.loads(line)
        _before(entry, PHASES[0], 0)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{where}: expected an entry of the training log, got {line[:40]!r}; remove it") from error
    return entry


def _before(entry: dict[str, Any], phase: str, step: int) -> bool:
    return (PHASES.index(entry["phase"]), entry["step"]) <= (PHASES.index(phase), step)
