"""Disks: room for what is to be written, and whether files there can be locked, mapped and renamed."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from devil_pipe.pipeline import config
from devil_pipe.pipeline.doctor.configured import is_project, readable
from devil_pipe.pipeline.doctor.finding import Finding, Wish, ok, problem
from devil_pipe.stages.common.assets import cache_dir
from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.store.errors import InputError

LITTLE_ROOM = 1_000_000_000
FEW_INODES = 10_000
_PREFIX = ".devil-pipe-doctor-"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV}


@dataclass(frozen=True)
class Trouble:
    """What cannot be done in a folder, and the system's number for it."""

    what: str
    number: int


def trial(folder: Path) -> Trouble | None:
    """Write, lock, map and rename a file in a temporary folder within `folder`, which is removed; None if all goes."""
    step = "written"
    try:
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder) as made:
            path, other = Path(made) / "one", Path(made) / "two"
            path.write_bytes(bytes(mmap.PAGESIZE))
            other.write_bytes(b"")
            with path.open("r+b") as file:
                step = "locked"
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                step = "mapped into memory"
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).close()
                step = "flushed"
                os.fsync(file.fileno())
            step = "renamed over another"
            path.replace(other)
    except OSError as error:
        return Trouble(f"{folder}: a file there cannot be {step}: {error.strerror or error}", error.errno or 0)
    return None


def folders(_: Wish) -> Iterator[Finding]:
    """Try the folders that stages write to, or those in which they will be made."""
    wanted = (config.DATA, config.STORES, config.RUNS) if is_project() else (Path(),)
    for folder in dict.fromkeys(nearest(path) for path in wanted):
        if trouble := trial(folder):
            yield problem("disk.folders", trouble.what, *_mend(folder, trouble.number))
        else:
            yield ok("disk.folders", f"{folder}: files can be written, locked, mapped and renamed")


def _mend(folder: Path, number: int) -> tuple[str, str]:
    """(command, advice) for a folder that cannot be worked in."""
    if number in (errno.EACCES, errno.EPERM):
        mine = folder.stat().st_uid == os.geteuid()
        whose = ["chmod", "u+rwx"] if mine else ["sudo", "chown", "-R", str(os.geteuid())]
        return shlex.join([*whose, str(folder)]), "or work in a folder of yours"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return shlex.join(["du", "-sh", *_sized(folder)]), "make room there"
    if number == errno.EROFS:
        return "", "that disk is mounted read-only; work on another one"
    if number in _NO_LOCKS:
        return "", "that filesystem lacks what stores need; work on a local disk, and take results there afterwards"
    return shlex.join(["ls", "-ld", str(folder)]), "see to the disk, or work on another one"


def _sized(folder: Path) -> list[str]:
    """The folders in which a project grows; the folder itself where there are none."""
    return [str(path) for path in (config.DATA, config.STORES, config.RUNS) if path.is_dir()] or [str(folder)]


def space(wish: Wish) -> Iterator[Finding]:
    """Room on each disk that is written to, against what the pipeline's unfinished stores will take."""
    named = {"data": config.DATA, "stores": config.STORES, "runs": config.RUNS} if is_project() else {"here": Path()}
    named["temporary files"] = Path(tempfile.gettempdir())
    with suppress(InputError):  # the assets' own check says that no cache is known
        named["cache"] = cache_dir()
    disks: dict[int, dict[str, Path]] = {}
    for name, path in named.items():
        there = nearest(path)
        disks.setdefault(there.stat().st_dev, {})[name] = there
    needs = {} if wish.quick else dict(_needs())
    for device, paths in disks.items():
        there = next(iter(paths.values()))
        usage = shutil.disk_usage(there)
        take = {name: need for name, (path, need) in needs.items() if nearest(path).stat().st_dev == device}
        what = f"{decimal(usage.free)} of {decimal(usage.total)} free for {', '.join(paths)}"
        if take:
            listed = ", ".join(f"{name}, {decimal(need)} at most" for name, need in take.items())
            what += f"; still to be extracted: {listed}"
        if sum(take.values()) > usage.free:
            name = max(take, key=lambda one: take[one])
            advice = "a smaller encoding: (docs/storage.md), place: elsewhere, or room on this disk"
            yield problem("disk.space", what, shlex.join(["devil-pipe", "extract", name, "--dry-run"]), advice)
        elif usage.free < LITTLE_ROOM:
            yield problem("disk.space", what, shlex.join(["du", "-sh", *_sized(there)]), "make room there")
        else:
            yield ok("disk.space", what)
        about = os.statvfs(there)
        if about.f_files and about.f_favail < FEW_INODES:
            advice = "remove what consists of many small files; pictures as WebDataset shards take few"
            yield problem("disk.inodes", f"{there}: {about.f_favail:,} more files can be made there", advice=advice)


def nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next((one for one in (path, *path.parents) if one.is_dir()), Path())


def _needs() -> Iterator[tuple[str, tuple[Path, int]]]:
    """Name of each unfinished local store of the pipeline whose pictures are prepared: its folder, bytes to come."""
    for name, store in readable()[0].stores.items():
        place, index = Path(store.location), store.data_dir / "index.parquet"
        if "://" in store.location or (place / "manifest.json").is_file() or not index.is_file():
            continue
        there = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        try:
            yield name, (place, max(0, _bytes(store, index) - there))
        except InputError:  # a backbone or layers that `extract` will speak of
            continue


def _bytes(store: ExtractConfig, index: Path) -> int:
    """What a store takes at most: every row usable, nothing compressed."""
    import pyarrow.parquet as pq

    from devil_pipe.stages.extract.backbones import spec
    from devil_pipe.stages.extract.estimate import layer_sizes
    from devil_pipe.stages.extract.layers import planned_layers

    rows, encoding = pq.read_metadata(index).num_rows, store.stored_as
    layers = planned_layers(spec(store.backbone), store.layers, store.image_size)
    shard_rows = store.shard_rows or encoding.shard_rows
    sizes = layer_sizes(layers, encoding, rows, -(-rows // shard_rows), shard_rows, {})
    return sum(layer.bytes for layer in sizes.values())
