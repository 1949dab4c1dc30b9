"""An experiment from nothing through the real commands: every stage once, then none; a failure in its own words."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from .tiny_project import RUN, command, make, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project with an experiment whose one training serves two rows."""
    folder = make(tmp_path_factory.mktemp("experiment") / "project")
    none = {"run_name": "first--none", "overrides": {"train": {"dropout": {"layer": 0.0}}}}
    rows = {"all": {"label": ["all"], **none}, "single": {"label": ["single"], "condition": "last", **none}}
    write(folder, "experiments/mine", {"table": "mine", "base": RUN, "columns": ["C", "loss"], "rows": rows})
    return folder


@pytest.mark.slow
def test_one_command_makes_the_table_and_the_next_does_nothing(folder: Path) -> None:
    done = command(folder, "devil_pipe.pipeline.cli", "experiment", "mine")
    assert done.returncode == 0, done.stderr
    ran = [line.split(": ")[1] for line in done.stderr.splitlines() if line.startswith("run ")]
    run = "first--none--seed0"
    assert ran == ["prepare squares", "extract squares-lite", f"train {run}", f"evaluate {run}"]
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 * 2, "a head, and ours and the null control of both rows"
    again = command(folder, "devil_pipe.pipeline.cli", "experiment", "mine")
    assert again.returncode == 0, again.stderr
    assert "all was done before" in again.stderr
    assert again.stdout == done.stdout


@pytest.mark.slow
def test_a_stage_that_fails_ends_with_its_own_error(folder: Path) -> None:
    path = folder / "configs/data/squares.yaml"
    kept = path.read_text(encoding="utf-8")
    values = yaml.safe_load(kept)
    path.write_text(yaml.safe_dump({**values, "seed": 5, "folder": {"pictures": "gone"}}), encoding="utf-8")
    done = command(folder, "devil_pipe.pipeline.cli", "experiment", "mine")
    path.write_text(kept, encoding="utf-8")
    assert done.returncode == 1
    assert "error: folder.pictures: expected a folder at gone" in done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith("error: stopped at `devil-pipe prepare squares`")
    assert "Traceback" not in done.stderr
