"""What a reader of foreign bytes must never do: write elsewhere, start programs, connect."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {"os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.symlink": 2, "os.link": 2, "os.truncate": 1}
_NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class")


class OutsideError(BaseException):
    """A reader touched what is not its own; not an `Exception`, which a reader might take for a damaged file."""


class Watch:
    """Raises `OutsideError` for any of it, while `on`. The interpreter keeps it for good."""

    def __init__(self, scratch: Path) -> None:
        self.on = False
        self._mine = os.path.realpath(scratch) + os.sep
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes) and isinstance(flags, int) and flags & _WRITES:
                self._check(event, path)
        elif event in _PATHS:
            if event != "os.mkdir" and any(isinstance(item, int) and item != -1 for item in arguments[1:]):
                return  # relative to a folder that was opened, and checked, before
            for path in arguments[: _PATHS[event]]:
                if isinstance(path, str | bytes):
                    self._check(event, path)
        elif event in _NEVER:
            raise OutsideError(f"{event} {arguments!r:.200}")

    def _check(self, event: str, path: str | bytes) -> None:
        full = os.path.realpath(os.fsdecode(path))
        if not full.startswith(self._mine) and full != os.devnull:
            raise OutsideError(f"{event} {full}")
