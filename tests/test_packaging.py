"""What is shipped: packages, dependencies, locks, and the commands that the documents and the CI promise."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SOURCE = Path(__file__).resolve().parents[1]
ROOMS = ("configs", "pipeline", "stages", "store")
LOCKS = ("requirements.lock", "bootstrap.lock")

pytestmark = pytest.mark.tree


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))


def text(name: str) -> str:
    return (SOURCE / name).read_text(encoding="utf-8")


def requirements(project: dict[str, Any]) -> list[Requirement]:
    extras = [line for extra in project["project"]["optional-dependencies"].values() for line in extra]
    return [Requirement(line) for line in [*project["project"]["dependencies"], *extras]]


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Package → (version, number of hashes) of a lock."""
    found = {}
    for block in re.split(r"\n(?=\S)", text(name).replace("\\\n", " ")):
        if pin := re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)", block):
            found[canonicalize_name(pin[1])] = pin[2], len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block))
    return found


def test_every_folder_with_code_is_a_package_of_the_wheel(project: dict[str, Any]) -> None:
    folders = {path.parent.relative_to(SOURCE) for room in ROOMS for path in (SOURCE / room).rglob("*.py")}
    expected = {".".join(("devil_pipe", *folder.parts)) for folder in folders}
    assert set(project["tool"]["setuptools"]["packages"]) == expected
    assert all((SOURCE / folder / "__init__.py").is_file() for folder in folders)


def test_files_that_are_no_code_go_with_their_package(project: dict[str, Any]) -> None:
    """Each such file that git knows matches a pattern of package-data, or the wheel would lack it."""
    known = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *ROOMS],
        cwd=SOURCE,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    data = project["tool"]["setuptools"]["package-data"]
    packages = project["tool"]["setuptools"]["packages"]
    for file in (Path(line) for line in known if not line.endswith(".py")):
        home = next(folder for folder in file.parents if ".".join(("devil_pipe", *folder.parts)) in packages)
        patterns = [*data.get(".".join(("devil_pipe", *home.parts)), []), *data["*"]]
        assert any(file.relative_to(home).match(pattern) for pattern in patterns), file


def test_every_dependency_has_a_lower_bound(project: dict[str, Any]) -> None:
    for requirement in requirements(project):
        assert [item.operator for item in requirement.specifier] == [">="], requirement


def test_everything_imported_is_a_dependency(project: dict[str, Any]) -> None:
    """By the names in the sources; those whose package is called otherwise are in the table."""
    packages = {"PIL": "pillow", "yaml": "pyyaml", "open_clip": "open-clip-torch", "skimage": "scikit-image"}
    packages |= {"pytorch_grad_cam": "grad-cam"}
    files = [path for room in ROOMS for path in (SOURCE / room).rglob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    imported = {name.partition(".")[0] for name in names}
    ours = {canonicalize_name(requirement.name) for requirement in requirements(project)}
    stray = {name for name in imported if canonicalize_name(packages.get(name, name)) not in ours}
    assert stray - sys.stdlib_module_names == {"devil_pipe"}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_hashes_and_no_index(name: str) -> None:
    pins = locked(name)
    assert pins
    assert all(hashes > 0 for _, hashes in pins.values())
    assert "://" not in text(name)
    assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host|^-i |^-f ", text(name), re.MULTILINE)
    assert not re.search(r"\b[a-z0-9-]+\.(com|org|net|io|dev|local|internal)\b", text(name))


def test_the_lock_holds_every_direct_dependency_within_its_bound(project: dict[str, Any]) -> None:
    pins = locked("requirements.lock")
    for requirement in requirements(project):
        version, _ = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), (str(requirement), version)


def test_bootstrap_installs_the_installer_alone() -> None:
    assert set(locked("bootstrap.lock")) == {"uv"}


def test_ci_runs_the_readmes_test_command() -> None:
    command = "make test"
    assert re.search(rf"(^|`){command}(`|$)", text("README.md"), re.MULTILINE)
    assert command in text(".ci/run").splitlines()


def test_make_lists_every_target_with_a_line() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", text("Makefile"), re.MULTILINE))
    assert targets == set(re.search(r"^\.PHONY: (.*)$", text("Makefile"), re.MULTILINE)[1].split())
    shown = subprocess.run(["make"], cwd=SOURCE, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^  make ([a-z-]+) +(\S.*)$", shown, re.MULTILINE)
    assert {name for name, _ in lines} == targets
    assert {"demo", "test"} <= targets
