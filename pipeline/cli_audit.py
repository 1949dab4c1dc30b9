"""`devil-pipe audit`: does a trained run owe its words and maps to the features?"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from devil_pipe.pipeline.plainly import plainly


def audit(
    run: Annotated[str | None, typer.Argument(help="A trained run of this project; by default the first.")] = None,
    pictures: Annotated[
        int, typer.Option(min=4, help="Asked for maps and descriptions; other checks look at 4 × or ⅓ × as many.")
    ] = 24,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the pictures, words, permutations and random weights.")
    ] = 0,
    only: Annotated[str | None, typer.Option(metavar="CHECK,…", help="These checks alone, by name.")] = None,
    random_run: Annotated[
        str | None, typer.Option(metavar="NAME", help="A run like it on the features of random weights.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the page goes; by default runs/RUN/audit.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All findings as JSON.")] = False,
) -> None:
    """Test whether a run's words and maps come from the features, and write the page of what was found.

    Exit code 0: every check that gives a verdict passed. 1: a check failed (the last line names it), or the audit
    could not run. 2: the command is wrong. The rules are fixed in the code: docs/audit.md.
    """
    with plainly():
        from devil_pipe.pipeline.audit_page.page import write
        from devil_pipe.stages.audit.run import chosen
        from devil_pipe.stages.audit.run import run as work
        from devil_pipe.stages.common.progress import log
        from devil_pipe.store.errors import InputError

        names = tuple(name.strip() for name in (only or "").split(",") if name.strip())
        chosen(names)
        config = _config(run, random_run, out, pictures=pictures, seed=seed, only=names)
        report = work(config)
        page = write(report, config.out)
        if as_json:
            typer.echo(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
        log(f"wrote {page}")
        if report.failed:
            raise InputError(f"audit of {config.run}: failed: {', '.join(report.failed)}; {page} shows why")


def _config(name: str | None, random_run: str | None, out: Path | None, **given: Any) -> Any:
    """The audit's configuration: the run's own, and what the command line says."""
    from devil_pipe.pipeline.config import Run, first
    from devil_pipe.stages.audit.config import AuditConfig, RandomRun

    opened = Run(first("runs") if name is None else name)
    twin = None
    if random_run is not None:
        other = Run(random_run)
        twin = RandomRun(run=random_run, store=other.train.store, data_dir=other.train.data_dir, out=other.train.out)
    return AuditConfig(
        run=opened.name,
        split=opened.evaluate.split,
        max_new_tokens=opened.evaluate.max_new_tokens,
        weights=opened.store.weights,
        command=_command(opened.name, random_run, out, given),
        random=twin,
        runtime=opened.evaluate.runtime,
        store=opened.train.store,
        data_dir=opened.train.data_dir,
        run_dir=opened.train.out,
        out=out or opened.train.out / "audit",
        **given,
    )


def _command(run: str, random_run: str | None, out: Path | None, given: dict[str, Any]) -> str:
    """What makes the same page again, every default said."""
    words = ["devil-pipe", "audit", run, "--pictures", str(given["pictures"]), "--seed", str(given["seed"])]
    words += ["--only", ",".join(given["only"])] if given["only"] else []
    words += ["--random-run", random_run] if random_run else []
    return shlex.join(words + (["--out", str(out)] if out else []))
