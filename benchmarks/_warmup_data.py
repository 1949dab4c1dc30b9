"""Pictures with captions of free word order: Tux Paint's sentences, openclipart's titles, Fluent's labels."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from devil_pipe.stages.common.assets import asset, fetch

LABELS = "emojibase-data@17.0.0"
LONGEST, LEAST, LARGEST, MOST = 9, 64, 4_000_000, 12
"""Words of a caption at most; pixels of the longer side at least, and of a drawing in all; pictures of one caption."""
_NO_TITLE = re.compile(
    r"(?i)\b(part of|clip ?arts?|various|collection|icon theme|untitled|test)\b|[_\\/@#<>]|\.(svg|png)"
)


def free_captions(folder: Path) -> dict[str, Any]:
    """Write pictures on white and captions.csv into a folder, once; returns what configs/data/ says of them."""
    done = folder / "captions.csv"
    if not done.exists():
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        seen: Counter[str] = Counter()
        rows: list[tuple[str, str]] = []
        for source, path, caption in (*_stamps(), *_clipart(), *_fluent(folder)):
            seen[caption] += 1
            if seen[caption] > MOST or not 1 <= len(caption.split()) <= LONGEST:
                continue
            name = f"{len(rows):05d}-{source}.png"
            if _on_white(path, folder / "pictures" / name):
                rows.append((name, caption))
        held = set(np.random.default_rng(0).permutation(len(rows))[: len(rows) // 20].tolist())
        with done.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["file", "caption", "split"])
            table.writerows([*row, "val" if place in held else "train"] for place, row in enumerate(rows))
    return {
        "source": "folder", "seed": 0, "folder": {"pictures": str(folder / "pictures"), "captions": str(done)},
    }  # fmt: skip


def _stamps() -> Iterator[tuple[str, Path, str]]:
    for path in sorted(asset("stamps").rglob("*.png")):
        told = path.with_suffix(".txt")
        if told.exists():
            lines = told.read_text(encoding="utf-8", errors="replace").splitlines()
            if lines and lines[0].strip():
                yield "stamp", path, lines[0].strip()


def _clipart() -> Iterator[tuple[str, Path, str]]:
    fetch(["openclipart"])
    for path in sorted(asset("openclipart").rglob("*.png")):
        try:
            with Image.open(path) as picture:
                title = str(picture.info.get("Title", "")) if picture.width * picture.height < LARGEST else ""
        except Image.DecompressionBombError:
            continue
        title = re.sub(r"[\s-]*\d+$", "", " ".join(title.split()))
        if re.search(r"[a-zA-Z]{3}", title) and not _NO_TITLE.search(title):
            yield "clipart", path, title


def _fluent(folder: Path) -> Iterator[tuple[str, Path, str]]:
    fetch(["fluent"])
    subprocess.run(["npm", "pack", "--silent", LABELS], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for archive in sorted(folder.glob("emojibase-data*.tgz")):
        with tarfile.open(archive) as tar:
            tar.extractall(folder / archive.stem, filter="data")
    labels = json.loads(next(folder.glob("emojibase-data*/package/en/data.json")).read_text(encoding="utf-8"))
    pictures = {path.stem.lower(): path for path in asset("fluent").glob("*.webp")}
    for entry in labels:
        code, label = entry["hexcode"].lower(), entry["label"]
        if code in pictures and "regional indicator" not in label and not label.startswith("flag:"):
            yield "fluent", pictures[code], label


def _on_white(source: Path, target: Path) -> bool:
    """The picture on a white square of 224 pixels, whole; False for one that is too small or empty."""
    with Image.open(source) as opened:
        picture = opened.convert("RGBA")
    box = picture.getchannel("A").getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) < LEAST:
        return False
    picture = picture.crop(box)
    picture.thumbnail((208, 208), Image.Resampling.LANCZOS)
    ground = Image.new("RGBA", (224, 224), "white")
    ground.alpha_composite(picture, ((224 - picture.width) // 2, (224 - picture.height) // 2))
    ground.convert("RGB").save(target)
    return True
