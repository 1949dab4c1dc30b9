"""Asking `devil-pipe doctor`, in this process and in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from devil_pipe.pipeline.cli import app

Found = list[dict[str, str]]


def call(*words: str) -> Result:
    """A command in this process."""
    return CliRunner().invoke(app, words)


def asked(only: str, *words: str) -> Found:
    """What the doctor finds in some groups; its exit code has to fit."""
    result = call("doctor", "--json", "--only", only, *words)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return findings(result.stdout, result.exit_code)


def findings(stdout: str, code: int) -> Found:
    """The findings of a JSON answer."""
    answer: dict[str, Any] = json.loads(stdout)
    found: Found = answer["findings"]
    assert code == any(item["state"] == "problem" for item in found)
    return found


def troubles(found: Found) -> Found:
    """What is not well."""
    return [item for item in found if item["state"] != "ok"]


def alone(*words: str, before: str = "", cwd: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in which `before` (Python) runs first."""
    script = f"{before}\nimport sys\nfrom devil_pipe.pipeline.cli import app\napp(sys.argv[1:], prog_name='devil-pipe')"
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", **options.pop("environment", {})}
    return subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
