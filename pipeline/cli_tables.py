"""`devil-pipe plan`, `devil-pipe experiment` and `devil-pipe tables`: the paper's experiments, and ours beside them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from devil_pipe.pipeline.plainly import plainly

Name = Annotated[str, typer.Argument(help="A table (table1 … table6, figure7, demo-table2), or a file of its rows.")]


def plan(
    name: Name,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    pictures_a_second: Annotated[float | None, typer.Option(help="A measured rate of extraction.")] = None,
    seconds_a_step: Annotated[float | None, typer.Option(help="A measured rate of training.")] = None,
    measured_on: Annotated[str | None, typer.Option(help="What gave the rates; stands beside them.")] = None,
) -> None:
    """Say what a table would run, what is done, what is missing, and the disk and hours of the rest; runs nothing."""
    with plainly():
        from devil_pipe.store.errors import UsageError

        given = pictures_a_second is not None or seconds_a_step is not None
        if given != (measured_on is not None):
            raise UsageError("--measured-on belongs to --pictures-a-second and --seconds-a-step: what gave them?")
        if any(rate is not None and not 0 < rate < math.inf for rate in (pictures_a_second, seconds_a_step)):
            raise UsageError("expected rates above 0")
        from devil_pipe.pipeline.experiments.experiment import Rates, of_table
        from devil_pipe.pipeline.experiments.planning import plan as work

        rates = None
        if measured_on is not None:
            rates = Rates(pictures_a_second=pictures_a_second, seconds_a_step=seconds_a_step, measured_on=measured_on)
        typer.echo(work(name, of_table(name), rates).text(as_json))


def experiment(name: Name) -> None:
    """Run what is left of an experiment, stage by stage, and print its table."""
    with plainly():
        from devil_pipe.pipeline.experiments.experiment import of_table
        from devil_pipe.pipeline.experiments.gather import gather
        from devil_pipe.pipeline.experiments.render import render
        from devil_pipe.pipeline.experiments.running import execute
        from devil_pipe.stages.common.progress import log

        experiments = of_table(name)
        done = execute(experiments)
        log(f"{name}: {done} commands ran" if done else f"{name}: all was done before")
        typer.echo(render([gather(name)], "markdown"), nl=False)


def tables(
    names: Annotated[list[str] | None, typer.Argument(help="Tables; by default all.")] = None,
    form: Annotated[str | None, typer.Option("--format", help="markdown, latex or html.")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for a file of each table, in every format or one.")] = None,
) -> None:
    """Print the tables: ours, the null control, the paper's and the difference, or what a row needs to run."""
    with plainly():
        from devil_pipe.pipeline.experiments import experiment as experiments
        from devil_pipe.pipeline.experiments.gather import gather
        from devil_pipe.pipeline.experiments.render import FORMATS, render
        from devil_pipe.stages.common.files import write_text_atomic
        from devil_pipe.stages.common.progress import log
        from devil_pipe.store.errors import UsageError

        if form is not None and form not in FORMATS:
            raise UsageError(f"--format: expected one of {', '.join(FORMATS)}, got {form!r}")
        gathered = [gather(name) for name in names or experiments.tables()]
        if out is None:
            typer.echo(render(gathered, form or "markdown"), nl=False)
            return
        for one in gathered:
            for kind in [form] if form else FORMATS:
                path = out / f"{one.name}.{FORMATS[kind]}"
                write_text_atomic(path, render([one], kind))
                log(f"wrote {path}")
