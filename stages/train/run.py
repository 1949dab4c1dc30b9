"""Stage two: train the translator from the store, the language model frozen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from devil_pipe.stages.common.files import sha256_json, write_json
from devil_pipe.stages.common.memory import keep_freed_memory
from devil_pipe.stages.common.progress import log, warn
from devil_pipe.stages.prepare.index import read_index
from devil_pipe.stages.train.alignment import Alignment
from devil_pipe.stages.train.batches import Example, shards_a_window
from devil_pipe.stages.train.checkpoint import Card, read_progress, save
from devil_pipe.stages.train.config import TrainConfig
from devil_pipe.stages.train.journal import Journal
from devil_pipe.stages.train.language_model import LanguageModel, pick_precision
from devil_pipe.stages.train.loop import Loop, Parts
from devil_pipe.stages.train.translator import Translator, trainable_parameters
from devil_pipe.store.errors import InputError
from devil_pipe.store.reader import FeatureStore

_NO_RESULT = {"runtime", "store", "data_dir", "out", "run"}


def run(config: TrainConfig) -> None:
    """Train, or go on with a run of the same configuration that was stopped.

    Writes checkpoint/, train/log.jsonl and train/summary.json under `config.out`.

    Raises:
        InputError: store, index or language model that cannot be used.
    """
    keep_freed_memory()
    accelerator = _accelerator(config)
    store = FeatureStore(config.store)
    digest = _digest(config, store)
    progress = read_progress(config.out / "train" / "state.safetensors")
    if progress is not None and progress.digest != digest:
        log("the configuration or the store changed: training starts again")
        progress = None
    parts = _parts(config, accelerator, store)
    loop = Loop(parts, digest, progress)
    seconds = loop.run()
    if not accelerator.is_main_process:
        return
    card = Card(
        translator=config.translator,
        prefix_norm=parts.translator.prefix_norm,
        prefix_repeats=config.prefix_repeats,
        language_model=config.language_model,
        store=store.identity,
        warmup=config.warmup.kind,
        seed=config.seed,
        data_note=data_note(config.data_dir),
    )
    save(config.out / "checkpoint", parts.translator, card)
    write_json(config.out / "train" / "summary.json", _summary(config, parts, seconds) | _taken(config, loop))
    write_json(config.out / "train" / "seconds.json", {"train": round(seconds, 1)})
    _warn_if_blind(config)


def _accelerator(config: TrainConfig) -> Accelerator:
    set_seed(config.seed)
    on_cpu = config.runtime.device == "cpu" or (config.runtime.device == "auto" and not torch.cuda.is_available())
    mixed = "bf16" if not on_cpu and config.runtime.precision != "float32" else "no"
    return Accelerator(cpu=on_cpu, mixed_precision=mixed)


def _digest(config: TrainConfig, store: FeatureStore) -> str:
    """What decides the weights: the configuration without speed and paths, and the features."""
    chosen = config.model_dump(mode="json", exclude={*_NO_RESULT, "order", "window_shards"})
    if windows := shards_a_window(config.order, config.window_shards, store):
        chosen["windows"] = windows  # and nothing for a full permutation, whoever asked for it
    return sha256_json({"config": chosen, "store": store.identity.digest})


def _parts(config: TrainConfig, accelerator: Accelerator, store: FeatureStore) -> Parts:
    index = read_index(config.data_dir / "index.parquet").to_pylist()
    if len(index) != store.rows:
        raise InputError(f"{config.data_dir}: expected the {store.rows} rows of {config.store}, got {len(index)}")
    device = accelerator.device
    language_model = LanguageModel(
        config.language_model,
        device=device,
        dtype=pick_precision(config.runtime.precision, device),
        repeats=config.prefix_repeats,
        dropout=config.language_model_dropout,
    )
    valid = store.valid()
    train = _examples(index, valid, "train", language_model)
    validation = _examples(index, valid, "val", language_model)[: config.validation_rows]
    if not train or len(validation) < 2:
        raise InputError(
            f"{config.data_dir}/index.parquet: expected pictures in the splits train and val (two at least), "
            f"got {len(train)} and {len(validation)}"
        )
    alignment, norm = None, None
    if config.warmup.kind == "alignment":
        captions = [example.caption for example in train]
        embeddings = language_model.embedding.weight
        alignment = Alignment(config.warmup, embeddings, captions, language_model.eos, config.translator.queries)
        norm = language_model.mean_norm()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        channels = [layer.channels for layer in store.layers]
        translator = Translator(config.translator, channels, language_model.width, norm)
    return Parts(config, accelerator, store, translator, language_model, alignment, train, validation)


def _examples(index: Sequence[dict[str, Any]], valid: Any, split: str, language_model: LanguageModel) -> list[Example]:
    """One example for each caption of each usable picture of a split."""
    pairs = [
        (row, caption)
        for row, entry in enumerate(index)
        if valid[row] and entry["split"] == split
        for caption in entry["captions"]
    ]
    ids = language_model.encode([caption for _, caption in pairs]) if pairs else []
    return [Example(row, tuple(tokens)) for (row, _), tokens in zip(pairs, ids, strict=True)]


def _summary(config: TrainConfig, parts: Parts, seconds: float) -> dict[str, Any]:
    return {
        "trainable_parameters": trainable_parameters(parts.translator),
        "language_model": config.language_model,
        "language_model_dtype": str(parts.language_model.model.dtype).removeprefix("torch."),
        "device": parts.accelerator.device.type,
        "processes": parts.accelerator.num_processes,
        "seconds": round(seconds, 1),
        "steps": {"alignment": config.warmup.phase.steps, "language": config.phase.steps},
        "warmup": config.warmup.kind,
        "prefix_repeats": config.prefix_repeats,
        "seed": config.seed,
        "window_shards": shards_a_window(config.order, config.window_shards, parts.store),
        "captions": {"train": len(parts.train), "val": len(parts.validation)},
        "store_identity": parts.store.identity.digest,
        "backbone": parts.store.identity.backbone,
        "weights": parts.store.identity.weights,
        "config": config.model_dump(mode="json", exclude={"store", "data_dir", "out"}),
    }


def _taken(config: TrainConfig, loop: Loop) -> dict[str, Any]:
    step = loop.best.step if loop.best else config.phase.steps
    return {"taken_step": step, "taken": config.take}


def data_note(data_dir: Path) -> str:
    """What kind of pictures these are, in words that stand wherever a figure does."""
    path = data_dir / "summary.json"
    if not path.exists():
        return ""
    return str(json.loads(path.read_text(encoding="utf-8")).get("note", ""))


def _warn_if_blind(config: TrainConfig) -> None:
    losses = [line for line in Journal.entries(config.out / "train" / "log.jsonl") if "val_loss" in line]
    if losses and losses[-1]["val_loss_shuffled"] - losses[-1]["val_loss"] < 0.05:
        warn(
            "the loss is no better than with another picture's features: the translator writes without looking "
            f"(own {losses[-1]['val_loss']:.3f}, shuffled {losses[-1]['val_loss_shuffled']:.3f} nats a token)"
        )
