"""The demo's pictures: a photographed object pasted on a photographed scene, with its caption and mask.

They are composites and not photographs: figures that come from them say so. Each picture is drawn from a
generator of its own, seeded by (seed, split, number), so any of them can be made again alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from devil_pipe.stages.common.files import replacing, sha256_file
from devil_pipe.stages.prepare.config import DemoConfig
from devil_pipe.stages.prepare.demo_vocabulary import SCENES, Vocabulary, read_vocabulary
from devil_pipe.stages.prepare.sources import in_parallel
from devil_pipe.store.errors import InputError

SPLITS = ("train", "val", "test", "test_novel")
NOTE = (
    "Demo composites: photographed objects pasted on photographed scenes, captioned from their names. "
    "They are no natural photographs, and scores on them are not comparable with published ones."
)
WITH_RENDERS = NOTE.replace("photographed objects", "photographed and rendered objects", 1)
LICENCES = {
    "objects": "Tux Paint stamps (Debian tuxpaint-stamps-default): GPL-2, some in the public domain",
    "renders": "Fluent emoji (npm @lobehub/fluent-emoji-3d): MIT",
    "scenes": "Scratch 1.4 backgrounds (Debian scratch, Media/Backgrounds): CC-BY-SA-3.0",
}
_BICUBIC = Image.Resampling.BICUBIC
_STORED_SIDE = 300  # stamps are kept this large at most: above what any default frame asks for


@dataclass(frozen=True)
class Composite:
    """One picture of the demo with all that was drawn for it."""

    picture: Image.Image
    """RGB, frame × frame."""
    mask: Image.Image
    """Mode "1", frame × frame: where the object's alpha is above a half."""
    caption: str
    object: str
    """"": the scene alone."""
    stamp: str
    scene: str


class Composer:
    """Makes any picture of the demo from its split and number."""

    def __init__(self, config: DemoConfig, seed: int, stamps: Path, scenes: Path, renders: Path | None = None) -> None:
        self.config, self.seed = config, seed
        self.vocabulary: Vocabulary = read_vocabulary(stamps, config, seed, renders)
        self._scenes = _read_scenes(scenes, config.frame)
        used = sorted(self.vocabulary.files)
        side = max(_STORED_SIDE, config.frame)
        self._stamps = {name: _read_stamp(self.vocabulary.files[name], side) for name in used}

    def compose(self, split: str, number: int) -> Composite:
        """The picture `number` of a split; objects take turns, everything else is drawn."""
        rng = np.random.default_rng([self.seed, SPLITS.index(split), number])
        objects, scenes = self.vocabulary.objects(split), SCENES[split]
        name = objects[number % len(objects)]
        scene = str(rng.choice(sorted(scenes)))
        stamp = str(rng.choice(self.vocabulary.stamps[name]))
        picture = self._background(scene, rng)
        frame = self.config.frame
        if split == "train" and self.config.empty_scenes and rng.random() < self.config.empty_scenes:
            return Composite(picture, Image.new("1", (frame, frame)), scenes[scene], "", "", scene)
        thing = self._object(stamp, rng)
        corner = (
            int(rng.integers(0, frame - thing.width + 1)),
            int(rng.integers(0, frame - thing.height + 1)),
        )
        picture.paste(thing, corner, thing)
        mask = Image.new("1", (frame, frame))
        mask.paste(_solid(thing), corner)
        return Composite(picture, mask, f"{name} in front of {scenes[scene]}", name, stamp, scene)

    def _background(self, scene: str, rng: np.random.Generator) -> Image.Image:
        whole, frame = self._scenes[scene], self.config.frame
        left = int(rng.integers(0, whole.width - frame + 1))
        top = int(rng.integers(0, whole.height - frame + 1))
        picture = whole.crop((left, top, left + frame, top + frame))
        return _maybe_mirrored(picture, rng)

    def _object(self, stamp: str, rng: np.random.Generator) -> Image.Image:
        picture, frame = self._stamps[stamp], self.config.frame
        scale = rng.uniform(*self.config.longest_side) * frame / max(picture.size)
        width, height = (min(frame, max(1, round(side * scale))) for side in picture.size)
        return _maybe_mirrored(picture.resize((width, height), _BICUBIC), rng)


def write_demo(
    config: DemoConfig,
    seed: int,
    folder: Path,
    *,
    stamps: Path,
    scenes: Path,
    renders: Path | None = None,
    workers: int = 0,
) -> dict[str, Any]:
    """Compose the demo and write it to `folder` as tar shards in img2dataset's layout.

    Args:
        config: how many pictures, and how they are made.
        seed: decides everything that is drawn.
        folder: where 00000.tar … are written.
        stamps: folder of objects, PNGs with alpha and a .txt beside each.
        scenes: folder of backgrounds, JPEGs of the names in `SCENES`.
        renders: folder of further objects, the WebP files that renders.csv names; None: photographs alone.
        workers: threads; 0: one a core. The bytes written do not depend on it.

    Returns:
        What summary.json tells of the demo: vocabulary, licences, digests of the shards.

    Raises:
        InputError: too few objects, or a scene that is not there.
    """
    composer = Composer(config, seed, stamps, scenes, renders)
    parts: list[tuple[str, int, int]] = []
    for split in SPLITS:
        count = getattr(config, split)
        starts = range(0, count, config.shard_pictures)
        parts += [(split, start, min(start + config.shard_pictures, count)) for start in starts]
    pictures = [
        (f"{shard:05d}{number - start:04d}", split, number)
        for shard, (split, start, stop) in enumerate(parts)
        for number in range(start, stop)
    ]

    def make(item: tuple[str, str, int]) -> dict[str, bytes]:
        key, split, number = item
        return _sample(composer.compose(split, number), key, split, config.quality)

    made = in_parallel(make, pictures, workers, "composing pictures", "pictures")
    digests = {}
    for shard, (_, start, stop) in enumerate(parts):
        path = folder / f"{shard:05d}.tar"
        _write_tar(path, [next(made) for _ in range(start, stop)])
        digests[path.name] = sha256_file(path)
    assert next(made, None) is None, "a picture of no shard"
    vocabulary = composer.vocabulary
    return {
        "note": WITH_RENDERS if renders else NOTE,
        "licences": {name: licence for name, licence in LICENCES.items() if renders or name != "renders"},
        "sha256": digests,
        "vocabulary": {
            "seen": list(vocabulary.seen),
            "novel": list(vocabulary.novel),
            "scenes": {split: sorted(names) for split, names in SCENES.items()},
        },
    }


def _sample(made: Composite, key: str, split: str, quality: int) -> dict[str, bytes]:
    """The members of a sample by file name, with the fields that img2dataset writes."""
    picture = _encoded(made.picture, "JPEG", quality=quality)
    width, height = made.picture.size
    details = {
        "caption": made.caption,
        "error_message": None,
        "exif": "{}",
        "height": height,
        "key": key,
        "object": made.object,
        "original_height": height,
        "original_width": width,
        "scene": made.scene,
        "sha256": hashlib.sha256(picture).hexdigest(),
        "split": split,
        "status": "success",
        "url": f"demo:{made.stamp}+{made.scene}",
        "width": width,
    }
    return {
        f"{key}.jpg": picture,
        f"{key}.json": json.dumps(details, indent=4, sort_keys=True).encode(),
        f"{key}.png": _encoded(made.mask, "PNG"),
        f"{key}.txt": made.caption.encode(),
    }


def _write_tar(path: Path, samples: list[dict[str, bytes]]) -> None:
    with replacing(path) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for name, data in sample.items():
                member = tarfile.TarInfo(name)  # owner, mode and time stay fixed: same pictures, same bytes
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _encoded(picture: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def _maybe_mirrored(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else picture


def _solid(thing: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(thing.getchannel("A")) > 127)


def _read_scenes(folder: Path, frame: int) -> Mapping[str, Image.Image]:
    """Every scene by name, RGB, its shorter side as long as the frame."""
    files = {path.stem: path for path in sorted(folder.rglob("*.jpg"))}
    scenes = {}
    for name in sorted({name for names in SCENES.values() for name in names}):
        if name not in files:
            raise InputError(f"expected the scene {name}.jpg in {folder}, found none: run `devil-pipe assets`")
        with Image.open(files[name]) as picture:
            scale = frame / min(picture.size)
            size = (max(frame, round(picture.width * scale)), max(frame, round(picture.height * scale)))
            scenes[name] = picture.convert("RGB").resize(size, _BICUBIC)
    return scenes


def _read_stamp(path: Path, side: int) -> Image.Image:
    """A stamp as RGBA without its empty border, its longer side at most `side` pixels."""
    with Image.open(path) as opened:
        picture = opened.convert("RGBA")
    visible = Image.fromarray(np.asarray(picture.getchannel("A")) > 16)
    picture = picture.crop(visible.getbbox())
    picture.thumbnail((side, side), _BICUBIC)
    return picture
