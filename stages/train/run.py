"""Stage two: train the translator from the store, the language model frozen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, gather_object, set_seed

from devil_pipe.stages.common.alone import alone
from devil_pipe.stages.common.files import read_object, sha256_json, write_json
from devil_pipe.stages.common.memory import keep_freed_memory
from devil_pipe.stages.common.progress import Mode, bar, log, speak, warn
from devil_pipe.stages.extract.worker import pick_device
from devil_pipe.stages.prepare.index import index_digest, read_index
from devil_pipe.stages.train.alignment import Alignment
from devil_pipe.stages.train.batches import Example, shards_a_window
from devil_pipe.stages.train.checkpoint import Card, Progress, read_progress, save
from devil_pipe.stages.train.config import TrainConfig
from devil_pipe.stages.train.journal import Journal
from devil_pipe.stages.train.language_model import LanguageModel, pick_precision
from devil_pipe.stages.train.loop import Loop, Parts
from devil_pipe.stages.train.processes import together, world_size
from devil_pipe.stages.train.trackers import available
from devil_pipe.stages.train.translator import build, trainable_parameters
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.verify import verify

_NO_RESULT = {"runtime", "store", "data_dir", "out", "run"}


def run(config: TrainConfig) -> None:
    """Train, or go on with a run of the same configuration that was stopped; one of several processes does its share.

    Writes checkpoint/, train/log.jsonl and train/summary.json under `config.out`, from the main process.

    Raises:
        InputError: store, index or language model that cannot be used; another process that is gone; another command
            at work on the same run.
        UsageError: settings of speed that cannot be had here.
    """
    keep_freed_memory()
    available(config.runtime.tracker)
    with ExitStack() as stack:
        if int(os.environ.get("RANK", "0")) == 0:
            stack.enter_context(alone(config.out / "train", f"devil-pipe train {config.run}"))
        stack.enter_context(together(world_size()))
        _run(config, _accelerator(config))


def _run(config: TrainConfig, accelerator: Accelerator) -> None:
    if not accelerator.is_main_process:
        speak(Mode.QUIET)
    store = FeatureStore(config.store)
    if config.runtime.verify_store and store.place.local:
        _verify(config, (accelerator.process_index, accelerator.num_processes))
    digest = _digest(config, store)
    progress = read_progress(config.out / "train" / "state.safetensors")
    if progress is not None and progress.digest != digest:
        log("the configuration or the store changed: training starts again")
        progress = None
    _agree(config, accelerator, digest, progress)
    note = data_note(config.data_dir)  # a mistake there is to be said now, and not after a day
    parts = assemble(config, accelerator, store)
    loop = Loop(parts, digest, progress)
    try:
        seconds = loop.run()
        if accelerator.is_main_process:
            _finish(config, parts, loop, seconds, note)
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
    accelerator.end_training()


def _verify(config: TrainConfig, share: tuple[int, int]) -> None:
    """Read all of the store, or this process's share. Raises InputError for damage, so that nothing learns from it.

    A row's checksum, which every batch compares, cannot tell that its shard is another's.
    """
    with ExitStack() as stack:
        report = verify(
            config.store,
            share=share,
            watch=lambda files: stack.enter_context(bar("look for damage in the store", files, "files")).advance,
        )
    faults = [str(finding) for finding in report.findings if not finding.note]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InputError(f"{faults[0]}{more}")


def _finish(config: TrainConfig, parts: Parts, loop: Loop, seconds: float, note: str) -> None:
    card = Card(
        translator=config.translator,
        prefix_norm=parts.translator.prefix_norm,
        prefix_repeats=config.prefix_repeats,
        language_model=config.language_model,
        store=parts.store.identity,
        warmup=config.warmup.kind,
        seed=config.seed,
        data_note=note,
    )
    save(config.out / "checkpoint", parts.translator, card)
    write_json(config.out / "train" / "summary.json", _summary(config, parts, seconds) | _taken(config, loop))
    write_json(config.out / "train" / "seconds.json", {"train": round(seconds, 1)})
    _warn_if_blind(config)


def _accelerator(config: TrainConfig) -> Accelerator:
    set_seed(config.seed)
    speed = config.runtime
    auto_cpu = speed.device == "auto" and not torch.cuda.is_available()  # MPS is taken on demand alone
    device = torch.device("cpu") if auto_cpu else pick_device(speed.device)
    if speed.precision == "float16" and device.type != "cuda":
        raise UsageError("runtime.train.precision: float16 needs a GPU; expected auto, float32 or bfloat16 here")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise UsageError(
            f"{here} processes: expected one GPU for each, found {torch.cuda.device_count()}; "
            "take fewer, or runtime.train.device: cpu"
        )
    if device.type == "cuda" and device.index is not None and world_size() == 1:
        torch.cuda.set_device(device)
    half = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(_precision(config, device), "no")
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        # Left to "auto", the processor computes the translator in float32, the language model alone in bfloat16.
        mixed_precision="no" if device.type == "cpu" and speed.precision == "auto" else half,
        log_with=None if speed.tracker == "none" else speed.tracker,
        project_config=ProjectConfiguration(logging_dir=str(config.out / "train")),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=speed.lost_after_seconds))],
        dynamo_backend="no",
    )
    accelerator.gradient_accumulation_steps = 1  # pieces are weighed by `Step`, whatever a launcher's environment says
    return accelerator


def _precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    return torch.float16 if config.runtime.precision == "float16" else pick_precision(config.runtime.precision, device)


def _agree(config: TrainConfig, accelerator: Accelerator, digest: str, progress: Progress | None) -> None:
    """Raise InputError for processes that begin at different steps or train different things."""
    mine = (digest, (progress.phase, progress.step) if progress else None)
    found: list[object] = gather_object([mine])
    if any(other != found[0] for other in found):
        raise InputError(
            f"{config.out}/train: the {accelerator.num_processes} processes see different runs there; expected the "
            "same configuration, store and folder on all machines"
        )


def _digest(config: TrainConfig, store: FeatureStore) -> str:
    """What decides the weights: the configuration without speed and paths, and the features."""
    chosen = config.model_dump(mode="json", exclude={*_NO_RESULT, "order", "window_shards"})
    if windows := shards_a_window(config.order, config.window_shards, store):
        chosen["windows"] = windows  # and nothing for a full permutation, whoever asked for it
    if chosen["translator"].get("kind") == "devil":
        del chosen["translator"]["kind"]  # runs that were begun before there were other kinds go on
    return sha256_json({"config": chosen, "store": store.identity.digest})


def assemble(config: TrainConfig, accelerator: Accelerator, store: FeatureStore) -> Parts:
    """What a run of this configuration trains with, on the accelerator's device. Raises InputError as `run` does."""
    table = read_index(config.data_dir / "index.parquet")
    if index_digest(table) != store.identity.index:
        raise InputError(
            f"{config.data_dir}/index.parquet: expected the index that {config.store} was extracted with "
            f"({store.rows} rows, digest {store.identity.index[:12]}), got another ({table.num_rows} rows); where the "
            f"index is out of date, `devil-pipe prepare {config.data_dir.name}`; where the store is, "
            f"`devil-pipe extract {Path(config.store).name}`"
        )
    index = table.to_pylist()
    device = accelerator.device
    language_model = LanguageModel(
        config.language_model,
        device=device,
        dtype=_precision(config, device),
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
        translator = build(config.translator, store.layers, language_model.width, norm)
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
    return str(read_object(path, "run `devil-pipe prepare` again").get("note", ""))


def _warn_if_blind(config: TrainConfig) -> None:
    losses = [line for line in Journal.entries(config.out / "train" / "log.jsonl") if "val_loss" in line]
    if losses and losses[-1]["val_loss_shuffled"] - losses[-1]["val_loss"] < 0.05:
        warn(
            "the loss is no better than with another picture's features: the translator writes without looking "
            f"(own {losses[-1]['val_loss']:.3f}, shuffled {losses[-1]['val_loss_shuffled']:.3f} nats a token)"
        )
