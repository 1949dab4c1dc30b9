"""`devil-pipe explore`: the page in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devil_pipe.pipeline import asking
from devil_pipe.pipeline.plainly import plainly

if TYPE_CHECKING:
    from devil_pipe.pipeline.explorer.pictures import RunPictures
    from devil_pipe.pipeline.explorer.sides import Side
    from devil_pipe.pipeline.explorer.units import Units
    from devil_pipe.stages.explain.explainer import Explainer


def explore(
    run: Annotated[str | None, typer.Option(help="A trained run of this project.")] = None,
    compare: Annotated[str | None, typer.Option(help="A second run, shown beside it.", metavar="RUN2")] = None,
    translator: Annotated[
        str | None, typer.Option(help="In place of --run: an exported translator, a folder or a name on the hub.")
    ] = None,
    weights: asking.Weights = None,
    backbone: asking.Trusted = None,
    language_model: asking.Elsewhere = None,
    device: asking.Device = "auto",
    precision: asking.Precision = "auto",
    host: Annotated[str, typer.Option(help="The address to answer at; this machine alone can reach the first.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes any free one.")] = 7860,
    upload: Annotated[int, typer.Option(min=1, help="Megabytes that a dropped picture may have.")] = 20,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
) -> None:
    """Open a page on this machine: choose a picture, click a place, read every layer; type words, see where."""
    with plainly():
        from devil_pipe.store.errors import UsageError

        if run is not None and translator is not None:
            raise UsageError("expected --run (of this project) or --translator (an exported one), got both")
        try:
            from devil_pipe.pipeline.explorer.serve import listen, serve
        except ModuleNotFoundError as error:
            if error.name not in ("starlette", "uvicorn"):
                raise
            raise UsageError("the explorer needs two more packages: pip install 'devil-pipe[explore]'") from None
        with listen(host, port) as opened:
            pictures, units = _data(run) if run is not None else (None, None)
            first = _side(run, translator, asking.Parts(weights, backbone, language_model, device, precision))
            sides = [first, *([_beside(compare, first.explainer, device, precision)] if compare else [])]
            try:
                serve(opened, host, sides, pictures, units, upload * 1_000_000, browser=browser)
            except KeyboardInterrupt:
                from devil_pipe.stages.common.progress import log

                log("stopped")
                raise typer.Exit(130) from None


def _beside(run: str, first: Explainer, device: str, precision: str) -> Side:
    """A second run, which shares the first one's language model where it is the same."""
    from devil_pipe.pipeline.config import Run
    from devil_pipe.stages.train.checkpoint import load

    card = load(Run(run).train.out / "checkpoint")[1]
    same = first.card.language_model == card.language_model and first.card.prefix_repeats == card.prefix_repeats
    model = first.language_model if same else None
    return _side(run, None, asking.Parts(language_model=model, device=device, precision=precision))


def _side(run: str | None, translator: str | None, parts: asking.Parts) -> Side:
    from devil_pipe.pipeline.explorer.sides import Side
    from devil_pipe.stages.common.progress import log

    name = run or (Path(translator).name if translator else "demo translator")
    log(f"loading {name}")
    return Side(name, asking.open_explainer(run, translator, parts))


def _data(run: str) -> tuple[RunPictures | None, Units | None]:
    """The pictures and units of a run's data; without them it can still be asked about other pictures."""
    from devil_pipe.pipeline.config import Run
    from devil_pipe.pipeline.explorer.pictures import RunPictures
    from devil_pipe.pipeline.explorer.units import units_of_run
    from devil_pipe.stages.common.progress import warn
    from devil_pipe.store.errors import InputError

    opened = Run(run)
    data = opened.evaluate.data_dir
    try:
        pictures = RunPictures(data, opened.evaluate.split, opened.file.seed)
        return pictures, units_of_run(data, opened.evaluate.out / "predictions.parquet")
    except InputError as error:
        warn(f"no pictures of the run are offered: {error}")
        return None, None
