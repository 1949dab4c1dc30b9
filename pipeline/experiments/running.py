"""Running an experiment: every stage that is not done, in order, through the same commands that a person would give."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import typer

from devil_pipe.pipeline import config
from devil_pipe.pipeline.experiments.columns import COLUMNS, STAGES_OF
from devil_pipe.pipeline.experiments.experiment import Experiment, PlannedRun, distinct
from devil_pipe.pipeline.experiments.state import states
from devil_pipe.stages.common.assets import asset, table
from devil_pipe.stages.common.progress import Mode, fail, log, mode
from devil_pipe.stages.evaluate.language import TAGGER
from devil_pipe.stages.extract.backbones import spec
from devil_pipe.store.errors import InputError


def stages_of(experiments: Sequence[Experiment]) -> tuple[str, ...]:
    """The stages after extraction that the columns of these experiments need, in order."""
    needed = {stage for item in experiments for name in item.columns for stage in STAGES_OF[COLUMNS[name].source]}
    return tuple(stage for stage in ("train", "evaluate", "saliency") if stage in needed)


def chosen_runs(experiments: Sequence[Experiment]) -> list[PlannedRun]:
    """The runs of several files, each once. Raises UsageError where two of one name differ."""
    return distinct([run for item in experiments for run in item.all_runs()])


def execute(experiments: Sequence[Experiment]) -> int:
    """Run what is left of these experiments; returns the number of stages that ran.

    A stage that fails has said why; the command ends with its exit code, and the same command goes on from there.
    """
    runs, stages = chosen_runs(experiments), stages_of(experiments)
    for run in runs:
        run.write()
    done = _fetch(_assets(experiments, runs))
    for number, planned in enumerate(runs, 1):
        data = config.load_data(planned.run.store.data)
        for place in range(2 + len(stages)):
            state = states(planned.run, data, stages)[place]  # anew: what ran before may have changed it
            if not state.done:
                log(f"run {number} of {len(runs)}: {state.stage} {state.name}: {state.why_not}")
                _command(state.stage, state.name)
                done += 1
    return done


def _assets(experiments: Sequence[Experiment], runs: Sequence[PlannedRun]) -> list[str]:
    """Assets that the runs read and that are not in the cache."""
    names = set()
    if any(COLUMNS[name].source == "language" for item in experiments for name in item.columns):
        names.add(TAGGER)
    for planned in runs:
        run = planned.run
        if config.load_data(run.store.data).source == "demo":
            names |= {"stamps", "scenes"}
        names |= {run.train.language_model, run.evaluate.bertscore.model, run.store.backbone}
        if run.store.weights == "auto":
            names.add(spec(run.store.backbone).asset_weights or "")
    return [name for name in table() if name in names and not _there(name)]


def _there(name: str) -> bool:
    try:
        asset(name)
    except InputError:
        return False
    return True


def _fetch(names: Sequence[str]) -> int:
    if names:
        _command("assets", *names)
    return bool(names)


def _command(*words: str) -> None:
    """One command of devil-pipe in a process of its own, speaking as this one does."""
    spoken = {Mode.QUIET: ["--quiet"], Mode.JSON_LINES: ["--log-json"], Mode.HUMAN: []}[mode()]
    code = subprocess.run([sys.executable, "-m", "devil_pipe.pipeline.cli", *spoken, *words], check=False).returncode
    if code:
        fail(f"stopped at `devil-pipe {' '.join(words)}`; its error stands above, and the same command goes on there")
        raise typer.Exit(code if 0 < code < 256 else 1)
