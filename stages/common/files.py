"""Files that are either whole or not there, and digests of what they hold."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devil_pipe.store.errors import InputError
from devil_pipe.store.place import plain_file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what was written there takes `path`'s place on success alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # the name that a person knows
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        if error.filename is None or str(error.filename) != name:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 text so that a reader sees the old file or the new one, never a part."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys: the same content is the same bytes. NaN is refused (ValueError)."""
    write_text_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_object(path: Path, mend: str) -> dict[str, Any]:
    """Read a JSON file that holds one object; `mend` tells what to do where it does not. Raises InputError."""
    try:
        value = json.loads(plain_file(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
        raise InputError(f"{path}: expected a JSON object: {error}; {mend}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}; {mend}")
    return value


def expanded(text: str | Path) -> Path:
    """A path as a person writes it, `~` being a home folder. Raises InputError for the home of nobody."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{text}: expected a path, got one in the home folder of a user who has none") from None


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a value's JSON form with sorted keys and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
