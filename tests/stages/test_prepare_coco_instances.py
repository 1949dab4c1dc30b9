"""COCO's instances: one category of each picture with the union of its masks; every fault named."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from devil_pipe.pipeline.cli import app
from devil_pipe.stages.prepare.coco_instances import read_instances
from devil_pipe.stages.prepare.config import CocoConfig, PrepareConfig
from devil_pipe.stages.prepare.index import MASKS, read_index, read_mask
from devil_pipe.stages.prepare.run import run
from devil_pipe.store.errors import InputError

from .coco_fixture import annotations, captions, write, write_pictures

HEIGHT, WIDTH = 16, 24  # of the fixture's pictures, as its files say
NUMBERS = [9, 25, 30, 31]
CATEGORIES = [{"id": number, "name": name} for number, name in ((18, "dog"), (5, "airplane"), (87, "skis"))]


def box(left: int, top: int, right: int, bottom: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def runs(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed runs, column by column, beginning with the zeros."""
    flat = mask.T.ravel().astype(int)
    ends = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *ends, flat.size]).tolist()}


def instance(number: int, category: int, segmentation: Any, crowd: int = 0) -> dict[str, Any]:
    return {"image_id": number, "category_id": category, "segmentation": segmentation, "iscrowd": crowd, "id": number}


CROWD = np.zeros((HEIGHT, WIDTH), dtype=bool)
CROWD[2:5, 3:20] = True
LISTED = [
    instance(9, 18, [box(0, 0, 4, 4)]),
    instance(25, 18, [box(2, 1, 10, 9), box(12, 2, 14, 6)]),
    instance(25, 18, [box(8, 5, 20, 12)]),
    instance(25, 5, [box(0, 0, 1, 1)]),  # too small to be drawn, and there all the same
    instance(30, 87, runs(CROWD), crowd=1),
]


def instances(listed: list[dict[str, Any]] = LISTED) -> dict[str, Any]:
    content = annotations("train2014", {number: [] for number in NUMBERS})
    return {**content, "annotations": listed, "categories": CATEGORIES}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = write_pictures(tmp_path / "coco", {"train2014": NUMBERS})
    of = {number: captions(number) for number in NUMBERS}
    write(root / "annotations/captions_train2014.json", annotations("train2014", of))
    write(root / "annotations/instances_train2014.json", instances())
    return root


def prepared(root: Path) -> list[dict[str, Any]]:
    section = CocoConfig(
        pictures=root,
        annotations=(root / "annotations/captions_train2014.json",),
        instances=(root / "annotations/instances_train2014.json",),
    )
    run(PrepareConfig(name="coco", out=root.parent / "data/coco", source="coco", coco=section, workers=1))
    rows: list[dict[str, Any]] = read_index(root.parent / "data/coco/index.parquet").to_pylist()
    return rows


def mask(row: dict[str, Any], root: Path) -> np.ndarray:
    content = read_mask(row, root.parent / "data/coco")
    assert content is not None
    return np.asarray(Image.open(io.BytesIO(content)).convert("1"))


def test_a_picture_gets_an_object_and_the_rest_is_its_scene(coco: Path) -> None:
    rows = prepared(coco)
    assert [row["object"] for row in rows] == ["a dog", "a dog", "skis", ""]
    assert [row["scene"] for row in rows] == ["", "an airplane", "", ""]
    assert [bool(row["mask_size"]) for row in rows] == [True, True, True, False]
    summary = json.loads((coco.parent / "data/coco/summary.json").read_text())
    assert (summary["pictures_with_an_object"], summary["pictures_without_instances"]) == (3, 0)


def test_masks_are_the_union_of_the_categorys_instances(coco: Path) -> None:
    """Beside Pillow's polygons; a border's pixels may belong to either side."""
    first, second, third, _ = prepared(coco)
    drawn = Image.new("1", (WIDTH, HEIGHT))
    for corners in ((2, 1, 9, 8), (12, 2, 13, 5), (8, 5, 19, 11)):
        ImageDraw.Draw(drawn).rectangle(corners, fill=1)
    assert (mask(second, coco) == np.asarray(drawn)).all()
    assert (mask(third, coco) == CROWD).all()
    assert mask(first, coco).sum() == 16
    assert mask(first, coco)[:4, :4].all()


def test_a_mask_follows_a_picture_that_was_made_smaller(coco: Path) -> None:
    path = coco / "train2014" / "COCO_train2014_000000000030.jpg"
    Image.open(path).resize((12, 8)).save(path)
    found = mask(prepared(coco)[2], coco)
    assert found.shape == (8, 12)
    assert found[1, 5]
    assert not found[3:].any()


def test_the_draw_is_by_the_seed_and_does_not_prefer_the_large(tmp_path: Path) -> None:
    """A dog of an eighth of the picture beside an airplane of half: each is drawn for about half of the pictures."""
    content = annotations("val2014", {number: [] for number in range(400)})
    both = [box(0, 0, 12, 4)], [box(12, 0, 24, 16)]
    listed = [instance(number, kind, way) for number in range(400) for kind, way in zip((18, 5), both, strict=True)]
    path = write(tmp_path / "i.json", {**content, "annotations": listed, "categories": CATEGORIES})
    dogs = {seed: [one.object == "a dog" for one in read_instances([path], seed).values()] for seed in (0, 1)}
    assert 160 < sum(dogs[0]) < 240
    assert 160 < sum(dogs[1]) < 240
    assert dogs[0] != dogs[1]
    assert dogs[0] == [one.object == "a dog" for one in read_instances([path], 0).values()]


def test_without_instances_an_earlier_runs_masks_are_gone(coco: Path) -> None:
    prepared(coco)
    assert (coco.parent / "data/coco" / MASKS).exists()
    section = CocoConfig(pictures=coco, annotations=(coco / "annotations/captions_train2014.json",))
    run(PrepareConfig(name="coco", out=coco.parent / "data/coco", source="coco", coco=section, workers=1))
    assert not (coco.parent / "data/coco" / MASKS).exists()


def spoilt(edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(instances()))
    edit(content)
    return content


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no categories": (lambda c: c.pop("categories"), r"expected a key 'categories'"),
    "unknown category": (
        lambda c: c["annotations"][1].update(category_id=99),
        r"annotations\[1\]: expected the category_id of one of the file's categories, got 99",
    ),
    "unknown image": (lambda c: c["annotations"][0].update(image_id=7), r"annotations\[0\]: expected the image_id of"),
    "odd polygon": (
        lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5]]),
        r"annotations\[0\]: key 'segmentation': expected polygons of three points or more, or runs over 24 × 16 pixels",
    ),
    "a box": (lambda c: c["annotations"][0].update(segmentation=[1, 2, 3, 4]), r"got \[1, 2, 3, 4\]"),
    "no number": (lambda c: c["annotations"][0].update(segmentation=[[0, 0, 1, 1, 2, None]]), r"expected polygons"),
    "infinite": (lambda c: c["annotations"][0].update(segmentation=[[0, 0, 1, 1, 2, 1e999]]), r"expected polygons"),
    "runs too long": (
        lambda c: c["annotations"][4]["segmentation"]["counts"].append(10**9),
        r"annotations\[4\]: key 'segmentation': expected polygons",
    ),
    "runs below zero": (
        lambda c: c["annotations"][4].update(segmentation={"size": [16, 24], "counts": [-1, 385]}),
        r"annotations\[4\]: key 'segmentation'",
    ),
    "runs of another size": (
        lambda c: c["annotations"][4]["segmentation"].update(size=[24, 16]),
        r"annotations\[4\]: key 'segmentation'",
    ),
    "no outline": (lambda c: c["annotations"][0].pop("segmentation"), r"annotations\[0\].*got null"),
    "no height": (lambda c: c["images"][1].pop("height"), r"images\[1\]: expected a key 'height'"),
    "no pixels": (lambda c: c["images"][1].update(width=0), r"images\[1\]: key 'width': expected pixels, got 0"),
    "other pictures": (
        lambda c: c.update(images=[{**image, "id": image["id"] + 1000} for image in c["images"]], annotations=[]),
        r"coco\.instances: expected the pictures that the captions are of, found none",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault: str, coco: Path) -> None:
    edit, message = FAULTS[fault]
    write(coco / "annotations/instances_train2014.json", spoilt(edit))
    with pytest.raises(InputError, match=message):
        prepared(coco)
    assert not (coco.parent / "data/coco" / MASKS).exists(), "half a file"


def test_one_image_in_two_files(coco: Path) -> None:
    path = coco / "annotations/instances_train2014.json"
    with pytest.raises(InputError, match=r"expected images that no other file of coco\.instances has, got 9"):
        read_instances([path, path], 0)


def test_by_options(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(coco.parent)
    files = [f"--coco-{kind}={coco}/annotations/{name}_train2014.json" for kind, name in KINDS]
    told = CliRunner().invoke(app, ["prepare", "mine", f"--coco-images={coco}", *files])
    assert told.exit_code == 0, told.output
    assert read_index(Path("data/mine/index.parquet"))["object"].to_pylist()[2] == "skis"
    told = CliRunner().invoke(app, ["prepare", "other", files[1]])
    assert told.exit_code == 2
    assert "--coco-instances belongs to --coco-images" in told.output


KINDS = (("annotations", "captions"), ("instances", "instances"))
