"""The fault run's own parts: it sees what is wrong, its faults come where they should, and a dozen trials end well."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
pytestmark = [
    pytest.mark.tree,
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"),
]
TRIALS = "0,2,7,8,14,15,22,24,40,44,56"
"""Of seed 7, all in one encoding: power lost, a bit flipped, shards and markers swapped, cut short, the same command
twice, two workers of which one is killed."""

WRITES = """
import ctypes, os, sys
from pathlib import Path
root, moment, action, value = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
library = ctypes.CDLL(None)
library.faults_arm(os.fsencode(root), os.fsencode(root.parent), ctypes.c_long(moment), action,
                   1, ctypes.c_long(value), 1)
(root / "kept").write_text("flushed")
with (root / "kept").open("rb") as file:
    os.fsync(file.fileno())
(root / "lost").write_text("not flushed")
(root / "new").write_text("new")
with (root / "new").open("rb") as file:
    os.fsync(file.fileno())
(root / "new").rename(root / "old")
(root / "last").write_text("last")
"""


@pytest.fixture(scope="module")
def parts() -> tuple[ModuleType, ModuleType, ModuleType]:
    """The benchmark's modules, which import each other as scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setattr(os, "environ", dict(os.environ))
        made = [importlib.import_module(name) for name in ("_faults_kinds", "_faults_process", "faults")]
    return made[0], made[1], made[2]


def write(parts: tuple[ModuleType, ...], folder: Path, moment: int, action: int, value: int = 0) -> int:
    """Run WRITES with a fault; its exit code."""
    root = folder / "root"
    root.mkdir()
    (root / "old").write_text("old")
    library = parts[1].compiled(folder)
    command = [sys.executable, "-c", WRITES, str(root), str(moment), str(action), str(value)]
    return subprocess.run(
        command, env={**os.environ, "LD_PRELOAD": str(library)}, check=False, capture_output=True
    ).returncode


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / "root").iterdir()}


# Operations: kept is opened, written, flushed (1-3); lost opened, written (4, 5); new opened, written, flushed (6-8),
# renamed (9); last opened, written (10, 11).
def test_a_process_is_killed_at_that_operation(parts: tuple[ModuleType, ...], tmp_path: Path) -> None:
    assert write(parts, tmp_path, 9, parts[1].SIGNAL, signal.SIGKILL) == -signal.SIGKILL
    assert content(tmp_path) == {"old": "old", "kept": "flushed", "lost": "not flushed", "new": "new"}


def test_a_loss_of_power_takes_what_was_not_flushed(parts: tuple[ModuleType, ...], tmp_path: Path) -> None:
    assert write(parts, tmp_path, 11, parts[1].POWER) == -signal.SIGKILL
    found = content(tmp_path)
    assert (found["kept"], found["lost"], found["last"]) == ("flushed", "", "")
    assert found["old"] in ("old", "new")  # the rename's folder was not flushed: either may be there
    assert ("new" in found) == (found["old"] == "old")


def test_a_full_disk_stays_full(parts: tuple[ModuleType, ...], tmp_path: Path) -> None:
    assert write(parts, tmp_path, 5, parts[1].FULL) == 1
    assert content(tmp_path) == {"old": "old", "kept": "flushed", "lost": ""}


def test_trials_are_drawn_from_seed_and_number(parts: tuple[ModuleType, ...]) -> None:
    kinds = parts[0]
    drawn = [kinds.draw(0, number) for number in range(1000)]
    assert drawn[7] == kinds.draw(0, 7) != kinds.draw(1, 7)
    assert {trial.kind for trial in drawn} == {*kinds.KINDS, *kinds.WORKERS, "started twice"}
    assert {trial.stage for trial in drawn} == set(kinds.STAGES)
    assert {trial.file for trial in drawn} - {""} == set(kinds.FILES)
    assert min(Counter(trial.kind for trial in drawn).values()) >= 10


def test_a_table_counts_every_trial_once(parts: tuple[ModuleType, ...]) -> None:
    outcomes = ["unharmed", "recovered", "recovered", "silently wrong"]
    trials = [{"stage": "train", "kind": "killed", "outcome": outcome} for outcome in outcomes]
    lines = parts[2].table(trials).splitlines()
    assert lines[2] == "| train | killed | 4 | 1 | 2 | – | 1 | – | – | – |"
    assert lines[-1] == "| all | | 4 | 1 | 2 | 0 | 1 | 0 | 0 | 0 |"


@pytest.mark.slow
def test_some_trials_end_well(tmp_path: Path) -> None:
    """Every kind of outcome that is allowed, none that is not."""
    command = [
        sys.executable,
        str(BENCHMARKS / "faults.py"),
        "--only",
        TRIALS,
        "--seed",
        "7",
        "--scratch",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    trials = [json.loads(line) for line in (tmp_path / "trials-7.jsonl").read_text().splitlines()]
    assert len(trials) == TRIALS.count(",") + 1
    assert {trial["outcome"] for trial in trials} >= {"recovered", "refused"}
    assert [trial for trial in trials if trial["outcome"] not in ("unharmed", "recovered", "refused")] == []
    assert done.returncode == 0, done.stderr
