"""Which units are trained on, chosen by and tested on."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from numpy.lib import format as npy_format

from devil_pipe.stages.prepare.milan.units import UnitsFile
from devil_pipe.store.errors import InputError

_KINDS = ".pth, .pt, .json, .npy or .txt"


def draw(keys: Sequence[str], share: float, seed: int, purpose: str) -> set[str]:
    """A seeded share of the keys, one at least: the same ones whatever their order.

    Args:
        keys: the units.
        share: the fraction, rounded down as MILAN's library does.
        seed: of the draw.
        purpose: another word is another draw.
    """
    ranked = sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{purpose}:{key}".encode()).digest())
    return set(ranked[: max(1, int(share * len(keys)))])


def within(found: UnitsFile, share: float, seed: int, splits: Path | None) -> set[str]:
    """The keys of a set's units that are held out: those of a published split file, or a seeded share.

    Raises:
        InputError: as `read_splits`.
    """
    keys = found.keys()
    if splits is None:
        return draw(keys, share, seed, "test")
    return {keys[row] for row in read_splits(splits, len(keys))}


def read_splits(path: Path, units: int) -> list[int]:
    """The held-out units that a split file names, counted in the order of annotations.csv.

    MILAN's library saves `{"train": […], "test": […]}` with torch (.pth); .json may hold the same, .npy and .txt the
    held-out numbers alone. Nothing is unpickled that is no plain list or tensor.

    Raises:
        InputError: no such file, code in it, or numbers that are not a split of so many units.
    """
    if not path.is_file():
        raise InputError(f"milan.splits: expected a split file at {path}, found none")
    content = _read(path)
    if isinstance(content, dict):
        if "test" not in content:
            raise InputError(f"{path}: expected a key 'test', got {', '.join(map(str, content)) or 'none'}")
        test = _numbers(content["test"], units, f"{path}, 'test'")
        train = _numbers(content["train"], units, f"{path}, 'train'") if "train" in content else None
    else:
        test, train = _numbers(content, units, str(path)), None
    if train is not None and sorted([*train, *test]) != list(range(units)):
        raise InputError(
            f"{path}: expected each of {units} units in 'train' or in 'test', once, got {len(train)} and {len(test)}: "
            "is it the file of this set?"
        )
    if not 0 < len(test) < units:
        raise InputError(f"{path}: expected 1 to {units - 1} held-out units of {units}, got {len(test)}")
    return test


def _read(path: Path) -> Any:
    kind = path.suffix.lower()
    try:
        if kind in {".pth", ".pt"}:
            import torch

            return torch.load(path, map_location="cpu", weights_only=True)
        if kind == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        if kind == ".npy":
            with path.open("rb") as file:
                return npy_format.read_array(file, allow_pickle=False)
        if kind == ".txt":
            return [int(line) for line in path.read_text(encoding="utf-8").split()]
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: expected plain lists of numbers, got objects that only running code could read, which is not "
            'done: save them as JSON, {"train": [...], "test": [...]}'
        ) from None
    except Exception as error:  # a reader that meets garbage may raise anything
        raise InputError(f"{path}: cannot be read as {kind}: {str(error)[:200] or type(error).__name__}") from None
    raise InputError(f"{path}: expected a name ending in {_KINDS}")


def _numbers(values: Any, units: int, where: str) -> list[int]:
    """Checked numbers of units."""
    if hasattr(values, "tolist"):
        try:
            values = values.tolist()
        except Exception as error:  # a tensor of a layout that has no list, such as a sparse one
            raise InputError(f"{where}: expected a list of numbers, got {type(values).__name__}: {error}") from None
    if not isinstance(values, list | tuple):
        raise InputError(f"{where}: expected a list of numbers, got {type(values).__name__}")
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(f"{where}: expected whole numbers, got {value!r:.80}")
        if not 0 <= value < units:
            raise InputError(
                f"{where}: expected numbers from 0 to {units - 1}, got {value}: is it the file of this set?"
            )
    return _once(values, where)


def _once(values: Iterable[int], where: str) -> list[int]:
    seen: dict[int, None] = {}
    for value in values:
        if value in seen:
            raise InputError(f"{where}: expected each number once, got {value} twice")
        seen[value] = None
    return list(seen)
