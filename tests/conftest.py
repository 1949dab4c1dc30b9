"""What every test may use. Shapes and types of our functions are checked while the tests run, and only then."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from jaxtyping import install_import_hook
from PIL import Image, ImageDraw

# The packages that handle arrays. Before the first import of any of them, which must therefore stand below it.
CHECKED = ["store", "stages.prepare.milan"]
CHECKED += [f"stages.{stage}" for stage in ("extract", "train", "evaluate", "saliency", "explain", "units", "audit")]
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # where a float is asked, 0 will do
install_import_hook([f"devil_pipe.{package}" for package in CHECKED], CHECKER)

from devil_pipe.stages.common.assets import asset  # noqa: E402
from devil_pipe.stages.common.progress import Mode, speak  # noqa: E402
from devil_pipe.stages.prepare.config import FolderConfig, PrepareConfig  # noqa: E402
from devil_pipe.stages.prepare.run import run as prepare  # noqa: E402
from devil_pipe.store.errors import InputError  # noqa: E402

# A shell's background job ignores Ctrl-C, and so would every command that a test starts in it.
signal.signal(signal.SIGINT, signal.default_int_handler)

COLOURS = {"red": (210, 40, 30), "green": (40, 160, 60), "blue": (40, 70, 200), "yellow": (230, 210, 60)}
SHAPES = ("circle", "square")
SPLITS = ("train", "train", "train", "val", "test")


@pytest.fixture(autouse=True)
def _human() -> None:
    """A command sets for its process how it speaks: no test inherits another's --quiet, nor a fixture's."""
    speak(Mode.HUMAN)


@pytest.fixture
def asset_or_skip() -> Callable[[str], Path]:
    """The folder of a downloaded asset by name; skips the test, with the reason, where it is not in the cache."""

    def find(name: str) -> Path:
        try:
            return asset(name)
        except InputError as error:
            pytest.skip(str(error))

    return find


def draw_pictures(folder: Path, count: int, side: int = 64, splits: Sequence[str] = SPLITS) -> Path:
    """Draw `count` pictures into `folder`, a shape on a ground each, and list them in captions.jsonl beside it.

    Every picture differs from every other; picture n is NNN.png and goes to `splits[n % len(splits)]`.
    Returns the list, which a test may change before it is prepared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        name, ground = list(COLOURS)[number % 4], list(COLOURS)[(number + 1 + number // 4) % 4]
        shape = SHAPES[number // 4 % 2]
        picture = Image.new("RGB", (side, side), COLOURS[ground])
        corner = side // 8 + number % (side // 4)
        box = (corner, side // 6, corner + side // 2, side // 6 + side // 2)
        pen = ImageDraw.Draw(picture)
        (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=COLOURS[name])
        picture.putpixel((0, 0), (number % 256, number // 256, 0))
        picture.save(folder / f"{number:03d}.png")
        text = f"a {name} {shape} on a {ground} ground"
        split = splits[number % len(splits)]
        lines.append({"file": f"{number:03d}.png", "caption": text, "split": split, "object": f"a {name} {shape}"})
    listing = folder.parent / "captions.jsonl"
    listing.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return listing


@pytest.fixture
def tiny_data(tmp_path: Path) -> Callable[..., Path]:
    """Makes a prepared data set of drawn pictures and returns its folder, tmp_path/data/NAME.

    `tiny_data(count=12, side=64, splits=…, name="tiny", spoil=None)`; `spoil(folder)` may break pictures before the
    index is made. The pictures lie in tmp_path/pictures, and the index is the prepare stage's own.
    """

    def make(
        count: int = 12,
        side: int = 64,
        splits: Sequence[str] = SPLITS,
        name: str = "tiny",
        spoil: Callable[[Path], None] | None = None,
    ) -> Path:
        listing = draw_pictures(tmp_path / "pictures", count, side, splits)
        if spoil is not None:
            spoil(tmp_path / "pictures")
        out = tmp_path / "data" / name
        section = FolderConfig(pictures=tmp_path / "pictures", captions=listing)
        prepare(PrepareConfig(name=name, out=out, source="folder", folder=section, workers=1))
        return out

    return make
