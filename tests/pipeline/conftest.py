"""The finished project that every row of the table of failures begins with; made once, copied for each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import failures


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as the commands left it; not to be written to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        return failures.world(tmp_path_factory.mktemp("finished") / "world")


@pytest.fixture
def world(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it as the current folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    copy = tmp_path / "world"
    shutil.copytree(finished, copy, copy_function=shutil.copy2)
    with failures.inside(copy):
        yield copy
    for path in copy.rglob("*"):  # else pytest could not take it away
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
