"""devil-pipe: one command for each stage. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import io
import json
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer

from devil_pipe.pipeline.cli_audit import audit
from devil_pipe.pipeline.cli_doctor import doctor
from devil_pipe.pipeline.cli_explain import explain
from devil_pipe.pipeline.cli_explore import explore
from devil_pipe.pipeline.cli_layers import layers
from devil_pipe.pipeline.cli_new import new
from devil_pipe.pipeline.cli_prepare import prepare
from devil_pipe.pipeline.cli_saliency import saliency
from devil_pipe.pipeline.cli_share import export
from devil_pipe.pipeline.cli_store import store_app
from devil_pipe.pipeline.cli_tables import experiment, plan, tables
from devil_pipe.pipeline.cli_units import units
from devil_pipe.pipeline.plainly import example, plainly

app = typer.Typer(
    name="devil-pipe",
    help="Say in words, and show on the picture, what any layer of a vision model encodes at any location.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
    epilog="The whole chain: [bold]make demo[/bold] in a clone; elsewhere [bold]devil-pipe new[/bold] comes first.",
)

app.add_typer(store_app)

Name = Annotated[str | None, typer.Argument(help="Name of a file in configs/runs/; by default the pipeline's first.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("devil-pipe"))
        raise typer.Exit


@app.callback()
def _common(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say warnings and errors alone.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="One JSON object a line, for batch jobs.")] = False,
    _shown: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    from devil_pipe.stages.common.progress import Mode, speak

    for stream in (sys.stdout, sys.stderr):  # a file's name may be no UTF-8, and a terminal may know ASCII alone
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    speak(Mode.JSON_LINES if log_json else Mode.QUIET if quiet else Mode.HUMAN)


app.command(name="new", epilog=example("devil-pipe new my-project"))(new)


@app.command(epilog=example("devil-pipe assets"))
def assets(
    names: Annotated[list[str] | None, typer.Argument(help="Which; by default all that the demo needs.")] = None,
) -> None:
    """Fetch the demo's weights and pictures into a cache outside the project, checked by hash."""
    with plainly():
        from devil_pipe.stages.common.assets import cache_dir, fetch
        from devil_pipe.stages.common.progress import log

        fetch(names or None)
        log(f"assets are in {cache_dir()}")


app.command(name="prepare", epilog=example("devil-pipe prepare mine --folder ~/pictures --captions captions.csv"))(
    prepare
)


app.command(name="layers", epilog=example("devil-pipe layers timm/vit_small_patch14_reg4_dinov2"))(layers)


@app.command(epilog=example("devil-pipe extract --backbone clip_rn50 --data demo"))
def extract(
    store: Annotated[str | None, typer.Argument(help="Name of a file in configs/stores/.")] = None,
    backbone: Annotated[str | None, typer.Option(help="A backbone; makes or uses the store DATA-BACKBONE.")] = None,
    data: Annotated[str | None, typer.Option(help="Prepared pictures, with --backbone.")] = None,
    weights: Annotated[str | None, typer.Option(help="auto, random, or a file of weights.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers or rules, separated by commas.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures in one forward pass.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = None,
    encoding: Annotated[
        str | None, typer.Option(help="float16, uint8, partition:GROUPS, pool:SIDE or units, also with +zstd.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes on this machine.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler; its workers do the work.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how large and how long; writes nothing.")] = False,
    rows: Annotated[int | None, typer.Option(min=1, help="With --dry-run: as if there were so many pictures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: as JSON.")] = False,
) -> None:
    """Run a frozen backbone once over the pictures and store the feature maps of its layers."""
    with plainly():
        from devil_pipe.stages.common.memory import keep_freed_memory

        keep_freed_memory(of_all_threads=True)  # before PyTorch is imported
        from devil_pipe.pipeline import config
        from devil_pipe.store.errors import UsageError

        if store is not None and (backbone or data or weights or layers or encoding):
            raise UsageError(f"a named store is made as configs/stores/{store}.yaml says; edit it, or use --backbone")
        if store is None and backbone is None and (data or weights or layers or encoding):
            raise UsageError("--data, --weights, --layers and --encoding belong to --backbone")
        if (rows or as_json) and not dry_run:
            raise UsageError("--rows and --json belong to --dry-run")
        if workers and scheduler:
            raise UsageError("expected --workers (processes here) or --scheduler (a cluster's), got both")
        from devil_pipe.stages.extract.backbones import spec
        from devil_pipe.stages.extract.layers import choose

        values: dict[str, Any] = {}
        if backbone is None:
            chosen = config.first("stores") if store is None else store
        else:
            spec(backbone)
            chosen, values = _new_store(backbone, data or config.first("data"), weights, layers, encoding)
        with config.kept("stores", chosen, {} if dry_run else values):
            loaded = config.load_store(chosen, values if dry_run and values else None)
            try:
                choose(spec(loaded.backbone), loaded.layers)
            except UsageError as error:
                raise UsageError(f"{config.CONFIGS}/stores/{chosen}.yaml: {error}" if store else str(error)) from None
            given = {"batch_size": batch_size, "device": device, "workers": workers, "scheduler": scheduler}
            speed = {key: value for key, value in given.items() if value is not None}
            wanted = loaded.model_copy(update={"runtime": loaded.runtime.model_copy(update=speed)})
            if dry_run:
                from devil_pipe.stages.extract.estimate import estimate

                typer.echo(estimate(wanted, rows).text(as_json))
                return
            from devil_pipe.stages.extract.run import run

            run(wanted)


def _new_store(
    backbone: str, data: str, weights: str | None, layers: str | None, encoding: str | None
) -> tuple[str, dict[str, Any]]:
    """The store's name for a backbone given on the command line, and what its configuration must say."""
    from devil_pipe.pipeline.config import CONFIGS, store_values
    from devil_pipe.stages.extract.backbones import spec

    chosen = [item.strip() for item in (layers or "").split(",") if item.strip()]
    model = backbone.replace("/", "-").replace(":", "-")
    parts = [data, model, *(["random"] if weights == "random" else []), *(item.replace(":", "") for item in chosen)]
    name = "-".join([*parts, *([encoding.replace(":", "")] if encoding else [])])
    if weights is None and layers is None and encoding is None and (CONFIGS / "stores" / f"{name}.yaml").exists():
        return name, {}
    size = spec(backbone).size
    return name, store_values(
        data=data,
        backbone=backbone,
        weights=weights or "auto",
        layers=chosen,
        image_size=size if isinstance(size, int) else list(size),
        encoding=encoding or _usual_encoding(data),
    )


def _usual_encoding(data: str) -> str:
    """Full maps of pictures; of units their means, for which there is no other choice."""
    from devil_pipe.pipeline.config import CONFIGS, load_data

    if not (CONFIGS / "data" / f"{data}.yaml").exists():  # prepared in a way that nobody wrote down
        return "float16"
    return "units" if load_data(data).source == "milan" else "float16"


@app.command(epilog=example("devil-pipe train demo; devil-pipe train cc3m-clip_rn50-opt --dry-run --json"))
def train(
    context: typer.Context,
    run: Name = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained; needs no weights.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: as JSON.")] = False,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes on this machine that share a batch.")] = None,
) -> None:
    """Train the translator from a feature store; a stopped run goes on where it was."""
    with plainly():
        chosen = _open(run)
        if dry_run:
            from devil_pipe.pipeline.plan import plan

            planned = plan(chosen)
            typer.echo(json.dumps(planned, indent=2) if as_json else "\n".join(f"{k}: {v}" for k, v in planned.items()))
            return
        from devil_pipe.stages.train import processes as several

        count = processes or chosen.train.runtime.processes
        if count > 1 and several.world_size() == 1:  # else a launcher, or this very command, has started them
            if code := several.start([*_this_command(context), "train", chosen.name], count):
                raise typer.Exit(code)
            return
        from devil_pipe.stages.train.run import run as work

        work(chosen.train)


def _this_command(context: typer.Context) -> list[str]:
    """How to start `devil-pipe` once more, speaking as this one does."""
    given = context.find_root().params
    manner = ["--quiet"] if given["quiet"] else ["--log-json"] if given["log_json"] else []
    return [sys.executable, "-m", "devil_pipe.pipeline.cli", *manner]


def _open(name: str | None) -> Any:
    from devil_pipe.pipeline import config

    return config.Run(config.first("runs") if name is None else name)


@app.command(epilog=example("devil-pipe evaluate demo"))
def evaluate(run: Name = None) -> None:
    """Describe every test picture, score the descriptions, and set null controls beside each score."""
    with plainly():
        from devil_pipe.stages.evaluate.run import run as work

        work(_open(run).evaluate)


app.command(epilog=example('devil-pipe saliency demo; devil-pipe saliency cat.jpg --query "a cat"'))(saliency)
app.command(epilog=example("devil-pipe units demo --layer s16,s32 --sample 40"))(units)
app.command(epilog=example("devil-pipe audit demo --only controls,round-trip"))(audit)
app.command(epilog=example("devil-pipe export demo demo-translator --licence apache-2.0"))(export)
app.command(epilog=example("devil-pipe explain picture.jpg --at 250,120 --out said.png"))(explain)

app.command(epilog=example("devil-pipe explore --run demo"))(explore)


@app.command(epilog=example("devil-pipe report demo"))
def report(run: Name = None) -> None:
    """Write the page of a finished run, and its metrics.json."""
    with plainly():
        from devil_pipe.pipeline.report.run import run as work

        work(_open(run).report)


app.command(epilog=example("devil-pipe doctor --only java,stores"))(doctor)
app.command(name="plan", epilog=example("devil-pipe plan table1"))(plan)
app.command(name="experiment", epilog=example("devil-pipe experiment demo-table2"))(experiment)
app.command(name="tables", epilog=example("devil-pipe tables table1 demo-table2 --out tables"))(tables)


def main() -> None:
    """Entry point of the command `devil-pipe`."""
    try:
        app(prog_name="devil-pipe")
    except KeyboardInterrupt:  # before a command began, which says more itself
        sys.exit(130)


if __name__ == "__main__":
    main()
