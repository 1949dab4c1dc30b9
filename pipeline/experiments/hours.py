"""How long what is left would take, from rates that were measured: given by name, or a finished run's own times."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devil_pipe.pipeline.experiments.experiment import PlannedRun, Rates
from devil_pipe.stages.train.config import TrainConfig

COUNTED = ("extract", "train", "evaluate")
"""Stages whose time is counted; preparation depends on networks, heat maps on how many are asked for."""


@dataclass(frozen=True)
class Hours:
    """Hours of what is left of a run, and what they were reckoned from."""

    value: float | None
    """Of the stages whose rate was measured; None where extraction or training is to run and has none."""

    unknown: tuple[str, ...] = ()
    """The stages that are not counted, for want of a measured rate."""

    rates: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The number, and which rate is missing."""
        if self.value is None:
            return f"no measured rate of {', '.join(self.unknown)}"
        return f"{self.value:,.2f}" + (f" without {', '.join(self.unknown)}" if self.unknown else "")


def hours_of(
    planned: PlannedRun,
    left: Sequence[str],
    pictures: int | None,
    rates: Rates | None,
    finished: Mapping[str, Sequence[PlannedRun]],
) -> Hours:
    """The hours of a run's stages that are left.

    Args:
        planned: the run.
        left: stages that would run for it.
        pictures: of its data; None where they are not known.
        rates: measured ones that were given; they go before what finished runs say.
        finished: stage → runs of the plan that have done it with their present settings; their times are a rate for
            the same stage of a run that differs in nothing that costs time.
    """
    ways = {
        "extract": lambda: _extraction(pictures, rates),
        "train": lambda: _training(planned, rates, finished.get("train", ())),
        "evaluate": lambda: _evaluation(planned, finished.get("evaluate", ())),
    }
    total, unknown, sources = 0.0, [], []
    for stage in (item for item in COUNTED if item in left):
        found = ways[stage]()
        if found is None:
            unknown.append(stage)
            continue
        total += found[0]
        sources.append(found[1])
    counted = set(unknown) <= {"evaluate"}
    return Hours(round(total / 3600, 3) if counted else None, tuple(unknown), tuple(sources))


def _extraction(pictures: int | None, rates: Rates | None) -> tuple[float, str] | None:
    if pictures is None or rates is None or rates.pictures_a_second is None:
        return None
    told = f"extraction at {rates.pictures_a_second:g} pictures/s, measured on {rates.measured_on}"
    return pictures / rates.pictures_a_second, told


def _training(planned: PlannedRun, rates: Rates | None, finished: Sequence[PlannedRun]) -> tuple[float, str] | None:
    train = planned.run.train
    if rates is not None and rates.seconds_a_step is not None:
        steps = train.warmup.phase.steps + train.phase.steps
        told = f"training at {rates.seconds_a_step:g} s/step, measured on {rates.measured_on}"
        return steps * rates.seconds_a_step, told
    for other in finished:
        seconds = _seconds(other.run.train.out, "train")
        if seconds is not None and _as_long(other.run.train, train):
            return seconds, f"training: {seconds:,.0f} s a run, as {other.name} took"
    return None


def _evaluation(planned: PlannedRun, finished: Sequence[PlannedRun]) -> tuple[float, str] | None:
    for other in finished:
        seconds = _seconds(other.run.evaluate.out, "evaluate")
        if seconds is not None and other.base == planned.base and other.run.store == planned.run.store:
            return seconds, f"evaluation: {seconds:,.0f} s a run, as {other.name} took"
    return None


def _as_long(one: TrainConfig, other: TrainConfig) -> bool:
    """Whether two trainings differ in what costs no time alone: seed, dropouts and the run's name."""
    free = {"run", "out", "seed", "dropout", "runtime"}
    return one.model_dump(exclude=free) == other.model_dump(exclude=free)


def _seconds(run_dir: Path, stage: str) -> float | None:
    path = run_dir / stage / "seconds.json"
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))[stage])
    except (OSError, ValueError, KeyError, TypeError):
        return None
