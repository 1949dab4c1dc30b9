"""The demo's words: which stamps show a nameable object, and what each scene is called."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from devil_pipe.stages.prepare.config import DemoConfig
from devil_pipe.store.errors import InputError

TRAIN_SCENES = {
    "all-sports-mural": "a mural",
    "atom-playground": "a playground",
    "baseball-field": "a baseball field",
    "basketball-court1-a": "a basketball court",
    "beach-malibu": "a beach",
    "bench-with-view": "a bench",
    "boardwalk": "a boardwalk",
    "brick-wall-and-stairs": "a brick wall",
    "brick-wall1": "a brick wall",
    "canyon": "a canyon",
    "chalkboard": "a chalkboard",
    "city-with-water": "a city",
    "clothing-store": "a clothing store",
    "driveway": "a driveway",
    "flower-bed": "a flower bed",
    "football-field": "a football field",
    "forest": "a forest",
    "garden-rock": "a garden",
    "graffiti": "graffiti",
    "gravel-desert": "a desert",
    "hall": "a hall",
    "hallway_outdoors": "a hallway",
    "hay_field": "a hay field",
    "houses": "houses",
    "mansion": "a mansion",
    "moon": "the moon",
    "mural-faro": "a mural",
    "parking-ramp": "a parking garage",
    "party-room": "a party room",
    "pathway": "a garden path",
    "playing-field": "a playing field",
    "room1": "a room",
    "route66": "a road",
    "school2": "a school",
    "spotlight-stage": "a stage",
    "tennis-backboard": "a tennis court",
    "the-movies-inside": "a cinema",
    "train-tracks1": "train tracks",
    "tree": "a tree",
    "village": "a village",
    "water-and-rocks": "a stream",
    "wooden-house": "a wooden house",
    "woods-and-bench": "a park",
}
VAL_SCENES = {
    "building-fireproof": "a building",
    "hill": "a hill",
    "room3": "a room",
    "silos": "silos",
    "the-movies": "a cinema",
    "wave": "a wave",
}
TEST_SCENES = {
    "basketball-court1-b": "a basketball court",
    "berkeley-mural": "a mural",
    "brick-wall2": "a brick wall",
    "building-at-mit": "a building",
    "castle": "a castle",
    "city-with-water2": "a city",
    "grand-canyon": "a canyon",
    "kitchen": "a kitchen",
    "lake": "a lake",
    "pool": "a pool",
    "room2": "a room",
    "train-tracks2": "train tracks",
}
SCENES = {
    "train": TRAIN_SCENES,
    "val": VAL_SCENES,
    "test": TEST_SCENES,
    "test_novel": TEST_SCENES,
}
"""Split → file name of a scene → its words. No file is in two of train, val and test."""

# Signs and letters, faces, drawings, gravestones with jokes on them, and a rambutan called "an alien tree".
_LEFT_OUT = ("symbols/", "people/", "seasonal/halloween/grave", "plants/trees/rambutan")
_NO_NAME = re.compile(
    r"\b(is|are|resembles|it|you|your|put|playing|dancing|means|carries|called|was)\b"
)  # sentences that tell a fact or a joke
_RENDERS = "fluent/"  # begins the names of rendered pictures; no folder of stamps is called so
_SOLID = 200  # an alpha from here on counts as the object
_MIN_SIDE, _MIN_SOLID = 100, 0.08  # pixels of the longer side; solid share of the stamp


@dataclass(frozen=True)
class Vocabulary:
    """Objects with their stamps, and which of them are held out."""

    stamps: dict[str, tuple[str, ...]]
    """Name ("a gorilla") → its pictures: stamps by their path in the stamps' folder, renders as fluent/FILE."""
    files: Mapping[str, Path]
    """Where each of these pictures lies."""
    seen: tuple[str, ...]
    novel: tuple[str, ...]
    """Held out: in no picture of train, val or test."""

    def objects(self, split: str) -> tuple[str, ...]:
        """The objects that a split's pictures show."""
        return self.novel if split == "test_novel" else self.seen


def read_vocabulary(folder: Path, config: DemoConfig, seed: int, renders: Path | None = None) -> Vocabulary:
    """Choose the objects from the stamps' sentences and pictures, and name the renders if their folder is given.

    Raises:
        InputError: fewer objects than are to be held out, and one to train on; a render that is not there.
    """
    stamps: dict[str, list[str]] = {}
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.png"), key=lambda path: path.relative_to(folder).as_posix()):
        relative = path.relative_to(folder).as_posix()
        if relative.startswith(_LEFT_OUT) or "/cartoon/" in relative:
            continue
        name = _sentence_name(path.with_suffix(".txt"))
        if name and len(name.split()) <= config.max_words and _is_photograph(path, config.min_colours):
            stamps.setdefault(name, []).append(relative)
            files[relative] = path
    for name, path in _renders(renders) if renders else ():
        stamps.setdefault(name, []).append(_RENDERS + path.name)
        files[_RENDERS + path.name] = path
    names = sorted(stamps)
    if len(names) <= config.novel_objects:
        raise InputError(
            f"expected more than {config.novel_objects} objects among the stamps of {folder}, "
            f"got {len(names)}: lower novel_objects or min_colours"
        )
    np.random.default_rng(seed).shuffle(names)
    novel, seen = names[: config.novel_objects], names[config.novel_objects :]
    pictures = {name: tuple(found) for name, found in stamps.items()}
    return Vocabulary(pictures, files, tuple(sorted(seen)), tuple(sorted(novel)))


def object_name(sentence: str) -> str | None:
    """The object that a stamp's sentence names ("A colorful rooster." → "a colorful rooster"), or None."""
    sentence = sentence.strip()
    if not re.match(r"(A|An|Two|Three|Some|The) ", sentence):
        return None
    name = re.split(r"[(,.!;:—]", sentence)[0].strip()
    name = name.replace("’", "'") if "’s" in name else re.sub("[\"“”'‘’]", "", name)
    name = name.lower()
    if len(name.split()) < 2 or _NO_NAME.search(name):
        return None
    return re.sub(r"^an (?=[^aeiou])", "a ", name)


def _renders(folder: Path) -> list[tuple[str, Path]]:
    """Name and file of every render that renders.csv lists: things, animals, food and people at work."""
    listed = resources.files(__package__).joinpath("renders.csv").read_text(encoding="utf-8")
    found = [(row["name"], folder / f"{row['file']}.webp") for row in csv.DictReader(listed.splitlines())]
    for name, path in found:
        if not path.is_file():
            raise InputError(f"expected the picture of {name!r} at {path}, found none: run `devil-pipe assets fluent`")
    return found


def _sentence_name(path: Path) -> str | None:
    if not path.is_file():
        return None
    lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    return object_name(lines[0])


def _is_photograph(path: Path, min_colours: int) -> bool:
    with Image.open(path) as picture:
        if picture.mode not in {"RGBA", "LA", "P", "PA"} or max(picture.size) < _MIN_SIDE:
            return False
        pixels = np.asarray(picture.convert("RGBA"))
    solid = pixels[..., 3] > _SOLID
    if solid.mean() < _MIN_SOLID:
        return False
    red, green, blue = (pixels[solid][:, :3] // 16).astype(np.int64).T
    return bool(np.unique(red * 256 + green * 16 + blue).size >= min_colours)
