"""What img2dataset wrote, in any of its three layouts, as rows of the index.

webdataset: NNNNN.tar, read where it lies. files: NNNNN/KEY.jpg .txt .json, read where they lie. parquet: NNNNN.parquet
with the pictures' bytes inside, which Parquet cannot give one at a time: they are copied once into tar shards. Beside
each shard of the first two lies NNNNN.parquet with a line for every link, also for those that gave no picture.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from devil_pipe.stages.common.files import replacing
from devil_pipe.stages.prepare.checks import BrokenError, safe_key, split_of
from devil_pipe.stages.prepare.config import Img2datasetConfig
from devil_pipe.stages.prepare.index import Row
from devil_pipe.stages.prepare.links import Tally, tally
from devil_pipe.stages.prepare.sources import Found, in_parallel, stored_path
from devil_pipe.stages.prepare.webdataset import PICTURE_ENDINGS, describe, read_shard, unique_keys
from devil_pipe.store.errors import InputError
from devil_pipe.store.place import plain_file

LAYOUTS = ("webdataset", "files", "parquet")
_PICTURES_IN_MEMORY = 32
_LONGEST_KEY = 90  # bytes: a tar's header has room for 100, ending included


def read_img2dataset(config: Img2datasetConfig, seed: int, out: Path, workers: int) -> Found:
    """Index every picture of every shard, shards in the order of their names.

    Raises:
        InputError: no shard, a shard that is damaged or lacks a column, a key twice, or two layouts in one folder.
    """
    layout = recognise(config.shards) if config.layout == "auto" else config.layout
    shards = _shards(config.shards, layout)
    index = {"webdataset": _tar, "files": _folder, "parquet": _parquet}[layout](config, seed, out)
    if layout == "parquet":
        shutil.rmtree(out / "tars", ignore_errors=True)
    found = in_parallel(index, shards, workers, "checking shards", "shards")
    rows = unique_keys(zip(shards, found, strict=True))
    counted = Tally()
    for shard in shards:
        counted += tally(shard.with_suffix(".parquet"))
    return Found(rows, {"layout": layout, "shards": len(shards), **counted.notes()})


def recognise(folder: Path) -> str:
    """The layout of what lies in a folder.

    Raises:
        InputError: none of img2dataset's, or more than one.
    """
    if folder.is_file() and folder.suffix == ".tar":
        return "webdataset"
    if not folder.is_dir():
        raise InputError(f"img2dataset.shards: expected a folder that img2dataset wrote at {folder}, found nothing")
    found = [layout for layout in ("webdataset", "files") if _listed(folder, layout)]
    if not found and _listed(folder, "parquet"):
        return "parquet"
    if len(found) != 1:
        got = "both tar shards and folders of files: name one as img2dataset.layout" if found else "none of them"
        raise InputError(
            f"img2dataset.shards: expected NNNNN.tar, folders NNNNN/ or NNNNN.parquet in {folder}, got {got}"
        )
    return found[0]


def _listed(folder: Path, layout: str) -> list[Path]:
    if layout == "files":
        return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())
    return sorted(folder.glob("*.tar" if layout == "webdataset" else "*.parquet"))


def _shards(folder: Path, layout: str) -> list[Path]:
    if folder.is_file():
        return [folder]
    shards = _listed(folder, layout) if folder.is_dir() else []
    if not shards:
        raise InputError(f"img2dataset.shards: expected the layout {layout} in {folder}, found none of its shards")
    return shards


Index = Callable[[Path], list[Row]]


def _tar(config: Img2datasetConfig, seed: int, out: Path) -> Index:
    return lambda shard: read_shard(shard, stored_path(shard, out), seed, config.shares)


def _folder(config: Img2datasetConfig, seed: int, out: Path) -> Index:
    def index(folder: Path) -> list[Row]:
        samples: dict[str, dict[str, Path]] = {}
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.suffix and not path.name.startswith("."):
                samples.setdefault(path.stem, {})[path.suffix[1:].lower()] = path
        keys = {name: safe_key(name, str(folder)) for name in samples}
        return [_files_row(keys[name], members, config, seed, out) for name, members in samples.items()]

    return index


def _files_row(key: str, members: dict[str, Path], config: Img2datasetConfig, seed: int, out: Path) -> Row:
    known: dict[str, Any] = {"key": key, "split": split_of(key, seed, config.shares)}
    try:
        describe(
            members,
            lambda ending: members[ending].read_bytes(),
            lambda e: {"path": stored_path(members[e], out)},
            known,
        )
    except BrokenError as error:
        return Row(**known).broken(str(error))
    return Row(**known)


def _parquet(config: Img2datasetConfig, seed: int, out: Path) -> Index:
    def index(shard: Path) -> list[Row]:
        tar = out / "tars" / f"{shard.stem}.tar"
        copy_to_tar(shard, tar)
        return read_shard(tar, stored_path(tar, out), seed, config.shares)

    return index


def copy_to_tar(shard: Path, tar: Path) -> None:
    """Copy the pictures of a Parquet shard, some at a time, into a tar in webdataset's layout.

    Raises:
        InputError: no Parquet, cut short, or without the columns key, caption and a picture.
    """
    try:
        with pq.ParquetFile(plain_file(shard)) as file, replacing(tar) as partial:
            ending = _picture_column(file.schema_arrow, shard)
            with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as written:
                for name, data in _members(file, ending, shard):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    written.addfile(member, io.BytesIO(data))
    except InputError:
        raise
    except (pa.ArrowException, ValueError, LookupError) as error:  # also texts that are no UTF-8
        raise _damaged(shard, error) from None
    except OSError as error:
        if error.errno is not None:  # the disk's, and no fault of the shard
            raise
        raise _damaged(shard, error) from None


def _damaged(shard: Path, error: Exception) -> InputError:
    return InputError(
        f"{shard}: expected a Parquet file, got one that is damaged or cut short ({error}): run img2dataset again"
    )


def _picture_column(schema: pa.Schema, shard: Path) -> str:
    kinds = {field.name: field.type for field in schema}
    for name in ("key", "caption"):
        if name not in kinds:
            hint = "; give img2dataset caption_col" if name == "caption" else ""
            raise InputError(f"{shard}: expected a column {name!r}, got {', '.join(kinds) or 'none'}{hint}")
    for name in PICTURE_ENDINGS:
        if name in kinds and (pa.types.is_binary(kinds[name]) or pa.types.is_large_binary(kinds[name])):
            return name
    raise InputError(
        f"{shard}: expected a column of pictures ({', '.join(PICTURE_ENDINGS[:3])} …, binary), got "
        f"{', '.join(kinds)}: is it the list of links beside another layout's shard?"
    )


def _members(file: pq.ParquetFile, ending: str, shard: Path) -> Iterator[tuple[str, bytes]]:
    seen: set[str] = set()
    row = 0
    for batch in file.iter_batches(batch_size=_PICTURES_IN_MEMORY):
        for values in batch.to_pylist():
            row += 1
            picture, key = values.pop(ending), values["key"]
            if picture is None and values.get("status", "success") != "success":
                continue  # a dead link
            if not isinstance(key, str) or not key:
                raise InputError(f"{shard}, row {row}: expected a key, got {key!r}")
            if len(key.encode()) > _LONGEST_KEY:
                raise InputError(
                    f"{shard}, row {row}: expected a key of at most {_LONGEST_KEY} bytes, got {key[:40]!r} …"
                )
            if key in seen:
                raise InputError(f"{shard}, row {row}: expected each key once, got {key!r} again")
            seen.add(key)
            if picture is not None:
                yield f"{key}.{ending}", picture
            yield f"{key}.txt", _text(values["caption"])
            kept: dict[str, Any] = {name: value for name, value in values.items() if isinstance(value, str | int)}
            yield f"{key}.json", json.dumps(kept, sort_keys=True).encode()


def _text(caption: Any) -> bytes:
    return b"" if caption is None else str(caption).encode("utf-8", "surrogateescape")
