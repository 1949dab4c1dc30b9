"""Some random inputs for every harness, the same in every run; `make fuzz` looks for new ones."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .choices import Choices
from .edits import edit_bytes, edit_text, edit_values
from .harnesses import HARNESSES, TOP

RUNS = 150

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits of memory are POSIX's")


def fuzz(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"{__package__}.run", *map(str, arguments)]
    return subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=850, check=False)


def test_every_harness_finds_nothing(tmp_path: Path) -> None:
    done = fuzz("--runs", str(RUNS), "--seconds", "600", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    told = dict(re.findall(r"^([\w-]+): (\d+) runs", done.stdout, re.MULTILINE))
    assert told == {name: str(RUNS) for name in HARNESSES}
    refused = {
        name: int(count) for name, count in re.findall(r"^([\w-]+): .* (\d+) refused", done.stdout, re.MULTILINE)
    }
    # Files that are all taken, or all refused at the door, try nothing.
    assert all(count for name, count in refused.items() if name != "store-verify"), refused
    assert sum(refused.values()) < 0.9 * RUNS * len(refused), refused
    assert not list(tmp_path.iterdir())


def test_a_finding_is_kept_and_fails(tmp_path: Path) -> None:
    """The driver on a reader that raises, writes elsewhere, takes memory and time, and dies."""
    script = tmp_path / "bad.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom tests.fuzz import driver, harnesses\n"
        "driver.SECONDS = 2\n"
        "elsewhere = Path(sys.argv.pop(1))\n"
        "seen = set()\n"
        "def bad(folder):\n"
        "    def run(choices):\n"
        "        kind = choices.below(256)\n"
        "        if kind in (1, 2, 3): seen.add(kind)\n"
        "        if kind == 1: raise KeyError('x')\n"
        "        if kind == 2: elsewhere.write_text('x')\n"
        "        if kind == 3: bytearray(1 << 32)\n"
        "        if kind == 4 and len(seen) == 3: exec('while True: pass')\n"
        "    return run\n"
        "harnesses.HARNESSES.clear()\n"
        "harnesses.HARNESSES['bad'] = lambda: bad\n"
        "from tests.fuzz import run\nsys.exit(run.main())\n"
    )
    command = [
        sys.executable,
        str(script),
        str(tmp_path / "elsewhere"),
        "--runs",
        "3000",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        command, cwd=TOP, env={"PYTHONPATH": str(TOP)}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    for what in ("KeyError", "OutsideError", "MemoryError", "Timeout"):
        assert what in done.stdout, done.stdout + done.stderr
    assert not (tmp_path / "elsewhere").exists()
    kept = sorted((tmp_path / "out" / "findings" / "bad").glob("*.bin"))
    assert {path.read_bytes()[0] for path in kept} == {1, 2, 3, 4}


@pytest.mark.skipif(sys.platform != "linux", reason="atheris is for Linux")
def test_atheris_drives_a_harness(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    done = fuzz("milan-splits", "--seconds", "2", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"^milan-splits: (\d+) runs", done.stdout)[0]) > 0
    assert len(list((tmp_path / "corpus" / "milan-splits").iterdir())) >= 32


def values() -> Any:
    return {"a": [1, 2, {"b": "text"}], "c": None, "d": {"e": 0.5}}


@pytest.mark.parametrize("seed", range(60))
def test_edits_are_functions_of_the_decisions(seed: int) -> None:
    data = random.Random(seed).randbytes(64)
    before = values()
    twice = [
        (
            repr(edit_values(before, Choices(data))),
            edit_bytes(b"some content of a file", Choices(data), (b"word",)),
            edit_text("line of words\nand another", Choices(data), ("!",)),
        )
        for _ in range(2)
    ]
    assert twice[0] == twice[1]
    assert before == values()


def test_edits_change_something_nearly_always() -> None:
    draws = [random.Random(seed).randbytes(64) for seed in range(300)]
    content = bytes(range(200))
    assert sum(edit_bytes(content, Choices(data)) != content for data in draws) > 270
    assert sum(edit_values(values(), Choices(data)) != values() for data in draws) > 240
    assert len({edit_bytes(content, Choices(data)) for data in draws}) > 250
