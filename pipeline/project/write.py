"""`devil-pipe new`: a project for those who installed the package and have no clone of its repository."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from devil_pipe.store.errors import UsageError

# Where each file goes. DVC would take a dvc.yaml of any folder for a pipeline, so ours lies here under another name.
FILES = {
    "stages.yaml": "dvc.yaml",
    "dvc-config": ".dvc/config",
    "dvcignore": ".dvcignore",
    "gitignore": ".gitignore",
}
NO_GIT = "    no_scm = true\n"


def write(folder: Path) -> bool:
    """Write configs/, dvc.yaml and DVC's own files into a new or empty folder (but for `.git`); whole, or not at all.

    Returns:
        Whether the folder lies in a git repository; where it does not, DVC is told to do without one.

    Raises:
        UsageError: the folder is a file, or not empty.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: expected a new or empty folder, got a file; choose another name")
    made = not folder.exists()
    if not made and (found := sorted(item.name for item in folder.iterdir() if item.name != ".git")):
        listed = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise UsageError(f"{folder}: expected a new or empty folder, got one that holds {listed}; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    git = in_git(folder)
    # Beside its later place and not in its stead: the folder may be the one that the shell stands in.
    partial = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
    moved: list[Path] = []
    try:
        _fill(partial, git)
        for item in list(partial.iterdir()):
            moved.append(item.rename(folder / item.name))
    except BaseException:
        _remove(*moved, partial, *([folder] if made else []))
        raise
    partial.rmdir()
    return git


def _remove(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def in_git(folder: Path) -> bool:
    """Whether the folder or one above it is a git repository's."""
    here = folder.resolve()
    return any((above / ".git").exists() for above in (here, *here.parents))


def _fill(folder: Path, git: bool) -> None:
    for name, target in FILES.items():
        text = resources.files(__package__).joinpath("files", name).read_text(encoding="utf-8")
        _put(folder / target, text + ("" if git or name != "dvc-config" else NO_GIT))
    for place, source in _configs(resources.files("devil_pipe.configs"), Path("configs")):
        _put(folder / place, source.read_text(encoding="utf-8"))


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _configs(folder: Traversable, place: Path) -> Iterator[tuple[Path, Traversable]]:
    """Every YAML below, but those that `devil-pipe experiment` derived in a working copy: their names have `--`."""
    for item in folder.iterdir():
        if item.is_dir():
            yield from _configs(item, place / item.name)
        elif item.name.endswith(".yaml") and "--" not in item.name:
            yield place / item.name, item
