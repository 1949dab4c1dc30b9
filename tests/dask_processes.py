"""A real Dask scheduler and real workers on loopback, as processes of their own that may be killed.

One process imports what workers import and forks each of them, so that a worker is there in less than a second.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

_SERVER = """
import json, os, signal, sys
import distributed.cli.dask_scheduler, distributed.cli.dask_worker
import timm
import devil_pipe.stages.extract.task, devil_pipe.stages.extract.worker
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
for line in sys.stdin:
    kind, log, arguments, hidden = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(written, 1)
        os.dup2(written, 2)
        for name in [name for name in sys.modules if hidden and name.startswith(hidden)]:
            del sys.modules[name]
        if hidden:
            sys.modules[hidden] = None  # an import of it fails
        command = distributed.cli.dask_scheduler if kind == "scheduler" else distributed.cli.dask_worker
        code = 70
        try:
            command.main(arguments, standalone_mode=False)
            code = 0
        finally:
            os._exit(code)
    print(child, flush=True)
"""


class DaskProcesses:
    """Starts, finds and kills a scheduler and its workers. A context manager, which ends them all."""

    def __init__(self, folder: Path, through: Sequence[str] = ()) -> None:
        self.folder, self.address = folder, ""
        self.scheduler = 0
        self.workers: list[int] = []
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [*through, sys.executable, "-c", _SERVER]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert self._line() == "ready"

    def __enter__(self) -> DaskProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def _start(self, kind: str, *arguments: str, hidden: str = "") -> int:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps([kind, str(self.folder / f"{kind}.log"), arguments, hidden]) + "\n")
        self._server.stdin.flush()
        return int(self._line())

    def start(self, workers: int = 2, *, hidden: str = "") -> DaskProcesses:
        """Have a scheduler, which cannot import `hidden`, and this many workers running; what runs already stays."""
        if not alive(self.scheduler):
            self.stop()
            told = self.folder / "scheduler.json"
            told.unlink(missing_ok=True)
            self.scheduler = self._start(
                "scheduler",
                *("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(told)),
                hidden=hidden,
            )
            wait_until(lambda: told.exists() and told.read_text().endswith("}"))
            self.address = json.loads(told.read_text())["address"]
        self.workers = [worker for worker in self.workers if alive(worker)]
        while len(self.workers) < workers:
            self.add()
        return self

    def add(self, *arguments: str, hidden: str = "") -> int:
        """One more worker, which cannot import `hidden`; gives its process's number."""
        plain = ("--no-nanny", "--no-dashboard", "--nthreads", "1", "--memory-limit", "0", "--host", "127.0.0.1")
        folder = ("--local-directory", str(self.folder / "scratch"), "--death-timeout", "30")
        worker = self._start("worker", self.address, *plain, *folder, *arguments, hidden=hidden)
        self.workers.append(worker)
        return worker

    def stop(self) -> None:
        """Kill them all."""
        for process in (*self.workers, self.scheduler):
            kill(process)
        wait_until(lambda: not any(alive(process) for process in (*self.workers, self.scheduler)))
        self.workers, self.scheduler = [], 0

    def said(self) -> str:
        """What scheduler and workers wrote."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))


def alive(process: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return process > 0 and psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(process: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process, if there is one."""
    if process > 0:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def wait_until(true: Callable[[], bool], seconds: float = 300) -> None:
    """Wait until something holds. Fails where it does not in that time, which is long: machines may be busy."""
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.005)
