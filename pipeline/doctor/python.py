"""Python itself, the packages that devil-pipe is built on, and the lock of a clone."""

from __future__ import annotations

import locale
import os
import platform
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

from devil_pipe.pipeline.doctor.finding import Finding, Wish, install, note, ok, problem

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OURS = "devil-pipe"
LOCK, PROJECT, MAKEFILE = Path("requirements.lock"), Path("pyproject.toml"), Path("Makefile")
_SHOWN = 5


def version(_: Wish) -> Iterator[Finding]:
    """Python's version and the system, against what the package says of itself."""
    from packaging.specifiers import SpecifierSet

    about = distribution(OURS).metadata
    bounds, here = SpecifierSet(about["Requires-Python"] or ""), platform.python_version()
    tried = [line.rpartition(" ")[2] for line in about.get_all("Classifier", []) if ":: Python :: 3." in line]
    system = f"{platform.system()} {platform.machine()}"
    if not bounds.contains(here, prereleases=True):
        advice = "make an environment with such a Python and install devil-pipe there"
        yield problem("python.version", f"Python {here} ({sys.executable}), expected {bounds}", advice=advice)
    elif ".".join(here.split(".")[:2]) not in tried:
        yield note("python.version", f"Python {here} on {system}: tried with {', '.join(tried)} alone")
    else:
        yield ok("python.version", f"Python {here} on {system}, {sys.executable}")
    if sys.platform not in ("linux", "darwin"):
        advice = "use WSL or a Linux container: caches and stores need POSIX locks"
        yield problem("python.system", f"{platform.system()}, expected Linux or macOS", advice=advice)


def packages(_: Wish) -> Iterator[Finding]:
    """Every package that devil-pipe needs, and what those need in turn, with the versions that they ask for."""
    unmet: dict[tuple[str, bool], str] = {}
    seen = 0
    for owner, wanted, found in _needs():
        seen += 1
        if found is not None and wanted.specifier.contains(found, prereleases=True):
            continue
        stops = owner == OURS or found is None
        requirement = f"{wanted.name}{wanted.specifier}"
        unmet[requirement, stops] = f"{wanted.name} {found or 'is missing'}, {owner} needs {requirement}"
    for (requirement, stops), what in sorted(unmet.items()):
        if stops:
            yield problem("python.packages", what, install(requirement))
        else:
            yield note("python.packages", what, install(requirement), "another package asks for it")
    if not unmet:
        yield ok("python.packages", f"{seen} requirements of devil-pipe {distribution(OURS).version} and below are met")


def _needs() -> Iterator[tuple[str, Requirement, str | None]]:
    """(who, what it needs, the version that is installed or None), for devil-pipe and all below it."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    todo: list[tuple[Distribution, frozenset[str]]] = [(distribution(OURS), frozenset())]
    done: set[tuple[str, frozenset[str]]] = set()
    while todo:
        owner, extras = todo.pop()
        name = canonicalize_name(owner.metadata["Name"])
        if (name, extras) in done:
            continue
        done.add((name, extras))
        for text in owner.requires or []:
            wanted = Requirement(text)
            if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                continue
            try:
                found = distribution(wanted.name)
            except PackageNotFoundError:
                yield name, wanted, None
                continue
            yield name, wanted, found.version
            todo.append((found, frozenset(wanted.extras)))


def clone(_: Wish) -> Iterator[Finding]:
    """In a clone: whether what is installed still says what its pyproject.toml says, which checks go by."""
    if not PROJECT.is_file():
        return
    from packaging.requirements import Requirement

    project = tomllib.loads(PROJECT.read_text(encoding="utf-8")).get("project", {})
    if project.get("name") != OURS:
        return
    wanted = {str(Requirement(text)) for text in project.get("dependencies", [])}
    known = [Requirement(text) for text in distribution(OURS).requires or []]
    lacks = sorted(wanted - {str(one) for one in known if one.marker is None})
    if lacks:
        what = f"{PROJECT} was changed since devil-pipe was installed: {', '.join(lacks[:_SHOWN])}"
        yield note(
            "python.clone", what, "make setup" if MAKEFILE.is_file() else install("--no-deps", "--editable", ".")
        )


def lock(_: Wish) -> Iterator[Finding]:
    """Installed versions against those of `requirements.lock`, where one lies in the folder."""
    if not LOCK.is_file():
        return
    from packaging.requirements import Requirement

    lines = [line.rstrip("\\ ") for line in LOCK.read_text(encoding="utf-8").splitlines()]
    pinned = [Requirement(line) for line in lines if line and line[0] not in " #-"]
    here = [one for one in pinned if one.marker is None or one.marker.evaluate({"extra": ""})]
    differ = []
    for one in here:
        try:
            found: str | None = distribution(one.name).version
        except PackageNotFoundError:
            found = None
        if found is None or not one.specifier.contains(found, prereleases=True):
            differ.append(f"{one.name} {found or 'is missing'} ({one.specifier})")
    if not differ:
        yield ok("python.lock", f"{len(here)} packages are those of {LOCK}")
        return
    more = f" and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
    what = f"{len(differ)} of {len(here)} packages are not those of {LOCK}: {', '.join(differ[:_SHOWN])}{more}"
    yield note("python.lock", what, "make setup" if MAKEFILE.is_file() else install("-r", str(LOCK)))


def environment(_: Wish) -> Iterator[Finding]:
    """Settings around Python that make every command slow, or break texts."""
    if sys.dont_write_bytecode:
        what = "compiled modules are not kept, so every command compiles PyTorch and its kin anew"
        mend = "unset PYTHONDONTWRITEBYTECODE" if "PYTHONDONTWRITEBYTECODE" in os.environ else ""
        yield note("python.environment", what, mend)
    encoding = locale.getpreferredencoding(False)
    if encoding.lower().replace("-", "") != "utf8":
        what = f"texts are {encoding} by default here, and captions are UTF-8"
        yield note("python.environment", what, "export PYTHONUTF8=1")
