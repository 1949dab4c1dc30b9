"""A folder of one's own pictures: what is accepted, and that each mistake is named by file, line and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.stages.prepare.config import DemoConfig, FolderConfig, PrepareConfig
from devil_pipe.stages.prepare.index import Row, check_index, index_digest, read_index, read_picture, to_table
from devil_pipe.stages.prepare.run import run
from devil_pipe.store.errors import InputError

from .odd_pictures import ORIENTATIONS, broken, encoded, oriented
from .webdataset_fixture import jpeg


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for seed, name in enumerate(["a.jpg", "b.JPEG", "more/c.jpg"]):
        (folder / name).write_bytes(jpeg(seed))
    (folder / "notes.md").write_text("no picture")
    return folder


def prepare(
    pictures: Path, captions: str | bytes | None = None, ending: str = "csv", **more: Any
) -> list[dict[str, Any]]:
    file = None
    if captions is not None:
        file = pictures.parent / f"captions.{ending}"
        file.write_bytes(captions.encode() if isinstance(captions, str) else captions)
    out = pictures.parent / "data/mine"
    section = FolderConfig(pictures=pictures, captions=file)
    run(PrepareConfig(name="mine", out=out, source="folder", folder=section, workers=1, **more))
    rows: list[dict[str, Any]] = read_index(out / "index.parquet").to_pylist()
    return rows


def test_csv(pictures: Path) -> None:
    rows = prepare(
        pictures,
        "\ufefffile,caption,split,object\r\n"
        'a.jpg,"a dog, on  a\nbeach",train,a dog\r\n'
        "more/c.jpg,ein Hündchen,test,\r\n",
    )
    assert [row["captions"] for row in rows] == [["a dog, on a beach"], ["ein Hündchen"]]
    assert [row["split"] for row in rows] == ["train", "test"]
    assert [row["object"] for row in rows] == ["a dog", ""]
    assert [row["key"] for row in rows] == ["a", "more_c"]
    root = pictures.parent / "data/mine"
    assert [read_picture(row, root) for row in rows] == [jpeg(0), jpeg(2)]
    assert not any(Path(row["path"]).is_absolute() for row in rows)
    summary = json.loads((root / "summary.json").read_text())
    assert summary["pictures_without_caption"] == 1


def test_jsonl_takes_several_captions(pictures: Path) -> None:
    lines = [{"file": "a.jpg", "caption": ["a dog", "a hound"]}, {"file": "b.JPEG", "caption": "a cat"}]
    rows = prepare(pictures, "\n".join(map(json.dumps, lines)) + "\n\n", "jsonl")
    assert [row["captions"] for row in rows] == [["a dog", "a hound"], ["a cat"]]


def test_sidecars(pictures: Path) -> None:
    (pictures / "a.txt").write_text("a dog\n")
    (pictures / "more/c.txt").write_bytes(b"\xff\xfe")
    rows = {row["key"]: row for row in prepare(pictures)}
    assert rows["a"]["captions"] == ["a dog"]
    assert {key: row["reason"] for key, row in rows.items()} == {
        "a": "",
        "b": "no .txt",
        "more_c": "caption is not UTF-8",
    }


def test_links_are_followed_also_round_in_a_circle(pictures: Path) -> None:
    (pictures / "a.txt").write_text("a dog")
    (pictures / "linked.jpg").symlink_to(pictures / "a.jpg")
    (pictures / "linked.txt").symlink_to(pictures / "a.txt")
    (pictures / "more/round").symlink_to(pictures)
    rows = {row["key"]: row for row in prepare(pictures) if row["status"] == "ok"}
    assert set(rows) == {"a", "linked"}
    assert read_picture(rows["linked"], pictures.parent / "data/mine") == jpeg(0)


def test_broken_pictures_are_rows(pictures: Path) -> None:
    (pictures / "b.JPEG").write_bytes(jpeg(1)[:150])
    (pictures / "d.jpg").write_text("a text")
    (pictures / "e.jpg").write_bytes(jpeg(3))
    listed = b"file,caption\na.jpg,a dog\nb.JPEG,a cat\nd.jpg,x\nnone.jpg,y\nmore/c.jpg,caf\xe9\ne.jpg, \n"
    reasons = {row["key"]: row["reason"] for row in prepare(pictures, listed)}
    assert reasons["a"] == ""
    assert reasons["b"] == "picture cannot be decoded: JPEG that is cut short, damaged or of an unknown kind"
    assert reasons["d"] == "picture cannot be decoded: not a picture"
    assert reasons["none"] == "no such file"
    assert reasons["more_c"] == "caption is not UTF-8"
    assert reasons["e"] == "empty caption"


def test_every_broken_file_is_a_row_in_the_words_of_the_stage_that_would_decode_it(pictures: Path) -> None:
    whole = {"turned": oriented("JPEG", 6), "wide": encoded(Image.new("L", (40_000, 40)), "PNG")}
    files = whole | {name.replace(" ", "-"): content for name, (content, _) in broken().items()}
    for name, content in files.items():
        (pictures / f"{name}.jpg").write_bytes(content)
    listed = "file,caption\n" + "".join(f'"{name}.jpg",a dog\n' for name in files)
    rows = {row["key"]: row for row in prepare(pictures, listed)}
    assert [(rows[name]["width"], rows[name]["height"]) for name in whole] == [(24, 16), (40_000, 40)]
    decode = Transform(32, (0.0,) * 3, (1.0,) * 3).decode
    for name, (content, reason) in broken().items():
        row = rows[name.replace(" ", "-")]
        assert (row["status"], row["reason"]) == ("broken", f"picture cannot be decoded: {reason}")
        assert f"picture {decode(content)}" == row["reason"]
    assert all(isinstance(decode(content), Tensor) for content in whole.values())


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_width_and_height_are_those_of_the_picture_as_it_is_shown(pictures: Path, orientation: int) -> None:
    (pictures / "t.jpg").write_bytes(oriented("JPEG", orientation))
    (row,) = prepare(pictures, "file,caption\nt.jpg,four corners\n")
    assert (row["width"], row["height"]) == (24, 16)


def test_a_telephones_heic_says_what_to_do(pictures: Path) -> None:
    (pictures / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    for name in ("IMG_1", "a"):
        (pictures / f"{name}.txt").write_text("a dog")
    rows = {row["key"]: row for row in prepare(pictures)}
    assert "HEIC, which is not read: save it as JPEG" in rows["IMG_1"]["reason"]


@pytest.mark.parametrize(
    ("captions", "ending", "said"),
    [
        ("name,caption\na.jpg,x\n", "csv", r"captions\.csv, line 1: expected a column 'file', got name, caption"),
        ("file;caption\na.jpg;x\n", "csv", r"line 1: expected a column 'file'"),
        ("", "csv", r"line 1: expected a column 'file', got no columns"),
        ("file,caption\na.jpg,a dog, a cat\n", "csv", r'line 2: expected 2 cells.*"quotes"'),
        ("file,caption\na.jpg\n", "csv", r"line 2: expected 2 cells"),
        ('file,caption\na.jpg,"a dog\n', "csv", r"line 2: expected CSV"),
        ("file,caption\na.jpg,x\n../secret.jpg,y\n", "csv", r"line 3: key 'file': expected a picture inside"),
        ("file,caption\n/etc/x.jpg,y\n", "csv", r"line 2: key 'file': expected a picture inside"),
        ("file,caption\n.,y\n", "csv", r"line 2: key 'file'"),
        ("file,caption\n,y\n", "csv", r"line 2: key 'file'"),
        ("file,caption,split\na.jpg,y,../x\n", "csv", r"line 2: key 'split'"),
        (b"file,caption\n\xff.jpg,y\n", "csv", r"line 2: key 'file': expected printable UTF-8"),
        ("file,caption\na.jpg,x\nb.JPEG,z\na.jpg,y\n", "csv", r"'a' for a\.jpg \(.*line 2\) and a\.jpg \(.*line 4\)"),
        ('{"file": "a.jpg"}\n', "jsonl", r"captions\.jsonl, line 1: expected a key 'caption'"),
        ('{"file": "a.jpg", "caption": "x"}\n{"file"\n', "jsonl", r"line 2: expected a JSON object"),
        ("[1]\n", "jsonl", r"line 1: expected a JSON object, got list"),
        ('{"file": "a.jpg", "caption": 3}\n', "jsonl", r"line 1: expected text, got 3"),
        ('{"file": ["a.jpg"], "caption": "x"}\n', "jsonl", r"line 1: expected text"),
        ("a.jpg a dog", "txt", r"ending in \.csv or \.jsonl"),
        ("file,caption\n", "csv", r"expected a picture and its caption on each line, found no line"),
        ("file,caption\nx.jpg,y\n", "csv", r"1 rows that cannot be used \(no such file\)"),
    ],
)
def test_mistakes_are_named(pictures: Path, captions: str | bytes, ending: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        prepare(pictures, captions, ending)
    assert not (pictures.parent / "data/mine/index.parquet").exists()


def test_two_pictures_of_one_key_are_named(pictures: Path) -> None:
    (pictures / "a.png").write_bytes(jpeg())
    with pytest.raises(InputError, match=r"'a' for a\.jpg .* and a\.png"):
        prepare(pictures)


def test_missing_folder_and_missing_captions(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(InputError, match=r"folder\.pictures"):
        prepare(tmp_path / "none")
    section = FolderConfig(pictures=pictures, captions=tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"none\.csv"):
        run(PrepareConfig(name="x", out=tmp_path / "x", source="folder", folder=section))


def test_splits_do_not_depend_on_the_other_pictures(pictures: Path) -> None:
    def splits() -> dict[str, str]:
        return {row["key"]: row["split"] for row in prepare(pictures)}

    for number in range(30):
        (pictures / f"n{number}.jpg").write_bytes(jpeg())
        (pictures / f"n{number}.txt").write_text("noise")
    before = splits()
    for number in range(0, 30, 3):
        (pictures / f"n{number}.jpg").unlink()
    after = splits()
    assert after.items() <= before.items()
    assert len(after) == len(before) - 10


def test_index_refuses_other_tables(tmp_path: Path) -> None:
    row = Row("k", path="k.jpg", captions=("c",), split="train", width=1, height=1)
    whole = to_table([row])
    check_index(whole, "index")
    with pytest.raises(InputError, match="column split"):
        check_index(whole.drop_columns(["split"]), "index")
    with pytest.raises(InputError, match="no column strange"):
        check_index(whole.append_column("strange", whole["key"]), "index")
    at = whole.schema.get_field_index("width")
    with pytest.raises(InputError, match="column width as int32, got int64"):
        check_index(whole.set_column(at, "width", whole["width"].cast("int64")), "index")
    with pytest.raises(InputError, match="'k' more than once"):
        check_index(to_table([row, row]), "index")
    with pytest.raises(InputError, match="cannot be used"):
        check_index(to_table([row.broken("why")]), "index")
    with pytest.raises(InputError, match="caption for key 'k'"):
        check_index(to_table([Row("k", split="train")]), "index")
    with pytest.raises(InputError, match="no file"):
        read_index(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="Parquet"):
        read_index(tmp_path / "bad.parquet")


def test_the_digest_sees_every_column_and_the_order() -> None:
    one = Row("k", path="p", captions=("c", "d"), split="train", width=1, height=1)
    two = Row("l", path="q", captions=("e",), split="val", width=1, height=1)
    changed = [
        Row("m", path="p", captions=("c", "d"), split="train", width=1, height=1),
        Row("k", path="p", captions=("c d",), split="train", width=1, height=1),
        Row("k", path="p", captions=("c", "d"), split="test", width=1, height=1),
        Row("k", path="p", captions=("c", "d"), split="train", width=1, height=2),
        one.broken("why"),
    ]
    digests = [index_digest(to_table(rows)) for rows in ([one, two], [two, one], *([row, two] for row in changed))]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    "values",
    [
        {"source": "folder"},
        {"source": "webdataset"},
        {"source": "cc3m"},
        {"source": "demo", "colour": 1},
        {"source": "demo", "name": "../x"},
        {"source": "demo", "demo": {"longest_side": [0.9, 0.5]}},
        {"source": "demo", "demo": {"novel_objects": 0}},
        {"source": "folder", "folder": {"pictures": "p", "shares": {"train": 0.5}}},
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PrepareConfig.model_validate({"name": "x", **values})


def test_the_output_folder_follows_the_name() -> None:
    config = PrepareConfig.model_validate({"name": "mine", "source": "demo"})
    assert (config.out, config.demo) == (Path("data/mine"), DemoConfig())
