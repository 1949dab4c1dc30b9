"""What may be done to the finished project before a command: values in files, odd names, folders that are closed."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

BOMB_SIDE = 60_000


def values(name: str, text: str) -> Callable[[], object]:
    """A file of configs/ with these keys laid over its own; text is YAML."""

    def write() -> None:
        path = Path("configs") / f"{name}.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {}) + text)

    return write


def section(name: str, **given: Any) -> Callable[[], object]:
    """A file of configs/ with keys of its sections replaced: `train__lr=1` stands for train.lr."""

    def write() -> None:
        path = Path("configs") / f"{name}.yaml"
        content = yaml.safe_load(path.read_text())
        for key, value in given.items():
            inner = content
            *above, last = key.split("__")
            for part in above:
                inner = inner.setdefault(part, {})
            inner[last] = value
        path.write_text(yaml.safe_dump(content))

    return write


def text(path: str, content: str | bytes) -> Callable[[], object]:
    """A file with that content."""
    return lambda: Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


def edited(path: str, change: Callable[[dict[str, Any]], object]) -> Callable[[], object]:
    """A JSON file, changed."""

    def write() -> None:
        content = json.loads(Path(path).read_text())
        change(content)
        Path(path).write_text(json.dumps(content))

    return write


def closed(path: str) -> Callable[[], object]:
    """A folder that may be read and not written."""
    return lambda: Path(path).chmod(0o555)


def bomb() -> None:
    """A PNG of a few bytes that says it is 60,000 × 60,000 pixels."""
    Path("picture.png").write_bytes(declared(BOMB_SIDE, BOMB_SIDE))


def declared(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def odd_name(folder: bool) -> Callable[[], object]:
    """A picture, or a folder of one, whose name is Latin-1."""

    def write() -> None:
        place = os.fsencode("pictures") + b"/caf\xe9"
        if folder:
            Path(os.fsdecode(place)).mkdir()
        shutil.copyfile(b"pictures/000.png", place + (b"/a.png" if folder else b".png"))

    return write


def closed_inside() -> None:
    Path("pictures/private").mkdir(mode=0)


LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
NEWER = edited("stores/drawn/manifest.json", lambda found: found["identity"].update(schema_version="9.0"))


def gone() -> None:
    """No store any more."""
    shutil.rmtree("stores")


def card(**given: Any) -> None:
    """The card of the run's checkpoint, with keys replaced."""
    path = Path("runs/tiny/checkpoint/config.yaml")
    content = yaml.safe_load(path.read_text())
    for key, value in given.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(content))
