"""The training log: one JSON object a line, cut back to the last saved step when a run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from devil_pipe.stages.common.files import write_text_atomic

PHASES = ("alignment", "language")


class Journal:
    """Appends entries that carry `phase` and `step`."""

    def __init__(self, path: Path, phase: str | None = None, step: int = 0) -> None:
        """Start the log, or keep what was logged before `step` of `phase`."""
        self.path = path
        kept = [] if phase is None else [line for line in self.entries(path) if _before(line, phase, step)]
        write_text_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))

    @staticmethod
    def entries(path: Path) -> list[dict[str, Any]]:
        """All whole lines of a log; a line that a kill cut short is left out."""
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def add(self, **entry: Any) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _before(entry: dict[str, Any], phase: str, step: int) -> bool:
    return (PHASES.index(entry["phase"]), entry["step"]) <= (PHASES.index(phase), step)
