"""The report stage: one `metrics.json` and one page for a finished run."""

from __future__ import annotations

import shutil
from pathlib import Path

from devil_pipe.pipeline.report import metrics as run_metrics
from devil_pipe.pipeline.report.config import ReportConfig
from devil_pipe.pipeline.report.gallery import copy_pictures, read_gallery
from devil_pipe.pipeline.report.page import render
from devil_pipe.pipeline.report.reading import read_training_log, require
from devil_pipe.pipeline.report.tables import scores_csv
from devil_pipe.stages.common.files import sha256_file, write_json, write_text_atomic
from devil_pipe.stages.common.progress import log as say

HASHED = ("checkpoint/translator.safetensors", "checkpoint/config.yaml", "predictions.parquet")


def run(config: ReportConfig) -> None:
    """Write `runs/RUN/metrics.json` and the folder `runs/RUN/report` (page, pictures, scores.csv, metrics.json).

    Everything is read and checked before anything is written; an older report is replaced as a whole, so
    that the folder holds nothing but what the page shows and can be zipped as it is.

    Raises:
        InputError: a file of an earlier stage is missing or malformed; says which command makes it.
    """
    run_dir = config.run_dir
    merged = run_metrics.merge(config.run, run_dir)
    metrics = run_metrics.check(merged, config.run, run_dir)
    gallery = read_gallery(config.run, run_dir)
    log = read_training_log(run_dir / "train" / "log.jsonl", config.run)
    config_text = require(run_dir / "checkpoint" / "config.yaml", "train", config.run).read_text(encoding="utf-8")
    html = render(metrics, gallery, log, config_text, _hashes(run_dir, metrics.train.store_identity))

    write_json(run_dir / "metrics.json", merged)
    partial, report = run_dir / ".report.partial", run_dir / "report"
    shutil.rmtree(partial, ignore_errors=True)
    copy_pictures(gallery, run_dir / "saliency", partial)
    write_json(partial / "metrics.json", merged)
    write_text_atomic(partial / "scores.csv", scores_csv(metrics))
    write_text_atomic(partial / "index.html", html)
    shutil.rmtree(report, ignore_errors=True)
    partial.rename(report)
    say("report written", page=str(report / "index.html"))


def _hashes(run_dir: Path, store_identity: str) -> dict[str, str]:
    found = {name: sha256_file(run_dir / name) for name in HASHED if (run_dir / name).is_file()}
    return {"feature store": store_identity, **found}
