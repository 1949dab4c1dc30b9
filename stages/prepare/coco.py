"""COCO's captions: the published JSON files, Karpathy's file of splits, or both. Every caption of a picture is kept.

The published captions_train2014.json holds `images` (id, file_name) and `annotations` (image_id, caption), about five
for each picture; Karpathy's dataset_coco.json holds `images` (cocoid, filepath, filename, split, sentences with raw).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devil_pipe.stages.prepare.checks import BrokenError, clean_caption, picture_size, safe_key, split_of
from devil_pipe.stages.prepare.config import CocoConfig
from devil_pipe.stages.prepare.index import Row
from devil_pipe.stages.prepare.sources import Found, in_parallel, inside, stored_path
from devil_pipe.store.errors import InputError

_OF_FILE = re.compile(r"^captions_((train|val|test)\d*)")
_SPLITS = ("train", "restval", "val", "test")
_KINDS = {int: "a whole number", str: "text", list: "a list", dict: "an object"}


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

    def index(picture: _Picture) -> Row:
        return _row(picture, config, seed, out)

    rows = list(in_parallel(index, list(pictures.values()), workers, "checking pictures", "pictures"))
    return Found(rows, notes)


def _annotated(paths: tuple[Path, ...]) -> dict[int, _Picture]:
    """Image id → picture with its captions, from COCO's own files."""
    found: dict[int, _Picture] = {}
    for path in paths:
        content = _json(path, "annotations")
        here: dict[int, _Picture] = {}
        of_file = _OF_FILE.match(path.name)
        folder, split = (of_file[1], of_file[2]) if of_file else ("", "")
        for where, image in _entries(content, "images", path):
            number, file = _get(image, "id", int, where), _get(image, "file_name", str, where)
            if first := found.get(number) or here.get(number):
                raise InputError(f"{where}: expected each id once, got {number} again, first in {first.where}")
            here[number] = _Picture(where, file, folder, split)
        for where, annotation in _entries(content, "annotations", path):
            number, caption = _get(annotation, "image_id", int, where), _get(annotation, "caption", str, where)
            if number not in here:
                raise InputError(f"{where}: expected the image_id of one of the file's images, got {number}")
            here[number].captions.append(caption)
        found |= here
    return found


def _karpathy(config: CocoConfig, annotated: Mapping[int, _Picture]) -> dict[int, _Picture]:
    path = config.karpathy
    assert path is not None
    found: dict[int, _Picture] = {}
    for where, image in _entries(_json(path, "karpathy"), "images", path):
        number, file = _get(image, "cocoid", int, where), _get(image, "filename", str, where)
        if number in found:
            raise InputError(f"{where}: expected each cocoid once, got {number} again, first in {found[number].where}")
        split = _get(image, "split", str, where)
        if split not in _SPLITS:
            raise InputError(f"{where}: key 'split': expected one of {', '.join(_SPLITS)}, got {split!r}")
        folder = _get(image, "filepath", str, where) if "filepath" in image else ""
        own = [_get(sentence, "raw", str, at) for at, sentence in _entries(image, "sentences", where)]
        if config.annotations:
            if number not in annotated:
                raise InputError(
                    f"{where}: expected cocoid {number} among the images of coco.annotations, found none: give both "
                    "captions_train2014.json and captions_val2014.json, or neither"
                )
            own = annotated[number].captions
        found[number] = _Picture(where, file, folder, config.restval if split == "restval" else split, own)
    return found


def _json(path: Path, key: str) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"coco.{key}: expected a JSON file at {path}, found none")
    raw = path.read_bytes()
    try:
        content = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected UTF-8, got byte 0x{raw[error.start]:02x} at {error.start}: fetch the file again, or "
            "convert it to UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, got none: {error}; fetch the file again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object with 'images', got {_named(content)}")
    return content


def _entries(content: Mapping[str, Any], key: str, place: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a list, each with the words that name it."""
    for number, entry in enumerate(_get(content, key, list, str(place))):
        where = f"{place}, {key}[{number}]"
        if not isinstance(entry, dict):
            raise InputError(f"{where}: expected an object, got {_named(entry)}")
        yield where, entry


def _get(values: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    if key not in values:
        raise InputError(f"{where}: expected a key {key!r}, got {', '.join(list(values)[:8]) or 'none'}")
    value = values[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: key {key!r}: expected {_KINDS[kind]}, got {_named(value)}")
    return value


def _named(value: Any) -> str:
    words = json.dumps(value)
    return words if len(words) < 40 else f"{words[:37]}..."


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
        if not file.is_file():
            raise BrokenError("no such file")
        known["width"], known["height"] = picture_size(_bytes(file))
    except BrokenError as error:
        return Row(**known).broken(str(error))
    return Row(**known)


def _file(picture: _Picture, pictures: Path) -> Path:
    """Where a picture lies: in the folder that its list names, or directly in the folder of pictures."""
    found = pictures / inside(picture.where, picture.file, pictures, "file_name")
    if picture.folder:
        nested = pictures / inside(picture.where, f"{picture.folder}/{picture.file}", pictures, "file_name")
        return nested if nested.is_file() or not found.is_file() else found
    return found


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BrokenError(f"picture cannot be read: {error.strerror}") from None
