"""`devil-pipe export`: a trained translator handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from devil_pipe.pipeline.plainly import plainly


def export(
    run: Annotated[str, typer.Argument(help="Name of a trained run, a file in configs/runs/.")],
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    licence: Annotated[str, typer.Option(help="Licence of the translator's weights, such as apache-2.0.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace an exported translator that lies there.")] = False,
) -> None:
    """Write a trained translator as a folder to share: weights, configuration, model card."""
    with plainly():
        from devil_pipe.pipeline.config import Run
        from devil_pipe.stages.common.progress import log
        from devil_pipe.stages.train.model_card import About
        from devil_pipe.stages.train.sharing import export as work

        train = Run(run).train
        about = About(run, train.data_dir.name, licence, _licences(train.data_dir / "summary.json"))
        work(train.out, folder, about, force=force)
        log(f"wrote {folder}; describe a picture with it: devil-pipe explain PICTURE --translator {folder}")


def _licences(summary: Path) -> dict[str, str]:
    """What `devil-pipe prepare` noted of the pictures' licences."""
    if not summary.exists():
        return {}
    from devil_pipe.stages.common.files import read_object

    found = read_object(summary, "run `devil-pipe prepare` again").get("licences", {})
    return {str(part): str(licence) for part, licence in found.items()} if isinstance(found, dict) else {}
