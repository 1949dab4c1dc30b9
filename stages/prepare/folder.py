"""A folder of pictures with captions in a CSV file, a JSONL file, or a .txt beside each picture."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from devil_pipe.stages.prepare.checks import BrokenError, clean_caption, picture_size, safe_key, split_of
from devil_pipe.stages.prepare.config import FolderConfig
from devil_pipe.stages.prepare.index import Row
from devil_pipe.stages.prepare.sources import Found, in_parallel, inside, is_there, stored_path
from devil_pipe.store.errors import InputError

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif"}
)  # HEIC is not read, but a folder of a telephone's pictures should say so
_SPLIT = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class _Entry:
    """A picture that was named, before anything of it is read."""

    where: str
    """The line that names it, for messages."""
    file: Path
    """The picture, relative to the folder."""
    captions: tuple[str | bytes, ...]
    split: str = ""
    object: str = ""
    listed: bool = True
    """Named in a captions file; else found in the folder."""


def read_folder(config: FolderConfig, seed: int, out: Path, workers: int) -> Found:
    """Index the pictures that the captions name, or every picture of the folder where a .txt lies beside each.

    Raises:
        InputError: no folder, a captions file that cannot be read (with its line), a picture outside the
            folder, or a key twice.
    """
    if not config.pictures.is_dir():
        raise InputError(f"folder.pictures: expected a folder at {config.pictures}, found none")
    pictures = sorted(_pictures(config.pictures))
    entries = _named(config) if config.captions else [_beside(config.pictures, path) for path in pictures]
    if not entries and config.captions:
        raise InputError(f"{config.captions}: expected a picture and its caption on each line, found no line")
    if not entries:
        raise InputError(f"folder.pictures: expected pictures in {config.pictures}, found none")
    _check_keys(entries)

    def index(entry: _Entry) -> Row:
        return _row(entry, config, seed, out)

    rows = list(in_parallel(index, entries, workers, "checking pictures", "pictures"))
    unnamed = len(set(pictures) - {entry.file for entry in entries})
    return Found(rows, {"pictures_without_caption": unnamed})


def _pictures(folder: Path) -> Iterator[Path]:
    walked: set[str] = set()
    for top, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        folders.sort()
        if os.path.realpath(top) in walked:  # a link back to a folder above would be walked without end
            folders.clear()
            continue
        walked.add(os.path.realpath(top))
        for name in files:
            if Path(name).suffix.lower() in PICTURE_SUFFIXES and not name.startswith("."):
                yield (Path(top) / name).relative_to(folder)


def _refuse(error: OSError) -> NoReturn:
    """A folder that may not be read would else be left out without a word."""
    raise error


def _beside(folder: Path, file: Path) -> _Entry:
    text = (folder / file).with_suffix(".txt")
    return _Entry(str(folder / file), file, (text.read_bytes(),) if text.is_file() else (), listed=False)


def _named(config: FolderConfig) -> list[_Entry]:
    captions = config.captions
    assert captions is not None
    if not captions.is_file():
        raise InputError(f"folder.captions: expected a CSV or JSONL file at {captions}, found none")
    # Bytes that are no UTF-8 come through as lone surrogates: they break their caption, not the file.
    text = captions.read_text(encoding="utf-8-sig", errors="surrogateescape")
    if captions.suffix.lower() in {".jsonl", ".ndjson"}:
        lines = _json_lines(text, captions)
    elif captions.suffix.lower() == ".csv":
        lines = _csv_lines(text, captions)
    else:
        raise InputError(f"folder.captions: expected a name ending in .csv or .jsonl, got {captions}")
    return [_entry(where, values, config.pictures) for where, values in lines]


def _csv_lines(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    begin = 1  # the line a row begins on: an open quote ends only at the file's end
    try:
        columns = reader.fieldnames or []
        missing = [name for name in ("file", "caption") if name not in columns]
        if missing:
            raise InputError(
                f"{path}, line 1: expected a column {missing[0]!r}, got {', '.join(columns) or 'no columns'}"
            )
        begin = reader.line_num + 1
        for values in reader:
            where = f"{path}, line {begin}"
            begin = reader.line_num + 1
            if None in values or None in values.values():
                raise InputError(
                    f'{where}: expected {len(columns)} cells, got another number; a caption with a comma needs "quotes"'
                )
            yield where, dict(values)
    except csv.Error as error:
        raise InputError(f"{path}, line {begin}: expected CSV: {error}") from None


def _json_lines(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: expected a JSON object: {error}") from None
        if not isinstance(values, dict):
            raise InputError(f"{where}: expected a JSON object, got {type(values).__name__}")
        for key in ("file", "caption"):
            if key not in values:
                raise InputError(f"{where}: expected a key {key!r}, got {', '.join(values) or 'none'}")
        yield where, values


def _entry(where: str, values: dict[str, Any], folder: Path) -> _Entry:
    given = values["caption"]
    captions = given if isinstance(given, list) else [given]
    texts = [values["file"], values.get("split") or "", values.get("object") or "", *captions]
    for value in texts:
        if not isinstance(value, str):
            raise InputError(f"{where}: expected text, got {json.dumps(value)}")
    file, split, thing = (value.strip() for value in texts[:3])
    if not file:
        raise InputError(f"{where}: key 'file': expected a picture's path, got none")
    if split and not _SPLIT.fullmatch(split):
        raise InputError(f"{where}: key 'split': expected letters a-z, digits and _, got {split!r}")
    for key, value in (("file", file), ("object", thing)):
        if not value.isprintable():
            raise InputError(f"{where}: key {key!r}: expected printable UTF-8 text, got {value!r}")
    return _Entry(where, inside(where, file, folder), tuple(captions), split, thing)


def _key(entry: _Entry) -> str:
    return safe_key(entry.file.with_suffix("").as_posix(), entry.where)


def _check_keys(entries: list[_Entry]) -> None:
    places: dict[str, _Entry] = {}
    for entry in entries:
        first = places.setdefault(_key(entry), entry)
        if first is not entry:
            raise InputError(
                f"expected each key once, got {_key(entry)!r} for {first.file} ({first.where}) and "
                f"{entry.file} ({entry.where}): rename one, or give a picture's captions as a list in JSONL"
            )


def _row(entry: _Entry, config: FolderConfig, seed: int, out: Path) -> Row:
    key, file = _key(entry), config.pictures / entry.file
    known: dict[str, Any] = {"key": key, "path": stored_path(file, out), "object": entry.object}
    known["split"] = entry.split or split_of(key, seed, config.shares)
    try:
        _look(entry, file, known)
    except BrokenError as error:
        return Row(**known).broken(str(error))
    return Row(**known)


def _look(entry: _Entry, file: Path, known: dict[str, Any]) -> None:
    """Add the captions and the picture's size to `known`."""
    if not is_there(file):
        raise BrokenError("no such file")
    if not entry.captions:
        raise BrokenError("no caption in the list" if entry.listed else "no .txt")
    known["captions"] = tuple(clean_caption(caption) for caption in entry.captions)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BrokenError(f"picture cannot be read: {error.strerror}") from None
    known["width"], known["height"] = picture_size(data)
