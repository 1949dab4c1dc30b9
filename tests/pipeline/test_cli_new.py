"""`devil-pipe new`: what it writes is the repository's own project, DVC takes it, and nothing is left half-written."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from devil_pipe.pipeline import config
from devil_pipe.pipeline.cli import app
from devil_pipe.pipeline.project import write as writing

from .tiny_project import SOURCE, command


def new(folder: Path | str) -> Result:
    return CliRunner().invoke(app, ["new", str(folder)])


def files(folder: Path) -> dict[str, str]:
    """Every file below, by its path and text."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.relative_to(folder).parts]
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in paths}


@pytest.mark.tree
def test_it_writes_the_repositorys_own_project(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    assert new(tmp_path / "mine").exit_code == 0
    wanted = ["configs/*.yaml", "configs/*/*.yaml", "dvc.yaml", ".dvc/config", ".dvcignore"]
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *wanted],
        cwd=SOURCE,
        capture_output=True,
        text=True,
        check=True,
    )
    ours = {name: (SOURCE / name).read_text(encoding="utf-8") for name in done.stdout.splitlines()}
    written = files(tmp_path / "mine")
    assert written.pop(".gitignore").startswith("/data/\n/stores/\n/runs/\n")
    assert written == ours


def test_every_configuration_in_it_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert new(tmp_path / "mine").exit_code == 0
    monkeypatch.chdir(tmp_path / "mine")
    runs = [path.stem for path in Path("configs/runs").glob("*.yaml")]
    assert "demo" in runs
    for run in runs:
        opened = config.Run(run)
        config.load_data(opened.store.data)


@pytest.mark.slow
@pytest.mark.parametrize("git", ["none", "here", "above"])
def test_dvc_takes_it_with_and_without_git(tmp_path: Path, git: str) -> None:
    project = tmp_path / "home" / "mine"
    project.parent.mkdir()
    if git != "none":
        subprocess.run(["git", "init", "--quiet", str(project if git == "here" else project.parent)], check=True)
    assert new(project).exit_code == 0
    assert ("no_scm" in (project / ".dvc/config").read_text(encoding="utf-8")) == (git == "none")
    done = command(project, "dvc", "stage", "list")
    assert done.returncode == 0, done.stdout + done.stderr
    stages = ["prepare", "extract", "train", "evaluate", "saliency", "report"]
    assert re.findall(r"^(\w+)@demo", done.stdout, re.MULTILINE) == stages


@pytest.mark.parametrize("name", ["mine", "deep/down/mine"])
def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    result = new(folder)
    assert result.exit_code == 2
    assert "expected a new or empty folder, got one that holds thesis.txt" in " ".join(result.output.split())
    assert files(folder) == {"thesis.txt": "years of work"}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    result = new(tmp_path / "mine")
    assert result.exit_code == 2
    assert "got a file" in " ".join(result.output.split())


def test_the_folder_that_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new(".").exit_code == 0
    assert Path("configs/pipeline.yaml").is_file()


@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """The disk is full at the tenth file."""
    count = 0

    def put(path: Path, text: str) -> None:
        nonlocal count
        count += 1
        if count == 10:
            raise OSError(28, "No space left on device", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    monkeypatch.setattr(writing, "_put", put)
    folder = tmp_path / "mine"
    if there:
        folder.mkdir()
    result = new(folder)
    assert result.exit_code == 1
    assert "No space left" in " ".join(result.output.split())
    assert folder.exists() == there
    assert not there or list(folder.iterdir()) == []


def test_a_command_outside_a_project_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["train"])
    assert result.exit_code == 2
    assert "devil-pipe new" in " ".join(result.output.split())
