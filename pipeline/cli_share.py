"""`devil-pipe export` and `devil-pipe explain`: a trained translator handed on, and used on any picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from devil_pipe.pipeline.plainly import plainly

if TYPE_CHECKING:
    from devil_pipe.stages.explain.describe import Explainer, Explanation, Place


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
    found = json.loads(summary.read_text(encoding="utf-8")).get("licences", {})
    return {str(part): str(licence) for part, licence in found.items()}


def explain(
    pictures: Annotated[list[Path], typer.Argument(help="Files of pictures.")],
    translator: Annotated[
        str | None, typer.Option(help="An exported translator: a folder, or owner/name on the hub.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="In place of --translator: a trained run of this project.")] = None,
    layer: Annotated[list[str] | None, typer.Option(help="Of single layers, this one alone; may be repeated.")] = None,
    at: Annotated[
        list[str] | None, typer.Option(metavar="X,Y", help="A place too: fractions from the upper left; repeatable.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="The backbone's: auto, or a file.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Says that a backbone that is a function may be called.")] = None,
    language_model: Annotated[str | None, typer.Option(help="Where the language model is, if elsewhere.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of a description.")] = 20,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="The language model's: auto, float32 or bfloat16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say what a picture, each layer and a location encode, by running the backbone on it now."""
    with plainly():
        from devil_pipe.store.errors import UsageError

        places = [_place(text) for text in at or []]
        if (translator is None) == (run is None):
            raise UsageError("expected --translator (an exported one) or --run (of this project), one of them")
        from devil_pipe.stages.common.progress import log
        from devil_pipe.stages.explain.describe import as_dict, read_pictures

        opened = read_pictures(pictures)
        if precision not in ("auto", "float32", "bfloat16"):
            raise UsageError(f"--precision: expected auto, float32 or bfloat16, got {precision!r}")
        explainer = _explainer(translator, run, weights, backbone, language_model, (device, precision))
        layers = layer or [item.name for item in explainer.card.store.layers]
        found = [explainer.explain(picture, layers, places, max_new_tokens) for picture in opened]
        if as_json:
            said = [{"picture": str(p), **as_dict(one, places)} for p, one in zip(pictures, found, strict=True)]
            typer.echo(json.dumps(_facts(explainer) | {"pictures": said}, indent=2, ensure_ascii=False))
            return
        card = explainer.card
        log(f"{card.store.backbone} explained through {card.language_model}. {card.data_note}".strip())
        for path, one in zip(pictures, found, strict=True):
            typer.echo("\n".join(_lines(path, one, places, explainer)))


def _place(text: str) -> Place:
    from devil_pipe.store.errors import UsageError

    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        x = y = -1.0
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise UsageError(f"--at: expected X,Y, fractions of width and height such as 0.25,0.5, got {text!r}")
    return x, y


def _explainer(
    translator: str | None,
    run: str | None,
    weights: str | None,
    backbone: str | None,
    name: str | None,
    runs: tuple[str, str],
) -> Explainer:
    """All parts, the smallest first, so that a mistake is said early; `runs` is the device and the precision."""
    from devil_pipe.stages.explain.describe import Explainer, open_backbone
    from devil_pipe.stages.extract.worker import pick_device
    from devil_pipe.stages.train.checkpoint import load
    from devil_pipe.stages.train.language_model import LanguageModel, pick_precision
    from devil_pipe.stages.train.sharing import from_pretrained

    if run is not None:
        from devil_pipe.pipeline.config import Run

        opened = Run(run)
        learned, card = load(opened.train.out / "checkpoint")
        weights, backbone = weights or opened.store.weights, backbone or card.store.backbone
    else:
        assert translator is not None
        learned, card = from_pretrained(translator)
    where = pick_device(runs[0])
    module = open_backbone(card.store, weights or "auto", backbone or "")
    model = LanguageModel(
        name or card.language_model, device=where, dtype=pick_precision(runs[1], where), repeats=card.prefix_repeats
    )
    return Explainer(learned, card, module, model)


def _facts(explainer: Explainer) -> dict[str, Any]:
    """What a description's reader has to know."""
    card = explainer.card
    return {
        "backbone": card.store.backbone,
        "weights": card.store.weights,
        "language_model": card.language_model,
        "seed": card.seed,
        "data_note": card.data_note,
    }


def _lines(path: Path, one: Explanation, places: Sequence[Place], explainer: Explainer) -> list[str]:
    lines = [str(path), f"  all layers: {one.whole}"]
    for name, text in one.layers.items():
        lines.append(f"  {name}: {text}")
    for (x, y), found in zip(places, one.places, strict=True):
        lines.append(f"  at {x:g},{y:g}")
        for name, spot in found.items():
            grid = explainer.card.store.layer(name)
            where = f"row {spot.row}, column {spot.column} of {grid.height}×{grid.width}"
            lines.append(f"    {name} ({where}): {spot.text}")
    return lines
