"""An export is read by the reader of MILANNOTATIONS, and by NumPy alone."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from devil_pipe.stages.prepare.milan.archive import open_archive
from devil_pipe.stages.prepare.milan.pictures import SourcePictures
from devil_pipe.stages.prepare.milan.published import Published
from devil_pipe.stages.prepare.milan.units import open_units, read_unit
from devil_pipe.stages.units.export import PARTS, Annotation, Export
from devil_pipe.store.errors import InputError

UNITS = {"s16": [3, 40, 7], "s32": [0, 319]}
EXEMPLARS, SIZE = 4, (12, 16)
RANDOM = np.random.default_rng(0)
IMAGES = {name: RANDOM.integers(0, 256, (len(u), EXEMPLARS, 3, *SIZE), dtype=np.uint8) for name, u in UNITS.items()}
MASKS = {name: RANDOM.random((len(units), EXEMPLARS, *SIZE)) > 0.5 for name, units in UNITS.items()}


def said(layer: str, unit: int) -> list[str]:
    return [f"{layer}, {unit} by {what}: “a, b”" for what, _ in PARTS]


def export(root: Path, silent: tuple[str, int] | None = None) -> Path:
    made = Export(root, "timm/some:net", "mine")
    annotations = []
    for name, units in UNITS.items():
        with made.layer(name, units, EXEMPLARS, SIZE) as put:
            for images, masks in zip(IMAGES[name], MASKS[name], strict=True):
                put(images, masks)
        for unit in units:
            texts = said(name, unit) if (name, unit) != silent else ["", "", ""]
            annotations += [Annotation(name, unit, text, "us") for text in texts]
    return made.finish(annotations)


def zipped(folder: Path) -> Path:
    path = folder.parent / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        for item in folder.rglob("*"):
            file.write(item, item.relative_to(folder.parents[1]))
    return path


def test_the_reader_of_milannotations_finds_the_same_pictures_and_masks(tmp_path: Path) -> None:
    folder = export(tmp_path / "out")
    assert folder == tmp_path / "out" / "timm-some-net" / "mine"
    with open_archive(zipped(folder), "timm-some-net/mine") as archive:
        published = Published(archive, SourcePictures(None, "mine", "crop"))
        published.write(tmp_path / "set.h5", 1)
    found = open_units(tmp_path / "set.h5")
    expected = [(name, unit, place) for name, units in UNITS.items() for place, unit in enumerate(units)]
    assert [(unit.layer, unit.number) for unit in found.units] == [(name, unit) for name, unit, _ in expected]
    for row, (key, (name, number, place)) in enumerate(zip(found.keys(), expected, strict=True)):
        read = read_unit({"key": key, "path": "set.h5", "offset": row}, tmp_path)
        assert np.array_equal(read.images, IMAGES[name][place])
        assert np.array_equal(read.masks, MASKS[name][place])
        assert found.units[row].captions == tuple(said(name, number))


def test_arrays_have_the_published_shapes_and_types(tmp_path: Path) -> None:
    folder = export(tmp_path)
    for name, units in UNITS.items():
        images, masks = (np.load(folder / name / f"{what}.npy", mmap_mode="r") for what in ("images", "masks"))
        assert (images.shape, images.dtype) == ((len(units), EXEMPLARS, 3, *SIZE), np.uint8)
        assert (masks.shape, masks.dtype) == ((len(units), EXEMPLARS, 1, *SIZE), np.uint8)
        assert np.load(folder / name / "units.npy").tolist() == units
    with (folder / "annotations.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["layer", "unit", "summary", "annotator"]
    assert len(rows) == 3 * sum(len(units) for units in UNITS.values())


def test_a_unit_of_which_nothing_is_said_is_left_out_by_readers(tmp_path: Path) -> None:
    folder = export(tmp_path, silent=("s16", 40))
    with open_archive(zipped(folder), "timm-some-net/mine") as archive:
        published = Published(archive, SourcePictures(None, "mine", "crop"))
    assert [(unit.layer, unit.number) for unit in published.annotated.units] == [
        ("s16", 3),
        ("s16", 7),
        ("s32", 0),
        ("s32", 319),
    ]


def test_a_finished_export_is_not_written_over_and_an_unfinished_one_is(tmp_path: Path) -> None:
    made = Export(tmp_path, "timm/some:net", "mine")
    with pytest.raises(AssertionError), made.layer("s16", [0, 1], EXEMPLARS, SIZE) as put:
        put(IMAGES["s16"][0], MASKS["s16"][0])  # and the second never comes
    assert not list(tmp_path.rglob("*.npy"))
    folder = export(tmp_path)
    with pytest.raises(InputError, match=rf"{folder}: expected no exported units, found some"):
        Export(tmp_path, "timm/some:net", "mine")
