"""COCO's JSON files, read with every fault named: the file, the list and the entry in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from devil_pipe.store.errors import InputError

_KINDS = {int: "a whole number", str: "text", list: "a list", dict: "an object"}


def read_json(path: Path, key: str) -> dict[str, Any]:
    """The JSON object that a file holds; `key` is the setting of the section `coco:` that names the file.

    Raises:
        InputError: no such file, no UTF-8, no JSON, or no object.
    """
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
        raise InputError(f"{path}: expected a JSON object with 'images', got {named(content)}")
    return content


def entries(content: Mapping[str, Any], key: str, place: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a list, each with the words that name it. Raises InputError as `get`."""
    for number, entry in enumerate(get(content, key, list, str(place))):
        where = f"{place}, {key}[{number}]"
        if not isinstance(entry, dict):
            raise InputError(f"{where}: expected an object, got {named(entry)}")
        yield where, entry


def get(values: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """A value of the kind that is expected. Raises InputError where it is missing or of another one."""
    if key not in values:
        raise InputError(f"{where}: expected a key {key!r}, got {', '.join(list(values)[:8]) or 'none'}")
    value = values[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: key {key!r}: expected {_KINDS[kind]}, got {named(value)}")
    return value


def named(value: Any) -> str:
    """A value as JSON, short enough for a message."""
    words = json.dumps(value)
    return words if len(words) < 40 else f"{words[:37]}..."
