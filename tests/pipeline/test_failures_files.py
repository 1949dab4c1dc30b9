"""The table of failures, part one: every file that a command reads, and all that may be wrong with a file.

Missing, empty, cut short, bytes of something else, a folder, a link to nowhere, a link to itself, a pipe that nobody
writes to, and a file that may not be read: each is one line that names the file, and nothing is left half written.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .failures import KINDS, Reads, Row, check

NEWS = "prepare news"
ASK = "--query circle"
LM = r"language model 'lm'"
QUIET = ("missing", "dangling", "loop")
"""Where the file need not be there, what cannot be found is as good as none."""

BRIEF = ("missing", "noise", "unreadable")
"""Where another command reads the same file by the same function, and has met the other kinds."""

READS = (
    Reads("prepare drawn", "configs/data/drawn.yaml", 2, but=("cut",)),
    Reads("prepare", "configs/pipeline.yaml", 2, kinds=BRIEF),
    Reads("prepare drawn", "captions.jsonl", may_change=("data/drawn",)),
    Reads(f"{NEWS} --folder pictures --captions captions.csv", "captions.csv", but=("cut",), may_change=("data/news",)),
    Reads(f"{NEWS} --shards shards --tsv links.tsv", "links.tsv", but=("cut",), may_change=("data/news",)),
    Reads(
        f"{NEWS} --coco-images pictures --coco-annotations captions_val2014.json",
        "captions_val2014.json",
        may_change=("data/news",),
    ),
    Reads(
        f"{NEWS} --coco-images pictures --karpathy dataset_coco.json", "dataset_coco.json", may_change=("data/news",)
    ),
    Reads(f"{NEWS} --shards shards", "shards/00000.tar", says="shards", but=("cut",), may_change=("data/news",)),
    Reads(f"{NEWS} --shards parquet", "parquet/00000.parquet", says="parquet", may_change=("data/news",)),
    Reads("prepare units", "zips/alexnet-places365.zip", may_change=("data/units",)),
    Reads("extract drawn", "configs/stores/drawn.yaml", 2, kinds=BRIEF),
    Reads("extract", "configs/pipeline.yaml", 2, kinds=BRIEF),
    Reads("extract drawn", "data/drawn/index.parquet"),
    Reads("extract --backbone effnet_lite0 --data drawn --weights drawn.h5", "drawn.h5", kinds=BRIEF),
    Reads("train tiny", "configs/runs/tiny.yaml", 2, but=("cut",)),
    Reads("train tiny", "configs/stores/drawn.yaml", 2, kinds=BRIEF),
    Reads("train", "configs/pipeline.yaml", 2, but=("cut",)),
    Reads("train tiny", "data/drawn/index.parquet", kinds=BRIEF),
    Reads("train tiny", "data/drawn/summary.json", but=QUIET),
    Reads("train tiny", "stores/drawn/manifest.json"),
    Reads("train tiny", "stores/drawn/*/s16/c.0.0.0", but=("unreadable",)),
    Reads("train tiny", "runs/tiny/train/state.safetensors", but=QUIET),
    Reads("train tiny", "runs/tiny/train/log.jsonl", but=(*QUIET, "empty", "cut")),
    Reads("train tiny", "lm/config.json", says=LM, but=("pipe",)),
    Reads("train tiny", "lm/model.safetensors", says=LM, kinds=(*BRIEF, "cut")),
    Reads("train tiny", "lm/tokenizer.json", says=LM, kinds=(*BRIEF, "empty")),
    Reads("evaluate tiny", "runs/tiny/checkpoint/config.yaml"),
    Reads("evaluate tiny", "runs/tiny/checkpoint/translator.safetensors"),
    *(
        reads
        for words in ("evaluate tiny", "saliency tiny", "units tiny --exemplars 2", "audit tiny --pictures 4")
        for reads in (
            Reads(words, "runs/tiny/checkpoint/config.yaml", kinds=BRIEF),
            Reads(words, "runs/tiny/checkpoint/translator.safetensors", kinds=BRIEF),
            Reads(words, "stores/drawn/manifest.json", kinds=BRIEF),
            Reads(words, "data/drawn/index.parquet", kinds=BRIEF),
            Reads(words, "configs/runs/tiny.yaml", 2, kinds=BRIEF),
        )
    ),
    *(Reads(words, "configs/pipeline.yaml", 2, kinds=BRIEF) for words in ("evaluate", "saliency", "audit", "report")),
    Reads(f"saliency picture.png {ASK} --run tiny", "picture.png", kinds=BRIEF),
    Reads(f"saliency picture.png {ASK} --run tiny", "runs/tiny/checkpoint/config.yaml", kinds=BRIEF),
    Reads(f"saliency picture.png {ASK} --translator shared", "shared/config.json", kinds=BRIEF),
    Reads(f"saliency picture.png {ASK} --translator shared", "shared/translator.safetensors", kinds=BRIEF),
    Reads("explain picture.png --run tiny", "picture.png"),
    Reads("explain picture.png --run tiny", "configs/runs/tiny.yaml", 2, kinds=BRIEF),
    Reads("explain picture.png --run tiny", "runs/tiny/checkpoint/config.yaml", kinds=BRIEF),
    Reads("explain picture.png --run tiny", "runs/tiny/checkpoint/translator.safetensors", kinds=BRIEF),
    Reads("explain picture.png --translator shared", "shared/config.json"),
    Reads("explain picture.png --translator shared", "shared/translator.safetensors"),
    Reads("explore --no-browser --port 0 --run tiny", "configs/runs/tiny.yaml", 2, kinds=BRIEF),
    Reads("explore --no-browser --port 0 --run tiny", "runs/tiny/checkpoint/config.yaml", kinds=BRIEF),
    Reads("explore --no-browser --port 0 --translator shared", "shared/config.json", kinds=BRIEF),
    Reads("export tiny new", "configs/runs/tiny.yaml", 2, kinds=BRIEF),
    Reads("export tiny new", "runs/tiny/checkpoint/config.yaml", kinds=BRIEF),
    Reads("export tiny new", "runs/tiny/checkpoint/translator.safetensors", kinds=BRIEF),
    Reads("export tiny new", "data/drawn/summary.json", but=QUIET),
    *(
        Reads("report demo", f"runs/demo/{name}", kinds=kinds)
        for name, kinds in {
            "evaluate/metrics.json": tuple(KINDS),
            "saliency/metrics.json": BRIEF,
            "saliency/gallery.json": BRIEF,
            "train/summary.json": BRIEF,
            "predictions.parquet": (*BRIEF, "cut"),
            "saliency/gallery/000000001.png": (*BRIEF, "cut"),
        }.items()
    ),
    Reads("report demo", "runs/demo/train/log.jsonl", kinds=(*BRIEF, "cut")),
    Reads("report demo", "runs/demo/checkpoint/config.yaml", kinds=BRIEF),
    Reads("plan small", "configs/experiments/small.yaml", 2, but=("missing", "cut")),
    *(
        reads
        for words in ("plan small", "tables small", "experiment small")
        for reads in (
            Reads(words, "configs/experiments/small.yaml", 2, says="small", kinds=BRIEF),
            Reads(words, "configs/runs/tiny.yaml", 2, kinds=BRIEF),
            Reads(words, "configs/stores/drawn.yaml", 2, kinds=BRIEF),
        )
    ),
    Reads("plan small", "data/drawn/summary.json", but=(*QUIET, "folder", "pipe")),
    Reads("layers effnet_lite0 --weights drawn.h5", "drawn.h5", but=("cut",)),
    Reads("store info drawn", "configs/stores/drawn.yaml", 2, but=("missing", "dangling", "loop", "cut")),
    Reads("store info", "configs/pipeline.yaml", 2, kinds=BRIEF),
    Reads("store verify drawn", "stores/drawn/manifest.json", but=("missing", "dangling"), errors=2),
    Reads("store export drawn new.h5", "stores/drawn/manifest.json", kinds=BRIEF),
    Reads("store export drawn new.h5", "stores/drawn/*/s16/c.0.0.0", kinds=BRIEF),
    Reads("store import drawn.h5 copy", "drawn.h5", may_change=("stores/copy",)),
)
ROWS: dict[str, Row] = {name: row for reads in READS for name, row in reads.rows()}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_file_that_cannot_be_read_is_one_plain_line(world: Path, row: Row) -> None:
    check(row)
