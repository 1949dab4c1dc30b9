"""The table of failures: words, values in files and closed places; what makes data, stores and projects."""

from __future__ import annotations

from pathlib import Path

import pytest

from .failures import Row, check
from .spoiled import closed, closed_inside, odd_name, section, text, values

USAGE, FAILURE = 2, 1

TABLE: dict[str, tuple[Row, ...]] = {
    "assets": (
        Row("assets stamp", FAILURE, "expected an asset among .*stamps.*got 'stamp'"),
        Row(
            "assets stamps",
            FAILURE,
            "cache folder .*captions.csv cannot be written",
            environment=(("DEVIL_PIPE_CACHE", "captions.csv"),),
        ),
        Row(
            "assets stamps",
            FAILURE,
            "~nobody-here/x: expected a path, got one in the home",
            environment=(("DEVIL_PIPE_CACHE", "~nobody-here/x"),),
        ),
        Row(
            "assets stamps",
            FAILURE,
            "cache folder .*cannot be written",
            closed("runs"),
            environment=(("DEVIL_PIPE_CACHE", "runs/new"),),
            powerless=True,
        ),
    ),
    "doctor": (
        Row("doctor --quick --deep", USAGE, "expected --quick or --deep, got both"),
        Row("doctor --only ,", USAGE, "--only: expected groups separated by commas, got none"),
        Row("doctor --only jav", USAGE, "--only: expected groups among .*java.*got jav"),
        Row("doctor everything", USAGE, "unexpected extra argument"),
    ),
    "new": (
        Row("new captions.csv", USAGE, "captions.csv: expected a new or empty folder, got a file"),
        Row("new pictures", USAGE, "pictures: expected a new or empty folder, got one that holds"),
        Row("new captions.csv/x", FAILURE, "captions.csv.*: Not a directory"),
        Row("new runs/new", FAILURE, "runs/new: Permission denied", closed("runs"), powerless=True),
        Row("new made", FAILURE, "File too large", full_at=200),
        Row(f"new {'n' * 300}", FAILURE, "File name too long"),
    ),
    "prepare": (
        Row("prepare drwan", USAGE, r"configs/data/drwan.yaml: no such file; did you mean drawn\?"),
        Row("prepare ../x --folder pictures", USAGE, "expected the name of a file in configs/data/.*'../x'"),
        Row("prepare 'x y' --folder pictures", USAGE, r"configs/data/x y.yaml: name: .*pattern.*'x y'"),
        Row(f"prepare {'n' * 300} --folder pictures", FAILURE, "File name too long"),
        Row(
            "prepare news --folder captions.csv",
            FAILURE,
            "folder.pictures: expected a folder at captions.csv",
            may_change=("data/news",),
        ),
        Row(
            "prepare news --folder shards",
            FAILURE,
            "expected pictures in shards, found none",
            may_change=("data/news",),
        ),
        Row(
            "prepare news --shards pictures",
            FAILURE,
            "expected NNNNN.tar, .* in pictures, got none",
            may_change=("data/news",),
        ),
        Row(
            "prepare news --coco-images captions.csv --karpathy dataset_coco.json",
            FAILURE,
            "coco.pictures: expected a folder at captions.csv",
            may_change=("data/news",),
        ),
        Row(
            "prepare news --folder pictures --captions ../x/captions.csv",
            FAILURE,
            "CSV or JSONL file at ../x/captions.csv",
            may_change=("data/news",),
        ),
        Row(
            "prepare drawn",
            FAILURE,
            r"captions.jsonl, line 1: .*expected a picture inside pictures, got \.\./picture.png",
            text("captions.jsonl", '{"file": "../picture.png", "caption": "a"}'),
            may_change=("data/drawn",),
        ),
        Row(
            "prepare drawn",
            FAILURE,
            "captions.jsonl, line 1: expected a JSON object",
            text("captions.jsonl", "[" * 200_000),
            may_change=("data/drawn",),
        ),
        Row(
            "prepare drawn",
            FAILURE,
            "captions.jsonl, line 1: expected text, got 1",
            text("captions.jsonl", '{"file": "000.png", "caption": 1}'),
            may_change=("data/drawn",),
        ),
        Row(
            "prepare news --folder pictures --captions captions.csv",
            FAILURE,
            "captions.csv, line 2: expected CSV: field larger than field limit",
            text("captions.csv", "file,caption\n000.png," + "a" * 200_000),
            may_change=("data/news",),
        ),
        Row(
            "prepare news --folder pictures",
            FAILURE,
            "printable UTF-8.*caf.*rename it",
            odd_name(folder=False),
            may_change=("data/news",),
        ),
        Row(
            "prepare news --folder 'pictures/caf\udce9' --captions captions.csv",
            FAILURE,
            "expected a path in UTF-8.*rename the folder",
            odd_name(folder=True),
            may_change=("data/news",),
        ),
        Row(
            "prepare news --folder pictures",
            FAILURE,
            "pictures/private: Permission denied",
            closed_inside,
            may_change=("data/news",),
            powerless=True,
        ),
        Row("prepare news --folder pictures", FAILURE, "data/news: Permission denied", closed("data"), powerless=True),
        Row(
            "prepare drawn",
            FAILURE,
            "data/drawn/index.parquet: Permission denied",
            closed("data/drawn"),
            powerless=True,
        ),
        Row(
            "prepare news --folder pictures",
            FAILURE,
            "configs/data/news.yaml: Permission denied",
            closed("configs/data"),
            powerless=True,
        ),
        Row("prepare drawn", FAILURE, "File too large", full_at=600, may_change=("data/drawn",)),
        Row(
            "prepare drawn",
            USAGE,
            "data/drawn.yaml: seed: .*greater than or equal to 0, got -1",
            section("data/drawn", seed=-1),
        ),
        Row("prepare drawn", USAGE, "folder.pictures", section("data/drawn", folder__pictures=None)),
        Row(
            "prepare drawn",
            USAGE,
            "folder.shares.train.*inf",
            section("data/drawn", folder__shares={"train": float("inf")}),
        ),
        Row(
            "prepare units",
            USAGE,
            "units.yaml: milan.*experiment: expected one of .*got 'nothing'",
            section("data/units", milan__experiment="nothing"),
        ),
        Row(
            "prepare units",
            FAILURE,
            "milan.zips: expected the zip of alexnet/places365 at pictures/",
            section("data/units", milan__zips="pictures"),
            may_change=("data/units",),
        ),
    ),
    "extract": (
        Row("extract drawm", USAGE, r"configs/stores/drawm.yaml: no such file; did you mean drawn\?"),
        Row("extract drawn --workers 2 --scheduler tcp://127.0.0.1:1", USAGE, "expected --workers .* or --scheduler"),
        Row("extract drawn --rows 5", USAGE, "--rows and --json belong to --dry-run"),
        Row("extract drawn --batch-size many", USAGE, "--batch-size"),
        Row("extract drawn --device cuda:99", FAILURE, "device 'cuda:99'"),
        Row(
            "extract --backbone effnet_lite --data drawn", USAGE, "backbone: expected one of effnet_lite0.*did you mean"
        ),
        Row(
            "extract --backbone effnet_lite0 --data nobody --weights random",
            FAILURE,
            "data/nobody/index.parquet",
            may_change=("stores/nobody-effnet_lite0-random",),
        ),
        Row(
            "extract --backbone effnet_lite0 --data ../drawn --weights random",
            USAGE,
            r"expected the name of a file in configs/",
        ),
        Row(
            "extract --backbone effnet_lite0 --data drawn --encoding int4",
            USAGE,
            "encoding: expected float16, uint8.*'int4'",
        ),
        Row(
            "extract drawn",
            USAGE,
            "stores/drawn.yaml: image_size: expected pixels.*got 1e\\+?400|inf",
            values("stores/drawn", "image_size: .inf\n"),
        ),
        Row("extract drawn", USAGE, "image_size: expected pixels.*got -64", section("stores/drawn", image_size=-64)),
        Row(
            "extract drawn",
            USAGE,
            "shard_rows.*greater than or equal to 1, got 0",
            section("stores/drawn", shard_rows=0),
        ),
        Row("extract drawn", FAILURE, "nope://here.*expected a protocol", section("stores/drawn", place="nope://here")),
        Row(
            "extract --backbone effnet_lite0 --data drawn --weights random --layers s4",
            FAILURE,
            "stores/drawn-effnet_lite0-random-s4.*: Permission denied",
            closed("stores"),
            may_change=("configs/stores",),
            powerless=True,
        ),
        Row(
            "extract --backbone effnet_lite0 --data drawn --weights random --layers s4",
            FAILURE,
            "stores/.*File too large",
            full_at=3000,
            may_change=("configs/stores", "stores/drawn-effnet_lite0-random-s4"),
        ),
    ),
    "layers": (
        Row("layers", USAGE, "Missing argument"),
        Row("layers effnet_lite", USAGE, "backbone: expected one of effnet_lite0"),
        Row("layers timm/resnet5", USAGE, "timm has no model 'resnet5'; did you mean timm/resnet"),
        Row("layers effnet_lite0 --image-size 0", USAGE, "--image-size: expected pixels, 32 at least"),
        Row("layers effnet_lite0 --image-size 1e400", USAGE, "--image-size: expected pixels"),
        Row(
            "layers effnet_lite0 --weights captions.csv",
            FAILURE,
            "captions.csv: expected safetensors or a weights-only checkpoint",
        ),
        Row("layers captions:read", USAGE, "backbone captions:read: no module 'captions'"),
    ),
}
ROWS = {f"{number} {row.words[:60]}": row for rows in TABLE.values() for number, row in enumerate(rows)}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_mistake_is_one_plain_line_and_nothing_is_half_written(world: Path, row: Row) -> None:
    check(row)
