"""Shards as img2dataset 1.47 writes them, in each of its three layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .webdataset_fixture import jpeg, write_shard

SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("caption", pa.string()),
        ("url", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class Link:
    """A link of a list and what came of it; with an error, no picture."""

    caption: str | None = "a dog on a beach"
    picture: bytes = jpeg()
    error: str = ""
    split: str = ""


def write(folder: Path, layout: str, shards: Sequence[Sequence[Link]]) -> Path:
    """Write the shards of links; link n of shard s has the key SSSSSNNNN."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, links in enumerate(shards):
        name = f"{number:05d}"
        rows = [_row(f"{name}{at:04d}", link) for at, link in enumerate(links)]
        pictures = [None if link.error else link.picture for link in links]
        schema = SCHEMA
        if layout == "parquet":
            schema = SCHEMA.append(pa.field("jpg", pa.binary()))
            rows = [{**row, "jpg": picture} for row, picture in zip(rows, pictures, strict=True)]
        else:
            members = [_members(row, data) for row, data in zip(rows, pictures, strict=True) if data is not None]
            _place(folder / name, layout, members)
        with pq.ParquetWriter(folder / f"{name}.parquet", schema) as writer:
            for start in range(0, len(rows), 100):
                writer.write_table(pa.Table.from_pylist(rows[start : start + 100], schema))
        stats = {"count": len(links), "successes": sum(not link.error for link in links)}
        (folder / f"{name}_stats.json").write_text(json.dumps(stats, indent=4))
    return folder


def _row(key: str, link: Link) -> dict[str, Any]:
    size = {} if link.error else {"width": 24, "height": 16, "original_width": 240, "original_height": 160}
    undecoded = link.error == "Image decoding error"
    status = "failed_to_resize" if undecoded else "failed_to_download" if link.error else "success"
    values = {"key": key, "url": f"http://x/{key}", "caption": link.caption, "split": link.split, "status": status}
    values |= {"error_message": link.error or None, "exif": None if link.error else "{}", **size}
    return {name: values.get(name) for name in SCHEMA.names}


def _members(row: Mapping[str, Any], picture: bytes) -> dict[str, bytes]:
    key = row["key"]
    text = "" if row["caption"] is None else row["caption"]
    return {f"{key}.jpg": picture, f"{key}.json": json.dumps(row, indent=4).encode(), f"{key}.txt": text.encode()}


def _place(base: Path, layout: str, samples: list[dict[str, bytes]]) -> None:
    if layout == "webdataset":
        write_shard(base.with_suffix(".tar"), samples)
        return
    base.mkdir()
    for members in samples:
        for name, data in members.items():
            (base / name).write_bytes(data)
