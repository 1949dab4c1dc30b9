"""A scheduler and two workers of Dask, of which some are lost while a command extracts with them."""

from __future__ import annotations

import json
import signal
import time
from contextlib import suppress
from pathlib import Path

from _faults_kinds import DAMAGES, Trial, arm, damage
from _faults_process import Child, Commands, Ended, kill
from _faults_project import NAME, PICTURES, SHARD_ROWS, World

PAUSE = 0.5
_QUIET = ("--no-dashboard", "--host", "127.0.0.1")


class Cluster:
    """Processes that live from trial to trial; those that were killed are replaced."""

    def __init__(self, commands: Commands, folder: Path) -> None:
        self.commands, self.folder, self.address = commands, folder, ""
        folder.mkdir(parents=True, exist_ok=True)
        self.scheduler: Child | None = None
        self.workers: list[Child] = []

    def ready(self) -> None:
        """Have a scheduler and two workers."""
        if self.scheduler is None or self.scheduler.code() is not None:
            self.rest(everything=True)
            told = self.folder / "scheduler.json"
            told.unlink(missing_ok=True)
            options = ("--port", "0", "--scheduler-file", str(told))
            self.scheduler = self.commands.start(self.folder, *_QUIET, *options, kind="scheduler")
            self.scheduler.until(lambda: told.exists() and told.read_text().endswith("}"))
            self.address = json.loads(told.read_text())["address"]
        self.workers = [worker for worker in self.workers if worker.code() is None]
        while len(self.workers) < 2:
            options = ("--no-nanny", "--nthreads", "1", "--memory-limit", "0", "--death-timeout", "60")
            place = ("--local-directory", str(self.folder / "scratch"))
            self.workers.append(
                self.commands.start(self.folder, self.address, *_QUIET, *options, *place, kind="worker")
            )

    def rest(self, everything: bool = False) -> None:
        """Wake who was paused; with `everything` end them all."""
        for child in (*self.workers, *([self.scheduler] if self.scheduler else [])):
            kill(child.process, signal.SIGCONT)
            if everything:
                kill(child.process)
                while child.code() is None:
                    time.sleep(0.01)
        if everything:
            self.workers, self.scheduler = [], None

    def disturb(self, trial: Trial, world: World, project: Path) -> tuple[Ended, str]:
        """Extract with two workers; once some shards are committed the fault comes. Gives the end and what was done."""
        self.ready()
        clocked = arm(trial, world) if trial.kind == "clock jumps" else None
        words = ("--quiet", "extract", NAME, "--scheduler", self.address)
        child = self.commands.start(project, *words, arm=clocked)
        before = committed(project)
        goal = before + int(trial.moment * (-(-PICTURES // SHARD_ROWS) - before))
        early = child.until(lambda: committed(project) >= goal)
        done = f"after {committed(project)} shards"
        if trial.kind in DAMAGES:
            done += f"; {damage(trial, world, project)}"
        elif early is None:
            self._strike(trial.kind)
        ended = early or child.end()
        if trial.kind == "scheduler killed":
            self.rest(everything=True)
        return ended, done

    def _strike(self, kind: str) -> None:
        one, other = self.workers
        if "paused" in kind:
            one.send(signal.SIGSTOP)
            time.sleep(PAUSE)
        if kind == "worker paused":
            one.send(signal.SIGCONT)
        if "killed" in kind and self.scheduler is not None:
            for child in {"scheduler killed": [self.scheduler], "both workers killed": [one, other]}.get(kind, [one]):
                child.send(signal.SIGKILL)
        if kind == "both workers killed":
            while any(worker.code() is None for worker in (one, other)):
                time.sleep(0.01)
            self.ready()


def committed(project: Path) -> int:
    """Shards that have their markers."""
    with suppress(OSError):
        return sum(path.name[0] != "." for path in (project / "stores" / NAME / "commits").glob("*/*.json"))
    return 0
