"""A trained translator on disk, and the state of a run under way: safetensors and YAML, nothing that could run code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from devil_pipe.stages.common.files import replacing, write_text_atomic
from devil_pipe.stages.train.config import ClipCapConfig, TranslatorConfig, translator_config
from devil_pipe.stages.train.translator import Translator, build, width_of
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.schema import Identity


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


def save(folder: Path, translator: Translator, card: Card) -> None:
    """Write `translator.safetensors` and `config.yaml`, each whole or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in translator.state_dict().items()}
    with replacing(folder / "translator.safetensors") as partial:
        save_file(tensors, partial)
    write_text_atomic(folder / "config.yaml", yaml.safe_dump(card.as_dict(), sort_keys=False, allow_unicode=True))


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
        tensors = load_file(path)
        width = width_of(card.translator, tensors)
        translator = build(card.translator, card.store.layers, width, card.prefix_norm)
        translator.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, IndexError, RuntimeError, UsageError) as error:
        raise InputError(f"{path}: expected the weights that {source} describes: {error}") from error
    return translator.eval().requires_grad_(False)


def _read_card(path: Path) -> Card:
    try:
        return read_card(yaml.safe_load(path.read_text(encoding="utf-8")), path)
    except FileNotFoundError:
        raise InputError(f"{path}: expected a trained translator, found none; run `devil-pipe train` first") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a translator's card: {error}") from error


def read_card(values: Any, source: Path) -> Card:
    """The card whose `as_dict` these values are. Raises InputError that names their source."""
    try:
        translator, store = translator_config(values["translator"]), Identity.model_validate(values["store"])
        return Card(**{**values, "translator": translator, "store": store})
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{source}: expected a translator's card: {error}") from error


@dataclass(frozen=True)
class Progress:
    """Where a run under way stands: the phase and how many of its steps are done, for which configuration."""

    phase: str
    step: int
    seconds: float
    digest: str


@dataclass(frozen=True)
class Best:
    """The step with the least validation loss so far, of which configuration."""

    step: int
    loss: float
    digest: str


def save_best(path: Path, translator: torch.nn.Module, best: Best) -> None:
    """Write the weights of the best step, whole or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in translator.state_dict().items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"best": json.dumps(best.__dict__)})


def read_best(path: Path) -> Best | None:
    """Which step the weights of this file are of, or None without a file. Raises InputError if it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return Best(**json.loads(file.metadata()["best"]))
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: expected the best step's weights; remove it: {error}") from error


def save_progress(path: Path, translator: torch.nn.Module, optimizer: torch.optim.Optimizer, at: Progress) -> None:
    """Write weights, optimizer moments and position as one file, whole or not at all."""
    tensors = {f"model.{name}": value.detach().cpu().contiguous() for name, value in translator.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value.detach().cpu() for name, value in moments.items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"progress": json.dumps(at.__dict__)})


def read_progress(path: Path) -> Progress | None:
    """Where the run of this file stands, or None without a file. Raises InputError if it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return Progress(**json.loads(file.metadata()["progress"]))
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: expected a training state; remove it to start again: {error}") from error


def restore_progress(path: Path, translator: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and optimizer moments back."""
    tensors = load_file(path)
    translator.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, moment = name.split(".")
            state.setdefault(int(number), {})[moment] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
