"""The doctor as a command: its answer's form, its exit codes, and that it changes nothing and stops for nothing."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from devil_pipe.pipeline.doctor import registry
from devil_pipe.pipeline.doctor.finding import Finding, State, Wish, install, ok
from devil_pipe.store.errors import InputError

from .doctor_fixture import asked, call

KEYS = {"group", "check", "state", "what", "mend", "advice"}


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and a cache that is not there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEVIL_PIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


def know(monkeypatch: pytest.MonkeyPatch, *checks: registry.Check) -> None:
    monkeypatch.setattr(registry, "CHECKS", checks)


def test_in_an_empty_folder_there_are_notes_and_nothing_is_left_behind(empty: Path) -> None:
    result = call("doctor", "--quick", "--json")
    answer = json.loads(result.stdout)
    assert set(answer) == {"schema", "version", "folder", "counts", "findings"}
    assert (answer["schema"], answer["folder"]) == (1, str(empty))
    found = answer["findings"]
    assert all(set(item) == KEYS for item in found)
    assert {item["state"] for item in found} <= {"ok", "note", "problem"}
    assert answer["counts"] == {
        state: sum(item["state"] == state for item in found) for state in ("ok", "note", "problem")
    }
    (project,) = [item for item in found if item["group"] == "project"]
    assert (project["state"], project["mend"]) == ("note", "devil-pipe new my-project")
    assert not list(empty.iterdir())


def test_every_group_answers_and_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {check.group for check in registry.CHECKS} == set(registry.GROUPS)
    every = [replace(check, look=lambda _, name=check.name: [ok(name, "well")]) for check in registry.CHECKS]
    know(monkeypatch, *every)
    found = registry.examine(Wish())
    assert list(found) == list(registry.GROUPS)
    assert {item.check for items in found.values() for item in items} == {check.name for check in every}
    assert list(registry.examine(Wish(), ["runs", "gpu"])) == ["gpu", "runs"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ZeroDivisionError("by\nzero"), "could not be checked: ZeroDivisionError: by zero"),
        (ValueError(), "could not be checked: ValueError: "),
        (InputError("no home folder"), "could not be checked: no home folder"),
    ],
)
def test_a_check_that_fails_is_a_finding_and_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def fails(_: Wish) -> list[Finding]:
        raise error

    know(
        monkeypatch,
        registry.Check("disk", "disk.space", fails),
        registry.Check("runs", "runs", lambda _: [ok("runs", "well")]),
    )
    broken, well = asked("disk,runs")
    assert (broken["check"], broken["state"], broken["what"]) == ("disk.space", "problem", says)
    assert "devil-pipe doctor --only disk" in broken["advice"]
    assert well["what"] == "well"


def test_lines_for_a_person_stay_whole_and_the_last_one_sums_up(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "x" * 300
    know(
        monkeypatch,
        registry.Check("disk", "d", lambda _: [Finding("d", State.PROBLEM, f"[bold]{long}", f"rm '[red] {long}'")]),
        registry.Check("runs", "r", lambda _: [ok("r", "well"), Finding("r", State.NOTE, "so", advice="look")]),
    )
    result = call("doctor")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines == [
        "disk",
        f"  problem  [bold]{long}",
        f"           to mend:  rm '[red] {long}'",
        "runs",
        "  ok       well",
        "  note     so",
        "           look",
        "1 problem (disk), 1 notes, 1 well",
    ]
    quiet = call("--quiet", "doctor")
    assert quiet.stdout.splitlines() == [*lines[:3], lines[-1]]


def test_without_problems_the_exit_code_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, registry.Check("runs", "r", lambda _: [Finding("r", State.NOTE, "so")]))
    result = call("doctor")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "no problems, 1 notes, 0 well")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--only", "jav"], "expected groups among python, machine"),
        (["--only", ","], "--only: expected groups separated by commas, got none"),
        (["--quick", "--deep"], "expected --quick or --deep, got both"),
        (["--depe"], "No such option"),
    ],
)
def test_a_wrong_command_is_exit_2(words: list[str], says: str) -> None:
    result = call("doctor", *words)
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_problem_always_has_a_way_out() -> None:
    with pytest.raises(AssertionError, match="without a way out"):
        Finding("x", State.PROBLEM, "broken")


def test_the_command_that_installs_is_one_that_a_shell_takes() -> None:
    """pip, or uv where there is no pip, answers for the very requirement: it is met already, so nothing is fetched."""
    words = shlex.split(install("--no-index", "numpy>=2.1"))
    assert words[-1] == "numpy>=2.1"
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
    words[-1] = "numpy>=1000"
    assert subprocess.run(words, capture_output=True, check=False).returncode == 1
