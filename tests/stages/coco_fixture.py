"""COCO's caption files and Karpathy's, in the published format, with pictures of noise."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .webdataset_fixture import jpeg

Captions = Mapping[int, Sequence[str]]


def file_name(number: int, part: str) -> str:
    """A picture's name as published in 2014."""
    return f"COCO_{part}_{number:012d}.jpg"


def captions(number: int) -> list[str]:
    """Five captions of a picture."""
    return [f"{way} of the thing {number}" for way in ("A photo", "A view", "A picture", "A close-up", "A shot")]


def write_pictures(folder: Path, parts: Mapping[str, Sequence[int]]) -> Path:
    """Pictures in train2014/ and val2014/."""
    for part, numbers in parts.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            (folder / part / file_name(number, part)).write_bytes(jpeg(number))
    return folder


def annotations(part: str, of: Captions) -> dict[str, Any]:
    """captions_PART.json: images in one order, their captions mixed in another."""
    images = [
        {
            "license": 5,
            "file_name": file_name(number, part),
            "coco_url": f"http://images.cocodataset.org/{part}/{file_name(number, part)}",
            "height": 16,
            "width": 24,
            "date_captured": "2013-11-14 16:28:13",
            "flickr_url": "http://x",
            "id": number,
        }
        for number in of
    ]
    most = max(map(len, of.values()), default=0)
    lines = [(number, texts[at]) for at in range(most) for number, texts in of.items() if at < len(texts)]
    listed = [{"image_id": number, "id": at, "caption": text} for at, (number, text) in enumerate(lines)]
    info = {"description": "COCO 2014 Dataset", "version": "1.0", "year": 2014}
    return {"info": info, "images": images, "licenses": [{"id": 5, "name": "x", "url": "x"}], "annotations": listed}


def karpathy(splits: Mapping[int, str], of: Captions) -> dict[str, Any]:
    """dataset_coco.json."""
    images = []
    for at, (number, split) in enumerate(splits.items()):
        part = "train2014" if split == "train" else "val2014"
        sentences = [
            {"tokens": text.lower().split(), "raw": text, "imgid": at, "sentid": 10 * at + n}
            for n, text in enumerate(of[number])
        ]
        images.append(
            {
                "filepath": part,
                "sentids": [sentence["sentid"] for sentence in sentences],
                "filename": file_name(number, part),
                "imgid": at,
                "split": split,
                "sentences": sentences,
                "cocoid": number,
            }
        )
    return {"images": images, "dataset": "coco"}


def write(path: Path, content: Any) -> Path:
    """Write a file as JSON, or bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path
