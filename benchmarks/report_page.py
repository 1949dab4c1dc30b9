"""How long the report of a run with 200 pictures takes to open in a real Chromium, from its folder, nothing cached.

The run is synthetic: smoothed noise at the size of the demo's scenes, three layers, three words, 400 scored rows.
Needs Chromium and `playwright` (the extra `dev`).
"""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _measure import write
from PIL import Image, ImageFilter
from playwright.sync_api import Browser, sync_playwright

from devil_pipe.pipeline.report.config import ReportConfig
from devil_pipe.pipeline.report.run import run

PICTURES = int(os.environ.get("PICTURES", "200"))
ROUNDS = int(os.environ.get("ROUNDS", "5"))
SIZE = (480, 360)
LAYERS, WORDS = ("s8", "s16", "s32"), ("a heron", "a quiet harbour", "a saw")
DIFFERENT = 24  # drawn pictures; files beyond them hold the same bytes under other names
TIMES = """() => {
  const [visit] = performance.getEntriesByType("navigation");
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  return {read: visit.domContentLoadedEventEnd, painted: paint.startTime, loaded: visit.loadEventEnd,
    pictures: performance.getEntriesByType("resource").length, elements: document.getElementsByTagName("*").length};
}"""


def drawn() -> list[bytes]:
    found = []
    for number in range(DIFFERENT):
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3)).save(file, format="PNG")
        found.append(file.getvalue())
    return found


def put(path: Path, content: bytes | str | dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def picture(number: int, saliency: Path, files: list[bytes]) -> dict[str, Any]:
    key = f"{number:09d}"
    queries = []
    for place, word in enumerate(WORDS):
        maps = {}
        for depth, layer in enumerate(LAYERS):
            name = f"overlays/{key}-{place}-{layer}.png"
            put(saliency / name, files[(number + place + depth) % DIFFERENT])
            maps[layer] = {"overlay": name, "min": -1.5, "max": 7.25}
        queries.append({"text": word, "present": word != WORDS[-1], "maps": maps})
    put(saliency / f"gallery/{key}.png", files[number % DIFFERENT])
    said = {"whole": "a heron in front of a harbour", "A": "a grey bird", "B": "water with boats"}
    marked = [
        {"id": "A", "x": 0.4, "y": 0.5, "colour": "#e0218a", "where": "object"},
        {"id": "B", "x": 0.8, "y": 0.2, "colour": "#1a9850", "where": "background"},
    ]
    return {
        "key": key,
        "split": "test",
        "object": "a heron",
        "scene": "a quiet harbour",
        "reference": "a heron in front of a quiet harbour",
        "picture": f"gallery/{key}.png",
        "markers": marked,
        "descriptions": {"all": "a heron in front of a harbour", **dict.fromkeys(LAYERS, said)},
        "queries": queries,
    }


def make(folder: Path) -> ReportConfig:
    """The files of a finished run."""
    score = {name: {"value": 0.5, "low": 0.4, "high": 0.6} for name in ("object_accuracy", "cider", "loss", "meteor")}
    common = {"run": "synthetic", "data": "noise", "seed": 0, "n_index": 400, "n_scored": 400}
    controls = dict.fromkeys(("shuffled", "mean", "zero", "lm_alone"), score)
    own = {"scores": dict.fromkeys(("all", *LAYERS), score), "controls": controls}
    put(folder / "evaluate/metrics.json", common | own)
    put(folder / "saliency/metrics.json", {"saliency": {}, "not_run": "a synthetic run"})
    files = drawn()
    pictures = [picture(number, folder / "saliency", files) for number in range(PICTURES)]
    gallery = {"seed": 0, "scale": {"low": -8, "high": 8}, "pictures": pictures}
    put(folder / "saliency/gallery.json", gallery)
    trained = {"trainable_parameters": 1, "seconds": 1.0, "warmup": "none", "weights": "none", "store_identity": "0"}
    put(folder / "train/summary.json", trained)
    steps = [{"phase": "language", "step": step, "loss": 3 - step / 1000} for step in range(0, 1000, 10)]
    put(folder / "train/log.jsonl", "\n".join(json.dumps(step) for step in steps))
    put(folder / "checkpoint/config.yaml", "store: {}\n")
    rows = [
        {"row": row, "key": f"{row:09d}", "split": "test", "condition": condition, "object": "a heron", "named": True}
        | {"description": "a heron in front of a harbour", "references": ["a heron in front of a quiet harbour"]}
        | {"loss": 1.0}
        for condition in ("all", "shuffled")
        for row in range(400)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "predictions.parquet")
    return ReportConfig(run="synthetic", run_dir=folder)


def opened(browser: Browser, address: str) -> dict[str, float]:
    """One visit with an empty cache: milliseconds until the text was read, painted, and all in sight was loaded."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(address, wait_until="load")
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
    found: dict[str, float] = page.evaluate(TIMES)
    context.close()
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = make(Path(folder))
        begun = time.monotonic()
        run(config)
        seconds = time.monotonic() - begun
        page = config.run_dir / "report/index.html"
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            visits = [opened(browser, page.as_uri()) for _ in range(ROUNDS)]
            version = browser.version
            browser.close()
        middle = {f"{name}_ms": round(statistics.median(item[name] for item in visits)) for name in visits[0]}
        counts = {name: middle.pop(f"{name}_ms") for name in ("pictures", "elements")}
        slowest = round(max(item["loaded"] for item in visits))
        write(
            "report_page",
            pictures=PICTURES,
            files=sum(file.is_file() for file in page.parent.rglob("*")),
            page_bytes=page.stat().st_size,
            seconds_to_write=round(seconds, 1),
            browser=f"Chromium {version}",
            visits=ROUNDS,
            median_of_visits=middle,
            slowest_loaded_ms=slowest,
            loaded_at_once=counts,
        )
        print(f"report_page: {PICTURES} pictures, loaded after {middle['loaded_ms']} ms (slowest {slowest} ms)")


if __name__ == "__main__":
    main()
