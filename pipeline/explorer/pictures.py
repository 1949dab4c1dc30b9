"""The pictures that can be asked about: a run's test pictures, scikit-image's photographs, and those that were dropped.

A picture has a name that a link can carry: a row's key, `photo:NAME`, or the digest of what was dropped.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from devil_pipe.stages.common.decoding import PictureError, open_picture
from devil_pipe.stages.common.files import replacing
from devil_pipe.stages.prepare.index import OK, read_index, read_picture
from devil_pipe.stages.prepare.milan.units import units_of
from devil_pipe.store.errors import InputError

PHOTOGRAPHS = {"astronaut": "astronaut.png", "cat": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}
Kind = Literal["sample", "picture"]
_PHOTO = "photo:"
_DIGEST = re.compile(r"[0-9a-f]{32}")


class GoneError(InputError):
    """A picture that a link names is not here, or no longer."""


@dataclass(frozen=True)
class Sample:
    """A picture that the page offers."""

    name: str
    title: str
    group: str


class Dropped:
    """Pictures that visitors brought, as files of one folder; the oldest go first when there are too many."""

    def __init__(self, folder: Path, most_bytes: int = 500_000_000) -> None:
        """`folder` is there and empty; `most_bytes` bounds the sum of its files."""
        self.folder, self.most_bytes = folder, most_bytes
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, content: bytes) -> tuple[str, Image.Image]:
        """Keep a picture; its name is its content's digest. Raises InputError where it cannot be decoded."""
        try:
            picture = open_picture(content)
        except PictureError as error:
            raise InputError(f"expected a picture (JPEG, PNG, WebP, …), got {error}") from None
        name = hashlib.sha256(content).hexdigest()[:32]
        with self._lock:
            self._sizes.pop(name, None)
            with replacing(self.folder / name) as partial:
                partial.write_bytes(content)
            self._sizes[name] = len(content)
            while sum(self._sizes.values()) > self.most_bytes and len(self._sizes) > 1:
                oldest = next(iter(self._sizes))
                del self._sizes[oldest]
                (self.folder / oldest).unlink(missing_ok=True)
        return name, picture

    def read(self, name: str) -> bytes:
        """A picture's file. Raises GoneError."""
        if not _DIGEST.fullmatch(name):
            raise GoneError(f"picture {name!r}: expected the 32 hexadecimal digits of a dropped picture's digest")
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            raise GoneError(
                "the picture of this link is no longer here: dropped pictures are kept only while the server "
                "that they were dropped on runs. Drop it once more: the same file has the same link"
            ) from None


class RunPictures:
    """The pictures of a run's data, of whose test split the page draws some at random."""

    def __init__(self, data_dir: Path, split: str, seed: int) -> None:
        """Read the index of data/NAME. Raises InputError where there is none."""
        self.data_dir, self.split, self.seed = data_dir, split, seed
        index = read_index(data_dir / "index.parquet")
        self._rows = index.filter(pc.and_(pc.equal(index["status"], OK), pc.invert(units_of(index))))
        self._keys = sorted(self._rows.filter(pc.equal(self._rows["split"], split))["key"].to_pylist())

    def draw(self, number: int, count: int) -> list[str]:
        """Keys of the `number`-th random draw, the same in every session."""
        random = np.random.default_rng([self.seed, number])
        return [self._keys[at] for at in random.permutation(len(self._keys))[:count]]

    def row(self, key: str) -> dict[str, Any] | None:
        """The index's row of a picture of any split."""
        found: list[dict[str, Any]] = self._rows.filter(pc.equal(self._rows["key"], key)).to_pylist()
        return found[0] if found else None

    def __len__(self) -> int:
        return len(self._keys)


class Library:
    """All pictures by name."""

    def __init__(self, run: RunPictures | None, dropped: Dropped) -> None:
        """`run` is None for a translator whose training data are not here."""
        self.run, self.dropped = run, dropped

    def samples(self, number: int, count: int = 8) -> list[Sample]:
        """The `number`-th draw of test pictures, then the photographs."""
        found = []
        if self.run is not None and len(self.run):
            count = min(count, len(self.run))
            group = f"{count} of {len(self.run):,} pictures of {self.run.data_dir.name} ({self.run.split}), at random"
            found = [Sample(key, self.title(key), group) for key in self.run.draw(number, count)]
        photographs = "photographs that come with scikit-image"
        return [*found, *(Sample(_PHOTO + name, self.title(_PHOTO + name), photographs) for name in PHOTOGRAPHS)]

    def title(self, name: str) -> str:
        """What a sample shows, as far as its data tell."""
        if name.startswith(_PHOTO):
            return name.removeprefix(_PHOTO)
        row = self.run.row(name) if self.run is not None else None
        captions: Sequence[str] = row["captions"] if row else ()
        return captions[0] if captions else name

    def content(self, kind: Kind, name: str) -> bytes:
        """The file of a sample, or of a picture that was dropped. Raises GoneError where there is none of this name."""
        if kind == "picture":
            return self.dropped.read(name)
        if name.startswith(_PHOTO) and (file := PHOTOGRAPHS.get(name.removeprefix(_PHOTO))):
            return resources.files("skimage.data").joinpath(file).read_bytes()
        if self.run is not None and (row := self.run.row(name)):
            return read_picture(row, self.run.data_dir)
        raise GoneError(f"sample {name!r}: expected a picture of this run's data or photo:NAME, found none so named")

    def open(self, kind: Kind, name: str) -> Image.Image:
        """Decode a picture. Raises InputError where it is gone or no longer a picture."""
        try:
            return open_picture(self.content(kind, name))
        except PictureError as error:
            raise InputError(f"{kind} {name!r}: expected a picture, got {error}") from None
