"""Every way in which a published set can be wrong has its own sentence: file, member, row, expected and found."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devil_pipe.stages.prepare.config import PrepareConfig
from devil_pipe.stages.prepare.milan.config import MilanConfig
from devil_pipe.stages.prepare.run import run
from devil_pipe.store.errors import InputError

from .milan_fixture import csv_bytes, image_folder, members, npy, write_zip

Content = dict[str, bytes]
NAME = "alexnet/imagenet"


def prepare(folder: Path, **settings: Any) -> None:
    section = {"experiment": "within-alexnet-imagenet", "zips": folder / "zips", "units": folder / "units", **settings}
    run(PrepareConfig(name="m", out=folder / "data", source="milan", milan=MilanConfig(**section), workers=1))


def refused(folder: Path, content: Content, message: str, **settings: Any) -> None:
    """Preparing a zip of this content ends with a message that holds `message` and names the zip; nothing is left."""
    path = write_zip(folder / "zips/alexnet-imagenet.zip", content)
    with pytest.raises(InputError) as caught:
        prepare(folder, **settings)
    assert str(path) in str(caught.value)
    assert message in str(caught.value).removeprefix(f"{path}, ")
    assert not list(folder.glob("units/*"))
    assert not (folder / "data/index.parquet").exists()


def lines(*changed: tuple[int, list[object]]) -> bytes:
    """annotations.csv of two layers of three units, with other cells in some lines (the first is 1)."""
    rows: list[list[object]] = [["layer", "unit", "summary"]]
    rows += [[f"conv{layer}", unit, "a dog"] for layer in (1, 2) for unit in range(3) for _ in range(3)]
    for line, cells in changed:
        rows[line - 1] = cells
    return csv_bytes(rows)


def array(content: Content, member: str) -> np.ndarray:
    return np.load(io.BytesIO(content[member]))  # type: ignore[no-any-return]


ANNOTATIONS: dict[str, tuple[bytes, str]] = {
    "no column summary": (
        lines((1, ["layer", "unit", "text"])),
        "annotations.csv, line 1: expected a column 'summary', got layer, unit, text",
    ),
    "no column layer": (
        lines((1, ["a", "unit", "summary"])),
        "line 1: expected a column 'layer', got a, unit, summary",
    ),
    "empty file": (b"", "annotations.csv, line 1: expected a column 'layer', got none"),
    "empty description": (
        lines((4, ["conv1", 0, " "])),
        "annotations.csv, line 4: column 'summary': expected a description in UTF-8, got empty caption",
    ),
    "NaN description": (lines((4, ["conv1", 0, "nan"])), "line 4: column 'summary': expected a description, got 'nan'"),
    "NaN unit": (lines((5, ["conv1", "nan", "x"])), "line 5: column 'unit': expected a whole number from 0, got 'nan'"),
    "unit as float": (
        lines((5, ["conv1", "1.0", "x"])),
        "line 5: column 'unit': expected a whole number from 0, got '1.0'",
    ),
    "negative unit": (
        lines((5, ["conv1", -1, "x"])),
        "line 5: column 'unit': expected a whole number from 0, got '-1'",
    ),
    "no layer": (lines((5, ["", 1, "x"])), "line 5: column 'layer': expected a layer's name, got ''"),
    "a path as layer": (
        lines((5, ["../conv1", 1, "x"])),
        "line 5: column 'layer': expected a layer's name, got '../conv1'",
    ),
    "a cell too few": (lines((6, ["conv1", 1])), "annotations.csv, line 6: expected 3 cells, got another number"),
    "latin-1": (
        lines().replace(b"conv2,2,a dog", b"conv2,2,caf\xe9", 1),
        "annotations.csv, line 17: column 'summary': expected a description in UTF-8, got caption is not UTF-8",
    ),
    "open quote": (lines() + b'conv1,0,"x', "annotations.csv, line 20: expected CSV"),
    "one annotation each": (
        csv_bytes([["layer", "unit", "summary"], ["conv1", 0, "x"], ["conv1", 1, "x"]]),
        "annotations.csv: expected units with 3 annotations, got 2 units with fewer",
    ),
    "no such layer": (
        lines(*((line, ["fc6", 0, "x"]) for line in (2, 3, 4))),
        "annotations.csv, line 2: expected a folder of the layer 'fc6' in the zip, which has conv1, conv2",
    ),
    "no such unit": (
        lines(*((line, ["conv2", 3, "x"]) for line in (17, 18, 19))),
        "annotations.csv, line 17: expected pictures of unit 3 of conv2, got masks and pictures of 3 others",
    ),
}


@pytest.mark.parametrize("fault", ANNOTATIONS)
def test_wrong_annotations_are_named_by_line(fault: str, tmp_path: Path) -> None:
    content, message = ANNOTATIONS[fault]
    refused(tmp_path, members(NAME) | {"annotations.csv": content}, message)


def masks(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Content], Content]:
    return lambda content: content | {"conv2/masks.npy": npy(change(array(content, "conv2/masks.npy")))}


def images(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Content], Content]:
    return lambda content: content | {"conv2/images.npy": npy(change(array(content, "conv2/images.npy")))}


def units(*numbers: object) -> Callable[[Content], Content]:
    return lambda content: content | {"conv2/units.npy": npy(np.array(numbers))}


def without(member: str) -> Callable[[Content], Content]:
    return lambda content: {name: data for name, data in content.items() if name != member}


def put(values: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    values = values.copy()
    values[place] = value
    return values


ARRAYS: dict[str, tuple[Callable[[Content], Content], str]] = {
    "fewer pictures than masks": (
        images(lambda found: found[:2]),
        "conv2/images.npy: expected the shape (3, 5, 3, 16, 16) by masks.npy, got (2, 5, 3, 16, 16)",
    ),
    "fewer exemplars": (
        images(lambda found: found[:, :4]),
        "conv2/images.npy: expected the shape (3, 5, 3, 16, 16) by masks.npy, got (3, 4, 3, 16, 16)",
    ),
    "smaller masks": (
        masks(lambda found: found[..., ::2]),
        "conv2/images.npy: expected the shape (3, 5, 3, 16, 8) by masks.npy, got (3, 5, 3, 16, 16)",
    ),
    "masks without a channel": (
        masks(lambda found: found[:, :, 0]),
        "conv2/masks.npy: expected the shape (units, exemplars, 1, height, width), got (3, 5, 16, 16)",
    ),
    "no units": (
        masks(lambda found: found[:0]),
        "conv2/masks.npy: expected the shape (units, exemplars, 1, height, width)",
    ),
    "NaN in a mask": (
        masks(lambda found: put(found.astype(np.float32), (1, 3, 0, 2, 2), np.nan)),
        "conv2/masks.npy, entry 1, exemplar 3: expected 0 and 1, got nan",
    ),
    "a mask of 255": (
        masks(lambda found: put(found, (2, 4, 0, 0, 0), 255)),
        "conv2/masks.npy, entry 2, exemplar 4: expected 0 and 1, got 255",
    ),
    "complex masks": (
        masks(lambda found: found.astype(complex)),
        "conv2/masks.npy: expected numbers 0 and 1, got complex128",
    ),
    "float pictures": (
        images(lambda found: found.astype(np.float32) / 255),
        "conv2/images.npy: expected uint8, got float32",
    ),
    "pickled pictures": (
        images(lambda found: np.array([{"a": 1}], dtype=object)),
        "conv2/images.npy: expected numbers, got Python objects, which only pickle reads",
    ),
    "Fortran order": (
        images(np.asfortranarray),
        "conv2/images.npy: expected an array in C order, got Fortran order",
    ),
    "a single number": (images(lambda found: np.uint8(3)), "conv2/images.npy: expected an array, got a single number"),
    "no .npy": (
        lambda content: content | {"conv2/masks.npy": b"PNG" * 100},
        "conv2/masks.npy: expected a .npy file: the magic string is not correct",
    ),
    "empty .npy": (lambda content: content | {"conv2/masks.npy": b""}, "conv2/masks.npy: expected a .npy file"),
    "a cut .npy": (
        lambda content: content | {"conv2/images.npy": content["conv2/images.npy"][:-7]},
        f"conv2/images.npy: expected {128 + 3 * 5 * 3 * 256} bytes for the shape (3, 5, 3, 16, 16) of uint8, "
        f"got {121 + 3 * 5 * 3 * 256}: cut short or damaged",
    ),
    "no masks": (without("conv2/masks.npy"), ": expected conv2/masks.npy, found conv2/ids.csv, conv2/images.npy"),
    "no annotations": (without("annotations.csv"), ": expected annotations.csv, one; found conv1/ids.csv"),
    "too few units": (
        units(0, 1),
        "conv2/units.npy: expected 3 whole numbers, one for each unit of masks.npy, got int64 of shape (2,)",
    ),
    "float units": (units(0.0, 1.0, 2.0), "conv2/units.npy: expected 3 whole numbers"),
    "a unit twice": (units(0, 2, 2), "conv2/units.npy: expected each unit once, got 2 as entries 1 and 2"),
    "other units": (
        units(10, 11, 12),
        "annotations.csv, line 11: expected pictures of unit 0 of conv2, got masks and pictures of 3 others",
    ),
    "another size in another layer": (
        lambda content: (
            content
            | {
                f"conv2/{name}.npy": npy(array(content, f"conv2/{name}.npy")[..., ::2, ::2])
                for name in ("images", "masks")
            }
        ),
        "conv2/masks.npy: expected exemplars, height, width (5, 16, 16) as in conv1, got (5, 8, 8)",
    ),
    "two sets": (
        lambda content: {f"{top}/{name}": data for top in "ab" for name, data in content.items()},
        ": expected annotations.csv, one for alexnet/imagenet; found a/, b/",
    ),
    "a name that leaves": (
        lambda content: content | {"../../evil.npy": b""},
        ": expected names inside the zip's own folders, got '../../evil.npy'",
    ),
    "an absolute name": (
        lambda content: content | {"/etc/evil.npy": b""},
        ": expected names inside the zip's own folders, got '/etc/evil.npy'",
    ),
}


@pytest.mark.parametrize("fault", ARRAYS)
def test_wrong_arrays_are_named_by_member(fault: str, tmp_path: Path) -> None:
    change, message = ARRAYS[fault]
    refused(tmp_path, change(members(NAME)), message)
    assert not (tmp_path.parent / "evil.npy").exists()


IDS: dict[str, tuple[bytes, str]] = {
    "out of range": (
        b"0,1,2,3,4\n5,6,7,8,20\n9,8,7,6,5\n",
        "conv2/ids.csv, line 2: expected a picture's number below 20, as many as",
    ),
    "negative": (b"0,1,2,3,-4\n" * 3, "conv2/ids.csv, line 1: expected 5 whole numbers, got '0,1,2,3,-4'"),
    "NaN": (
        b"0,1,2,3,4\n0,1,nan,3,4\n0,1,2,3,4\n",
        "conv2/ids.csv, line 2: expected 5 whole numbers, got '0,1,nan,3,4'",
    ),
    "too few": (b"0,1,2,3,4\n0,1,2,3\n0,1,2,3,4\n", "conv2/ids.csv, line 2: expected 5 whole numbers, got '0,1,2,3'"),
    "a row too many": (b"0,1,2,3,4\n" * 4, "conv2/ids.csv: expected 3 rows, one for each unit of masks.npy, got 4"),
    "a picture twice": (
        b"0,1,2,3,4\n" * 2 + b"5,1,6,1,7\n",
        "conv2/ids.csv, line 3: expected 5 different pictures, got 1 twice",
    ),
    "no text": (b"\xff\xfe\n" * 3, "conv2/ids.csv, line 1: expected 5 whole numbers"),
}


@pytest.mark.parametrize("fault", IDS)
def test_wrong_ids_are_named_by_line(fault: str, tmp_path: Path) -> None:
    content, message = IDS[fault]
    folder = image_folder(tmp_path / "val")
    refused(tmp_path, members(NAME, pictures=False) | {"conv2/ids.csv": content}, message, imagenet=folder)


def test_a_set_without_pictures_and_without_ids_is_refused(tmp_path: Path) -> None:
    content = without("conv1/ids.csv")(members(NAME, pictures=False))
    message = ": expected conv1/images.npy, or conv1/ids.csv in its place; found neither"
    refused(tmp_path, content, message, imagenet=image_folder(tmp_path / "val"))


@pytest.mark.parametrize("kind", ["none", "missing", "flat"])
def test_source_pictures_that_are_not_there_are_asked_for(kind: str, tmp_path: Path) -> None:
    write_zip(tmp_path / "zips/alexnet-imagenet.zip", members(NAME, pictures=False))
    image_folder(tmp_path / "val/class", classes=1)
    folder = {"none": None, "missing": tmp_path / "vale", "flat": tmp_path / "val/class/n00000000"}[kind]
    message = {
        "none": r"milan\.imagenet: the set is published without pictures: expected the folder .*; set milan\.imagenet",
        "missing": r"milan\.imagenet: expected a folder of class folders at .*vale, found none",
        "flat": r"milan\.imagenet: expected class folders with pictures in .*n00000000",
    }[kind]
    with pytest.raises(InputError, match=message):
        prepare(tmp_path, imagenet=folder)


def test_a_source_picture_that_does_not_decode_is_named(tmp_path: Path) -> None:
    write_zip(tmp_path / "zips/alexnet-imagenet.zip", members(NAME, pictures=False))
    folder = image_folder(tmp_path / "val")
    for path in folder.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"val_\d+\.png: expected a picture: .*; take it from imagenet again"):
        prepare(tmp_path, imagenet=folder)
    assert not list(tmp_path.glob("units/*"))


def test_a_zip_that_is_none_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "zips/alexnet-imagenet.zip", members(NAME))
    whole = path.read_bytes()
    for content in (b"", b"<html>404</html>", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"alexnet-imagenet\.zip: expected a zip file: .*; download it again"):
            prepare(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"milan\.zips: expected the zip of alexnet/imagenet at .*, found no file"):
        prepare(tmp_path)
    path.mkdir()
    with pytest.raises(InputError, match="found a folder: give the zip as it was downloaded"):
        prepare(tmp_path)


@pytest.mark.parametrize("member", ["conv2/images.npy", "conv2/masks.npy", "annotations.csv"])
@pytest.mark.parametrize("where", [0.1, 0.5, 0.95])
def test_a_flipped_byte_in_a_zip_is_found_by_its_checksum(member: str, where: float, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "zips/alexnet-imagenet.zip", members(NAME))
    with zipfile.ZipFile(path) as file:
        info = file.getinfo(member)
    content = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len(info.filename)
    content[start + int(where * info.compress_size)] ^= 0b1000
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"{path}, {member}")):
        prepare(tmp_path)
    assert not list(tmp_path.glob("units/*"))


def test_a_member_twice_and_an_encrypted_one_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "zips/alexnet-imagenet.zip", members(NAME))
    whole = path.read_bytes()
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("conv1/images.npy", b"others")
    with pytest.raises(InputError, match=r"expected each member once, got conv1/images\.npy twice"):
        prepare(tmp_path)
    content = bytearray(whole)
    content[content.index(b"PK\x01\x02", content.rindex(b"conv1/ids.csv") - 60) + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"conv1/ids\.csv: is encrypted"):
        prepare(tmp_path)
