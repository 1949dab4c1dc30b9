"""The explorer's packages, and in a clone the browser that its tests drive."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from devil_pipe.pipeline.doctor.finding import Finding, Wish, install, note, ok

EXTRA = "explore"


def look(_: Wish) -> Iterator[Finding]:
    """Whether `devil-pipe explore` has what it needs."""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in distribution("devil-pipe").requires or []]
    wanted = [one for one in wanted if one.marker and one.marker.evaluate({"extra": EXTRA})]
    wanted = [one for one in wanted if one.marker and not one.marker.evaluate({"extra": ""})]
    lacks = [one for one in wanted if not _met(one.name, one)]
    if lacks:
        what = f"`devil-pipe explore` needs {', '.join(f'{one.name}{one.specifier}' for one in lacks)}"
        yield note("explorer.packages", what, install(*(f"{one.name}{one.specifier}" for one in lacks)))
    else:
        yield ok("explorer.packages", f"{', '.join(one.name for one in wanted)} are installed")
    if Path("tests/pipeline/test_explore_browser.py").is_file():
        given = os.environ.get("DEVIL_PIPE_CHROMIUM", "")
        if not (shutil.which(given) if given else shutil.which("chromium")):
            what = "no Chromium: the tests of the explorer's page are skipped (the explorer itself needs any browser)"
            yield note("explorer.chromium", what, "sudo apt-get install chromium")


def _met(name: str, wanted: object) -> bool:
    from packaging.requirements import Requirement

    assert isinstance(wanted, Requirement)
    try:
        return wanted.specifier.contains(distribution(name).version, prereleases=True)
    except PackageNotFoundError:
        return False
