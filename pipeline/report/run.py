"""The report stage: one `metrics.json` and one page for a finished run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from devil_pipe.pipeline.report import images, tables
from devil_pipe.pipeline.report import metrics as run_metrics
from devil_pipe.pipeline.report.cards import cards
from devil_pipe.pipeline.report.config import ReportConfig
from devil_pipe.pipeline.report.exports import exports, files, scores_csv
from devil_pipe.pipeline.report.gallery import read_gallery
from devil_pipe.pipeline.report.page import Content, render
from devil_pipe.pipeline.report.predictions import read_predictions
from devil_pipe.pipeline.report.reading import read_text, read_training_log
from devil_pipe.stages.common.alone import alone
from devil_pipe.stages.common.files import replacing, sha256_file, write_json
from devil_pipe.stages.common.progress import log as say

HASHED = ("checkpoint/translator.safetensors", "checkpoint/config.yaml", "predictions.parquet")


def run(config: ReportConfig) -> None:
    """Write `runs/RUN/metrics.json` and the folder `runs/RUN/report` (page, pictures, tables, metrics.json).

    Everything is read and checked before anything is replaced; an older report gives way as a whole, so
    that the folder holds nothing but what the page shows and can be zipped as it is.

    Raises:
        InputError: a file of an earlier stage is missing or malformed (says which command makes it), or another report
            of the run is under way.
    """
    run_dir = config.run_dir
    merged = run_metrics.merge(config.run, run_dir)
    content = _read(config, merged)
    shown = [content.scores, content.novel, content.saliency]
    beside = files(exports(content.metrics, shown, content.log, content.cards, content.gallery, content.described)) | {
        "scores.csv": scores_csv(content.metrics)
    }

    partial, report = run_dir / ".report.partial", run_dir / "report"
    with alone(run_dir, f"devil-pipe report {config.run}"):  # two at once would take each other's pictures away
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            html = render(content, images.copy(content.gallery, run_dir / "saliency", partial), beside)
            write_json(partial / "metrics.json", merged)
            for name, text in {**beside, "index.html": html}.items():
                (partial / name).parent.mkdir(exist_ok=True)
                (partial / name).write_text(text, encoding="utf-8")
            with replacing(run_dir / "metrics.json") as copy:
                shutil.copyfile(partial / "metrics.json", copy)
            shutil.rmtree(report, ignore_errors=True)
            partial.rename(report)
        finally:  # of a stopped or failed report nothing is left
            shutil.rmtree(partial, ignore_errors=True)
    say("report written", page=str(report / "index.html"))


def _read(config: ReportConfig, merged: dict[str, Any]) -> Content:
    """All that the page is made of, read and checked."""
    run_dir = config.run_dir
    metrics = run_metrics.check(merged, config.run, run_dir)
    gallery = read_gallery(config.run, run_dir)
    return Content(
        metrics=metrics,
        scores=tables.score_table(metrics),
        novel=tables.novel_table(metrics),
        saliency=tables.saliency_table(metrics),
        gallery=gallery,
        cards=cards(gallery, metrics),
        described=read_predictions(run_dir / "predictions.parquet", config.run),
        log=read_training_log(run_dir / "train" / "log.jsonl", config.run),
        config_text=read_text(run_dir / "checkpoint" / "config.yaml", "train", config.run),
        hashes=_hashes(run_dir, metrics.train.store_identity),
    )


def _hashes(run_dir: Path, store_identity: str) -> dict[str, str]:
    found = {name: sha256_file(run_dir / name) for name in HASHED if (run_dir / name).is_file()}
    return {"feature store": store_identity, **found}
