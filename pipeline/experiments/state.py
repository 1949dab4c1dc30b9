"""What of a run is done: read from the files that its stages leave, never assumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from devil_pipe.pipeline.config import Run
from devil_pipe.stages.evaluate.config import EvaluateConfig
from devil_pipe.stages.extract.backbones import spec
from devil_pipe.stages.extract.config import ExtractConfig, Size
from devil_pipe.stages.extract.layers import planned_layers
from devil_pipe.stages.prepare.config import PrepareConfig
from devil_pipe.stages.saliency.config import SaliencyConfig
from devil_pipe.stages.train.config import TrainConfig
from devil_pipe.store.schema import Identity, LayerSpec

_PATHS = ("run", "store", "data_dir", "out")
_NO_RESULT = {*_PATHS, "runtime", "order", "window_shards"}


@dataclass(frozen=True)
class State:
    """Whether a stage's result is there and is that of the present configuration."""

    stage: str
    name: str
    why_not: str
    """"" where it is done."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return not self.why_not


def states(run: Run, data: PrepareConfig, stages: tuple[str, ...]) -> list[State]:
    """The state of a run's chain: its pictures, its store, and the `stages` (of train, evaluate, saliency)."""
    found = [
        State("prepare", data.name, prepared(data)),
        State("extract", run.store.name, extracted(run.store, data)),
    ]
    checks = {"train": trained, "evaluate": evaluated, "saliency": drawn}
    return [*found, *(State(stage, run.name, checks[stage](run)) for stage in stages)]


def prepared(data: PrepareConfig) -> str:
    """Why data/NAME cannot be taken as it lies there; "" where it can."""
    summary = _read(data.out / "summary.json")
    if summary is None or not (data.out / "index.parquet").is_file():
        return "not prepared"
    if (summary.get("source"), summary.get("seed")) != (data.source, data.seed):
        return "prepared from another source or seed"
    if data.source == "demo":
        wanted = {split: getattr(data.demo, split) for split in ("train", "val", "test", "test_novel")}
        if summary.get("splits") != {split: count for split, count in wanted.items() if count}:
            return "prepared with other numbers of pictures"
    return ""


def extracted(store: ExtractConfig, data: PrepareConfig) -> str:
    """Why a store cannot be taken as it lies there."""
    identity = identity_of(store.out)
    summary = _read(data.out / "summary.json") or {}
    if identity is None:
        return "not extracted"
    if identity.index != summary.get("index_digest"):
        return "extracted from other pictures"
    known = spec(store.backbone)
    wanted = (store.backbone, store.encoding, store.compute, known.transform(store.image_size).describe())
    if (identity.backbone, identity.encoding, identity.compute, identity.transform) != wanted:
        return "extracted with other settings"
    if identity.layers != layers_of(store.backbone, store.layers, store.image_size):
        return "extracted from other layers"
    if identity.weights.startswith("random:") != (store.weights == "random"):
        return "extracted with other weights"
    return ""


@cache
def layers_of(backbone: str, names: tuple[str, ...], image_size: Size | None) -> tuple[LayerSpec, ...]:
    """The shapes of a store's layers, without any weights."""
    return planned_layers(spec(backbone), names, image_size)


def identity_of(folder: Path) -> Identity | None:
    """What a finished store says it is; None where there is none."""
    manifest = _read(folder / "manifest.json")
    try:
        return None if manifest is None else Identity.model_validate(manifest.get("identity"))
    except ValidationError:
        return None


def trained(run: Run) -> str:
    """Why a run's checkpoint cannot be taken as it lies there."""
    summary = _read(run.train.out / "train" / "summary.json")
    if summary is None or not _checkpoint(run).is_file():
        return "not trained"
    if not _same(TrainConfig, summary.get("config"), run.train):
        return "trained with other settings"
    return _features(run, summary, "trained")


def evaluated(run: Run) -> str:
    """Why a run's scores cannot be taken as they lie there."""
    metrics = _read(run.evaluate.out / "evaluate" / "metrics.json")
    if metrics is None or not (run.evaluate.out / "predictions.parquet").is_file():
        return "not evaluated"
    if not _same(EvaluateConfig, metrics.get("evaluate_settings"), run.evaluate):
        return "evaluated with other settings"
    return _features(run, metrics, "evaluated") or _after(run, "evaluate")


def drawn(run: Run) -> str:
    """Why a run's saliency scores cannot be taken as they lie there."""
    metrics = _read(run.saliency.out / "saliency" / "metrics.json")
    if metrics is None:
        return "no heat maps"
    if not _same(SaliencyConfig, metrics.get("saliency_settings"), run.saliency):
        return "heat maps with other settings"
    return _features(run, metrics, "heat maps") or _after(run, "saliency")


def _checkpoint(run: Run) -> Path:
    return run.train.out / "checkpoint" / "translator.safetensors"


def _features(run: Run, found: Mapping[str, Any], what: str) -> str:
    identity = identity_of(run.store.out)
    here = identity is not None and identity.digest == found.get("store_identity")
    return "" if here else f"{what} on another store than the one that lies there"


def _after(run: Run, stage: str) -> str:
    """Scores that are older than the checkpoint are another training's."""
    scores = run.train.out / stage / "metrics.json"
    checkpoint = _checkpoint(run)
    newer = checkpoint.is_file() and scores.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns
    return "" if newer else "older than the training"


def _same(kind: type[BaseModel], old: object, new: BaseModel) -> bool:
    """Whether recorded settings are these, what bears on no result left out; a key that is newer has its default."""
    if not isinstance(old, dict):
        return False
    paths = {key: getattr(new, key) for key in _PATHS if hasattr(new, key)}
    kept = {key: value for key, value in old.items() if key not in _NO_RESULT}
    try:
        then = kind.model_validate({**kept, **paths})
    except ValidationError:
        return False
    return then.model_dump(exclude=_NO_RESULT) == new.model_dump(exclude=_NO_RESULT)


def _read(path: Path) -> dict[str, Any] | None:
    """A stage's JSON file; None where it is missing or no object, for then the stage is not done."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
