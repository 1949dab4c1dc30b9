"""`devil-pipe explain`: what a picture, each layer, a location and a box say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devil_pipe.pipeline import asking
from devil_pipe.pipeline.plainly import plainly

if TYPE_CHECKING:
    from devil_pipe.stages.explain.answers import Box, Point
    from devil_pipe.stages.explain.telling import Questions


def explain(
    pictures: Annotated[list[Path], typer.Argument(help="Files of pictures.")],
    run: Annotated[str | None, typer.Option(help="A trained run of this project.")] = None,
    translator: Annotated[
        str | None, typer.Option(help="An exported translator: a folder, or owner/name on the hub.")
    ] = None,
    at: Annotated[
        list[str] | None, typer.Option(metavar="X,Y", help="A place too, in pixels from the upper left; repeatable.")
    ] = None,
    box: Annotated[
        list[str] | None, typer.Option(metavar="L,T,R,B", help="A box too, its sides in pixels; repeatable.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Of single layers, these alone; separated by commas.")] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Spatial masks that the margins' intervals come from.")] = 16,
    margin: Annotated[bool, typer.Option("--margin/--no-margin", help="How far to trust each text; takes longer.")] = (
        True
    ),
    out: Annotated[Path | None, typer.Option(metavar="FILE.png", help="A figure: markers and texts.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of a description.")] = 20,
    weights: asking.Weights = None,
    backbone: asking.Trusted = None,
    language_model: asking.Elsewhere = None,
    device: asking.Device = "auto",
    precision: asking.Precision = "auto",
) -> None:
    """Say what a picture, each of its layers, a location and a box encode; the backbone runs on it now.

    Without --run and --translator the demo's small translator answers.
    """
    with plainly():
        from devil_pipe.store.errors import UsageError

        places = [asking.point(text, "--at") for text in at or []]
        boxes = [_box(text) for text in box or []]
        if out is not None and out.suffix.lower() != ".png":
            raise UsageError(f"--out: expected the name of a PNG file, got {out}")
        from rich.console import Console

        from devil_pipe.stages.common.progress import log
        from devil_pipe.stages.explain import telling
        from devil_pipe.stages.explain.images import as_picture

        opened = [as_picture(path) for path in pictures]
        for path, picture in zip(pictures, opened, strict=True):
            telling.Questions((), tuple(places), tuple(boxes)).check(str(path), picture.size)
        explainer = asking.open_explainer(
            run, translator, asking.Parts(weights, backbone, language_model, device, precision)
        )
        asked = _questions(layers, [layer.name for layer in explainer.layers], places, boxes)
        log(telling.note(explainer))
        how = {"max_new_tokens": max_new_tokens, "resamples": resamples}
        found = []
        shown = Console(highlight=False, soft_wrap=True)
        for path, picture in zip(pictures, opened, strict=True):
            found.append(telling.tell(explainer, str(path), picture, asked, margin=margin, **how))
            if not as_json:
                for line in telling.lines(found[-1], explainer.layers):
                    shown.print(line)
        if as_json:
            facts = telling.facts(explainer, resamples if margin else None)
            typer.echo(
                json.dumps(facts | {"pictures": [telling.as_dict(one) for one in found]}, indent=2, ensure_ascii=False)
            )
        elif margin:
            log(telling.MEANING)
        if out is not None:
            from devil_pipe.stages.explain.figure import draw

            draw(found, telling.note(explainer), out)
            log(f"wrote {out}")


def _questions(layers: str | None, known: list[str], places: list[Point], boxes: list[Box]) -> Questions:
    from devil_pipe.stages.explain.telling import Questions
    from devil_pipe.store.errors import UsageError

    chosen = known
    if layers is not None:
        chosen = list(dict.fromkeys(name.strip() for name in layers.split(",") if name.strip()))
        if not chosen:
            raise UsageError(f"--layers: expected names of layers separated by commas, got {layers!r}")
    return Questions(tuple(chosen), tuple(places), tuple(boxes))


def _box(text: str) -> Box:
    from devil_pipe.store.errors import UsageError

    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--box: expected LEFT,TOP,RIGHT,BOTTOM in pixels of the picture such as 40,30,200,160, got {text!r}"
        ) from None
    return left, top, right, bottom
