"""Tiny pictures, and tar shards as img2dataset 1.x publishes them (output_format "webdataset")."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def jpeg(seed: int = 0, width: int = 24, height: int = 16) -> bytes:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def png_mask(width: int = 24, height: int = 16) -> bytes:
    """A mask whose left half is on."""
    pixels = np.zeros((height, width), bool)
    pixels[:, : width // 2] = True
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def sample(key: str, caption: str = "a dog on a beach", seed: int = 0, **more: Any) -> dict[str, bytes]:
    """The members of one downloaded picture: `.jpg`, `.txt` and `.json`, with the fields img2dataset writes."""
    details = {
        "url": f"file:{key}",
        "caption": caption,
        "key": key,
        "status": "success",
        "error_message": None,
        "width": 24,
        "height": 16,
        "original_width": 240,
        "original_height": 160,
        "exif": "{}",
        "sha256": "0" * 64,
        **more,
    }
    return {
        f"{key}.jpg": jpeg(seed),
        f"{key}.txt": caption.encode(),
        f"{key}.json": json.dumps(details, indent=4).encode(),
    }


def write_shard(path: Path, samples: Iterable[Mapping[str, bytes]]) -> Path:
    """Write samples one after another into an uncompressed tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for members in samples:
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path
