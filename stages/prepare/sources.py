"""What the readers of pictures and captions have in common."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from devil_pipe.stages.common.progress import bar
from devil_pipe.stages.prepare.index import Row
from devil_pipe.store.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Found:
    """What a source holds: the rows of the index, and what is told in summary.json beside them."""

    rows: list[Row]
    notes: dict[str, Any] = field(default_factory=dict)


def stored_path(path: Path, out: Path) -> str:
    """A file's path as the index in `out` names it: relative, right also where `out` lies behind a link.

    The file itself may be a link; it is not followed.

    Raises:
        InputError: the path is no UTF-8.
    """
    real = Path(os.path.realpath(path.parent)) / path.name
    stored = Path(os.path.relpath(real, os.path.realpath(out))).as_posix()
    if any("\ud800" <= letter <= "\udfff" for letter in stored):
        raise InputError(f"{str(path)!r}: expected a path in UTF-8, which the index can hold: rename the folder")
    return stored


def inside(where: str, file: str, folder: Path, key: str = "file") -> Path:
    """A listed picture's path relative to its folder. By the path's letters alone: links inside are followed.

    Raises:
        InputError: it leads out of the folder, or is the folder.
    """
    top = os.path.abspath(folder)  # noqa: PTH100 - Path.absolute keeps ".."
    full = os.path.normpath(os.path.join(top, file))  # noqa: PTH118 - idem
    if not Path(full).is_relative_to(top) or full == top:
        raise InputError(f"{where}: key {key!r}: expected a picture inside {folder}, got {file}")
    return Path(full).relative_to(top)


def is_there(file: Path) -> bool:
    """Whether there is such a file. A name that no file can have is that of none."""
    try:
        return file.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, description: str, unit: str
) -> Iterator[Result]:
    """Results of `work` in the order of `items`, with a progress bar.

    Threads suffice: Pillow's codecs and resampling run without Python's global lock.
    """
    pool = ThreadPoolExecutor(max_workers=workers or cores())
    try:
        with bar(description, len(items), unit) as shown:
            for result in pool.map(work, items):
                yield result
                shown.advance()
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """The cores that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
