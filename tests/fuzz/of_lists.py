"""The index of a data set, and lists of captions: CSV, JSONL, COCO's JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from devil_pipe.stages.prepare.coco import read_coco
from devil_pipe.stages.prepare.config import CocoConfig, FolderConfig
from devil_pipe.stages.prepare.folder import read_folder
from devil_pipe.stages.prepare.index import (
    Row,
    check_index,
    index_digest,
    read_index,
    read_mask,
    read_picture,
    to_table,
)

from ..stages.webdataset_fixture import jpeg
from .choices import Choices
from .edits import ODD, edit_bytes, edit_text, edit_values

ROWS = [
    Row("a", shard="s.tar", offset=512, size=40, captions=("a dog",), split="train", width=4, height=4),
    Row("b", path="b.jpg", captions=("a cow", "a brown cow"), split="val", width=4, height=4, object="a cow"),
    Row("c", path="c.jpg", status="broken", reason="no caption"),
    Row("d", shard="s.tar", offset=1024, size=4, captions=("é",), split="test", mask_offset=8, mask_size=16),
]
TYPES = (pa.string(), pa.int64(), pa.int32(), pa.large_string(), pa.binary(), pa.float64(), pa.bool_(), pa.null())


class IndexFile:
    """index.parquet: damaged, of other columns, or with values that lead nowhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "s.tar").write_bytes(bytes(2048))
        (folder / "b.jpg").write_bytes(jpeg())
        self.rows = to_table(ROWS).to_pylist()
        self.seeds = [self._parquet(to_table(ROWS), codec) for codec in ("zstd", "none")]

    @staticmethod
    def _parquet(table: pa.Table, codec: str) -> bytes:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression=codec)
        return buffer.getvalue()

    def _edited(self, choices: Choices) -> bytes:
        if choices.one_in(2):
            words = (b"PAR1", b"\xff", b"captions", b"status", b"\xff\xfe\xfd", b"\x15\x00")
            return edit_bytes(choices.pick(self.seeds), choices, words)
        rows = edit_values(self.rows, choices)
        schema = to_table(ROWS).schema
        for _ in range(choices.below(3)):
            at = choices.below(len(schema))
            field = pa.field(schema[at].name, choices.pick(TYPES), nullable=True)
            schema = schema.set(at, field) if choices.one_in(2) else schema.remove(at)
        if choices.one_in(2):
            schema = pa.schema([field.with_nullable(True) for field in schema])
        try:
            return self._parquet(pa.Table.from_pylist(rows, schema), "none")
        except (ValueError, TypeError, AttributeError, OverflowError, pa.ArrowException):
            return self.seeds[0]  # Arrow does not write such a table

    def __call__(self, choices: Choices) -> None:
        path = self.folder / "index.parquet"
        path.write_bytes(self._edited(choices))
        table = read_index(path)
        check_index(table, "again")
        rows = table.to_pylist()
        assert len({row["key"] for row in rows}) == len(rows)
        assert {row["status"] for row in rows} <= {"ok", "broken"}
        assert all(row["captions"] for row in rows if row["status"] == "ok")
        index_digest(table)
        row = choices.pick(rows)
        assert len(read_picture(row, self.folder)) == row["size"] or not row["shard"]
        read_mask(row, self.folder)


CSV_WORDS = (
    '"',
    ",",
    "\n",
    "\r",
    "\0",
    "\udcff",
    "../a.jpg",
    "/etc/passwd",
    "x" * 200_000,
    "file",
    "caption",
    "\ufeff",
    "a.jpg",
)
COCO = {
    "info": {},
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [{"id": 7, "image_id": 1, "caption": "a dog"}, {"id": 8, "image_id": 2, "caption": "a cow"}],
}
KARPATHY = {
    "images": [
        {"cocoid": 1, "filename": "a.jpg", "filepath": "val2014", "split": "val", "sentences": [{"raw": "a dog"}]},
        {"cocoid": 2, "filename": "b.jpg", "filepath": "val2014", "split": "train", "sentences": [{"raw": "a cow"}]},
    ],
    "dataset": "coco",
}


class CaptionLists:
    """What names pictures and says what they show."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pictures = folder, folder / "pictures"
        self.pictures.mkdir()
        for name in ("a", "b"):
            (self.pictures / f"{name}.jpg").write_bytes(jpeg())
        values = [
            {"file": "a.jpg", "caption": "a dog", "split": "val"},
            {"file": "b.jpg", "caption": ["a cow", "cattle"]},
        ]
        self.lines = "".join(json.dumps(line) + "\n" for line in values)
        self.values = values

    def __call__(self, choices: Choices) -> None:
        kind = choices.below(4)
        if kind <= 1:
            self._folder(kind, choices)
        else:
            self._coco(kind, choices)

    def _folder(self, kind: int, choices: Choices) -> None:
        text = 'file,caption,split,object\na.jpg,"a dog, asleep",val,a dog\nb.jpg,a cow,,\n' if kind else self.lines
        if kind == 0 and choices.one_in(4):
            lines = [{**line, "caption": f"{choices.pick(ODD)}"} for line in self.values]
            text = "".join(json.dumps(line) + "\n" for line in lines)
        elif kind == 0 and choices.one_in(2):
            text = "\n".join(json.dumps(edit_values(line, choices)) for line in self.values)
        else:
            text = edit_text(text, choices, (*CSV_WORDS, "[" * 100_000, '{"file": 1, "caption": {}}'))
        path = self.folder / ("captions.csv" if kind else "captions.jsonl")
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        config = FolderConfig(pictures=self.pictures, captions=path)
        self._checked(read_folder(config, 0, self.folder / "data" / "x", 1).rows)

    def _coco(self, kind: int, choices: Choices) -> None:
        valid: dict[str, Any] = COCO if kind == 2 else KARPATHY
        content = json.dumps(edit_values(valid, choices)).encode()
        if choices.one_in(4):
            content = edit_bytes(content, choices, (b"[" * 100_000, b"\\ud800", b"NaN", b"\xff", b'"', b"}"))
        path = self.folder / ("captions_val2014.json" if kind == 2 else "dataset_coco.json")
        path.write_bytes(content)
        lists = {"annotations": (path,)} if kind == 2 else {"karpathy": path}
        config = CocoConfig(pictures=self.pictures, **lists)
        self._checked(read_coco(config, 0, self.folder / "data" / "x", 1).rows)

    def _checked(self, rows: list[Row]) -> None:
        table = to_table(rows)
        for row in table.to_pylist():
            if row["status"] == "ok":
                assert read_picture(row, self.folder / "data" / "x") == jpeg()
                assert row["captions"]
