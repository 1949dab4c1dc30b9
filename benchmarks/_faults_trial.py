"""One trial: disturb a command, do what its messages say, and compare all rows and the checkpoint with the undisturbed.

Outcomes: `unharmed`, the disturbed command itself ended well and all is equal; `recovered`, the same command again did;
`refused`, an error named what is wrong, and all was equal after what it told to do; and what must not be: `silently
wrong`, a command accepted what differs; `traceback`; `unclear`, an error that names no way out; `hung`.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _faults_cluster import Cluster
from _faults_kinds import DAMAGES, LIMIT, MOMENTS, Trial, arm, damage
from _faults_process import Commands, Ended, words
from _faults_project import NAME, World, make

from devil_pipe.stages.train.checkpoint import load
from devil_pipe.store.errors import InputError
from devil_pipe.store.reader import FeatureStore

GOOD, BAD = ("unharmed", "recovered", "refused"), ("silently wrong", "traceback", "unclear", "hung")
LEARNED = ("checkpoint/", "train/")
_LOG = "do not trust its curves"
MOST = 8  # commands and mends before a trial counts as unclear
_COMMAND = re.compile(r"`devil-pipe ([^`]+)`")
_REMOVE = re.compile(r"error: (.+?): .*\bremove (?:it|them|the file|the folder)\b")
_REMOVE_NAMED = re.compile(r"\bremove (\S*/\S+?)(?:[;,. ]|$)")


@dataclass
class Told:
    """What happened in a trial."""

    did: str = ""
    steps: list[str] = field(default_factory=list)
    outcome: str = ""
    again: int = 0
    later: bool = False
    mends: int = 0

    def step(self, command: str, ended: Ended) -> Ended:
        """Note how a command ended."""
        lines = [line for line in ended.said.splitlines() if not line.startswith("operations:")]
        last = [line for line in lines if line.startswith(("error: ", "warning: "))] or lines[-1:]
        self.steps.append(f"{command}: {ended.code}" + (f" ({words(last)})" if last else ""))
        if ended.code is None:
            self.outcome = "hung"
        elif "Traceback (most recent call last)" in ended.said or ended.code == 70:
            self.outcome = "traceback"
            self.steps.append(words(lines[-6:]))
        return ended


class Laboratory:
    """Where trials are made, one after another."""

    def __init__(self, scratch: Path, commands: Commands) -> None:
        self.scratch, self.commands = scratch, commands
        self.worlds: dict[str, World] = {}
        self.cluster = Cluster(commands, scratch / "dask")

    def run(self, trial: Trial) -> dict[str, Any]:
        """Make a trial; gives it and how it ended as JSON."""
        if trial.encoding not in self.worlds:
            place = self.scratch / f"world-{trial.encoding.replace('+', '-')}"
            self.worlds[trial.encoding] = make(place, trial.encoding, self.commands)
        world = self.worlds[trial.encoding]
        project = self.scratch / f"project-{trial.number}"
        shutil.rmtree(project, ignore_errors=True)
        shutil.copytree(world.base(trial.command, trial.base), project)
        told = Told()
        try:
            self._recover(trial, world, project, told, self._disturb(trial, world, project, told))
        finally:
            self.cluster.rest()
            shutil.rmtree(project, ignore_errors=True)
        return {**trial.facts(), "did": told.did, "steps": told.steps, "outcome": told.outcome}

    def _disturb(self, trial: Trial, world: World, project: Path, told: Told) -> Ended:
        command = ["--quiet", trial.command, NAME]
        if trial.stage == "two workers":
            ended, told.did = self.cluster.disturb(trial, world, project)
            return told.step("disturbed extract of two workers", ended)
        if trial.stage == "two at once":
            return self._two(trial, world, project, told)
        how: dict[str, Any] = {"arm": arm(trial, world)}
        told.did = f"at operation {how['arm'].moment}" if how["arm"] else ""
        if trial.kind == LIMIT:
            how["limit"] = trial.random().choice([1000, 3000, 9000, 30000, 100_000])
            told.did = f"files of {how['limit']} bytes at most"
        if trial.kind in DAMAGES and not trial.midway:
            told.did = damage(trial, world, project)
        if not trial.midway:
            return told.step(f"disturbed {trial.command}", self.commands.run(project, *command, **how))
        child = self.commands.start(project, *command, **how)
        ended = child.until(lambda: child.stopped)
        told.did += f"; {damage(trial, world, project)}"
        child.send(signal.SIGCONT)
        return told.step(f"disturbed {trial.command}", ended or child.end())

    def _accepted(self, told: Told, wrong: str, command: str) -> str:
        """Whether what differs was taken without a word: of the log a warning is enough, for nothing learns from it."""
        told.steps.append(wrong)
        if command == "train" and wrong.startswith("train/log.jsonl") and any(_LOG in step for step in told.steps[:-1]):
            return "refused"
        return "silently wrong" if command == "train" else ""

    def _two(self, trial: Trial, world: World, project: Path, told: Told) -> Ended:
        """The same command twice: the second begins in the midst of the first, which goes on at once or after it."""
        command = ["--quiet", trial.command, NAME]
        first = self.commands.start(project, *command, arm=arm(trial, world))
        early = first.until(lambda: first.stopped)
        second = self.commands.start(project, *command)
        later = None
        if trial.random().random() < 0.5:
            later = second.end()
        first.send(signal.SIGCONT)
        later = later or second.end()
        told.step(f"second {trial.command}", later)
        done = told.step(f"first {trial.command}", early or first.end())
        return done if done.code else later if later.code else done

    def _recover(self, trial: Trial, world: World, project: Path, told: Told, ended: Ended) -> None:
        """Do what a person would, until all is equal or nothing more can be done."""
        if trial.kind == "clock jumps":
            told.did += f" by {arm(trial, world).value} s" if arm(trial, world) else ""
        command, moment = trial.command, trial.kind in MOMENTS or trial.kind == LIMIT or trial.stage.startswith("two")
        while not told.outcome:
            if told.again + told.mends > MOST:
                told.outcome = "unclear"
            elif ended.code == 0:
                wrong = differences(world, project, command)
                if command == "train" and trial.midway and not told.later and wrong and not wrong.startswith(LEARNED):
                    # Damaged when it had been read, and nothing wrong was learned: the next to read is to see it.
                    told.later = True
                    told.steps.append(wrong)
                    ended = told.step("train", self.commands.run(project, "--quiet", "train", NAME))
                    continue
                if not wrong:
                    told.outcome = "refused" if told.mends else "recovered" if told.again else "unharmed"
                    return
                told.outcome = self._accepted(told, wrong, command)
                if told.outcome:
                    return
                command = "train"  # the next to read the store: it must not take it
                ended = told.step("train", self.commands.run(project, "--quiet", "train", NAME))
            elif (moment and not told.again) or ended.code < 0:
                told.again += 1
                command = trial.command
                ended = told.step(command, self.commands.run(project, "--quiet", command, NAME))
            else:
                self._mend(project, told, ended)
                if told.outcome:
                    return
                command = trial.command
                ended = told.step(command, self.commands.run(project, "--quiet", command, NAME))

    def _mend(self, project: Path, told: Told, ended: Ended) -> None:
        """Do what the error says; `unclear` where it says nothing that can be done."""
        told.mends += 1
        error = ended.error.splitlines()[-1] if ended.error else ""
        if wanted := _COMMAND.findall(error):
            for text in wanted:
                told.step(text, self.commands.run(project, "--quiet", *shlex.split(text)))
                told.outcome = told.outcome if told.outcome in BAD else ""
        elif found := _REMOVE_NAMED.search(error) or _REMOVE.search(error):
            path = project / found[1].partition(", line ")[0]
            told.steps.append(f"removed {path.relative_to(project)}")
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        else:
            told.outcome = "unclear"


def differences(world: World, project: Path, command: str) -> str:
    """What is not as in the undisturbed project: rows of the store and, after training, the checkpoint and the log."""
    rows = _rows(world, project / "stores" / NAME)
    if command == "extract":
        return rows
    calm, run = world.base("train", "finished") / "runs" / NAME, project / "runs" / NAME
    for name in ("checkpoint/translator.safetensors", "checkpoint/config.yaml"):
        if (calm / name).read_bytes() != (run / name).read_bytes():
            try:
                load(run / "checkpoint")
            except InputError as error:  # damaged after it was written: nobody takes it for what was learned
                return f"reading: {words(str(error).splitlines()[:1])}"
            return f"{name} differs"
    return rows if losses(calm) == losses(run) else "train/log.jsonl differs"


def _rows(world: World, folder: Path) -> str:
    """Every row of every array, read as training reads them."""
    try:
        store = FeatureStore(folder)
        rows = np.flatnonzero(world.valid)
        if store.keys != world.keys or not np.array_equal(store.valid(), world.valid):
            return "keys or valid rows differ"
        for layer in store.layers:
            found = store[layer.name].stored(rows, verify=True).arrays()
            for array, values in zip(store[layer.name].arrays, found, strict=True):
                wrong = [
                    int(row) for row, value in zip(rows, values, strict=True) if _differ(value, world, array.name, row)
                ]
                if wrong:
                    return f"{array.name}: rows {wrong[:8]} differ"
    except InputError as error:
        return f"reading: {words(str(error).splitlines()[:1])}"
    return ""


def _differ(value: np.ndarray, world: World, name: str, row: np.integer[Any]) -> bool:
    return value.tobytes() != world.rows[name][row].tobytes()


def losses(run: Path) -> list[dict[str, Any]]:
    """The training log without its times."""
    lines = [json.loads(line) for line in (run / "train/log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
