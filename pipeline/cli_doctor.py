"""`devil-pipe doctor`: what is wrong with this machine or this project, and the command that mends it."""

from __future__ import annotations

from typing import Annotated

import typer

from devil_pipe.pipeline.plainly import plainly


def doctor(
    only: Annotated[str | None, typer.Option(metavar="GROUP,…", help="These alone, such as java,stores.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what takes seconds: METEOR, PyTorch.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte of assets, stores and translators.")] = False,
    network: Annotated[
        bool, typer.Option("--network", help="Ask the hub, and look at stores that lie elsewhere.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, on standard output.")] = False,
) -> None:
    """Check this machine and this project, and say of each thing how it stands and how to mend it.

    Exit code 0: no problems. 1: problems were found. 2: the command is wrong. Nothing is fetched and nothing changed.
    """
    with plainly():
        from devil_pipe.pipeline.doctor import showing
        from devil_pipe.pipeline.doctor.registry import examine
        from devil_pipe.stages.common.progress import Mode, mode
        from devil_pipe.store.errors import UsageError

        if quick and deep:
            raise UsageError("expected --quick or --deep, got both")
        from devil_pipe.pipeline.doctor.finding import Wish

        groups = [name.strip() for name in (only or "").split(",") if name.strip()]
        if only is not None and not groups:
            raise UsageError("--only: expected groups separated by commas, got none")
        found = examine(Wish(quick=quick, deep=deep, network=network), groups)
        if as_json:
            typer.echo(showing.as_json(found))
        else:
            showing.show(found, troubles_alone=mode() is Mode.QUIET)
        if showing.count(found)["problem"]:
            raise typer.Exit(1)
