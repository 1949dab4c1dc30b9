"""The table of failures, part three: real processes that are stopped, have nobody who listens, or run beside another.

A command that was stopped at any moment leaves no traceback and no part of a file; the same command again ends with
what an undisturbed one makes.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ..forked import Commands
from .failures import call, inside, tree

IMPORTS = (
    "devil_pipe.pipeline.config",
    "devil_pipe.stages.train.run",
    "devil_pipe.stages.explain.explainer",
    "devil_pipe.stages.explain.figure",
    "devil_pipe.stages.units.run",
    "devil_pipe.stages.prepare.run",
    "devil_pipe.pipeline.report.run",
    "devil_pipe.pipeline.live_maps",
    "transformers.convert_slow_tokenizer",
    "transformers.models.gpt2.modeling_gpt2",
)
STOPPED = 130
CODES = {signal.SIGINT: STOPPED, signal.SIGTERM: -signal.SIGTERM}
VARIES = ("seconds.json", "log.jsonl", "summary.json", "said.txt", "state.safetensors")
"""Files that say how long something took, and what only a run that goes on reads."""

LONG = {
    "prepare drawn": (),
    "extract drawn": ("stores",),
    "train tiny": ("runs/tiny",),
    "export tiny new": (),
    "report demo": (),
    "units tiny --exemplars 2 --sample 2": (),
    "explain picture.png --run tiny --no-margin --out said.png": (),
    "saliency picture.png --query circle --run tiny": (),
    "store verify drawn": (),
    "store export drawn new.h5": (),
    "store import drawn.h5 copy": (),
    "tables small --out made": (),
    "new made": (),
}
"""Commands, and what is taken away before, so that there is work to do."""

FINISHED = "is there already|still to be made|new or empty folder"
"""What those say that replace nothing, where the stop came after the last write."""

ENDED = ("prepare drawn", "extract drawn", "train tiny", "report demo")
"""Those that write most, which a machine that is shut down ends in its own way."""


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands(IMPORTS) as started:
        yield started


@pytest.fixture
def copies(finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two copies of the finished project."""
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    for copy in (calm, stopped):
        shutil.copytree(finished, copy)
    return calm, stopped


def clear(folder: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        shutil.rmtree(folder / part)


def results(folder: Path) -> dict[str, str | bytes]:
    """What a command leaves, without what tells how long it took."""
    return {name: content for name, (_, content) in tree(folder).items() if Path(name).name not in VARIES}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "how"),
    [*((words, signal.SIGINT) for words in LONG), *((words, signal.SIGTERM) for words in ENDED)],
    ids=[*(f"Ctrl-C {words}" for words in LONG), *(f"SIGTERM {words}" for words in ENDED)],
)
def test_a_stopped_command_goes_on_and_ends_as_an_undisturbed_one(
    commands: Commands, copies: tuple[Path, Path], words: str, how: signal.Signals
) -> None:
    calm, stopped = copies
    for folder in copies:
        clear(folder, LONG[words])
    before = set(tree(stopped))
    begun = time.monotonic()
    assert commands.run(calm, *words.split())[0] == 0
    whole = time.monotonic() - begun
    moment = random.Random(f"{words} {how}").uniform(0.05, 0.95) * whole

    def stop(child: int) -> None:
        time.sleep(moment)
        with suppress(ProcessLookupError):  # it may have ended
            os.kill(child, how)

    code, said = commands.run(stopped, *words.split(), meanwhile=stop)
    assert code in (0, CODES[how]), said
    assert "Traceback" not in said
    if how == signal.SIGINT:  # SIGTERM ends a process at once, so what is under way stays beside its place
        hidden = {name for name in set(tree(stopped)) - before if Path(name).name.startswith(".")}
        assert not {name for name in hidden if not name.endswith((".lock", ".dvcignore", ".gitignore", ".dvc"))}
    if code != 0:
        code, said = commands.run(stopped, *words.split())
        assert code == 0 or re.search(FINISHED, said), said
    calmly, finally_ = results(calm), results(stopped)
    left = {name for name in finally_.keys() - calmly.keys() if not _left_by_a_kill(name)}
    assert left == set()
    assert [name for name in calmly if calmly[name] != finally_.get(name)] == []


def _left_by_a_kill(name: str) -> bool:
    """A part of a file under another, hidden name."""
    return any(part.startswith(".") and not part.startswith(".dvc") for part in Path(name).parts)


@pytest.mark.slow
@pytest.mark.parametrize("words", ["prepare drawn", "extract drawn", "train tiny", "report demo", "export tiny new"])
def test_two_at_once_end_as_one(commands: Commands, copies: tuple[Path, Path], words: str) -> None:
    """Each ends well or with one plain line, and what lies there is what one of them alone makes."""
    calm, shared = copies
    for folder in copies:
        clear(folder, LONG[words])
    assert commands.run(calm, *words.split())[0] == 0
    beside = []

    def another(_child: int) -> None:
        with inside(shared):
            beside.append(call(words))

    code, said = commands.run(shared, *words.split(), meanwhile=another)
    codes = (code, beside[0].exit_code)
    output = said + beside[0].output
    assert 0 in codes, output
    assert set(codes) <= {0, 1, 2}, output
    assert "Traceback" not in output
    assert isinstance(beside[0].exception, SystemExit | None), repr(beside[0].exception)
    if codes != (0, 0) and not words.startswith("export"):
        code, said = commands.run(shared, *words.split())
        assert code == 0, said
    assert results(shared) == results(calm)


def test_a_name_that_is_no_utf8_is_told_all_the_same(world: Path) -> None:
    """A picture called café in Latin-1: JSON stays JSON, and a line stays a line."""
    shutil.copyfile("picture.png", b"caf\xe9.png")
    told = call("explain 'caf\udce9.png' --run tiny --no-margin --json --max-new-tokens 1")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["pictures"][0]["picture"] == "caf\udce9.png"
    said = call("explain 'caf\udce9.png' --run tiny --no-margin --max-new-tokens 1")
    assert said.exit_code == 0, said.output
    assert r"caf\udce9.png" in said.stdout


def process(folder: Path, *words: str, **how: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", **how.pop("environment", {})}  # type: ignore[dict-item]
    return subprocess.run(
        [sys.executable, "-m", "devil_pipe.pipeline.cli", *words],
        cwd=folder,
        env=environment,
        stdout=how.get("stdout", subprocess.PIPE),  # type: ignore[call-overload]
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


def test_nobody_reads_the_output(finished: Path) -> None:
    """As in `devil-pipe store info drawn --json | true`: no word, and no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = process(finished, "store", "info", "drawn", "--json", stdout=writer)
    finally:
        os.close(writer)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_the_output_goes_to_a_full_disk(finished: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = process(finished, "store", "info", "drawn", "--json", stdout=full)
    assert done.returncode != 0
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict"},
    ],
    ids=["no HOME", "C", "C and no UTF-8", "ASCII"],
)
def test_a_bare_environment(finished: Path, environment: dict[str, str]) -> None:
    """Neither a home folder nor a terminal that knows × or é keeps a command from its work."""
    done = process(finished, "store", "info", "drawn", environment=environment)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "s16" in done.stdout
    missing = process(finished, "train", "été", environment=environment)
    assert missing.returncode == 2
    assert "no such file" in missing.stderr
