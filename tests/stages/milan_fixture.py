"""MILANNOTATIONS in small, in the exact layout of the published zips, and the ImageFolder that some of them need.

A zip holds annotations.csv and a folder for each layer with masks.npy, ids.csv and, where its pictures may be given
away, images.npy: uint8 [units, exemplars, 3, side, side], masks uint8 0/1 [units, exemplars, 1, side, side].
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SETS = (
    "alexnet/imagenet",
    "alexnet/places365",
    "resnet152/imagenet",
    "resnet152/places365",
    "biggan/imagenet",
    "biggan/places365",
    "dino_vits8/imagenet",
)
LAYERS = {"alexnet": "conv", "resnet152": "layer", "biggan": "layer", "dino_vits8": "blocks."}
THINGS = ("dogs", "the sky", "text on signs", "red and yellow objects", "windows", "eyes", "grass", "round things")
WITHOUT_PICTURES = ("alexnet/imagenet", "resnet152/imagenet", "dino_vits8/imagenet")


def npy(array: np.ndarray) -> bytes:
    """The bytes of numpy.save."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def csv_bytes(rows: Sequence[Sequence[object]]) -> bytes:
    """Rows as a CSV file."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue().encode()


def write_zip(path: Path, members: Mapping[str, bytes]) -> Path:
    """A zip with these members, with entries for its folders, as shutil.make_archive writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for folder in sorted({f"{name.rpartition('/')[0]}/" for name in members if "/" in name}):
            file.writestr(zipfile.ZipInfo(folder), b"")
        for name, content in members.items():
            file.writestr(name, content)
    return path


def members(
    name: str, units: int = 3, exemplars: int = 5, side: int = 16, pictures: bool = True, sources: int = 20
) -> dict[str, bytes]:
    """What the zip of a set holds: two layers, three annotations of every unit, noise as pictures.

    Args:
        name: ARCH/DATASET; the noise follows from it.
        units: of each layer.
        exemplars: pictures of each unit.
        side: pixels of a picture's side.
        pictures: images.npy in each layer; else ids.csv alone stands for them.
        sources: pictures in the ImageFolder that ids.csv counts.
    """
    random = np.random.default_rng(list(name.encode()))
    layers = [f"{LAYERS[name.partition('/')[0]]}{number}" for number in (1, 2)]
    lines: list[list[object]] = [["layer", "unit", "summary", "annotator"]]
    found: dict[str, bytes] = {}
    for layer in layers:
        for unit in range(units):
            for person, word in enumerate(random.choice(THINGS, 3, replace=False)):
                lines.append([layer, unit, f"{word} in {layer} unit {unit}", f"person {person}"])
        masks = np.zeros((units, exemplars, 1, side, side), np.uint8)
        corners = random.integers(0, side // 2, (units, exemplars, 2))
        for unit, exemplar in np.ndindex(units, exemplars):
            top, left = corners[unit, exemplar]
            masks[unit, exemplar, 0, top : top + side // 2, left : left + side // 2] = 1
        ids = [random.choice(sources, exemplars, replace=False).tolist() for _ in range(units)]
        if pictures:
            noise = random.integers(0, 256, (units, exemplars, 3, side, side), dtype=np.uint8)
            found[f"{layer}/images.npy"] = npy(noise)
        found |= {f"{layer}/masks.npy": npy(masks), f"{layer}/ids.csv": csv_bytes(ids)}
    return {"annotations.csv": csv_bytes(lines), **found}


def image_folder(folder: Path, count: int = 20, classes: int = 4, size: tuple[int, int] = (40, 30)) -> Path:
    """Class folders of pictures, each of one colour that tells its number in ImageFolder's order."""
    for number in range(count):
        place = folder / f"n{number * classes // count:08d}" / f"val_{number:08d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour(number)).save(place)
    return folder


def colour(number: int) -> tuple[int, int, int]:
    """The colour of a picture of `image_folder`."""
    return (number * 7 % 256, number * 31 % 256, 255 - number)


def write_sets(folder: Path, units: int = 3, exemplars: int = 5, side: int = 16) -> tuple[Path, Path]:
    """All seven zips, those of ImageNet's classifiers without pictures. Returns their folder and ImageNet's."""
    imagenet = image_folder(folder / "imagenet" / "val")
    for name in SETS:
        content = members(name, units, exemplars, side, pictures=name not in WITHOUT_PICTURES)
        write_zip(folder / "zips" / f"{name.replace('/', '-')}.zip", content)
    return folder / "zips", imagenet
