"""The demo's composites: reproducible, held out by object and by scene, masked exactly, readable by webdataset."""

from __future__ import annotations

import hashlib
import io
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from devil_pipe.stages.common.assets import asset
from devil_pipe.stages.prepare import run as stage
from devil_pipe.stages.prepare.config import DemoConfig, PrepareConfig
from devil_pipe.stages.prepare.demo import SPLITS, Composer, write_demo
from devil_pipe.stages.prepare.demo_vocabulary import SCENES, object_name, read_vocabulary
from devil_pipe.stages.prepare.index import read_index, read_mask, read_picture
from devil_pipe.store.errors import InputError

SMALL = DemoConfig(train=30, val=6, test=7, test_novel=4, novel_objects=2, min_colours=20, frame=32, shard_pictures=16)
NAMES = ("fox", "owl", "saw", "key", "lion", "camel", "iris")


def png(pixels: np.ndarray[Any, np.dtype[np.uint8]], path: Path, words: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    if words:
        path.with_suffix(".txt").write_text(words + "\nen.utf8=Words\n", encoding="utf-8")


def noise(seed: int, high: int = 256, side: int = 120) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Noise that shows through a disc; outside it is transparent."""
    pixels = np.random.default_rng(seed).integers(0, high, (side, side, 4), dtype=np.uint8)
    rows, columns = np.mgrid[:side, :side] - side / 2
    pixels[..., 3] = np.where(rows**2 + columns**2 < (side * 0.4) ** 2, 255, 0)
    return pixels


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of stamps and one of scenes, each scene of one colour of its own."""
    folder = tmp_path_factory.mktemp("material")
    for seed, name in enumerate(NAMES):
        png(noise(seed), folder / f"stamps/animals/{name}.png", f"A{'n' if name[0] in 'oi' else ''} {name}.")
    names = sorted({name for split in SCENES.values() for name in split})
    (folder / "scenes/Any").mkdir(parents=True)
    for number, name in enumerate(names):
        colour = (number * 4, 255 - number * 4, 90)
        Image.new("RGB", (48, 36), colour).save(folder / f"scenes/Any/{name}.jpg", quality=95)
    return folder / "stamps", folder / "scenes"


@pytest.fixture
def demo(material: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The whole stage on the small material, in place of the downloaded packages."""
    monkeypatch.setattr(stage, "asset", dict(zip(("stamps", "scenes"), material, strict=True)).__getitem__)
    stage.run(PrepareConfig(name="demo", out=tmp_path / "demo", source="demo", demo=SMALL))
    return tmp_path / "demo"


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_index(folder / "index.parquet").to_pylist()
    return found


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.*")
        if path.name != "seconds.json"
    }


def test_two_runs_give_the_same_bytes_with_any_number_of_workers(demo: Path, tmp_path: Path) -> None:
    config = PrepareConfig(name="demo", out=tmp_path / "again", source="demo", demo=SMALL, workers=3)
    stage.run(config)
    stage.run(config)  # and over its own earlier output
    assert digests(tmp_path / "again") == digests(demo)
    other = PrepareConfig(name="demo", out=tmp_path / "other", source="demo", demo=SMALL, seed=1)
    stage.run(other)
    assert digests(tmp_path / "other")["00000.tar"] != digests(demo)["00000.tar"]


def test_any_picture_can_be_made_again_alone(demo: Path, material: tuple[Path, Path]) -> None:
    composer = Composer(SMALL, 0, *material)
    number = dict.fromkeys(SPLITS, 0)
    for row in rows(demo):
        made = composer.compose(row["split"], number[row["split"]])
        number[row["split"]] += 1
        assert (made.caption, made.object, made.scene) == (row["captions"][0], row["object"], row["scene"])
        mask = Image.open(io.BytesIO(read_mask(row, demo) or b""))
        assert np.array_equal(np.asarray(mask), np.asarray(made.mask))


def test_splits_hold_out_scenes_and_objects(demo: Path) -> None:
    found = rows(demo)
    scenes = {split: {row["scene"] for row in found if row["split"] == split} for split in SPLITS}
    objects = {split: {row["object"] for row in found if row["split"] == split} for split in SPLITS}
    assert not scenes["train"] & (scenes["val"] | scenes["test"] | scenes["test_novel"])
    assert not scenes["val"] & scenes["test"]
    assert not objects["test_novel"] & (objects["train"] | objects["val"] | objects["test"])
    assert objects["val"] | objects["test"] <= objects["train"]
    assert {split: len([row for row in found if row["split"] == split]) for split in SPLITS} == {
        "train": 30,
        "val": 6,
        "test": 7,
        "test_novel": 4,
    }
    summary = json.loads((demo / "summary.json").read_text())
    assert set(summary["vocabulary"]["novel"]) == objects["test_novel"]
    assert "composites" in summary["note"]
    assert set(summary["licences"]) == {"objects", "scenes"}


def test_no_scene_is_in_two_splits() -> None:
    train, val, test = (set(SCENES[split]) for split in ("train", "val", "test"))
    assert len(train | val | test) == len(train) + len(val) + len(test)
    assert (len(train), len(val), len(test)) == (43, 6, 12)


def test_the_mask_is_where_the_scene_is_covered(material: tuple[Path, Path]) -> None:
    composer = Composer(SMALL, 0, *material)
    for number in range(20):
        made = composer.compose("train", number)
        pixels, mask = np.asarray(made.picture), np.asarray(made.mask)
        assert (mask.dtype, mask.shape) == (np.dtype(bool), (32, 32))
        # The stamps are discs; the longest side is 0.5 to 0.85 of 32 pixels.
        assert np.pi / 4 * 15**2 < mask.sum() < np.pi / 4 * 28**2
        scene = np.median(pixels[~mask], axis=0)  # the scenes are of one colour
        changed = (np.abs(pixels - scene) > 3).any(axis=-1)
        assert changed[mask].mean() > 0.97
        padded = np.pad(mask, 2)
        near = np.any([padded[y : y + 32, x : x + 32] for y in range(5) for x in range(5)], axis=0)
        assert not changed[~near].any()


def test_the_mask_equals_the_stamps_alpha(tmp_path: Path) -> None:
    """A stamp of hard edges, pasted at its own size, leaves its own outline."""
    stamp = noise(0, side=128)
    stamp[:4, 60:68, 3] = stamp[-4:, 60:68, 3] = stamp[60:68, :4, 3] = stamp[60:68, -4:, 3] = 255
    png(stamp, tmp_path / "stamps/a.png", "A fox.")
    png(stamp, tmp_path / "stamps/b.png", "An owl.")
    for name in {name for split in SCENES.values() for name in split}:
        (tmp_path / "scenes").mkdir(exist_ok=True)
        Image.new("RGB", (128, 128)).save(tmp_path / f"scenes/{name}.jpg")
    config = SMALL.model_copy(update={"longest_side": (1.0, 1.0), "frame": 128, "novel_objects": 1})
    made = Composer(config, 0, tmp_path / "stamps", tmp_path / "scenes").compose("train", 0)
    alpha = stamp[..., 3] == 255
    mask = np.asarray(made.mask)
    assert np.array_equal(mask, alpha) or np.array_equal(mask, alpha[:, ::-1])
    assert not np.asarray(made.picture)[~mask].any()  # the scene is black


def test_some_training_pictures_are_a_scene_alone(material: tuple[Path, Path]) -> None:
    config = SMALL.model_copy(update={"empty_scenes": 0.5})
    plain, composer = Composer(SMALL, 0, *material), Composer(config, 0, *material)
    made = [composer.compose("train", number) for number in range(60)]
    empty = [one for one in made if not one.object]
    assert 15 < len(empty) < 45
    for one in empty:
        assert one.caption == SCENES["train"][one.scene]
        assert np.asarray(one.picture).std(axis=(0, 1)).max() < 3  # the scenes are of one colour
        assert not np.asarray(one.mask).any()
    assert all(one.caption.startswith(one.object) for one in made if one.object)
    assert all(composer.compose("test", number).object for number in range(20))
    assert all(plain.compose("train", number).object for number in range(20))


@pytest.fixture
def renders(tmp_path: Path) -> Path:
    """A picture for every name of renders.csv, each of one colour of its own."""
    folder = tmp_path / "renders"
    folder.mkdir()
    listed = resources.files("devil_pipe.stages.prepare").joinpath("renders.csv").read_text(encoding="utf-8")
    for number, line in enumerate(listed.splitlines()[1:]):
        colour = (number % 256, number // 256, 200, 255)
        Image.new("RGBA", (16, 16), colour).save(folder / f"{line.rsplit(',', 1)[1]}.webp", lossless=True)
    return folder


def test_renders_stand_beside_the_stamps(material: tuple[Path, Path], renders: Path, tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"renders": True, "novel_objects": 0, "test_novel": 0, "train": 600})
    alone = read_vocabulary(material[0], config, 0)
    both = read_vocabulary(material[0], config, 0, renders)
    assert set(alone.seen) < set(both.seen)
    assert set(alone.stamps["a fox"]) < set(both.stamps["a fox"])  # one name, a photograph and a render
    notes = write_demo(config, 0, tmp_path, stamps=material[0], scenes=material[1], renders=renders)
    assert "rendered" in notes["note"]
    assert set(notes["licences"]) == {"objects", "renders", "scenes"}
    assert "a cat" in notes["vocabulary"]["seen"]


def test_every_listed_name_reads_as_a_thing_and_every_file_is_listed_once() -> None:
    listed = resources.files("devil_pipe.stages.prepare").joinpath("renders.csv").read_text(encoding="utf-8")
    names, files = zip(*(line.split(",") for line in listed.splitlines()[1:]), strict=True)
    assert len(set(files)) == len(files)
    for name in set(names):
        assert name == name.strip().lower()
        assert not re.match(r"a [aeio]|an [^aeiho]", name), name


def test_a_render_that_is_not_there_is_named(material: tuple[Path, Path], renders: Path) -> None:
    lost = next(renders.glob("*.webp"))
    lost.unlink()
    with pytest.raises(InputError, match=rf"{lost.name}, found none: run `devil-pipe assets fluent`"):
        read_vocabulary(material[0], SMALL, 0, renders)


# webdataset leaves closing its files to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_the_shards(demo: Path) -> None:
    by_key = {row["key"]: row for row in rows(demo)}
    read = 0
    for shard in sorted((demo / "shards").glob("*.tar")):
        for sample in webdataset.WebDataset(str(shard), shardshuffle=False):
            row = by_key[sample["__key__"]]
            assert sample["jpg"] == read_picture(row, demo)
            assert sample["png"] == read_mask(row, demo)
            assert sample["txt"].decode() == row["captions"][0]
            details = json.loads(sample["json"])
            assert details["sha256"] == hashlib.sha256(sample["jpg"]).hexdigest()
            assert (details["key"], details["status"], details["split"]) == (row["key"], "success", row["split"])
            assert row["key"][:5] == shard.stem
            read += 1
    assert read == len(by_key) == 47


def test_a_strange_file_among_the_shards_is_not_deleted(demo: Path) -> None:
    (demo / "shards/thesis.doc").write_text("ten years of work")
    with pytest.raises(InputError, match=r"thesis\.doc"):
        stage.run(PrepareConfig(name="demo", out=demo, source="demo", demo=SMALL))
    assert (demo / "shards/thesis.doc").read_text() == "ten years of work"


def test_a_missing_scene_is_named(material: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scene .*\.jpg"):
        write_demo(SMALL, 0, tmp_path, stamps=material[0], scenes=tmp_path)


def test_vocabulary_leaves_out_what_is_no_photographed_object(tmp_path: Path) -> None:
    for name, words in {"fox": "A fox.", "fox2": "A fox (asleep).", "owl": "An owl."}.items():
        png(noise(1), tmp_path / f"animals/{name}.png", words)
    png(noise(1), tmp_path / "symbols/cross.png", "A cross.")
    png(noise(1), tmp_path / "people/face.png", "A face.")
    png(noise(1), tmp_path / "animals/cartoon/cat.png", "A cat.")
    png(noise(1), tmp_path / "seasonal/halloween/grave1.png", "A grave.")
    png(noise(1, high=8), tmp_path / "animals/flat.png", "A drawing.")  # eight levels are one colour of 4 bits
    png(noise(1)[..., :3].copy(), tmp_path / "animals/opaque.png", "A photograph.")
    png(noise(1, side=60), tmp_path / "animals/small.png", "A mouse.")
    png(noise(1), tmp_path / "animals/long.png", "A very old blue bird.")
    png(noise(1), tmp_path / "animals/silent.png")
    found = read_vocabulary(tmp_path, SMALL.model_copy(update={"novel_objects": 1}), seed=0)
    assert found.stamps == {"a fox": ("animals/fox.png", "animals/fox2.png"), "an owl": ("animals/owl.png",)}
    assert sorted([*found.seen, *found.novel]) == ["a fox", "an owl"]
    with pytest.raises(InputError, match="more than 2 objects"):
        read_vocabulary(tmp_path, SMALL, seed=0)


@pytest.mark.parametrize(
    ("sentence", "name"),
    [
        ("A gorilla.", "a gorilla"),
        ("A colorful rooster. It crows.", "a colorful rooster"),
        ("An albino peahen (a female peafowl, or peacock).", "an albino peahen"),
        ("A plumber’s wrench.", "a plumber's wrench"),
        ("A “little” penguin!", "a little penguin"),
        ("An Magpie", "a magpie"),
        ("Two flowers.", "two flowers"),
        ("You can eat this.", None),
        ("A dog is barking.", None),
        ("A ", None),
        ("Gorilla", None),
        ("", None),
    ],
)
def test_names_from_sentences(sentence: str, name: str | None) -> None:
    assert object_name(sentence) == name


@pytest.mark.assets
def test_the_real_vocabulary() -> None:
    try:
        stamps, scenes = asset("stamps"), asset("scenes")
    except InputError as error:
        pytest.skip(f"the demo's pictures are not there: {error}")
    config = DemoConfig()
    composer = Composer(config, 0, stamps, scenes)
    vocabulary = composer.vocabulary
    assert {"a gorilla", "a fire truck", "an owl"} <= vocabulary.stamps.keys()
    assert (len(vocabulary.seen), len(vocabulary.novel)) == (149, 20)
    for name in vocabulary.stamps:
        assert name.split()[0] in {"a", "an", "two", "three", "some", "the"}
        assert 2 <= len(name.split()) <= 3
    for number in range(5):
        made = composer.compose("test", number)
        assert made.picture.size == made.mask.size == (224, 224)
        rows, columns = np.nonzero(np.asarray(made.mask))
        longest = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 0.45 * 224 <= longest <= 0.85 * 224 + 1
