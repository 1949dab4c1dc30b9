"""The pictures beside the page: each as it is, and small enough to open two hundred of them at once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from devil_pipe.pipeline.report.gallery import Gallery, overlay_files, picture_files
from devil_pipe.store.errors import InputError

# Longest sides in pixels, twice what the page shows so that a dense screen is served.
PICTURE, OVERLAY, TINY = 768, 320, 112
QUALITY = 82


@dataclass(frozen=True)
class Shown:
    """A picture's files relative to the page, and the size in pixels of the small one."""

    full: str
    small: str
    tiny: str
    width: int
    height: int


def copy(gallery: Gallery, saliency: Path, report: Path) -> dict[str, Shown]:
    """Copy what the gallery shows under the same relative paths, with smaller ones under `small/` and `tiny/`.

    Raises:
        InputError: a file is no picture.
    """
    shown = {name: _copy(name, saliency, report, PICTURE, tiny=True) for name in picture_files(gallery)}
    return shown | {name: _copy(name, saliency, report, OVERLAY, tiny=False) for name in overlay_files(gallery)}


def _copy(name: str, saliency: Path, report: Path, longest: int, *, tiny: bool) -> Shown:
    target = report / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(saliency / name, target)
    try:
        with Image.open(target) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{saliency / name}: expected a picture: {error}. Run the run's saliency stage again."
        ) from error
    small = _save(picture, longest, report, f"small/{name}.webp")
    smallest = f"tiny/{name}.webp"
    if tiny:
        _save(picture, TINY, report, smallest)
    return Shown(name, f"small/{name}.webp", smallest if tiny else "", *small)


def _save(picture: Image.Image, longest: int, report: Path, name: str) -> tuple[int, int]:
    smaller = picture.copy()
    smaller.thumbnail((longest, longest))
    (report / name).parent.mkdir(parents=True, exist_ok=True)
    smaller.save(report / name, format="WEBP", quality=QUALITY)
    return smaller.size
