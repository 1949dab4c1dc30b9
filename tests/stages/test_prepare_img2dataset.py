"""img2dataset's three layouts: the same rows and bytes from each, dead links counted, every fault named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from devil_pipe.stages.prepare.config import Img2datasetConfig, PrepareConfig
from devil_pipe.stages.prepare.index import read_index, read_picture
from devil_pipe.stages.prepare.run import run
from devil_pipe.store.errors import InputError

from .img2dataset_fixture import Link, write
from .odd_pictures import DAMAGED
from .webdataset_fixture import jpeg

LAYOUTS = ("webdataset", "files", "parquet")
DEAD = "HTTP Error 404: Not Found"
LINKS = [
    [Link("a dog", jpeg(0)), Link(error=DEAD), Link("ein „Hündchen“", jpeg(2), split="test")],
    [Link(error="<urlopen error timed out>"), Link("a cut one", jpeg(4)[:200]), Link(None, jpeg(5)), Link(error=DEAD)],
    [Link("a cat", jpeg(6), split="val")] * 120,  # more than one row group
]


def prepare(shards: Path, out: Path, **section: Any) -> list[dict[str, Any]]:
    found = Img2datasetConfig(shards=shards, **section)
    run(PrepareConfig(name="w", out=out, source="img2dataset", img2dataset=found, workers=2))
    rows: list[dict[str, Any]] = read_index(out / "index.parquet").to_pylist()
    return rows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognised_and_gives_the_same_rows(layout: str, tmp_path: Path) -> None:
    rows = prepare(write(tmp_path / "shards", layout, LINKS), tmp_path / "data/w")
    assert [row["key"] for row in rows[:4]] == ["000000000", "000000002", "000010001", "000010002"]
    assert [row["reason"] for row in rows[:4]] == [
        "",
        "",
        f"picture cannot be decoded: JPEG {DAMAGED}",
        "empty caption",
    ]
    assert [row["captions"] for row in rows[:3]] == [["a dog"], ["ein „Hündchen“"], ["a cut one"]]
    assert [row["split"] for row in rows[1:]][:1] + [row["split"] for row in rows[4:]] == ["test"] + ["val"] * 120
    assert (rows[0]["width"], rows[0]["height"]) == (24, 16)
    for row, seed in [(rows[0], 0), (rows[1], 2), (rows[-1], 6)]:
        assert read_picture(row, tmp_path / "data/w") == jpeg(seed)
    summary = json.loads((tmp_path / "data/w/summary.json").read_text())
    assert (summary["layout"], summary["shards"]) == (layout, 3)
    assert (summary["links"], summary["dead_links"], summary["dead_share"]) == (127, 3, round(3 / 127, 4))
    assert summary["dead_links_by_reason"] == {"HTTP 404": 2, "timed out": 1}
    assert summary["rows"] + summary["dead_links"] == summary["links"]


def test_splits_and_keys_are_the_same_from_each_layout(tmp_path: Path) -> None:
    links = [[Link(f"picture {number}", jpeg(number)) for number in range(30)]]
    found = []
    for layout in LAYOUTS:
        rows = prepare(write(tmp_path / layout, layout, links), tmp_path / f"data/{layout}")
        found.append([(row["key"], row["captions"], row["split"], row["width"], row["status"]) for row in rows])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_stay_where_they_are_but_those_inside_parquet(layout: str, tmp_path: Path) -> None:
    shards = write(tmp_path / "shards", layout, LINKS)
    before = {path: path.read_bytes() for path in shards.rglob("*") if path.is_file()}
    out = tmp_path / "data/w"
    digests = {prepare(shards, out) is not None and json.loads((out / "summary.json").read_text())["index_digest"]}
    (out / "tars").mkdir(exist_ok=True)
    (out / "tars/00009.tar").write_bytes(b"an earlier run's")
    prepare(shards, out)
    digests.add(json.loads((out / "summary.json").read_text())["index_digest"])
    assert len(digests) == 1
    assert {path: path.read_bytes() for path in shards.rglob("*") if path.is_file()} == before
    if layout == "parquet":
        assert sorted(path.name for path in (out / "tars").iterdir()) == ["00000.tar", "00001.tar", "00002.tar"]
    else:
        assert (out / "tars/00009.tar").exists()


def test_a_layout_may_be_named(tmp_path: Path) -> None:
    shards = write(tmp_path / "shards", "webdataset", [[Link("in a tar")]])
    (shards / "00000.parquet").unlink()
    write(shards, "files", [[Link("in a folder")]])
    with pytest.raises(InputError, match=r"both tar shards and folders of files: name one as img2dataset\.layout"):
        prepare(shards, tmp_path / "data")
    for layout, caption in (("webdataset", "in a tar"), ("files", "in a folder")):
        (row,) = prepare(shards, tmp_path / "data", layout=layout)
        assert row["captions"] == [caption]
    with pytest.raises(
        InputError, match=r"00000\.parquet: expected a column of pictures \(jpg.*is it the list of links"
    ):
        prepare(shards, tmp_path / "data", layout="parquet")


@pytest.mark.parametrize("layout", ["auto", *LAYOUTS])
def test_no_shards_is_said(layout: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"img2dataset\.shards: expected"):
        prepare(tmp_path / "none", tmp_path / "data", layout=layout)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"img2dataset\.shards: expected"):
        prepare(tmp_path / "empty", tmp_path / "data", layout=layout)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda t: t.drop_columns(["key"]), r"00000\.parquet: expected a column 'key', got split, caption"),
        (lambda t: t.drop_columns(["caption"]), r"expected a column 'caption', got .*; give img2dataset caption_col"),
        (lambda t: t.drop_columns(["jpg"]), r"expected a column of pictures"),
        (lambda t: t.set_column(12, "jpg", pa.array(["text", "text"])), r"expected a column of pictures"),
        (lambda t: t.set_column(3, "key", pa.array(["k", "k"])), r"row 2: expected each key once, got 'k' again"),
        (lambda t: t.set_column(3, "key", pa.array(["k", None])), r"row 2: expected a key, got None"),
    ],
)
def test_a_parquet_that_lacks_something_is_refused(spoil: Any, said: str, tmp_path: Path) -> None:
    shards = write(tmp_path / "shards", "parquet", [[Link(), Link()]])
    pq.write_table(spoil(pq.read_table(shards / "00000.parquet")), shards / "00000.parquet")
    with pytest.raises(InputError, match=said):
        prepare(shards, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.tar"))
    assert not (tmp_path / "data/index.parquet").exists()


def test_a_parquet_that_is_cut_is_refused(tmp_path: Path) -> None:
    shards = write(tmp_path / "shards", "parquet", [[Link()] * 50])
    whole = (shards / "00000.parquet").read_bytes()
    (shards / "00000.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"00000\.parquet: expected a Parquet file, got one that is damaged"):
        prepare(shards, tmp_path / "data")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_key_in_two_shards_names_both(layout: str, tmp_path: Path) -> None:
    shards = write(tmp_path / "shards", layout, [[Link()]])
    for path in sorted(shards.iterdir()):
        path.rename(path.with_name(path.name.replace("00000", "00001")))
    write(shards, layout, [[Link()]])
    with pytest.raises(InputError, match=r"expected each key once, got '000000000' in .*00000.* and in .*00001"):
        prepare(shards, tmp_path / "data")


def test_files_with_a_member_missing_are_rows(tmp_path: Path) -> None:
    shards = write(tmp_path / "shards", "files", [[Link("kept", jpeg(number)) for number in range(5)]])
    (shards / "00000/000000001.txt").unlink()
    (shards / "00000/000000002.jpg").unlink()
    (shards / "00000/000000003.json").write_text("{")
    (shards / "00000/000000004.txt").write_bytes(b"caf\xe9")
    rows = prepare(shards, tmp_path / "data")
    assert [row["reason"] for row in rows] == [
        "",
        "no .txt",
        "no picture",
        "json does not parse",
        "caption is not UTF-8",
    ]


def test_links_that_img2dataset_lost_are_counted(tmp_path: Path) -> None:
    shards = write(tmp_path / "shards", "webdataset", [[Link(), Link(error="Image decoding error")]])
    (shards / "00000_stats.json").write_text(json.dumps({"count": 5}))
    prepare(shards, tmp_path / "data")
    summary = json.loads((tmp_path / "data/summary.json").read_text())
    assert summary["links"] == 5
    assert summary["dead_links_by_reason"] == {"lost by img2dataset": 3, "no picture, or damaged": 1}


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"shards": "s", "layout": "tfrecord"},
        {"shards": "s", "tsv_val": "v.tsv"},
        {"shards": "s", "tsv": "t.tsv", "layout": "files"},
        {"shards": "s", "download": {"resize_mode": "stretch"}},
        {"shards": "s", "download": {"image_size": 0}},
    ],
)
def test_wrong_settings_are_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PrepareConfig.model_validate({"name": "x", "source": "img2dataset", "img2dataset": section})
