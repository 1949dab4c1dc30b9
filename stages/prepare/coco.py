"""COCO's captions: the published JSON files, Karpathy's file of splits, or both. Every caption of a picture is kept.

With the published instances a picture also has an object and its mask.

The published captions_train2014.json holds `images` (id, file_name) and `annotations` (image_id, caption), about five
for each picture; Karpathy's dataset_coco.json holds `images` (cocoid, filepath, filename, split, sentences with raw).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devil_pipe.stages.common.files import replacing
from devil_pipe.stages.prepare.checks import BrokenError, clean_caption, picture_size, safe_key, split_of
from devil_pipe.stages.prepare.coco_files import entries, get, read_json
from devil_pipe.stages.prepare.coco_instances import Shown, read_instances
from devil_pipe.stages.prepare.config import CocoConfig
from devil_pipe.stages.prepare.index import MASKS, OK, Row
from devil_pipe.stages.prepare.sources import Found, in_parallel, inside, is_there, stored_path
from devil_pipe.store.errors import InputError

_OF_FILE = re.compile(r"^captions_((train|val|test)\d*)")
_SPLITS = ("train", "restval", "val", "test")


@dataclass
class _Picture:
    """A picture that a file names, before anything of it is read."""

    where: str
    """The entry that names it, for messages."""
    file: str
    folder: str = ""
    """The folder it may lie in, inside the folder of pictures: train2014."""
    split: str = ""
    captions: list[str] = field(default_factory=list)
    shown: Shown | None = None


def read_coco(config: CocoConfig, seed: int, out: Path, workers: int) -> Found:
    """Index the pictures that Karpathy's file names, else those of the published files, in their order.

    Raises:
        InputError: no folder, a file that is no UTF-8 or no JSON, a key missing or of another type, an annotation of
            an unknown picture, an id or a picture twice, or a split of no known name.
    """
    if not config.pictures.is_dir():
        raise InputError(f"coco.pictures: expected a folder at {config.pictures}, found none")
    annotated = _annotated(config.annotations)
    if config.karpathy is None:
        pictures, notes = annotated, {}
    else:
        pictures = _karpathy(config, annotated)
        notes = {"pictures_outside_karpathy": len(annotated.keys() - pictures.keys())} if annotated else {}
    _check_keys(pictures)
    if config.instances:
        notes |= _show(pictures, read_instances(config.instances, seed))

    def index(picture: _Picture) -> tuple[Row, bytes]:
        row = _row(picture, config, seed, out)
        return row, _mask(picture, row)

    with ExitStack() as stack:
        masks = None
        if config.instances:
            masks = stack.enter_context(stack.enter_context(replacing(out / MASKS)).open("wb"))
        rows = []
        for row, mask in in_parallel(index, list(pictures.values()), workers, "checking pictures", "pictures"):
            place = masks.tell() if masks is not None and mask else 0
            rows.append(dataclasses.replace(row, mask_offset=place, mask_size=len(mask)))
            if masks is not None:
                masks.write(mask)
    return Found(rows, notes)


def _show(pictures: Mapping[int, _Picture], shown: Mapping[int, Shown]) -> dict[str, Any]:
    """Tell pictures what they show. Raises InputError where the files know none of them."""
    for number, picture in pictures.items():
        picture.shown = shown.get(number)
    missing = sum(picture.shown is None for picture in pictures.values())
    if missing == len(pictures):
        raise InputError("coco.instances: expected the pictures that the captions are of, found none of them")
    named = sum(bool(picture.shown and picture.shown.object) for picture in pictures.values())
    return {"pictures_with_an_object": named, "pictures_without_instances": missing}


def _mask(picture: _Picture, row: Row) -> bytes:
    """The object's mask as a PNG of the picture's size; nothing where there is none."""
    if picture.shown is None or not picture.shown.object or row.status != OK:
        return b""
    return picture.shown.png((row.height, row.width))


def _annotated(paths: tuple[Path, ...]) -> dict[int, _Picture]:
    """Image id → picture with its captions, from COCO's own files."""
    found: dict[int, _Picture] = {}
    for path in paths:
        content = read_json(path, "annotations")
        here: dict[int, _Picture] = {}
        of_file = _OF_FILE.match(path.name)
        folder, split = (of_file[1], of_file[2]) if of_file else ("", "")
        for where, image in entries(content, "images", path):
            number, file = get(image, "id", int, where), get(image, "file_name", str, where)
            if first := found.get(number) or here.get(number):
                raise InputError(f"{where}: expected each id once, got {number} again, first in {first.where}")
            here[number] = _Picture(where, file, folder, split)
        for where, annotation in entries(content, "annotations", path):
            number, caption = get(annotation, "image_id", int, where), get(annotation, "caption", str, where)
            if number not in here:
                raise InputError(f"{where}: expected the image_id of one of the file's images, got {number}")
            here[number].captions.append(caption)
        found |= here
    return found


def _karpathy(config: CocoConfig, annotated: Mapping[int, _Picture]) -> dict[int, _Picture]:
    path = config.karpathy
    assert path is not None
    found: dict[int, _Picture] = {}
    for where, image in entries(read_json(path, "karpathy"), "images", path):
        number, file = get(image, "cocoid", int, where), get(image, "filename", str, where)
        if number in found:
            raise InputError(f"{where}: expected each cocoid once, got {number} again, first in {found[number].where}")
        split = get(image, "split", str, where)
        if split not in _SPLITS:
            raise InputError(f"{where}: key 'split': expected one of {', '.join(_SPLITS)}, got {split!r}")
        folder = get(image, "filepath", str, where) if "filepath" in image else ""
        own = [get(sentence, "raw", str, at) for at, sentence in entries(image, "sentences", where)]
        if config.annotations:
            if number not in annotated:
                raise InputError(
                    f"{where}: expected cocoid {number} among the images of coco.annotations, found none: give both "
                    "captions_train2014.json and captions_val2014.json, or neither"
                )
            own = annotated[number].captions
        found[number] = _Picture(where, file, folder, config.restval if split == "restval" else split, own)
    return found


def _key(picture: _Picture) -> str:
    return safe_key(Path(picture.file).stem, picture.where)


def _check_keys(pictures: Mapping[int, _Picture]) -> None:
    if not pictures:
        raise InputError("coco: expected pictures in the files' 'images', found none")
    places: dict[str, str] = {}
    for picture in pictures.values():
        first = places.setdefault(_key(picture), picture.where)
        if first != picture.where:
            raise InputError(f"{picture.where}: expected each file once, got {picture.file!r} again, first in {first}")


def _row(picture: _Picture, config: CocoConfig, seed: int, out: Path) -> Row:
    key, file = _key(picture), _file(picture, config.pictures)
    known: dict[str, Any] = {"key": key, "path": stored_path(file, out)}
    known["split"] = picture.split or split_of(key, seed, config.shares)
    try:
        if not picture.captions:
            raise BrokenError("no caption")
        known["captions"] = tuple(clean_caption(caption) for caption in picture.captions)
        if not is_there(file):
            raise BrokenError("no such file")
        known["width"], known["height"] = picture_size(_bytes(file))
        if picture.shown is not None:
            known["object"], known["scene"] = picture.shown.object, ", ".join(picture.shown.others)
    except BrokenError as error:
        return Row(**known).broken(str(error))
    return Row(**known)


def _file(picture: _Picture, pictures: Path) -> Path:
    """Where a picture lies: in the folder that its list names, or directly in the folder of pictures."""
    found = pictures / inside(picture.where, picture.file, pictures, "file_name")
    if picture.folder:
        nested = pictures / inside(picture.where, f"{picture.folder}/{picture.file}", pictures, "file_name")
        return nested if is_there(nested) or not is_there(found) else found
    return found


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BrokenError(f"picture cannot be read: {error.strerror}") from None
