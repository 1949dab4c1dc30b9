"""Conceptual Captions (CC3M) from its published TSV files: the links become lists that img2dataset fetches.

Train_GCC-training.tsv and Validation_GCC-1.1.0-Validation.tsv hold a caption, a TAB and a link in each line, without
a header. img2dataset reads TSV files with a header and takes a quotation mark for the begin of a quoted cell, so it is
given Parquet files instead, which also name each link's split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from devil_pipe.stages.common.files import replacing
from devil_pipe.stages.prepare.config import Img2datasetConfig
from devil_pipe.store.errors import InputError

LIST_SCHEMA = pa.schema([("url", pa.string()), ("caption", pa.string()), ("split", pa.string())])
_BATCH = 50_000  # links that are held at a time


@dataclass(frozen=True)
class Links:
    """A list of links as img2dataset reads it."""

    counts: tuple[int, ...]
    """Links of each list; img2dataset begins a shard anew with each."""
    sha256: dict[str, str]
    """Name of the list → digest of its TSV file."""


def write_lists(config: Img2datasetConfig, folder: Path) -> Links:
    """Write `folder`/0-train.parquet and, where it is given, 1-val.parquet from the TSV files.

    The training links come first, so that their shards stay as they are when the validation file is added later.

    Raises:
        InputError: no such file, or a line that is not a caption, a TAB and an http(s) link in UTF-8.
    """
    assert config.tsv is not None
    # An empty split is drawn by the shares when the pictures are indexed.
    parts = [("0-train", config.tsv, "train" if config.tsv_val else "", "tsv")]
    if config.tsv_val:
        parts.append(("1-val", config.tsv_val, "val", "tsv_val"))
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.parquet"):
        stale.unlink()
    counts, digests = [], {}
    for name, path, split, key in parts:
        if not path.is_file():
            raise InputError(f"img2dataset.{key}: expected a TSV file of captions and links at {path}, found none")
        digest, count = hashlib.sha256(), 0
        with replacing(folder / f"{name}.parquet") as partial, pq.ParquetWriter(partial, LIST_SCHEMA) as writer:
            for batch in _batches(path, split, digest):
                writer.write_batch(batch)
                count += batch.num_rows
        counts.append(count)
        digests[name] = digest.hexdigest()
    return Links(tuple(counts), digests)


def _batches(path: Path, split: str, digest: hashlib._Hash) -> Iterator[pa.RecordBatch]:
    captions: list[str] = []
    urls: list[str] = []

    def batch() -> pa.RecordBatch:
        columns = [pa.array(urls), pa.array(captions), pa.array([split] * len(urls), pa.string())]
        return pa.record_batch(columns, schema=LIST_SCHEMA)

    lines = 0
    with path.open("rb") as file:
        for lines, line in enumerate(file, start=1):
            digest.update(line)
            caption, url = _link(line, path, lines)
            captions.append(caption)
            urls.append(url)
            if len(urls) == _BATCH:
                yield batch()
                captions, urls = [], []
    if not lines:
        raise InputError(f"{path}: expected lines of caption TAB link, got an empty file")
    if urls:
        yield batch()


def _link(line: bytes, path: Path, number: int) -> tuple[str, str]:
    where = f"{path}, line {number}"
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: expected UTF-8, got byte 0x{line[error.start]:02x} at {error.start + 1}: fetch the file again, "
            "or convert it to UTF-8"
        ) from None
    cells = text.rstrip("\r\n").split("\t")
    if len(cells) != 2:
        raise InputError(f"{where}: expected caption TAB link, got {len(cells)} cells: {text.rstrip()[:80]!r}")
    caption, url = cells[0], cells[1].strip()
    # img2dataset would also read file: and data: links, so a list from elsewhere could copy files of this machine.
    if not url.lower().startswith(("http://", "https://")):
        hint = ": the published file has no header, remove the line" if number == 1 else ""
        raise InputError(f"{where}: expected a link of http:// or https://, got {url[:80]!r}{hint}")
    return caption, url
