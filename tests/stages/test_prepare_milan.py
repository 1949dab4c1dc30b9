"""MILANNOTATIONS: what the zips hold is what a unit gives back, one unit in memory at a time, from any thread."""

from __future__ import annotations

import csv
import io
import os
import random
import signal
import tracemalloc
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from devil_pipe.stages.prepare.config import PrepareConfig
from devil_pipe.stages.prepare.index import read_index
from devil_pipe.stages.prepare.milan import units
from devil_pipe.stages.prepare.milan.config import MilanConfig
from devil_pipe.stages.prepare.milan.pictures import SourcePictures
from devil_pipe.stages.prepare.milan.units import is_unit, read_unit
from devil_pipe.stages.prepare.run import run
from devil_pipe.store.errors import InputError

from .milan_fixture import SETS, colour, csv_bytes, image_folder, members, npy, write_sets, write_zip

Prepare = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """`prepare(experiment, **settings)` runs the stage into tmp_path/data/m and returns the index's rows."""

    def make(experiment: str = "within-biggan-imagenet", seed: int = 0, **settings: Any) -> list[dict[str, Any]]:
        section = {"zips": tmp_path / "zips", "units": tmp_path / "units", "experiment": experiment, **settings}
        out = tmp_path / "data" / "m"
        run(PrepareConfig(name="m", out=out, source="milan", seed=seed, milan=MilanConfig(**section), workers=2))
        rows: list[dict[str, Any]] = read_index(out / "index.parquet").to_pylist()
        return rows

    return make


def arrays(path: Path, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """A layer's pictures and masks as numpy itself reads them."""
    with zipfile.ZipFile(path) as file:
        return tuple(np.load(io.BytesIO(file.read(f"{layer}/{name}.npy"))) for name in ("images", "masks"))  # type: ignore[return-value]


def test_every_unit_of_seven_sets_is_found_again_as_published(prepare: Prepare, tmp_path: Path) -> None:
    zips, imagenet = write_sets(tmp_path)
    rows = prepare("across-arch-cnns-vit", imagenet=imagenet)
    assert len(rows) == 7 * 2 * 3
    for name in SETS:
        path = zips / f"{name.replace('/', '-')}.zip"
        with zipfile.ZipFile(path) as file:
            annotations = list(csv.DictReader(io.TextIOWrapper(file.open("annotations.csv"))))
            ids = {
                layer: list(csv.reader(io.TextIOWrapper(file.open(f"{layer}/ids.csv"))))
                for layer in {line["layer"] for line in annotations}
            }
            whole = {layer: f"{layer}/images.npy" in file.namelist() for layer in ids}
        for layer, unit in {(line["layer"], int(line["unit"])) for line in annotations}:
            (row,) = (row for row in rows if row["key"] == f"{name.replace('/', '-')}-{layer}-{unit}")
            expected = [line["summary"] for line in annotations if (line["layer"], line["unit"]) == (layer, str(unit))]
            assert row["captions"] == expected
            assert is_unit(row)
            assert (row["size"], row["width"], row["height"], row["shard"]) == (5, 16, 16, "")
            found = read_unit(row, tmp_path / "data/m")
            with zipfile.ZipFile(path) as file:
                masks = np.load(io.BytesIO(file.read(f"{layer}/masks.npy")))
            np.testing.assert_array_equal(found.masks, masks[unit, :, 0] == 1)
            if whole[layer]:
                np.testing.assert_array_equal(found.images, arrays(path, layer)[0][unit])
            else:
                colours = [colour(int(number)) for number in ids[layer][unit]]
                np.testing.assert_array_equal(found.images[:, :, 3, 7], colours)


def test_rows_stand_in_the_order_of_annotations_csv_and_the_first_three_annotations_count(
    prepare: Prepare, tmp_path: Path
) -> None:
    content = members("biggan/imagenet", units=4)
    lines = [["layer", "unit", "summary"], ["layer2", 3, "a"], ["layer1", 2, "x"], ["layer1", 0, "few"]]
    lines += [["layer2", 3, "b"], ["layer1", 2, "y"], ["layer1", 2, "z"], ["layer2", 3, " c\t d"], ["layer2", 3, "e"]]
    lines += [["layer1", 1, word] for word in "pqr"]
    write_zip(tmp_path / "zips/biggan-imagenet.zip", content | {"annotations.csv": csv_bytes(lines)})
    rows = prepare()
    assert [(row["key"][16:], row["captions"], row["offset"]) for row in rows] == [
        ("layer2-3", ["a", "b", "c d"], 0),
        ("layer1-2", ["x", "y", "z"], 1),
        ("layer1-1", ["p", "q", "r"], 2),
    ]
    for row, (layer, unit) in zip(rows, [("layer2", 3), ("layer1", 2), ("layer1", 1)], strict=True):
        images, _ = arrays(tmp_path / "zips/biggan-imagenet.zip", layer)
        np.testing.assert_array_equal(read_unit(row, tmp_path / "data/m").images, images[unit])


def test_a_zip_may_hold_the_set_in_its_folder_and_what_systems_add(prepare: Prepare, tmp_path: Path) -> None:
    content = members("biggan/imagenet")
    inside = {f"biggan/imagenet/{name}": data for name, data in content.items()}
    other = {f"alexnet/imagenet/{name}": data for name, data in members("alexnet/imagenet").items()}
    litter = {"__MACOSX/biggan/imagenet/._annotations.csv": b"?", "biggan/.DS_Store": b"?"}
    path = write_zip(tmp_path / "zips/biggan-imagenet.zip", litter | other | inside)
    (row, *_) = prepare()
    np.testing.assert_array_equal(
        read_unit(row, tmp_path / "data/m").images,
        np.load(io.BytesIO(content["layer1/images.npy"]))[0],
    )
    assert path.exists()


def test_units_npy_says_which_unit_an_entry_is(prepare: Prepare, tmp_path: Path) -> None:
    content = members("biggan/imagenet")
    lines = [["layer", "unit", "summary"], *(["layer1", unit, "x"] for unit in (7, 40, 5) for _ in range(3))]
    units = {"layer1/units.npy": npy(np.array([40, 5, 7])), "annotations.csv": csv_bytes(lines)}
    path = write_zip(tmp_path / "zips/biggan-imagenet.zip", content | units)
    images, _ = arrays(path, "layer1")
    rows = prepare()
    for row, entry in zip(rows, (2, 0, 1), strict=True):
        np.testing.assert_array_equal(read_unit(row, tmp_path / "data/m").images, images[entry])


@pytest.mark.parametrize("kind", [bool, np.int64, np.float32, ">f8"])
def test_masks_of_any_number_type_are_read(kind: Any, prepare: Prepare, tmp_path: Path) -> None:
    content = members("biggan/imagenet")
    masks = np.load(io.BytesIO(content["layer1/masks.npy"]))
    write_zip(tmp_path / "zips/biggan-imagenet.zip", content | {"layer1/masks.npy": npy(masks.astype(kind))})
    row = next(row for row in prepare() if row["key"].endswith("layer1-1"))
    np.testing.assert_array_equal(read_unit(row, tmp_path / "data/m").masks, masks[1, :, 0] == 1)


def test_source_pictures_are_counted_as_image_folder_counts_them(tmp_path: Path) -> None:
    """By class name, then by file name; case and depth as torchvision has them."""
    for name in ("b/1.png", "b/10.png", "b/2.PNG", "a/z/9.png", "a/a.png", "B/0.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    found = [path.relative_to(tmp_path).as_posix() for path in SourcePictures(tmp_path, "imagenet", "crop").files]
    assert found == ["B/0.png", "a/a.png", "a/z/9.png", "b/1.png", "b/10.png", "b/2.PNG"]


@pytest.mark.parametrize(("fit", "edge"), [("crop", 48), ("stretch", 84)])
def test_a_source_picture_is_fitted_to_its_mask(fit: Any, edge: int, tmp_path: Path) -> None:
    """512 × 256, white from column 192 on. Cut: columns 144 to 368 remain; stretched: 192 · 224 / 512."""
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[:, 192:] = 255
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a/0.png")
    found = SourcePictures(tmp_path, "imagenet", fit).load(0, (224, 224))
    assert found.shape == (3, 224, 224)
    assert (found[:, :, : edge - 3] == 0).all()
    assert (found[:, :, edge + 3 :] == 255).all()


def test_a_turned_or_grey_source_picture_is_read_as_the_masks_saw_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("L", (64, 64), 9)
    picture.paste(200, (0, 0, 64, 32))
    picture.save(tmp_path / "a/0.png", exif=exif)
    found = SourcePictures(tmp_path, "imagenet", "stretch").load(0, (64, 64))
    assert (found[:, :30] == 200).all()
    assert (found[:, 34:] == 9).all()


def test_one_unit_is_in_memory_at_a_time(prepare: Prepare, tmp_path: Path) -> None:
    """300 units of 15 × 4 × 32² bytes a layer would be 18 MB each; a unit is 60 kB."""
    write_zip(tmp_path / "zips/biggan-imagenet.zip", members("biggan/imagenet", units=300, exemplars=15, side=32))
    prepare()  # imports
    for made in (tmp_path / "units").iterdir():
        made.unlink()
    tracemalloc.start()
    rows = prepare()
    for row in random.Random(0).sample(rows, 200):
        read_unit(row, tmp_path / "data/m")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6e6


def test_units_are_read_from_many_threads_and_after_a_fork(prepare: Prepare, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "zips/biggan-imagenet.zip", members("biggan/imagenet", units=20))
    rows = prepare()
    expected = {layer: arrays(path, layer)[0] for layer in ("layer1", "layer2")}

    def right(row: dict[str, Any]) -> bool:
        layer, unit = row["key"].split("-")[2:]
        return np.array_equal(read_unit(row, tmp_path / "data/m").images, expected[layer][int(unit)])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, random.Random(0).choices(rows, k=400)))
    with units._opening:  # as when another thread opens a file at that moment
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # and not for ever, should it wait for the parent's thread
            os._exit(0 if all(map(right, rows)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(map(right, rows))


def test_the_file_is_plain_hdf5_that_says_what_it_is(prepare: Prepare, tmp_path: Path) -> None:
    write_sets(tmp_path)
    prepare()
    (path,) = (tmp_path / "units").glob("*.h5")
    with h5py.File(path) as file:
        assert b'"biggan/imagenet"' in file.attrs["devil_pipe_units"]
        assert file["images"].chunks == (1, 5, 3, 16, 16)
        assert file["masks"].chunks == (1, 5, 16, 16)
        assert file["images"].fletcher32
        assert file["masks"].fletcher32
        assert file["layer"].asstr()[:].tolist() == ["layer1"] * 3 + ["layer2"] * 3
        assert file["annotations"].shape == (6, 3)


def test_experiments_share_a_sets_file_and_nothing_is_made_twice(prepare: Prepare, tmp_path: Path) -> None:
    _, imagenet = write_sets(tmp_path)
    prepare("across-task-biggan-classifiers", imagenet=imagenet)
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "units").iterdir()}
    assert len(made) == 6
    prepare("across-data-imagenet-places365", imagenet=imagenet)
    prepare("within-biggan-imagenet", imagenet=imagenet)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "units").iterdir()} == made


def test_another_zip_or_another_fit_is_another_file_and_so_another_index(prepare: Prepare, tmp_path: Path) -> None:
    zips, imagenet = write_sets(tmp_path)
    paths = {prepare("within-alexnet-imagenet", imagenet=imagenet)[0]["path"]}
    paths.add(prepare("within-alexnet-imagenet", imagenet=imagenet, fit="stretch")[0]["path"])
    image_folder(imagenet, count=24)
    paths.add(prepare("within-alexnet-imagenet", imagenet=imagenet)[0]["path"])
    write_zip(zips / "alexnet-imagenet.zip", members("alexnet/imagenet", units=4, pictures=False))
    paths.add(prepare("within-alexnet-imagenet", imagenet=imagenet)[0]["path"])
    assert len(paths) == 4


def test_without_its_zip_a_set_that_was_made_is_enough(prepare: Prepare, tmp_path: Path) -> None:
    zips, _ = write_sets(tmp_path)
    rows = prepare()
    (zips / "biggan-imagenet.zip").unlink()
    assert prepare() == rows
    (tmp_path / "units/biggan-imagenet-01234567.h5").write_bytes(b"")
    with pytest.raises(InputError, match=r"zip of biggan/imagenet at .*biggan-imagenet\.zip, found no file"):
        prepare()


def test_a_stopped_run_leaves_whole_sets_and_no_part(prepare: Prepare, tmp_path: Path) -> None:
    zips, _ = write_sets(tmp_path)
    damaged = zips / "biggan-places365.zip"
    content = members("biggan/places365")
    masks = np.load(io.BytesIO(content["layer2/masks.npy"]))
    masks[2, 1] = 7
    write_zip(damaged, content | {"layer2/masks.npy": npy(masks)})
    dead = tmp_path / "units/.biggan-places365-0.h5.0.partial"
    dead.parent.mkdir()
    dead.write_bytes(b"left by a kill")
    os.utime(dead, (0, 0))
    with pytest.raises(InputError, match="expected 0 and 1, got 7"):
        prepare("across-data-imagenet-places365", imagenet=tmp_path / "imagenet/val")
    assert sorted(path.name.rpartition("-")[0] for path in (tmp_path / "units").iterdir()) == [
        "alexnet-imagenet",
        "alexnet-places365",
        "biggan-imagenet",
        "resnet152-imagenet",
        "resnet152-places365",
    ]
    assert not (tmp_path / "data/m/index.parquet").exists()


def test_a_file_that_changed_after_indexing_is_noticed(prepare: Prepare, tmp_path: Path) -> None:
    write_sets(tmp_path)
    row, *others = prepare()
    root = tmp_path / "data/m"
    path = root / row["path"]
    read_unit(row, root)
    with pytest.raises(InputError, match=r"'biggan-imagenet-layer1-0': expected it in row 5 of .*which changed"):
        read_unit(row | {"offset": 5}, root)
    with pytest.raises(InputError, match="which changed"):
        read_unit(row | {"offset": 600}, root)
    content = bytearray(path.read_bytes())
    with h5py.File(path, locking=False) as file:
        at = file["images"].id.get_chunk_info(1).byte_offset
    content[at + 10] ^= 255
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"'biggan-imagenet-layer1-1': expected its exemplars in .*prepare` again"):
        read_unit(others[0], root)
    path.write_bytes(b"no HDF5")
    with pytest.raises(InputError, match=r"expected an HDF5 file of `devil-pipe prepare`"):
        read_unit(row, root)
    path.unlink()
    with pytest.raises(InputError, match=r"'biggan-imagenet-layer1-0': expected its exemplars in .*No such file"):
        read_unit(row, root)


def test_a_file_of_another_kind_or_version_is_refused(prepare: Prepare, tmp_path: Path) -> None:
    write_sets(tmp_path)
    row = prepare()[0]
    root = tmp_path / "data/m"
    with h5py.File(root / row["path"], "r+") as file:
        file.attrs["devil_pipe_units"] = '{"version": 2}'
    with pytest.raises(InputError, match="expected devil_pipe_units version 1, got 2"):
        read_unit(row, root)
    with h5py.File(root / row["path"], "r+") as file:
        file.attrs["devil_pipe_units"] = '{"version": 1, "set": "biggan/imagenet", "source": []}'
        with h5py.File(tmp_path / "other.h5", "w") as other:
            other["masks"] = file["masks"][:]
        del file["masks"]
        file["masks"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/masks")
    with pytest.raises(InputError, match="dataset 'masks'"):
        read_unit(row, root)
