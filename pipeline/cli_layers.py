"""`devil-pipe layers`: which layers a backbone has, before anything is extracted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from devil_pipe.pipeline.plainly import plainly

if TYPE_CHECKING:
    from devil_pipe.stages.extract.config import Size


def layers(
    backbone: Annotated[
        str, typer.Argument(help="A preset, timm/NAME, open_clip/NAME:TAG, or package.module:function of one's own.")
    ],
    weights: Annotated[
        str | None, typer.Option(help="Look at the real thing: auto, random, or a file of weights. By default shapes.")
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(help="Pixels, such as 224, or HEIGHTxWIDTH; by default the backbone's own.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List a backbone's layers as a trial forward finds them; needs no weights and no network."""
    with plainly():
        size = _size(image_size)
        from devil_pipe.stages.extract.overview import overview

        typer.echo(overview(backbone, weights, size).text(as_json))


def _size(text: str | None) -> Size | None:
    from devil_pipe.store.errors import UsageError

    if text is None:
        return None
    found = re.fullmatch(r"(\d{2,5})(?:[x×](\d{2,5}))?", text)
    if found is None or min(sides := [int(side) for side in found.groups() if side]) < 32:
        raise UsageError(f"--image-size: expected pixels, 32 at least, such as 224 or 160x288, got {text!r}")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])
