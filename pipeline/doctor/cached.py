"""The demo's weights and pictures in the cache outside the project."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from rich.filesize import decimal

from devil_pipe.pipeline.doctor.configured import readable
from devil_pipe.pipeline.doctor.disk import trial
from devil_pipe.pipeline.doctor.finding import Finding, Wish, note, ok, problem
from devil_pipe.stages.common import assets


def cache(_: Wish) -> Iterator[Finding]:
    """The cache's folder: where, how large, whether it can be written."""
    folder = assets.cache_dir()
    if not folder.is_dir():
        yield note("assets.cache", f"{folder}: nothing was fetched yet", "devil-pipe assets", "for the demo alone")
        return
    if trouble := trial(folder):
        advice = "or put it right; what lies there can still be read"
        yield problem("assets.cache", trouble.what, "export DEVIL_PIPE_CACHE=~/devil-pipe-cache", advice)
        return
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    yield ok("assets.cache", f"{folder}: {decimal(size)}")


def files(wish: Wish) -> Iterator[Finding]:
    """Each known asset: whether its files have their sizes, or with `--deep` their digests."""
    needed = set(_needed())
    how = "digests" if wish.deep else "sizes"
    for name, one in assets.table().items():
        fault = assets.fault_of(name, deep=wish.deep)
        mend = shlex.join(["devil-pipe", "assets", name])
        if fault is None:
            yield ok("assets.files", f"{name}: {one.package} {one.version}, {how} as they should be")
        elif assets.folder_of(name).exists():
            yield problem("assets.files", f"{name}: {fault}", mend)
        elif name in needed:
            what = f"{name}: is not in the cache, and configs/pipeline.yaml makes use of it"
            yield problem("assets.files", what, mend, f"{one.megabytes} MB, {one.licence}")
        else:
            yield note("assets.files", f"{name}: not fetched ({one.about})", mend, f"{one.megabytes} MB, {one.licence}")


def _needed() -> Iterator[str]:
    """The assets that what `dvc repro` makes asks for."""
    listed, _ = readable()
    if any(one.source == "demo" for one in listed.data.values()):
        yield from (name for name, one in assets.table().items() if one.demo)
    for run in listed.runs.values():
        yield from {run.train.language_model, run.evaluate.bertscore.model} & assets.table().keys()
