"""A trained translator on disk, and the state of a run under way: safetensors and YAML, nothing that could run code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import google_crc32c
import torch
import yaml
from pydantic import ConfigDict, TypeAdapter
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from devil_pipe.stages.common.files import replacing, sha256_json, write_text_atomic
from devil_pipe.stages.train.config import ClipCapConfig, TranslatorConfig, translator_config
from devil_pipe.stages.train.translator import Translator, build, width_of
from devil_pipe.store.errors import InputError
from devil_pipe.store.place import plain_file
from devil_pipe.store.schema import Identity, told
from devil_pipe.store.survey import one_line


@dataclass(frozen=True)
class Card:
    """All that is needed to use a checkpoint, and to know where it comes from."""

    translator: TranslatorConfig | ClipCapConfig
    prefix_norm: float | None
    prefix_repeats: int
    language_model: str
    store: Identity
    warmup: str
    seed: int
    data_note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for YAML."""
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "translator": self.translator.model_dump(mode="json"),
            "store": self.store.model_dump(mode="json"),
        }


_CARD = TypeAdapter(Card)


def save(folder: Path, translator: Translator, card: Card) -> None:
    """Write `translator.safetensors` and `config.yaml`, each whole or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in translator.state_dict().items()}
    _write(folder / "translator.safetensors", tensors, "checkpoint", {"card": _bound(card)})
    write_text_atomic(folder / "config.yaml", yaml.safe_dump(card.as_dict(), sort_keys=False, allow_unicode=True))


def _write(path: Path, tensors: dict[str, Tensor], kind: str, said: Mapping[str, Any]) -> None:
    """Write tensors, what is said of them, and a checksum of both, whole or not at all.

    Raises:
        InputError: safetensors cannot write, as on a full disk.
    """
    text = json.dumps({**said, _CRC: _checksum(tensors, said)})  # one key: the order of several is left to chance
    with replacing(path) as partial:
        try:
            save_file(tensors, partial, metadata={kind: text})
        except SafetensorError as error:
            raise InputError(f"{path}: cannot be written: {error}; what was saved before is kept") from error


_CRC = "crc32c"


def _bound(card: Card) -> str:
    """Digest of what decides how the weights are used; where a language model lies may change."""
    free = ("language_model", "data_note")
    return sha256_json({name: value for name, value in card.as_dict().items() if name not in free})


def _checksum(tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> str:
    """CRC32C over names, types, shapes and bytes of tensors, and over what is said of them."""
    crc = google_crc32c.Checksum(json.dumps(said, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        crc.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        crc.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return str(crc.hexdigest().decode())


def _said(path: Path, kind: str) -> dict[str, Any] | None:
    """What a file of `_write` says of its tensors, once all is as it was written; None: a file without metadata.

    Files that were written before there were checksums are taken as they are.

    Raises:
        ValueError: something is not as it was written.
        SafetensorError, OSError, LookupError, TypeError: the file cannot be read, or is of another kind.
    """
    with safe_open(plain_file(path), framework="pt") as file:
        metadata = file.metadata()
    if not metadata:
        return None
    said = from_json(metadata[kind])  # which takes no depth amiss
    if not isinstance(said, dict):
        raise TypeError(f"{kind}: expected keys and values, got {said!r:.40}")
    checksum = said.pop(_CRC, None)
    try:
        whole = checksum in (None, _checksum(load_file(path), said))
    except RuntimeError as error:  # tensors of a type that nobody writes
        raise ValueError(str(error)) from error
    if not whole:
        raise ValueError("it is not what was written (checksum)")
    return said


def load(folder: Path, store: Identity | None = None) -> tuple[Translator, Card]:
    """Read a checkpoint, in eval mode.

    Args:
        folder: that of `save`.
        store: the features it is to be used on.

    Raises:
        InputError: files missing or damaged, or trained on another store (both sides named).
    """
    card = _read_card(folder / "config.yaml")
    if store is not None and store != card.store:
        lines = "; ".join(card.store.differences(store))
        raise InputError(f"{folder}: the translator was trained on another store (trained on against given): {lines}")
    return load_weights(folder / "translator.safetensors", card, folder / "config.yaml"), card


def load_weights(path: Path, card: Card, source: Path) -> Translator:
    """The translator that the card from `source` describes, with a file's weights, in eval mode. Raises InputError."""
    try:
        said = _said(path, "checkpoint")
        if said is not None and said["card"] != _bound(card):
            raise ValueError("they were saved with another card; `devil-pipe train` writes both again")
        tensors = load_file(path)
        width = width_of(card.translator, tensors)
        _check_shapes(card, width, tensors)
        translator = build(card.translator, card.store.layers, width, card.prefix_norm)
        translator.load_state_dict(tensors)
    except (OSError, SafetensorError, ValueError, LookupError, RuntimeError, TypeError, ArithmeticError) as error:
        raise InputError(f"{path}: expected the weights that {source} describes: {error}") from error
    return translator.eval().requires_grad_(False)


def _check_shapes(card: Card, width: int, tensors: Mapping[str, Tensor]) -> None:
    """Compare names and shapes before memory is taken for what a damaged card describes. Raises ValueError."""
    if getattr(card.translator, "layers", 0) > len(tensors):
        raise ValueError(f"{len(tensors)} tensors are too few for the card's {card.translator}")
    with torch.device("meta"):
        planned = build(card.translator, card.store.layers, width, card.prefix_norm).state_dict()
    if differ := sorted(planned.keys() ^ tensors.keys()):
        raise ValueError(f"names that differ, {differ[0]!r} first")
    for name, value in planned.items():
        if value.shape != tensors[name].shape:
            raise ValueError(f"{name}: expected the shape {tuple(value.shape)}, got {tuple(tensors[name].shape)}")


def _read_card(path: Path) -> Card:
    try:
        return read_card(yaml.safe_load(plain_file(path).read_text(encoding="utf-8")), path)
    except FileNotFoundError:
        raise InputError(f"{path}: expected a trained translator, found none; run `devil-pipe train` first") from None
    except (InputError, MemoryError):
        raise
    except Exception as error:  # bytes that are no UTF-8; tags and numbers on which PyYAML may raise anything
        raise InputError(f"{path}: expected a translator's card: {one_line(error)}") from error


def read_card(values: Any, source: Path) -> Card:
    """The card whose `as_dict` these values are. Raises InputError that names their source."""
    try:
        translator, store = translator_config(values["translator"]), Identity.model_validate(values["store"])
        known = {**values, "translator": translator, "store": store}
        Card(**known)  # no key is missing, and none unknown
        return _CARD.validate_python(known)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{source}: expected a translator's card: {told(error)}") from error


_EXACT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Progress:
    """Where a run under way stands: the phase and how many of its steps are done, for which configuration."""

    __pydantic_config__: ClassVar = _EXACT

    phase: str
    step: int
    seconds: float
    digest: str
    journal: str = ""
    """Checksum of the training log up to here."""
    best: int = 0
    """The step of the last phase whose weights are kept as the best; 0: none."""


@dataclass(frozen=True)
class Best:
    """The step with the least validation loss so far, of which configuration."""

    __pydantic_config__: ClassVar = _EXACT

    step: int
    loss: float
    digest: str


_PROGRESS, _BEST = TypeAdapter(Progress), TypeAdapter(Best)


def save_best(path: Path, translator: torch.nn.Module, best: Best) -> None:
    """Write the weights of the best step, whole or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in translator.state_dict().items()}
    _write(path, tensors, "best", best.__dict__)


def read_best(path: Path) -> Best | None:
    """Which step the weights of this file are of, or None without a file. Raises InputError if it is damaged."""
    if not path.exists():
        return None
    try:
        return _BEST.validate_python(_said(path, "best"))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected the best step's weights; remove it: {error}") from error


def restore_best(path: Path, translator: torch.nn.Module) -> None:
    """Put the best step's weights back. Raises InputError if the file is damaged or gone."""
    try:
        read_best(path)
        translator.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise InputError(
            f"{path}: expected the best step's weights: {error}; remove {path.parent} to start again"
        ) from error


def save_progress(path: Path, translator: torch.nn.Module, optimizer: torch.optim.Optimizer, at: Progress) -> None:
    """Write weights, optimizer moments and position as one file, whole or not at all."""
    tensors = {f"model.{name}": value.detach().cpu().contiguous() for name, value in translator.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value.detach().cpu() for name, value in moments.items()}
    _write(path, tensors, "progress", at.__dict__)


def read_progress(path: Path) -> Progress | None:
    """Where the run of this file stands, or None without a file. Raises InputError if it is damaged."""
    if not path.exists():
        return None
    try:
        return _PROGRESS.validate_python(_said(path, "progress"))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected a training state; remove it to start again: {error}") from error


def restore_progress(path: Path, translator: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and optimizer moments back. Raises InputError if the file is not of this translator."""
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    try:
        tensors = load_file(path)
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, moment = name.split(".")
                if moment != "step" and parameters[int(number)].shape != value.shape:
                    raise ValueError(f"{name}: expected {parameters[int(number)].shape}, got {value.shape}")
                state.setdefault(int(number), {})[moment] = value
        if any(moments.keys() != {"step", "exp_avg", "exp_avg_sq"} for moments in state.values()):
            raise ValueError("moments of the optimizer are missing")
        translator.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: expected a training state; remove it to start again: {error}") from error
