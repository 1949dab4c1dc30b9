"""The prepare stage: pictures and captions → data/NAME/index.parquet and summary.json."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from devil_pipe.stages.common.assets import asset
from devil_pipe.stages.common.files import write_json
from devil_pipe.stages.common.progress import log, warn
from devil_pipe.stages.prepare.coco import read_coco
from devil_pipe.stages.prepare.config import PrepareConfig, WebdatasetConfig
from devil_pipe.stages.prepare.demo import write_demo
from devil_pipe.stages.prepare.download import fetch
from devil_pipe.stages.prepare.folder import read_folder
from devil_pipe.stages.prepare.img2dataset_layouts import read_img2dataset
from devil_pipe.stages.prepare.index import MASKS, OK, index_digest, to_table, write_index
from devil_pipe.stages.prepare.milan.read import read_milan
from devil_pipe.stages.prepare.sources import Found
from devil_pipe.stages.prepare.webdataset import read_webdataset
from devil_pipe.store.errors import InputError


def run(config: PrepareConfig) -> None:
    """Index a data set. Its index and summary are removed first and written last: half a run leaves none.

    Raises:
        InputError: the source is not as expected; see the readers.
    """
    begun = time.monotonic()
    config.out.mkdir(parents=True, exist_ok=True)
    for name in ("index.parquet", "summary.json", MASKS):
        (config.out / name).unlink(missing_ok=True)
    found = _read(config)
    table = to_table(found.rows)
    write_index(table, config.out / "index.parquet")
    summary = summarise(table, config, found.notes)
    write_json(config.out / "summary.json", summary)
    write_json(config.out / "seconds.json", {"prepare": round(time.monotonic() - begun, 1)})
    _tell(summary, config.out)


def summarise(table: pa.Table, config: PrepareConfig, notes: dict[str, Any]) -> dict[str, Any]:
    """What summary.json holds: pictures per split, broken ones by reason, seed, digest, and `notes`."""
    statuses, splits, reasons = (table[name].to_pylist() for name in ("status", "split", "reason"))
    usable = [split for split, status in zip(splits, statuses, strict=True) if status == OK]
    return {
        "name": config.name,
        "source": config.source,
        "seed": config.seed,
        "rows": table.num_rows,
        "pictures": len(usable),
        "splits": dict(sorted(Counter(usable).items())),
        "broken": dict(sorted(Counter(reason for reason in reasons if reason).items())),
        "captions": sum(map(len, table.filter(pc.equal(table["status"], OK))["captions"].to_pylist())),
        "index_digest": index_digest(table),
        **notes,
    }


def _read(config: PrepareConfig) -> Found:
    if config.source == "demo":
        return _read_demo(config)
    if config.source == "folder":
        assert config.folder is not None
        return read_folder(config.folder, config.seed, config.out, config.workers)
    if config.source == "milan":
        assert config.milan is not None
        return read_milan(config.milan, config.seed, config.out, config.workers)
    if config.source == "coco":
        assert config.coco is not None
        return read_coco(config.coco, config.seed, config.out, config.workers)
    if config.source == "img2dataset":
        assert config.img2dataset is not None
        if config.img2dataset.tsv:
            fetch(config.img2dataset, config.out)
        return read_img2dataset(config.img2dataset, config.seed, config.out, config.workers)
    assert config.webdataset is not None
    return read_webdataset(config.webdataset, config.seed, config.out, config.workers)


def _read_demo(config: PrepareConfig) -> Found:
    stamps, scenes, renders = asset("stamps"), asset("scenes"), asset("fluent") if config.demo.renders else None
    shards = config.out / "shards"
    _clear(shards)
    notes = write_demo(
        config.demo, config.seed, shards, stamps=stamps, scenes=scenes, renders=renders, workers=config.workers
    )
    found = read_webdataset(WebdatasetConfig(shards=shards), config.seed, config.out, config.workers)
    return Found(found.rows, {**found.notes, **notes})


def _clear(shards: Path) -> None:
    """Remove an earlier run's shards, so that none of them is read as one of this run."""
    strange = [path.name for path in shards.glob("*") if path.suffix != ".tar" and path.name[:1] != "."]
    if strange:
        raise InputError(f"expected shards alone in {shards}, got {strange[0]}: move it away")
    if shards.exists():
        shutil.rmtree(shards)


def _tell(summary: dict[str, Any], out: Path) -> None:
    log(f"{summary['pictures']} pictures indexed in {out}", **summary["splits"])
    if summary.get("dead_links"):
        dead = Counter(summary["dead_links_by_reason"]).most_common(5)
        share = f"{summary['dead_links']} of {summary['links']} links ({summary['dead_share']:.1%})"
        warn(f"{share} gave no picture: {', '.join(f'{count} × {reason}' for reason, count in dead)}")
    broken = sum(summary["broken"].values())
    if broken:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in list(summary["broken"].items())[:5])
        warn(f"{broken} of {summary['rows']} rows cannot be used: {reasons}; see {out / 'index.parquet'}")
    for split in ("train", "val", "test"):
        if not summary["splits"].get(split):
            warn(f"no picture is in the split {split}")
