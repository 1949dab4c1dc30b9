"""`devil-pipe saliency`: the stage of a run, or the maps of a picture that is asked now."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from devil_pipe.pipeline import asking
from devil_pipe.pipeline.plainly import plainly

if TYPE_CHECKING:
    from devil_pipe.pipeline.live_maps import Wanted
    from devil_pipe.stages.saliency.overlays import Scale

SCALES = {False: 20.0, True: 10.0}
"""Nats that the colours reach to, summed and per token: fixed, so that maps of any two pictures can be compared.

A few words have a prior of about -20 nats, so that is what they gain where they become certain."""

Pictures = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN | PICTURE...]",
        help="The run whose stage is run, by default the pipeline's first; or, with --query or --from-description, "
        "files of pictures.",
    ),
]


def saliency(
    names: Pictures = None,
    query: Annotated[list[str] | None, typer.Option(help="Words to be found in the pictures; repeatable.")] = None,
    from_description: Annotated[
        str | None, typer.Option(metavar="X,Y", help="Query the nouns that each layer says at this pixel, too.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="Of pictures: the trained run that is asked.")] = None,
    translator: Annotated[str | None, typer.Option(help="Or an exported translator: a folder, or owner/name.")] = None,
    layers: Annotated[str | None, typer.Option(help="These layers alone, separated by commas; and all together.")] = (
        None
    ),
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where arrays and pictures go.")] = Path("maps"),
    scale: Annotated[float | None, typer.Option(help="Nats that the colours reach to: 20, per token 10.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="The paper's score: the prior is not taken off.")] = False,
    zero: Annotated[
        str, typer.Option(metavar="prior|grey", help="White: the language model alone, or a grey picture.")
    ] = ("prior"),
    per_token: Annotated[bool, typer.Option("--per-token", help="Mean over a query's tokens, not the sum.")] = False,
    smooth: Annotated[str, typer.Option(metavar="auto|N|0", help="Average pool over N × N locations.")] = "auto",
    grid: Annotated[int, typer.Option(min=0, help="Average finer layers to N × N before asking; 0: ask all.")] = 14,
    upsample: Annotated[bool, typer.Option("--upsample", help="Arrays as large as the picture (bilinear).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Priors, extremes and where they are, as JSON.")] = False,
    weights: asking.Weights = None,
    backbone: asking.Trusted = None,
    language_model: asking.Elsewhere = None,
    device: asking.Device = "auto",
    precision: asking.Precision = "auto",
) -> None:
    """Draw where words are likelier than without looking: in pictures of one's own, or as the stage of a run.

    With --query or --from-description: arrays, overlays and one figure of all layers for each PICTURE. Without:
    RUN's gallery, and its maps scored against masks.
    """
    with plainly():
        from devil_pipe.store.errors import UsageError

        given = names or []
        asked = bool(query) or from_description is not None
        if not asked:
            live = {"--run": run, "--translator": translator, "--layers": layers, "--scale": scale}
            live |= {"--plain": plain, "--per-token": per_token, "--upsample": upsample, "--json": as_json}
            if wrong := next((name for name, value in live.items() if value), None):
                raise UsageError(f"{wrong} is for pictures: say what to look for with --query or --from-description")
            _stage(given)
            return
        if not given:
            raise UsageError("expected pictures to look for the words in, got none")
        from devil_pipe.pipeline.live_maps import Wanted
        from devil_pipe.stages.explain.images import as_picture
        from devil_pipe.stages.explain.telling import Questions
        from devil_pipe.stages.saliency.overlays import Scale

        at = None if from_description is None else asking.point(from_description, "--from-description")
        if zero not in ("prior", "grey") or (plain and zero == "grey"):
            raise UsageError(f"--zero: expected prior or, without --plain, grey, got {zero!r}")
        white = "a grey picture" if zero == "grey" else "the language model's prior"
        colours = Scale(scale if scale is not None else SCALES[per_token], plain, per_token, white)
        side = _smooth(smooth)
        if not 0 < colours.nats < math.inf:
            raise UsageError(f"--scale: expected nats above 0, got {scale:g}")
        opened = [as_picture(path) for path in given]
        if at is not None:
            for path, picture in zip(given, opened, strict=True):
                Questions((), (at,)).check(path, picture.size, "--from-description")
        explainer = asking.open_explainer(
            run, translator, asking.Parts(weights, backbone, language_model, device, precision)
        )
        chosen = _layers(layers, [layer.name for layer in explainer.layers])
        wanted = Wanted(tuple(query or ()), chosen, colours, at, side, grid, upsample, zero == "grey")
        _answer(explainer, given, opened, wanted, out, as_json=as_json)


def _stage(given: list[str]) -> None:
    """What `devil-pipe saliency RUN` does."""
    from devil_pipe.store.errors import UsageError

    pictures = [name for name in given if Path(name).is_file()]
    if pictures:
        raise UsageError(f"{pictures[0]} is a file: say what to look for in it with --query or --from-description")
    if len(given) > 1:
        raise UsageError(f"expected one run, got {len(given)} names; pictures need --query or --from-description")
    from devil_pipe.pipeline import config
    from devil_pipe.stages.saliency.run import run

    run(config.Run(given[0] if given else config.first("runs")).saliency)


def _answer(explainer: Any, names: list[str], pictures: list[Any], wanted: Wanted, out: Path, *, as_json: bool) -> None:
    from devil_pipe.pipeline import live_maps
    from devil_pipe.stages.common.progress import log
    from devil_pipe.stages.evaluate.language import load_tagger
    from devil_pipe.stages.explain import telling

    tagger = load_tagger() if wanted.at is not None else None
    note = telling.note(explainer)
    log(note)
    told = []
    for stem, name, picture in zip(_stems(names), names, pictures, strict=True):
        found = live_maps.ask(explainer, name, picture, wanted, tagger)
        if not found:
            continue
        live_maps.save(out, stem, picture, found, wanted, note)
        told.append(live_maps.as_dict(name, picture, found))
        if not as_json:
            typer.echo("\n".join(live_maps.lines(name, picture, found)))
        log(f"wrote {out / stem}.png (all maps), {stem}.npz (arrays) and an overlay for each map")
    if as_json:
        facts = telling.facts(explainer, None) | {"settings": _settings(wanted), "pictures": told}
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))


def _settings(wanted: Wanted) -> dict[str, Any]:
    scale: Scale = wanted.scale
    return {
        "score": scale.label,
        "plain": scale.plain,
        "zero": "none" if scale.plain else "grey" if wanted.grey else "prior",
        "per_token": scale.per_token,
        "scale": [scale.low, scale.high],
        "smooth": wanted.smooth,
        "grid": wanted.grid,
        "from_description": None if wanted.at is None else list(wanted.at),
    }


def _stems(names: list[str]) -> list[str]:
    """What the files of each picture begin with: its own name, and a number where two are called alike."""
    stems = [Path(name).stem for name in names]
    return [f"{stem}-{number}" if stems.count(stem) > 1 else stem for number, stem in enumerate(stems, 1)]


def _layers(text: str | None, known: list[str]) -> tuple[str, ...]:
    from devil_pipe.store.errors import UsageError

    if text is None:
        return tuple(known)
    chosen = {name.strip() for name in text.split(",") if name.strip()}
    strange = sorted(chosen - set(known))
    if strange or not chosen:
        raise UsageError(f"--layers: expected some of {', '.join(known)}, got {', '.join(strange) or repr(text)}")
    return tuple(name for name in known if name in chosen)


def _smooth(text: str) -> Any:
    from devil_pipe.store.errors import UsageError

    if text == "auto":
        return text
    if re.fullmatch("0|[0-9]{0,3}[13579]", text):
        return int(text)
    raise UsageError(f"--smooth: expected auto, 0 or an odd number of locations, got {text!r}")
