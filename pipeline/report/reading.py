"""Reading a run's files: each missing or malformed one is named with the command that makes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from devil_pipe.store.errors import InputError

Model = TypeVar("Model", bound=BaseModel)


def require(path: Path, stage: str, run: str) -> Path:
    """Give `path` back if it is a file.

    Raises:
        InputError: it is not there; says which command makes it.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: expected this file, found nothing. It is made by `devil-pipe {stage} {run}`: run that first."
        )
    return path


def read_text(path: Path, stage: str, run: str) -> str:
    """Read a text in UTF-8.

    Raises:
        InputError: the file is missing, or no UTF-8.
    """
    try:
        return require(path, stage, run).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8: {error}. Make it anew with `devil-pipe {stage} {run}`.") from error


def read_object(path: Path, stage: str, run: str) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        InputError: the file is missing, is no JSON, or holds something else than an object.
    """
    text = read_text(path, stage, run)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}: expected JSON, got: {error.msg}. "
            f"Make it anew with `devil-pipe {stage} {run}`."
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}.")
    return value


def validated(model: type[Model], value: object, path: Path, stage: str, run: str) -> Model:
    """Check `value`, read from `path`, against `model`.

    Raises:
        InputError: names the file and the first wrong key.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the object"
        raise InputError(
            f"{path}, {key}: {first['msg']}, got {first['input']!r:.80}. Make it anew with `devil-pipe {stage} {run}`."
        ) from error


def read_card(path: Path, run: str) -> dict[str, Any]:
    """Read the checkpoint's card; a file that holds no mapping gives an empty one.

    Raises:
        InputError: the file is missing or no YAML.
    """
    try:
        card = yaml.safe_load(read_text(path, "train", run))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: expected YAML: {error}. Make it anew with `devil-pipe train {run}`.") from error
    return card if isinstance(card, dict) else {}


def read_training_log(path: Path, run: str) -> list[dict[str, Any]]:
    """Read `train/log.jsonl` in the order of phases and steps, each (phase, step, kind) once.

    A resumed run may have logged a step twice; the later line counts.

    Raises:
        InputError: the file is missing, or a line is not an object with `phase` and a whole `step`.
    """
    last: dict[tuple[str, int, bool], dict[str, Any]] = {}
    for number, line in enumerate(read_text(path, "train", run).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            last[str(entry["phase"]), int(entry["step"]), "loss" in entry] = entry
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}, line {number}: expected an object with 'phase' and 'step', got {line[:80]!r}. "
                f"Make it anew with `devil-pipe train {run}`."
            ) from error
    return [last[name] for name in sorted(last)]
