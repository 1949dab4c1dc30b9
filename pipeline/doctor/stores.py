"""Feature stores: whole, unfinished or damaged, and what was left beside them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from devil_pipe.pipeline import config
from devil_pipe.pipeline.doctor.finding import Finding, Wish, note, ok, problem
from devil_pipe.pipeline.store_info import describe
from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.survey import one_line
from devil_pipe.store.verify import Report, verify
from devil_pipe.store.writer import MANIFEST

OLD = 3600.0  # seconds after which a half-written file is taken for left behind


@dataclass(frozen=True)
class Stored:
    """A store that lies here, or that a configuration puts elsewhere."""

    name: str
    location: str
    config: ExtractConfig | None

    @property
    def extract(self) -> str:
        """The command that writes what is missing; empty where no configuration says what the store is of."""
        return shlex.join(["devil-pipe", "extract", self.name]) if self.config else ""

    @property
    def again(self) -> str:
        """The commands that take away what is damaged and write it anew."""
        verify_ = shlex.join(["devil-pipe", "store", "verify", self.name, "--discard"])
        return f"{verify_}; {self.extract}" if self.config else verify_


def found() -> list[Stored]:
    """Every folder under stores/, and every store that a configuration puts elsewhere."""
    known = {path.name: Stored(path.name, str(path), None) for path in sorted(config.STORES.glob("*")) if path.is_dir()}
    for path in sorted((config.CONFIGS / "stores").glob("*.yaml")):
        try:
            loaded = config.load_store(path.stem)
        except UsageError:  # the configurations' own check says so
            continue
        if loaded.place or path.stem in known:
            known[path.stem] = Stored(path.stem, loaded.location, loaded)
    return [known[name] for name in sorted(known)]


def look(wish: Wish) -> Iterator[Finding]:
    """Look at each store: its metadata and the sizes of its files, or with `--deep` every byte."""
    for stored in found():
        if "://" in stored.location and not wish.network:
            yield note("stores", f"{stored.name}: {stored.location} is only looked at with --network")
            continue
        try:
            yield from _one(stored, wish)
        except OSError as error:
            advice = "see to the disk or to the rights on it"
            yield problem("stores", f"{stored.name}: cannot be read: {error}", advice=advice)


def _one(stored: Stored, wish: Wish) -> Iterator[Finding]:
    imported = "" if stored.config else "no configuration says what it is made of: import or extract it again"
    try:
        values = describe(stored.location)
    except InputError as error:
        if MANIFEST in str(error) and "expected a store" in str(error):  # nothing of a store, such as an empty folder
            yield note("stores", f"{stored.name}: nothing was extracted yet", stored.extract, imported)
        else:
            yield problem("stores", f"{stored.name}: {one_line(error)}", stored.again, imported)
        return
    state, shards = str(values["state"]), values["shards"]
    what = f"{stored.name}: {state}, {values['rows']['of']:,} rows, {decimal(values['bytes'])}"
    if state == "whole":
        report = _verified(stored) if wish.deep else None
        if report is None or report.whole:
            yield ok("stores", what + (", every byte read" if report else ""))
        else:
            yield _faults(stored, report, imported)
    elif state.startswith("damaged"):
        what = f"{stored.name}: files of its {shards['of']:,} shards are missing or have another size"
        yield problem("stores", what, stored.extract or stored.again, imported)
    elif state.startswith("manifest"):
        yield problem("stores", what, stored.extract or stored.again, imported)
    else:
        advice = imported or "it goes on where it was"
        yield note("stores", f"{stored.name}: unfinished, {state}", stored.extract, advice)
        if wish.deep and (report := _verified(stored)) and report.shards_hurt:
            yield _faults(stored, report, imported)
    yield from _of_another(stored, values["identity"])
    for folder, size in values["beside"].items():
        advice = f"no reader looks at it; remove {stored.location}/{folder} to have the room"
        yield note("stores", f"{stored.name}: {decimal(size)} of another identity lie beside", advice=advice)
    yield from _left_behind(stored)


def _verified(stored: Stored) -> Report:
    """What reading all of it says, held against the index of pictures where there is one."""
    from devil_pipe.stages.prepare.index import index_digest, read_index

    if stored.config is not None:
        try:
            table = read_index(stored.config.data_dir / "index.parquet")
        except InputError:
            return verify(stored.location)
        return verify(stored.location, index=index_digest(table), keys=table["key"].to_pylist())
    return verify(stored.location)


def _faults(stored: Stored, report: Report, imported: str) -> Finding:
    faults = [item for item in report.findings if not item.note and item.problem != "unfinished"]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    mend = stored.again if any(item.remove for item in faults) else stored.extract
    return problem(
        "stores", f"{stored.name}: {faults[0].file}: {faults[0].what}{more}", mend, imported or faults[0].mend
    )


def _of_another(stored: Stored, identity: dict[str, object]) -> Iterator[Finding]:
    """Whether the configuration still says what the store was made from."""
    if stored.config is None:
        return
    said = {"backbone": stored.config.backbone, "encoding": stored.config.encoding, "compute": stored.config.compute}
    usual = {"encoding": "float16", "compute": "float32"}  # of stores from before these could be chosen
    lies = {key: identity.get(key, usual.get(key)) for key in said}
    differ = [f"{key} {lies[key]}, configured {said[key]}" for key in said if lies[key] != said[key]]
    if differ:
        advice = "that makes the configured one beside it"
        yield note("stores", f"{stored.name}: lies there with {'; '.join(differ)}", stored.extract, advice)


def _left_behind(stored: Stored) -> Iterator[Finding]:
    """Half-written files of an extraction that was killed; young ones may be of one that runs."""
    if "://" in stored.location:
        return
    partial = [path for path in Path(stored.location).rglob(".*.partial") if time.time() - path.stat().st_mtime > OLD]
    if partial:
        size = decimal(sum(path.stat().st_size for path in partial))
        mend = shlex.join(["find", stored.location, "-name", ".*.partial", "-mmin", "+60", "-delete"])
        what = f"{stored.name}: {len(partial)} half-written files ({size}) of an extraction that was killed"
        yield note("stores", what, mend)
