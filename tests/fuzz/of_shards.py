"""Shards as img2dataset writes them: tar in webdataset's layout, and Parquet with the pictures inside."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from devil_pipe.stages.prepare.config import Img2datasetConfig
from devil_pipe.stages.prepare.img2dataset_layouts import read_img2dataset
from devil_pipe.stages.prepare.index import read_picture, to_table
from devil_pipe.stages.prepare.webdataset import read_shard

from ..stages.img2dataset_fixture import Link, write
from ..stages.webdataset_fixture import jpeg, png_mask, sample, write_shard
from .choices import Choices
from .edits import ODD, edit_bytes, edit_values

SHARES = {"train": 1.0}
SIZES = (
    b"-1",
    b"-512",
    b"-00000001000",
    b"77777777777",
    b"\xff" * 12,
    b"\x80" + bytes(11),
    b"\x80" + b"\xff" * 11,
    b"0",
    b" ",
)
PAX = (
    "size=-600",
    "size=99999999999999",
    "path=../../x",
    "GNU.sparse.realsize=99999999999",
    "GNU.sparse.major=1",
    "mtime=nan",
)


class TarShard:
    """Members of a tar: headers with any numbers, sparse files, links, extended headers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        samples = [sample("0001", seed=1), {**sample("0002"), "0002.png": png_mask()}, sample("d/0003")]
        self.plain = write_shard(folder / "seed.tar", samples).read_bytes()
        self.headers = [at for at in range(0, len(self.plain), 512) if self.plain[at + 257 : at + 262] == b"ustar"]

    def __call__(self, choices: Choices) -> None:
        path = self.folder / "00000.tar"
        content = bytearray(self.plain)
        for _ in range(1 + choices.below(2)):
            self._edit(content, choices)
        path.write_bytes(content)
        rows = to_table(read_shard(path, "00000.tar", 0, SHARES)).to_pylist()
        for row in rows:
            if row["status"] == "ok":
                assert len(read_picture(row, self.folder)) == row["size"] <= len(content)

    def _edit(self, content: bytearray, choices: Choices) -> None:
        kind, at = choices.below(5), choices.pick(self.headers)
        if kind == 0:
            content[:] = edit_bytes(bytes(content), choices, (b"ustar", bytes(512), b"\x80"))
        elif kind == 1:
            content[at : at + 512] = edit_bytes(bytes(content[at : at + 512]), choices, SIZES).ljust(512, b"\0")[:512]
            _sum(content, at)
        elif kind == 2:
            content[at + 124 : at + 136] = choices.pick(SIZES).ljust(12, b"\0")
            _sum(content, at)
        elif kind == 3:
            content[at + 156 : at + 157] = choices.pick(b"01234567LKSxgXV\0DM".decode("latin-1")).encode("latin-1")
            _sum(content, at)
        else:
            content[at:at] = _extended(choices.pick(PAX), choices.pick("xgL"))


def _extended(record: str, kind: str) -> bytes:
    """An extended header with one record, which says its own length."""
    length = len(record) + 3 + len(str(len(record) + 4))
    body = f"{length} {record}\n".encode()
    header = tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)
    block = bytearray(header)
    block[124:136] = b"%011o\0" % len(body)
    block[156:157] = kind.encode()
    _sum(block, 0)
    return bytes(block) + body.ljust(512, b"\0")


def _sum(content: bytearray, at: int) -> None:
    """A header's checksum over its bytes with blanks in the checksum's place (POSIX ustar)."""
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % (sum(content[at : at + 512]) & 0o777777)


class ParquetShard:
    """NNNNN.parquet with its _stats.json, through the whole reader."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        links = [Link(), Link(caption="é", split="val"), Link(error="HTTP Error 404: Not Found"), Link(caption=None)]
        source = write(folder / "seed", "parquet", [links])
        self.whole = (source / "00000.parquet").read_bytes()
        self.stats = (source / "00000_stats.json").read_bytes()
        self.table = pq.read_table(source / "00000.parquet")
        self.rows = self.table.to_pylist()
        shutil.rmtree(source)
        (folder / "shards").mkdir()

    def _edited(self, choices: Choices) -> bytes:
        if choices.one_in(2):
            return edit_bytes(self.whole, choices, (b"PAR1", b"jpg", b"key", b"caption", b"\xff\xfe", b"status"))
        schema = self.table.schema
        plain: list[dict[str, Any]] = [{**row, "jpg": "" if row["jpg"] is None else "x"} for row in self.rows]
        rows: list[Any] = edit_values(plain, choices)
        rows = [{**row, "jpg": jpeg() if row.get("jpg") else None} for row in rows if isinstance(row, dict)]
        for _ in range(choices.below(3)):
            at = choices.below(len(schema))
            other = choices.pick((pa.int64(), pa.binary(), pa.large_string(), pa.list_(pa.string()), pa.float64()))
            schema = schema.set(at, pa.field(schema[at].name, other)) if choices.one_in(2) else schema.remove(at)
        if choices.one_in(4):
            rows = [
                {**row, "key": choices.pick([str(odd) for odd in ODD if isinstance(odd, str | int)])}
                for row in rows[:1]
            ]
        buffer = io.BytesIO()
        try:
            pq.write_table(pa.Table.from_pylist(rows, schema), buffer)
        except (ValueError, TypeError, AttributeError, OverflowError, pa.ArrowException):
            return self.whole  # Arrow does not write such a table
        return buffer.getvalue()

    def __call__(self, choices: Choices) -> None:
        shards, out = self.folder / "shards", self.folder / "out"
        stats = choices.pick((self.stats, b"", b"[]", b"[" * 100_000, json.dumps({"count": "x"}).encode()))
        (shards / "00000_stats.json").write_bytes(stats)
        (shards / "00000.parquet").write_bytes(self._edited(choices))
        out.mkdir(exist_ok=True)
        found = read_img2dataset(Img2datasetConfig(shards=shards, layout="parquet"), 0, out, 1)
        for row in to_table(found.rows).to_pylist():
            if row["status"] == "ok":
                assert read_picture(row, out) == jpeg() or row["width"]
