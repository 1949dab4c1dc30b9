"""devil-pipe store: look into feature stores, check them, and take them elsewhere."""

from __future__ import annotations

import dataclasses
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devil_pipe.pipeline.plainly import example, plainly

if TYPE_CHECKING:
    from devil_pipe.stages.extract.config import ExtractConfig
    from devil_pipe.store.verify import Report

store_app = typer.Typer(
    name="store",
    help="Look into feature stores, check them, and take them elsewhere.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

SHOWN = 100  # findings that are said one by one
Store = Annotated[
    str | None, typer.Argument(help="A store of configs/stores/ (by default the pipeline's first), a folder, or a URL.")
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, on standard output.")]
Force = Annotated[bool, typer.Option("--force", help="Take the place of what is there.")]


@dataclass(frozen=True)
class _Chosen:
    """A store that a person named, and its configuration where it has one."""

    name: str
    location: str
    config: ExtractConfig | None = None


def _choose(name: str | None, to_be: bool = False) -> _Chosen:
    """The store of that name: configs/stores/NAME.yaml, then stores/NAME, then a folder or URL.

    A store `to_be` need not be there yet.
    """
    from devil_pipe.pipeline import config
    from devil_pipe.store.errors import UsageError

    name = config.first("stores") if name is None else name
    plain = Path(name).name == name and not name.startswith(".")
    configs = config.CONFIGS / "stores"
    if plain and (configs / f"{name}.yaml").exists():
        loaded = config.load_store(name)
        return _Chosen(name, loaded.location, loaded)
    if plain and (to_be or (config.STORES / name).is_dir()):
        return _Chosen(name, str(config.STORES / name))
    if to_be or "://" in name or Path(name).is_dir():
        return _Chosen(name, name)
    names = ", ".join(sorted(path.stem for path in configs.glob("*.yaml"))) or "none"
    raise UsageError(f"{name}: expected a store of {configs}/ (there are: {names}), a folder, or a URL")


@store_app.command(epilog=example("devil-pipe store ls"))
def ls(as_json: AsJson = False) -> None:
    """List the stores under stores/ and those that configs/stores/ puts elsewhere."""
    with plainly():
        from devil_pipe.pipeline import config
        from devil_pipe.pipeline.store_info import row_of, show_list
        from devil_pipe.stages.common.progress import log, warn
        from devil_pipe.store.errors import UsageError

        places = {path.name: str(path) for path in sorted(config.STORES.glob("*")) if path.is_dir()}
        for path in sorted((config.CONFIGS / "stores").glob("*.yaml")):
            try:
                loaded = config.load_store(path.stem)
            except UsageError as error:
                warn(str(error))
                continue
            if loaded.place:
                places[path.stem] = loaded.location
        rows = [row_of(name, places[name]) for name in sorted(places)]
        if as_json:
            typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        elif rows:
            show_list(rows)
        else:
            log(f"no stores under {config.STORES}/ yet: `devil-pipe extract` makes one")


@store_app.command(epilog=example("devil-pipe store info demo-effnet_lite0 --json"))
def info(store: Store = None, as_json: AsJson = False) -> None:
    """Say what a store holds, finished or not: identity, layers, rows without features, size."""
    with plainly():
        from devil_pipe.pipeline.store_info import describe, show

        found = describe(_choose(store).location)
        if as_json:
            typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        else:
            show(found)


@store_app.command(epilog=example("devil-pipe store verify demo-effnet_lite0 --discard"))
def verify(
    store: Store = None,
    discard: Annotated[
        bool, typer.Option("--discard", help="Take damaged shards away, so that `extract` writes just those again.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Shard files in memory at once.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Read all of a store and say what is damaged, where, and how to mend it; exit code 0 if it is whole."""
    with plainly():
        from devil_pipe.stages.common.progress import bar, log
        from devil_pipe.store import verify as work
        from devil_pipe.store.errors import InputError

        chosen = _choose(store)
        index, keys = _index_of(chosen)
        with ExitStack() as stack:
            report = work.verify(
                chosen.location,
                index=index,
                keys=keys,
                threads=threads,
                watch=lambda files: stack.enter_context(bar("verify", files, "files")).advance,
            )
        if as_json:
            findings = [dataclasses.asdict(finding) for finding in report.findings]
            typer.echo(json.dumps({"whole": report.whole, "findings": findings}, indent=2, ensure_ascii=False))
        else:
            _say(report)
        if report.whole:
            log(f"{chosen.location}: whole: {report.files} files of {report.shards} shards read, nothing wrong")
            return
        faults = sum(not finding.note for finding in report.findings)
        hurt = f", {len(report.shards_hurt)} of {report.shards} shards" if report.shards_hurt else ""
        what = f"{chosen.location}: {faults} fault{'s' * (faults > 1)} found{hurt}"
        raise InputError(what + (f"; {_discard(chosen, report)}" if discard else ""))


def _index_of(chosen: _Chosen) -> tuple[str | None, list[str] | None]:
    """Digest and keys of the index that a configured store is made from; nothing where there is none."""
    from devil_pipe.stages.common.progress import log, warn
    from devil_pipe.store.errors import InputError

    if chosen.config is None:
        log("rows are not compared with an index: that needs the name of a store in configs/stores/")
        return None, None
    from devil_pipe.stages.prepare.index import index_digest, read_index

    try:
        table = read_index(chosen.config.data_dir / "index.parquet")
    except InputError as error:
        warn(f"rows are not compared with the index: {error}")
        return None, None
    return index_digest(table), table["key"].to_pylist()


def _say(report: Report) -> None:
    """One line a finding: faults as errors, notes as log lines."""
    from devil_pipe.stages.common.progress import fail, log

    faults = [finding for finding in report.findings if not finding.note]
    notes = [finding for finding in report.findings if finding.note]
    for finding in faults[:SHOWN]:
        fail(str(finding))
    if len(faults) > SHOWN:
        fail(f"and {len(faults) - SHOWN} more; --json lists them all")
    for finding in notes[:SHOWN]:
        log(f"note: {finding}")


def _discard(chosen: _Chosen, report: Report) -> str:
    """Take away what is damaged, and say what to do next."""
    from devil_pipe.pipeline.config import STORES
    from devil_pipe.store.verify import discard

    gone = discard(chosen.location, report)
    if not gone:
        return "nothing had to be taken away"
    copy = STORES / chosen.name / "manifest.json"
    if chosen.config is not None and chosen.config.place:
        copy.unlink(missing_ok=True)  # what DVC watches of a store elsewhere: it is to see that the store is not whole
    name = f" {chosen.name}" if chosen.config is not None else ""
    return f"{len(gone)} files were taken away, and `devil-pipe extract{name}` writes just those again"


@store_app.command("export", epilog=example("devil-pipe store export demo-effnet_lite0 demo.h5"))
def export(
    store: Annotated[str, typer.Argument(help="A store of configs/stores/, a folder, or a URL.")],
    file: Annotated[Path, typer.Argument(help="The HDF5 file to be.")],
    force: Force = False,
) -> None:
    """Write a store as one HDF5 file, every row checked on the way."""
    with plainly():
        from devil_pipe.stages.common.progress import bar, log
        from devil_pipe.store.hdf5 import export_hdf5
        from devil_pipe.store.reader import FeatureStore

        opened = FeatureStore(_choose(store).location)
        with bar("export", opened.rows, "rows") as shown:
            export_hdf5(opened, file, force=force, advance=shown.advance)
        log(f"wrote {file}: {opened.rows} rows, layers {', '.join(layer.name for layer in opened.layers)}")


@store_app.command("import", epilog=example("devil-pipe store import demo.h5 copy-of-demo"))
def import_(
    file: Annotated[Path, typer.Argument(help="An HDF5 file of `store export`.")],
    store: Annotated[str, typer.Argument(help="The store to be: a name under stores/, a folder, or a URL.")],
    force: Force = False,
) -> None:
    """Write the store that was exported to an HDF5 file again, byte for byte; a stopped import goes on."""
    with plainly():
        from devil_pipe.stages.common.files import write_json
        from devil_pipe.stages.common.progress import bar, log
        from devil_pipe.store.hdf5 import import_hdf5

        chosen = _choose(store, to_be=True)
        with bar("import", None, "rows") as shown:
            manifest = import_hdf5(file, chosen.location, force=force, advance=shown.advance)
        if chosen.config is not None and chosen.config.place:
            write_json(chosen.config.out / "manifest.json", manifest.content())  # as `extract` does, for DVC
        log(f"wrote {chosen.location}: {manifest.identity.rows} rows, identity {manifest.folder}")
