"""Tar shards of pictures and captions, in the layout that img2dataset writes and webdataset reads.

A sample is the members that share a key: KEY.jpg, KEY.txt (the caption), KEY.json (may name `split`,
`object` and `scene`) and, in the demo, KEY.png (the object's mask). Shards stay where they are: the index
holds byte ranges into them.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from devil_pipe.stages.prepare.checks import (
    BrokenError,
    check_mask,
    clean_caption,
    picture_size,
    safe_key,
    split_of,
)
from devil_pipe.stages.prepare.config import WebdatasetConfig
from devil_pipe.stages.prepare.index import Row
from devil_pipe.stages.prepare.links import Tally, tally
from devil_pipe.stages.prepare.sources import Found, in_parallel, stored_path
from devil_pipe.store.errors import InputError
from devil_pipe.store.place import plain_file

PICTURE_ENDINGS = ("jpg", "jpeg", "webp", "avif", "gif", "bmp", "tif", "tiff", "png")  # png last: it may be the mask
_MEMBER = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")
_SPLIT = re.compile(r"[a-z0-9_]+")
_ZEROS = bytes(tarfile.BLOCKSIZE)


@dataclass
class _Sample:
    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Ending → (offset, size) of the member's bytes in the tar."""


def read_webdataset(config: WebdatasetConfig, seed: int, out: Path, workers: int) -> Found:
    """Index every sample of every shard, shards in the order of their names.

    Raises:
        InputError: no shard, a shard that is cut short or no tar, or a key twice.
    """
    shards = _shards(config.shards)

    def index(shard: Path) -> list[Row]:
        return read_shard(shard, stored_path(shard, out), seed, config.shares)

    rows = unique_keys(zip(shards, in_parallel(index, shards, workers, "checking shards", "shards"), strict=True))
    counted = sum((tally(shard.with_suffix(".parquet")) for shard in shards), Tally())
    return Found(rows, {"shards": len(shards), **counted.notes()})


def unique_keys(read: Iterable[tuple[Path, list[Row]]]) -> list[Row]:
    """The rows of all shards, in order.

    Raises:
        InputError: two shards hold one key.
    """
    rows: list[Row] = []
    places: dict[str, Path] = {}
    for shard, found in read:
        for row in found:
            if row.key in places:
                raise InputError(
                    f"expected each key once, got {row.key!r} in {places[row.key]} and in {shard}: "
                    "give the pictures of one of the shards other keys"
                )
            places[row.key] = shard
        rows += found
    return rows


def read_shard(path: Path, name: str, seed: int, shares: Mapping[str, float]) -> list[Row]:
    """The rows of one tar, in its order, every picture decoded once.

    Args:
        path: the tar.
        name: its path as the index holds it.
        seed: seed of the splits of samples that name none.
        shares: split → share, for the same.

    Raises:
        InputError: the tar is cut short or damaged, or holds a key twice.
    """
    samples = _samples(plain_file(path))
    with path.open("rb") as file:
        return [_row(sample, file, name, seed, shares) for sample in samples]


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"webdataset.shards: expected a folder of .tar files at {path}, found nothing")
    shards = sorted(path.glob("*.tar"))
    if not shards:
        raise InputError(f"webdataset.shards: expected .tar files in {path}, found none")
    return shards


def _samples(path: Path) -> list[_Sample]:
    """The samples of a tar; neighbouring members of one key make a sample, as in webdataset."""
    samples: dict[str, _Sample] = {}
    last = ""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            there = os.fstat(file.fileno()).st_size
            for member in tar:
                match = _MEMBER.match(member.name)
                if not 0 <= member.size <= there - member.offset_data or member.issparse():
                    raise InputError(
                        f"{path}: expected plain members inside the tar, got one of {member.size} bytes at byte "
                        f"{member.offset_data} of {there}: the tar is cut short or damaged; fetch it again"
                    )
                if not member.isfile() or not match:
                    continue
                key, ending = match[1].removeprefix("./"), match[2].lower()
                sample = samples.setdefault(key, _Sample(safe_key(key, str(path))))
                if ending in sample.members or (len(sample.members) > 0 and key != last):
                    first = min(offset for offset, _ in sample.members.values())
                    raise InputError(
                        f"{path}: expected each key once, got {key!r} at byte {first} and again at byte "
                        f"{member.offset_data}"
                    )
                sample.members[ending] = (member.offset_data, member.size)
                last = key
            file.seek(tar.offset)
            end = file.read(tarfile.BLOCKSIZE)
    except InputError:
        raise
    except (tarfile.TarError, ValueError, LookupError, OverflowError) as error:  # of numbers that no writer wrote
        raise InputError(
            f"{path}: expected an uncompressed tar, got one that is damaged or cut short ({error}): fetch it again"
        ) from None
    # tarfile takes a missing end mark, or a header that is cut, for the end.
    if end != _ZEROS:
        raise InputError(
            f"{path}: expected an end mark at byte {tar.offset}, got {len(end)} other bytes: the tar is cut "
            "short or damaged; fetch it again"
        )
    return list(samples.values())


def _row(sample: _Sample, file: BinaryIO, shard: str, seed: int, shares: Mapping[str, float]) -> Row:
    known: dict[str, Any] = {"key": sample.key, "shard": shard, "split": split_of(sample.key, seed, shares)}

    def read(ending: str) -> bytes:
        offset, size = sample.members[ending]
        file.seek(offset)
        return file.read(size)

    try:
        picture = describe(sample.members, read, lambda ending: _range(sample, ending), known)
        if picture != "png" and "png" in sample.members:
            check_mask(read("png"), (known["width"], known["height"]))
            known["mask_offset"], known["mask_size"] = sample.members["png"]
    except BrokenError as error:
        return Row(**known).broken(str(error))
    return Row(**known)


def _range(sample: _Sample, ending: str) -> dict[str, int]:
    offset, size = sample.members[ending]
    return {"offset": offset, "size": size}


def describe(
    endings: Collection[str],
    read: Callable[[str], bytes],
    place: Callable[[str], Mapping[str, Any]],
    known: dict[str, Any],
) -> str:
    """Add to a row's columns what the sample's members tell; what was found before a fault stays.

    Args:
        endings: of the members: a picture's, txt, json.
        read: gives a member's bytes.
        place: gives the columns that say where a member lies.
        known: the columns, added to.

    Returns:
        The picture's ending.

    Raises:
        BrokenError: a member is missing or cannot be used.
    """
    if "json" in endings:
        known |= _details(read("json"))
    picture = next((ending for ending in PICTURE_ENDINGS if ending in endings), None)
    if picture is None:
        raise BrokenError("no picture")
    known |= place(picture)
    if "txt" not in endings:
        raise BrokenError("no .txt")
    known["captions"] = (clean_caption(read("txt")),)
    known["width"], known["height"] = picture_size(read(picture))
    return picture


def _details(data: bytes) -> dict[str, str]:
    """`split`, `object` and `scene` of a sample's JSON, where it has them."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise BrokenError("json does not parse") from None
    if not isinstance(values, dict):
        raise BrokenError("json is not an object")
    found = {name: values[name] for name in ("split", "object", "scene") if values.get(name)}
    for name, value in found.items():
        if not isinstance(value, str):
            raise BrokenError(f"json: {name} is no text")
        if name != "split":
            found[name] = clean_caption(value)
        elif not _SPLIT.fullmatch(value):
            raise BrokenError("json: split is not of the letters a-z, digits and _")
    return found
