"""The index of a data set: one row a picture, with its captions, its split and where its bytes lie."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from devil_pipe.stages.common.files import replacing
from devil_pipe.store.errors import InputError

OK, BROKEN = "ok", "broken"

MASKS = "masks.bin"
"""In the index's folder: the masks of pictures that are plain files, one PNG after another."""

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("object", pa.string(), nullable=False),
        pa.field("scene", pa.string(), nullable=False),
        pa.field("mask_offset", pa.int64(), nullable=False),
        pa.field("mask_size", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Row:
    """One picture of the index; the fields are the columns of `INDEX_SCHEMA`."""

    key: str
    shard: str = ""
    """The tar that holds the picture, relative to the index's folder; "" for a plain file."""
    path: str = ""
    """A plain file, relative to the index's folder or absolute; "" inside a tar."""
    offset: int = 0
    size: int = 0
    """The picture's bytes in the tar: [offset, offset + size)."""
    captions: tuple[str, ...] = ()
    split: str = ""
    width: int = 0
    height: int = 0
    status: str = OK
    reason: str = ""
    """Why a broken row is broken; "" for an ok row."""
    object: str = ""
    """What the picture shows, where that is known."""
    scene: str = ""
    """What else it shows."""
    mask_offset: int = 0
    mask_size: int = 0
    """The object's mask, a PNG in the same tar, or in `MASKS` for a plain file; size 0: no mask."""

    def broken(self, reason: str) -> Row:
        """The same row, not to be used, and why."""
        return dataclasses.replace(self, status=BROKEN, reason=reason)


def to_table(rows: Iterable[Row]) -> pa.Table:
    """Rows as an Arrow table of `INDEX_SCHEMA`, in the order given."""
    listed = list(rows)
    columns = {
        field.name: pa.array([getattr(row, field.name) for row in listed], type=field.type) for field in INDEX_SCHEMA
    }
    return pa.table(columns, schema=INDEX_SCHEMA)


def write_index(table: pa.Table, path: Path) -> None:
    """Write a checked table as Parquet, whole or not at all.

    Raises:
        InputError: as `check_index`.
    """
    check_index(table, str(path))
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)


def read_index(path: Path) -> pa.Table:
    """Read and check an index: rows in file order, columns of `INDEX_SCHEMA`.

    Raises:
        InputError: no such file, not Parquet, another schema, a key twice, or no picture to use.
    """
    if not path.is_file():
        raise InputError(f"expected an index of pictures at {path}, found no file: run `devil-pipe prepare`")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)  # text that is no UTF-8 among others
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        why = " ".join(str(error).split())  # Arrow's may have several lines
        raise InputError(f"expected a Parquet file at {path}: {why}; run `devil-pipe prepare`") from None
    check_index(table, str(path))
    return table.cast(INDEX_SCHEMA)


def check_index(table: pa.Table, name: str) -> None:
    """Check a table against what an index promises; `name` stands in the messages.

    Raises:
        InputError: see `read_index`.
    """
    expected = {field.name: field.type for field in INDEX_SCHEMA}
    got = {field.name: field.type for field in table.schema}
    for column, kind in expected.items():
        if column not in got:
            raise InputError(f"{name}: expected a column {column} ({kind}), got {', '.join(got) or 'none'}")
        if got[column] != kind:
            raise InputError(f"{name}: expected column {column} as {kind}, got {got[column]}")
        if table[column].null_count:
            raise InputError(f"{name}: expected no null in column {column}, got {table[column].null_count}")
    if pc.list_flatten(table["captions"]).null_count:
        raise InputError(f"{name}: expected text in each caption, got a null")
    if extra := got.keys() - expected.keys():
        raise InputError(f"{name}: expected no column {', '.join(sorted(extra))}: not part of an index")
    counts = pc.value_counts(table["key"])
    twice = [pair["values"].as_py() for pair in counts if pair["counts"].as_py() > 1]
    if twice:
        raise InputError(f"{name}: expected each key once, got {twice[0]!r} more than once")
    statuses = set(pc.unique(table["status"]).to_pylist())
    if not statuses <= {OK, BROKEN}:
        raise InputError(f"{name}: expected status ok or broken, got {', '.join(sorted(statuses))}")
    usable = pc.equal(table["status"], OK)
    without = pc.and_(usable, pc.equal(pc.list_value_length(table["captions"]), 0))
    if pc.any(without).as_py():
        key = table.filter(without)["key"][0].as_py()
        raise InputError(f"{name}: expected a caption for key {key!r}, got none")
    if not pc.any(usable).as_py():
        why = sorted(set(table["reason"].to_pylist()))
        raise InputError(
            f"{name}: expected a picture with a caption, got {table.num_rows} rows that cannot be used"
            + (f" ({'; '.join(why[:5])})" if why else "")
        )


def index_digest(table: pa.Table) -> str:
    """Hex SHA-256 of an index's rows in order, independent of Parquet's and Arrow's versions."""
    digest = hashlib.sha256()
    names = INDEX_SCHEMA.names
    for batch in table.select(names).to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            values = [row[name] for name in names]
            digest.update(json.dumps(values, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def read_picture(row: Mapping[str, Any], root: Path) -> bytes:
    """The encoded picture of a row (a dict of `INDEX_SCHEMA`'s columns).

    Args:
        row: the row.
        root: the index's folder, data/NAME.

    Raises:
        InputError: the picture's file is gone or shorter than the index says.
    """
    if row["shard"]:
        return _read_range(row, root / row["shard"], row["offset"], row["size"])
    try:
        return Path(root / row["path"]).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(_gone(row, root / row["path"], error)) from None


def read_mask(row: Mapping[str, Any], root: Path) -> bytes | None:
    """The encoded mask of a row (a PNG of the picture's size), or None where it has none.

    Raises:
        InputError: as `read_picture`.
    """
    if not row["mask_size"]:
        return None
    return _read_range(row, root / (row["shard"] or MASKS), row["mask_offset"], row["mask_size"])


def _read_range(row: Mapping[str, Any], path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            # Not more than there is, however much a damaged number asks for.
            least = max(os.fstat(file.fileno()).st_size - offset, 0)
            file.seek(offset)
            data: bytes = file.read(min(size, least) if size >= 0 else 0)
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(_gone(row, path, error)) from None
    if len(data) != size:
        raise InputError(
            f"key {row['key']!r}: expected {size} bytes at {offset} of {path}, got {len(data)}: "
            "the file changed since it was indexed; run `devil-pipe prepare` again"
        )
    return data


def _gone(row: Mapping[str, Any], path: Path, error: Exception) -> str:
    why = getattr(error, "strerror", None) or error  # not of a path that cannot be, or of a number beyond the system's
    return f"key {row['key']!r}: expected its picture in {path}: {why}; run `devil-pipe prepare` again"
