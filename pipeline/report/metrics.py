"""The run's numbers: the schema of `metrics.json` (see docs/metrics.md) and how the stages' parts become one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from devil_pipe.pipeline.report.reading import read_card, read_object, validated
from devil_pipe.store.errors import InputError

ALL_LAYERS = "all"
BASELINES = ("centre_prior", "random")


class MetricKind(NamedTuple):
    """How one metric is named and read."""

    label: str
    digits: int
    percent: bool = False
    lower_is_better: bool = False
    unit: str = ""


METRICS = {
    "object_accuracy": MetricKind("object named", 1, percent=True),
    "cider": MetricKind("CIDEr", 2),
    "bleu_1": MetricKind("BLEU-1", 3),
    "bleu_2": MetricKind("BLEU-2", 3),
    "bleu_3": MetricKind("BLEU-3", 3),
    "bleu_4": MetricKind("BLEU-4", 3),
    "meteor": MetricKind("METEOR", 3),
    "rouge_l": MetricKind("ROUGE-L", 3),
    "spice": MetricKind("SPICE", 3),
    "bertscore": MetricKind("BERTScore", 3),
    "loss": MetricKind("loss", 2, lower_is_better=True, unit="nats/token"),
    "pointing": MetricKind("pointing game", 1, percent=True),
    "pointing_off_centre": MetricKind("pointing game, object off centre", 1, percent=True),
    "iou": MetricKind("IoU", 3),
}


def metric_kind(key: str) -> MetricKind:
    """How to name and print a metric; an unknown key stands for itself."""
    return METRICS.get(key, MetricKind(key, 3))


class Score(BaseModel):
    """A value on its natural scale with its 95 % interval, or the reason why there is none."""

    model_config = ConfigDict(extra="allow", frozen=True)

    value: FiniteFloat | None = None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    not_run: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Score:
        if (self.value is None) == (self.not_run is None):
            raise ValueError('expected either "value" or "not_run"')
        if (self.low is None) != (self.high is None):
            raise ValueError('expected "low" and "high" together')
        return self


Scores = dict[str, dict[str, Score]]


class NovelObjects(BaseModel):
    """Scores on pictures of objects that training never showed."""

    model_config = ConfigDict(extra="allow", frozen=True)

    n: int = Field(ge=0)
    scores: Scores = {}


class TrainSummary(BaseModel):
    """What `train/summary.json` must say for the report."""

    model_config = ConfigDict(extra="allow", frozen=True)

    trainable_parameters: int
    seconds: FiniteFloat
    warmup: str
    weights: str
    store_identity: str
    steps: dict[str, int] = {}


class SaliencyPart(BaseModel):
    """What `saliency/metrics.json` must hold: scores by layer, `centre_prior` and `random`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    saliency: dict[str, dict[str, Score | int]]


class Metrics(BaseModel):
    """`runs/RUN/metrics.json`, as docs/metrics.md describes it; further keys are carried along."""

    model_config = ConfigDict(extra="allow", frozen=True)

    run: str
    data: str
    seed: int
    n_index: int = Field(ge=0)
    n_scored: int = Field(ge=0)
    scores: Scores
    controls: Scores
    distinct: dict[str, Score] = {}
    novel_objects: NovelObjects | None = None
    saliency: dict[str, dict[str, Score | int]]
    seconds: dict[str, FiniteFloat] = {}
    layers: list[str] | None = None
    bertscore_settings: str = ""
    weights: str
    warmup: str
    data_note: str = ""
    things: Literal["pictures", "units"] = "pictures"
    """What was described; a store of units holds means over their exemplars. Never in the file: see `check`."""
    train: TrainSummary

    @model_validator(mode="after")
    def _has_all_layers(self) -> Metrics:
        if ALL_LAYERS not in self.scores:
            raise ValueError(f'scores: expected the key "{ALL_LAYERS}"')
        return self

    @property
    def no_saliency(self) -> str:
        """Why there are no maps to score; "" where there are."""
        return "" if self.saliency else str((self.model_extra or {}).get("not_run", "no map was scored"))

    def layer_names(self) -> list[str]:
        """The layers, shallow to deep: as the key `layers` orders them, else by the numbers in their names."""
        return ordered_layers((name for name in self.scores if name != ALL_LAYERS), self.layers)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that reads numbers as numbers: stride8 before stride16."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", name)]


def ordered_layers(names: Iterable[str], order: list[str] | None) -> list[str]:
    """Names in the run's own order where it is known, the others behind in natural order."""
    known = {name: position for position, name in enumerate(order or [])}
    return sorted(names, key=lambda name: (known.get(name, len(known)), natural_key(name)))


def merge(run: str, run_dir: Path) -> dict[str, Any]:
    """One object out of the stages' parts: evaluate's and saliency's metrics, train's summary, the times.

    The parts' top-level keys must agree where two stages give the same one: a difference means that one of
    them is left from an earlier configuration.

    Raises:
        InputError: a part is missing, malformed, or contradicts another one.
    """
    summary_path = run_dir / "train" / "summary.json"
    summary = read_object(summary_path, "train", run)
    train = validated(TrainSummary, summary, summary_path, "train", run)
    merged: dict[str, Any] = {"run": run, "weights": train.weights, "warmup": train.warmup}
    seconds: dict[str, Any] = {"train": train.seconds}
    for stage in ("evaluate", "saliency"):
        path = run_dir / stage / "metrics.json"
        part = read_object(path, stage, run)
        if stage == "saliency":
            validated(SaliencyPart, part, path, stage, run)
        seconds |= _times(part.pop("seconds", {}), path)
        _add(merged, part, path, stage)
    for path in sorted(run_dir.glob("*/seconds.json")):
        stage = path.parent.name
        seconds |= _times(read_object(path, stage, run), path, stage)
    merged["seconds"] = seconds
    merged["train"] = summary
    return merged


def check(merged: dict[str, Any], run: str, run_dir: Path) -> Metrics:
    """The merged object as `Metrics`, and whether pictures or units were described, which the checkpoint's card says.

    Raises:
        InputError: names the first key that is missing or wrong.
    """
    metrics = validated(Metrics, merged, run_dir / "evaluate" / "metrics.json", "evaluate", run)
    card = read_card(run_dir / "checkpoint" / "config.yaml", run)
    store = card.get("store")
    encoding = str(store.get("encoding", "")) if isinstance(store, dict) else ""
    return metrics.model_copy(update={"things": "units" if encoding.startswith("units") else "pictures"})


def _add(merged: dict[str, Any], part: dict[str, Any], path: Path, stage: str) -> None:
    for key, value in part.items():
        if merged.get(key, value) != value:
            raise InputError(
                f"{path}, {key}: expected {merged[key]!r} as in the run's other files, got {value!r}. "
                f"One of them is left from an earlier run; run `devil-pipe {stage} {merged['run']}` again."
            )
        merged[key] = value


def _times(value: object, path: Path, stage: str = "") -> dict[str, float]:
    """Seconds by stage; in `STAGE/seconds.json` the key `seconds` means the stage itself."""
    if not isinstance(value, dict) or not all(isinstance(number, int | float) for number in value.values()):
        raise InputError(f"{path}: expected seconds by stage, as {{NAME: number}}, got {value!r:.80}.")
    return {(stage if stage and name == "seconds" else str(name)): value[name] for name in value}
