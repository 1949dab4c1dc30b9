"""COCO's captions in both published forms: five captions a picture, splits as they are given, every fault named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from devil_pipe.pipeline.cli import app
from devil_pipe.stages.prepare.config import CocoConfig, PrepareConfig
from devil_pipe.stages.prepare.index import read_index, read_picture
from devil_pipe.stages.prepare.run import run
from devil_pipe.store.errors import InputError

from .coco_fixture import annotations, captions, file_name, karpathy, write, write_pictures
from .odd_pictures import DAMAGED
from .webdataset_fixture import jpeg

TRAIN, VAL = [9, 25, 30], [42, 73, 74, 99]
OF = {number: captions(number) for number in TRAIN + VAL}
SPLITS = {9: "train", 42: "val", 25: "train", 73: "test", 74: "restval", 30: "train", 99: "test"}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """COCO as it is unpacked: pictures, annotations/, and Karpathy's file."""
    root = write_pictures(tmp_path / "coco", {"train2014": TRAIN, "val2014": VAL})
    write(root / "annotations/captions_train2014.json", annotations("train2014", {n: OF[n] for n in TRAIN}))
    write(root / "annotations/captions_val2014.json", annotations("val2014", {n: OF[n] for n in VAL}))
    write(root / "dataset_coco.json", karpathy(SPLITS, OF))
    return root


def prepare(root: Path, files: tuple[str, ...] = (), split_file: bool = False, **more: Any) -> list[dict[str, Any]]:
    section = CocoConfig(
        pictures=more.pop("pictures", root),
        annotations=tuple(root / f"annotations/{name}" for name in files),
        karpathy=root / "dataset_coco.json" if split_file else None,
        **more,
    )
    out = root.parent / "data/coco"
    run(PrepareConfig(name="coco", out=out, source="coco", coco=section, workers=1))
    rows: list[dict[str, Any]] = read_index(out / "index.parquet").to_pylist()
    return rows


BOTH = ("captions_train2014.json", "captions_val2014.json")


def test_the_published_files_give_five_captions_and_the_split_of_their_name(coco: Path) -> None:
    rows = prepare(coco, BOTH)
    assert [row["key"] for row in rows] == [
        *(f"COCO_train2014_{number:012d}" for number in TRAIN),
        *(f"COCO_val2014_{number:012d}" for number in VAL),
    ]
    assert [row["captions"] for row in rows] == [captions(number) for number in TRAIN + VAL]
    assert [row["split"] for row in rows] == ["train"] * 3 + ["val"] * 4
    root = coco.parent / "data/coco"
    assert [read_picture(row, root) for row in rows] == [jpeg(number) for number in TRAIN + VAL]


@pytest.mark.parametrize("files", [(), BOTH])
def test_karpathys_split_with_its_own_captions_or_the_published_ones(files: tuple[str, ...], coco: Path) -> None:
    if files:  # its own are then not used
        write(coco / "dataset_coco.json", karpathy(SPLITS, {number: ["another"] for number in OF}))
    rows = prepare(coco, files, split_file=True)
    assert [row["captions"] for row in rows] == [captions(number) for number in SPLITS]
    assert [row["split"] for row in rows] == ["train", "val", "train", "test", "train", "train", "test"]
    assert [row["split"] for row in prepare(coco, files, split_file=True, restval="restval")][4] == "restval"


def test_pictures_that_karpathy_leaves_out_are_counted(coco: Path) -> None:
    write(coco / "dataset_coco.json", karpathy({9: "train", 42: "test"}, OF))
    assert len(prepare(coco, BOTH, split_file=True)) == 2
    assert json.loads((coco.parent / "data/coco/summary.json").read_text())["pictures_outside_karpathy"] == 5


def test_pictures_may_lie_in_one_folder_and_a_file_of_another_name_is_split_by_shares(coco: Path) -> None:
    for number in TRAIN:
        (coco / "train2014" / file_name(number, "train2014")).rename(coco / file_name(number, "train2014"))
    (coco / "annotations/captions_train2014.json").rename(coco / "annotations/mine.json")
    rows = prepare(coco, ("mine.json",), shares={"train": 0.0, "held": 1.0})
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert {row["split"] for row in rows} == {"held"}


def test_what_cannot_be_used_is_a_row_with_a_reason(coco: Path) -> None:
    content = annotations("val2014", {**OF, 500: captions(500), 501: [], 502: ["a thing", " \n"], 503: ["\ud800"]})
    for number in (42, 501, 502, 503):
        (coco / "val2014" / file_name(number, "val2014")).write_bytes(jpeg(number))
    (coco / "val2014" / file_name(73, "val2014")).write_bytes(jpeg(73)[:200])
    write(coco / "annotations/captions_val2014.json", content)
    rows = {int(row["key"][-12:]): row for row in prepare(coco, ("captions_val2014.json",))}
    assert {number: rows[number]["reason"] for number in (42, 73, 500, 501, 502, 503)} == {
        42: "",
        73: f"picture cannot be decoded: JPEG {DAMAGED}",
        500: "no such file",
        501: "no caption",
        502: "empty caption",
        503: "caption is not UTF-8",
    }
    broken = json.loads((coco.parent / "data/coco/summary.json").read_text())["broken"]
    assert broken["no such file"] == 4  # 500, and the three of train2014
    assert broken["empty caption"] == 1


def change(name: str, edit: Callable[[Any], object]) -> Callable[[Path], None]:
    """Edits a file's content in place."""

    def spoil(root: Path) -> None:
        content = json.loads((root / name).read_text())
        edit(content)
        write(root / name, content)

    return spoil


def bytes_of(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes(edit((root / name).read_bytes())) and None


FILE, SPLIT_FILE = "annotations/captions_train2014.json", "dataset_coco.json"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (
        lambda root: (root / FILE).unlink(),
        r"coco\.annotations: expected a JSON file at .*train2014\.json, fou",
    ),
    "not JSON": (bytes_of(FILE, lambda data: data[:-9]), r"captions_train2014\.json: expected JSON, got none"),
    "empty": (bytes_of(FILE, lambda _: b""), r"captions_train2014\.json: expected JSON, got none"),
    "deep": (bytes_of(FILE, lambda _: b"[" * 100_000), r"captions_train2014\.json: expected JSON, got none"),
    "not UTF-8": (
        bytes_of(FILE, lambda data: data.replace(b"A photo", b"A phot\xe9", 1)),
        r"captions_train2014\.json: expected UTF-8, got byte 0xe9 at \d+: fetch",
    ),
    "a list": (bytes_of(FILE, lambda _: b"[1]"), r"expected a JSON object with 'images', got \[1\]"),
    "no images": (change(FILE, lambda c: c.pop("images")), r"train2014\.json: expected a key 'images', got info"),
    "no annotations": (change(FILE, lambda c: c.pop("annotations")), r"expected a key 'annotations'"),
    "images of another kind": (change(FILE, lambda c: c.update(images={})), r"key 'images': expected a list, got \{\}"),
    "an image of another kind": (
        change(FILE, lambda c: c["images"].insert(1, "x")),
        r"images\[1\]: expected an object, got \"x\"",
    ),
    "no id": (
        change(FILE, lambda c: c["images"][1].pop("id")),
        r"images\[1\]: expected a key 'id', got license, file_",
    ),
    "id of another kind": (
        change(FILE, lambda c: c["images"][1].update(id="9")),
        r"images\[1\]: key 'id': expected a whole number, got \"9\"",
    ),
    "no file_name": (
        change(FILE, lambda c: c["images"][2].pop("file_name")),
        r"images\[2\]: expected a key 'file_name'",
    ),
    "no caption": (
        change(FILE, lambda c: c["annotations"][3].pop("caption")),
        r"annotations\[3\]: expected a key 'capt",
    ),
    "null caption": (
        change(FILE, lambda c: c["annotations"][3].update(caption=None)),
        r"annotations\[3\]: key 'caption': expected text, got null",
    ),
    "unknown image": (
        change(FILE, lambda c: c["annotations"][4].update(image_id=77)),
        r"annotations\[4\]: expected the image_id of one of the file's images, got 77",
    ),
    "id twice": (
        change(FILE, lambda c: c["images"].append(c["images"][0])),
        r"images\[3\]: expected each id once, got 9 again, first in .*train2014\.json, images\[0\]",
    ),
    "id in two files": (
        change("annotations/captions_val2014.json", lambda c: c["images"][0].update(id=9)),
        r"val2014\.json, images\[0\]: expected each id once, got 9 again, first in .*train2014\.json, images\[0\]",
    ),
    "file twice": (
        change(FILE, lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"])),
        r"images\[1\]: expected each file once, got 'COCO_train2014_000000000009\.jpg' again, first in .*images\[0\]",
    ),
    "a file outside": (
        change(FILE, lambda c: c["images"][1].update(file_name="../../x.jpg")),
        r"images\[1\]: key 'file_name': expected a picture inside",
    ),
}
KARPATHY_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (
        lambda root: (root / SPLIT_FILE).unlink(),
        r"coco\.karpathy: expected a JSON file at .*coco\.json, found",
    ),
    "no cocoid": (change(SPLIT_FILE, lambda c: c["images"][1].pop("cocoid")), r"images\[1\]: expected a key 'cocoid'"),
    "no split": (change(SPLIT_FILE, lambda c: c["images"][1].pop("split")), r"images\[1\]: expected a key 'split'"),
    "odd split": (
        change(SPLIT_FILE, lambda c: c["images"][1].update(split="dev")),
        r"images\[1\]: key 'split': expected one of train, restval, val, test, got 'dev'",
    ),
    "no sentences": (
        change(SPLIT_FILE, lambda c: c["images"][0].pop("sentences")),
        r"images\[0\]: expected a key 'sent",
    ),
    "no raw": (
        change(SPLIT_FILE, lambda c: c["images"][0]["sentences"][2].pop("raw")),
        r"images\[0\], sentences\[2\]: expected a key 'raw', got tokens",
    ),
    "cocoid twice": (
        change(SPLIT_FILE, lambda c: c["images"].append(c["images"][0])),
        r"images\[7\]: expected each cocoid once, got 9 again, first in .*images\[0\]",
    ),
    "another data set": (
        change(SPLIT_FILE, lambda c: c["images"][3].update(cocoid=1)),
        r"images\[3\]: expected cocoid 1 among the images of coco\.annotations, found none: give both",
    ),
    "no pictures": (change(SPLIT_FILE, lambda c: c["images"].clear()), r"expected pictures in the files' 'images'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_published_files_is_named(fault: str, coco: Path) -> None:
    spoil, said = FAULTS[fault]
    spoil(coco)
    with pytest.raises(InputError, match=said):
        prepare(coco, BOTH)
    assert not (coco.parent / "data/coco/index.parquet").exists()


@pytest.mark.parametrize("fault", KARPATHY_FAULTS)
def test_a_fault_of_karpathys_file_is_named(fault: str, coco: Path) -> None:
    spoil, said = KARPATHY_FAULTS[fault]
    spoil(coco)
    with pytest.raises(InputError, match=said):
        prepare(coco, BOTH, split_file=True)


def test_no_folder_of_pictures_is_said(coco: Path) -> None:
    with pytest.raises(InputError, match=r"coco\.pictures: expected a folder at .*none, found none"):
        prepare(coco, BOTH, pictures=coco / "none")


def test_the_command_keeps_what_it_was_given(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(coco.parent)
    words = ["prepare", "mine", "--coco-images", "coco", "--karpathy", "coco/dataset_coco.json"]
    for name in BOTH:
        words += ["--coco-annotations", f"coco/annotations/{name}"]
    indexes = []
    for again in (words, words, ["prepare", "mine"]):
        result = CliRunner().invoke(app, again)
        assert result.exit_code == 0, result.output
        indexes.append(Path("data/mine/index.parquet").read_bytes())
    assert indexes[0] == indexes[1] == indexes[2]
    assert yaml.safe_load(Path("configs/data/mine.yaml").read_text()) == {
        "source": "coco",
        "coco": {
            "pictures": "coco",
            "karpathy": "coco/dataset_coco.json",
            "annotations": [f"coco/annotations/{name}" for name in BOTH],
        },
    }


@pytest.mark.parametrize("section", [{"pictures": "p"}, {"annotations": ["a.json"]}, {"pictures": "p", "split": "x"}])
def test_wrong_settings_are_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PrepareConfig.model_validate({"name": "x", "source": "coco", "coco": section})
