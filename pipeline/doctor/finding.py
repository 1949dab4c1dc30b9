"""What a check finds, and what it is asked to look at."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec


class State(StrEnum):
    """How it stands with a thing that was looked at."""

    OK = "ok"
    NOTE = "note"
    """Nothing stops for it, but a person should know."""

    PROBLEM = "problem"
    """Something does not work, or will stop."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, how it stands with it, and what to do about it."""

    check: str
    """A stable word for it, such as `java.start`."""

    state: State
    what: str
    mend: str = ""
    """A command that can be pasted into a shell as it is."""

    advice: str = ""
    """What to do where no command does it, or why the command."""

    def __post_init__(self) -> None:
        assert self.state is not State.PROBLEM or self.mend or self.advice, f"{self.check}: a problem without a way out"


@dataclass(frozen=True)
class Wish:
    """How thoroughly to look."""

    quick: bool = False
    """Leave out what takes seconds: METEOR's start, importing PyTorch."""

    deep: bool = False
    """Read every byte of assets, stores and checkpoints."""

    network: bool = False
    """Ask the hub, and look at stores that lie elsewhere."""


def ok(check: str, what: str) -> Finding:
    """A thing that is as it should be."""
    return Finding(check, State.OK, what)


def note(check: str, what: str, mend: str = "", advice: str = "") -> Finding:
    """A thing to know."""
    return Finding(check, State.NOTE, what, mend, advice)


def problem(check: str, what: str, mend: str = "", advice: str = "") -> Finding:
    """A thing that has to be mended; either a command or words say how."""
    return Finding(check, State.PROBLEM, what, mend, advice)


def install(*words: str) -> str:
    """The command that installs packages into the environment which runs this; `words` may hold pip's options."""
    python = sys.executable
    start = [python, "-m", "pip", "install"]
    if find_spec("pip") is None:  # environments of uv have none, and uv is a package that we depend on
        start = [python, "-m", "uv", "pip", "install", "--python", python]
    return shlex.join([*start, *words])


def install_again(package: str) -> str:
    """The command that puts a damaged package's files back, and nothing else."""
    return install("--force-reinstall", "--no-deps", package)
