"""Running img2dataset on lists of links: resumable, in an environment of its own, ended when we end.

img2dataset 1.47 asks for webdataset < 0.3, pandas < 3 and albumentations < 2 and does not start on Python 3.13, so it
is no dependency of this package: it is called as a command, by default through uv with the versions of img2dataset.txt.
A shard whose NNNNN_stats.json lies there is done; img2dataset leaves those alone and does all others again.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import uv

from devil_pipe.stages.common.files import write_json
from devil_pipe.stages.common.progress import bar, log
from devil_pipe.stages.prepare.cc3m import Links, write_lists
from devil_pipe.stages.prepare.config import DownloadConfig, Img2datasetConfig
from devil_pipe.stages.prepare.sources import cores
from devil_pipe.store.errors import InputError

VERSION = "1.47.0"
PYTHONS = ">=3.11,<3.13"
_HERE = Path(__file__).parent
_WAIT = 30.0  # seconds for the processes of a killed run to be gone
_RESULT = ("image_size", "resize_mode", "resize_only_if_bigger", "encode_quality", "shard_pictures")


def fetch(config: Img2datasetConfig, out: Path) -> None:
    """Fetch what is missing of the links of `config.tsv` into tar shards at `config.shards`.

    Args:
        config: the links, the folder of the shards, and img2dataset's settings.
        out: the data set's folder; `out`/links keeps the lists, the log and what the shards were made with.

    Raises:
        InputError: see `write_lists`; shards made with other settings, another run at work on them, img2dataset
            not to be had, or shards that it did not finish.
    """
    if any(letter in str(config.shards.resolve()) for letter in "*?[]{}"):
        raise InputError(f"img2dataset.shards: expected a path without * ? [ ] {{ }}, got {config.shards.resolve()}")
    work = out / "links"
    work.mkdir(parents=True, exist_ok=True)
    with _alone(work / ".lock") as lock:
        links = write_lists(config, work)
        _same_settings(config, links, work / "made_with.json")
        _forget_torn(config.shards)
        shards = sum(math.ceil(count / config.download.shard_pictures) for count in links.counts)
        if len(_done(config.shards)) < shards:
            _run(config, work, shards, lock)
        missing = shards - len(_done(config.shards))
    if missing > 0:
        raise InputError(
            f"{config.shards}: expected {shards} finished shards, got {shards - missing}: the same command fetches the "
            f"others; {work / 'img2dataset.log'} may say why"
        )


def command(given: str) -> list[str]:
    """How img2dataset is started: as configured, else the one on PATH, else by uv in an environment of its own.

    Raises:
        InputError: the configured command does not exist.
    """
    if given:
        words = shlex.split(given)
        if not words or shutil.which(words[0]) is None:
            raise InputError(f"img2dataset.download.command: expected a command that exists, got {given!r}")
        return words
    if found := shutil.which("img2dataset"):
        return [found]
    words = [uv.find_uv_bin(), "tool", "run", "--python", PYTHONS, "--constraints", str(_HERE / "img2dataset.txt")]
    return [*words, "--from", f"img2dataset=={VERSION}", "img2dataset"]


def _options(config: Img2datasetConfig, lists: Path) -> list[str]:
    wanted: DownloadConfig = config.download
    values: dict[str, Any] = {
        "url_list": lists.resolve(),
        "output_folder": config.shards.resolve(),
        "input_format": "parquet",
        "output_format": "webdataset",
        "url_col": "url",
        "caption_col": "caption",
        "save_additional_columns": '["split"]',
        "image_size": wanted.image_size,
        "resize_mode": wanted.resize_mode,
        "resize_only_if_bigger": wanted.resize_only_if_bigger,
        "encode_quality": wanted.encode_quality,
        "skip_reencode": True,  # a JPEG that is not resized stays as it came, its orientation included
        "number_sample_per_shard": wanted.shard_pictures,
        "processes_count": wanted.processes or cores(),
        "thread_count": wanted.threads,
        "timeout": wanted.timeout,
        "retries": wanted.retries,
        "incremental_mode": "incremental",
        "enable_wandb": False,
    }
    return [f"--{name}={value}" for name, value in values.items()]


def _run(config: Img2datasetConfig, work: Path, shards: int, lock: IO[str]) -> None:
    started = command(config.download.command)
    log(f"fetching pictures with img2dataset into {config.shards}", shards=shards, done=len(_done(config.shards)))
    with (work / "img2dataset.log").open("wb") as said:
        leash = subprocess.Popen(
            [sys.executable, str(_HERE / "leash.py"), *started, *_options(config, work)],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"},  # it would ask the web for newer versions of itself
            start_new_session=True,  # Ctrl-C reaches us, and through the pipe img2dataset
            pass_fds=[lock.fileno()],  # held until img2dataset is gone, also where we are killed
        )
        try:
            code = _watch(leash, config.shards, shards)
        finally:
            assert leash.stdin is not None
            leash.stdin.close()
            leash.wait()
    if code:
        raise InputError(
            f"img2dataset ended with code {code}: {_last_line(work / 'img2dataset.log')}; where it cannot be started, "
            f"install it (`uv tool install img2dataset=={VERSION}`) or name it in img2dataset.download.command"
        )


def _watch(leash: subprocess.Popen[bytes], folder: Path, shards: int) -> int:
    seen = len(_done(folder))
    with bar("fetching pictures", shards, "shards", start=seen) as shown:
        while True:
            try:
                return leash.wait(0.5)
            except subprocess.TimeoutExpired:
                now = len(_done(folder))
                if now > seen:
                    shown.advance(now - seen)
                seen = max(now, seen)


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _done(folder: Path) -> list[Path]:
    return sorted(folder.glob("*_stats.json"))


@contextmanager
def _alone(path: Path) -> Iterator[IO[str]]:
    """Hold a lock that the processes we start share; those of a killed run are given time to end."""
    import fcntl  # not on Windows, where the other sources work all the same

    with path.open("w") as lock:
        limit = time.monotonic() + _WAIT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise InputError(f"{path.parent}: another `devil-pipe prepare` is at work here") from None
                time.sleep(0.1)
        yield lock


def _same_settings(config: Img2datasetConfig, links: Links, path: Path) -> None:
    """Shards of other links or sizes must not pass for this data set's; links may be added behind the others."""
    made = {name: getattr(config.download, name) for name in _RESULT} | links.sha256
    if path.is_file() and _done(config.shards):
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name, value in before.items():
            if made.get(name) != value:
                what = f"{name} {value}, now {made[name]}" if name in _RESULT else f"other links in {name[2:]}"
                raise InputError(
                    f"{config.shards}: its shards were made with {what}: move the folder away to fetch anew, or take "
                    "the change back"
                )
    elif _done(config.shards):
        raise InputError(
            f"{config.shards}: expected an empty folder, got shards that another command made: leave tsv out to use "
            "them, or choose another folder"
        )
    write_json(path, made)


def _forget_torn(folder: Path) -> None:
    """Take the done mark from shards that did not reach the disk whole, as after a power cut."""
    for stats in _done(folder):
        base = folder / stats.name.removesuffix("_stats.json")
        try:
            pq.read_metadata(base.with_suffix(".parquet"))
            with base.with_suffix(".tar").open("rb") as file:
                file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
                whole = file.read() == bytes(tarfile.BLOCKSIZE)
        except (OSError, pa.ArrowException):
            whole = False
        if not whole:
            log(f"{base.name} is not whole: fetching it again")
            stats.unlink()
