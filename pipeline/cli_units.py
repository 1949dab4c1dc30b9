"""`devil-pipe units`: the units of a run's backbone, their exemplars, and what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from devil_pipe.pipeline import asking
from devil_pipe.pipeline.plainly import plainly

if TYPE_CHECKING:
    from devil_pipe.stages.units.config import UnitsConfig
    from devil_pipe.stages.units.findings import Findings


def units(
    run: Annotated[str, typer.Argument(help="Name of a trained run, a file in configs/runs/.")],
    layer: Annotated[str | None, typer.Option(help="These layers alone, separated by commas.")] = None,
    numbers: Annotated[
        str | None, typer.Option("--units", metavar="0,5,9", help="These units (channels) of each layer.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=0, help="Random units of each layer, 40 if nothing is said; 0: every one.")
    ] = None,
    split: Annotated[str, typer.Option(help="Whose pictures the exemplars come from.")] = "train",
    score_split: Annotated[str, typer.Option(help="Whose pictures the descriptions are scored on.")] = "test",
    exemplars: Annotated[int, typer.Option(min=1, max=255, help="Top pictures of each unit.")] = 15,
    quantile: Annotated[float, typer.Option(help="Of a unit's activations: above it lies its mask.")] = 0.99,
    rows: Annotated[int, typer.Option(min=2, help="Scores are taken over so many random pictures at most.")] = 10_000,
    tied: Annotated[float, typer.Option(help="AUC from which on a unit is tied to an object.")] = 0.9,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of every sample.")] = 0,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write exemplars and masks in MILANNOTATIONS' layout.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the page; by default runs/RUN/units.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures and units as JSON.")] = False,
    device: asking.Device = "auto",
    precision: asking.Precision = "auto",
) -> None:
    """Find the pictures that units are most active on, say what they show, and score what was said.

    One scan of the run's feature store gives each unit's top pictures and the threshold of its masks; the run's
    translator describes them. The page, with CSV and JSON of its table, goes to runs/RUN/units/.
    """
    with plainly():
        from devil_pipe.store.errors import UsageError

        if numbers is not None and sample is not None:
            raise UsageError("expected --units or --sample, got both")
        if precision not in ("auto", "float32", "bfloat16"):
            raise UsageError(f"--precision: expected auto, float32 or bfloat16, got {precision!r}")
        for option, value, least in (("--quantile", quantile, 0.0), ("--tied", tied, 0.5)):
            if not least < value < 1:
                raise UsageError(f"{option}: expected a number between {least:g} and 1, got {value:g}")
        given = {"split": split, "score_split": score_split, "exemplars": exemplars, "quantile": quantile}
        given |= {"rows": rows, "tied": tied, "seed": seed, "export": export}
        given |= {"layers": _layers(layer), "units": _numbers(numbers)}
        given |= {} if sample is None else {"sample": sample}
        config = _config(run, given, {"device": device, "precision": precision})
        found, page = _work(config, out)
        if as_json:
            about = found.as_dict() | {"page": str(page), "units": [unit.row() for unit in found.units]}
            typer.echo(json.dumps(about, indent=2, ensure_ascii=False))
            return
        typer.echo("\n".join(_told(found)))


def _config(run: str, given: dict[str, Any], runtime: dict[str, Any]) -> UnitsConfig:
    from devil_pipe.pipeline.config import Run
    from devil_pipe.stages.units.config import UnitsConfig

    opened = Run(run)
    places = {"store": opened.train.store, "data_dir": opened.train.data_dir, "out": opened.train.out}
    longest = {"max_new_tokens": opened.evaluate.max_new_tokens}
    return UnitsConfig.model_validate({"run": run, **longest, **given, **places, "runtime": runtime})


def _work(config: UnitsConfig, out: Path | None) -> tuple[Findings, Path]:
    """Everything, the page included: what was found, and where the page lies."""
    from devil_pipe.pipeline.units_page.write import Page
    from devil_pipe.stages.units.run import run as work

    with Page(out or config.out / "units") as page:
        found = work(config, page.picture)
        page.write(found)
    return found, page.folder / "index.html"


def _layers(text: str | None) -> tuple[str, ...]:
    from devil_pipe.store.errors import UsageError

    chosen = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    if text is not None and not chosen:
        raise UsageError(f"--layer: expected names of layers, got {text!r}")
    return chosen


def _numbers(text: str | None) -> tuple[int, ...]:
    from devil_pipe.store.errors import UsageError

    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
        raise UsageError(f"--units: expected whole numbers from 0, such as 0,5,9, got {text!r:.80}")
    return tuple(int(part) for part in parts)


def _told(found: Findings) -> list[str]:
    """A few lines for a person."""
    from devil_pipe.stages.evaluate.metrics import NotRun

    lines = []
    for part in (*found.parts, *([found.whole] if len(found.parts) > 1 else [])):
        name = "all layers" if part.layer == found.whole.layer else part.layer
        lines.append(f"{name}: {len(part.units)} units, {part.described} described")
        for key, what, count in (("auc", "AUC", part.scored), ("named", "object named", part.tied)):
            own, other, gap = (part.figures[item] for item in (key, f"shuffled_{key}", f"{key}_gap"))
            if isinstance(own, NotRun) or isinstance(other, NotRun) or isinstance(gap, NotRun):
                lines.append(f"  {what}: not run: {own.why}" if isinstance(own, NotRun) else f"  {what}: not run")
                continue
            lines.append(
                f"  {what}: {own.value:.3f} [{own.low:.3f}, {own.high:.3f}], another unit's description "
                f"{other.value:.3f}, gap {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], n = {count} units"
            )
    return lines
