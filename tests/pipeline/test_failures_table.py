"""The table of failures is whole: every command has its rows."""

from __future__ import annotations

import re

import pytest
from typer import Typer
from typer.testing import CliRunner

from devil_pipe.pipeline.cli import app

from . import test_failures_asking as asking
from . import test_failures_data as data
from . import test_failures_files as files
from . import test_failures_runs as runs

WORDS = {**data.TABLE, **runs.TABLE, **asking.TABLE}


def commands(typer_app: Typer, above: str = "") -> list[str]:
    """Every command of the command line, those of groups included, as one types them."""
    found = []
    for command in typer_app.registered_commands:
        assert command.callback is not None
        found.append(f"{above}{command.name or command.callback.__name__.strip('_')}")
    for group in typer_app.registered_groups:
        assert group.typer_instance is not None
        found += commands(group.typer_instance, f"{above}{group.name or group.typer_instance.info.name} ")
    return found


def test_every_command_has_its_rows() -> None:
    """A new command brings what may go wrong with it."""
    named = {row.words for rows in (*WORDS.values(), files.ROWS.values()) for row in rows}
    without = [
        command for command in commands(app) if not any(f"{words} ".startswith(f"{command} ") for words in named)
    ]
    assert without == []
    assert set(WORDS) <= set(commands(app))


@pytest.mark.parametrize("command", commands(app))
def test_an_option_that_no_command_has_is_named(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--no-such-option"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == 2
    assert re.search("No such option: --no-such-option", result.stderr)
