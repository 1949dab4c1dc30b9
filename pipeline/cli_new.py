"""`devil-pipe new`: a project's files in a folder of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from devil_pipe.pipeline.plainly import plainly


def new(folder: Annotated[Path, typer.Argument(help="Folder to make, or an empty one.")]) -> None:
    """Write a project: the configurations of the demo and of the paper's tables, and what DVC needs to run them."""
    with plainly():
        from devil_pipe.pipeline.project.write import write
        from devil_pipe.stages.common.progress import log

        in_git = write(folder)
        if not in_git:
            log(f"{folder} is in no git repository, so DVC does without one: no_scm in {folder / '.dvc/config'}")
        log(f"wrote {folder}; the demo from there: devil-pipe assets && dvc repro")
