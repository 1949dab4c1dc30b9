"""Commands as processes of their own, forked from one that has imported everything, with a fault at a chosen moment.

The faults are made by `_faults_shim.c`, which is compiled with `cc` and loaded before everything else.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

IMPORTS = (
    "devil_pipe.pipeline.config",
    "devil_pipe.stages.extract.run",
    "devil_pipe.stages.extract.cluster",
    "devil_pipe.stages.prepare.run",
    "devil_pipe.stages.train.run",
    "devil_pipe.store.verify",
    "distributed.cli.dask_scheduler",
    "distributed.cli.dask_worker",
    "pandas",
    "pyarrow.dataset",
    "timm",
    "transformers.convert_slow_tokenizer",
    "transformers.models.llama.modeling_llama",
)
_SERVER = """
import ctypes, importlib, json, os, resource, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in sys.argv[1:]:
    importlib.import_module(name)
from devil_pipe.pipeline.cli import main
library = ctypes.CDLL(None)
library.faults_seen.restype = ctypes.c_long

def work(kind, arguments):
    if kind == "devil-pipe":
        sys.argv = ["devil-pipe", *arguments]
        return main()
    from distributed.cli import dask_scheduler, dask_worker
    {"scheduler": dask_scheduler, "worker": dask_worker}[kind].main(arguments, standalone_mode=False)

print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "poll" in asked:
        done, status = os.waitpid(asked["poll"], os.WNOHANG)
        print(os.waitstatus_to_exitcode(status) if done else "running", flush=True)
        continue
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.chdir(asked["folder"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if asked["limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (asked["limit"], asked["limit"]))
        library.faults_shift(ctypes.c_long(asked["clock"]))
        if arm := asked["arm"]:
            text, whole = os.fsencode(asked["folder"]), (arm["moment"], arm["value"])
            library.faults_arm(text, os.fsencode(asked["aside"]), ctypes.c_long(whole[0]), arm["action"], arm["kinds"],
                               ctypes.c_long(whole[1]), arm["seed"])
        code = 0
        try:
            work(asked["kind"], asked["arguments"])
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 70
        sys.stderr.flush()
        if arm:
            print("operations:", library.faults_seen(1), library.faults_seen(2), flush=True)
        os._exit(code)
    print(child, flush=True)
"""
SIGNAL, POWER, FULL, READ_ERROR, WRITE_ERROR, CLOCK = range(1, 7)
CHANGES, READS = 1, 2
HUNG = 600.0  # seconds after which a command counts as one that would never end


@dataclass(frozen=True)
class Arm:
    """A fault at the k-th file operation of one of the kinds that count; see `_faults_shim.c`."""

    moment: int
    action: int
    kinds: int = CHANGES
    value: int = 0
    """A signal's number, or the seconds by which the clock jumps."""

    seed: int = 0


@dataclass
class Ended:
    """How a command ended: its exit code, −N after signal N; None: it had to be killed for it would not end."""

    code: int | None
    said: str

    @property
    def error(self) -> str:
        """What it said when it gave up, if it did."""
        lines = [line for line in self.said.splitlines() if line.startswith("error: ")]
        return "\n".join(lines)


def compiled(folder: Path) -> Path:
    """The library that makes faults. Raises RuntimeError without a C compiler."""
    target = folder / "faults.so"
    source = Path(__file__).with_name("_faults_shim.c")
    command = [os.environ.get("CC", "cc"), "-O1", "-w", "-shared", "-fPIC", "-o", str(target), str(source)]
    try:
        done = subprocess.run([*command, "-ldl", "-lpthread"], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise RuntimeError(f"expected a C compiler: {error}") from error
    if done.returncode:
        raise RuntimeError(f"{source.name} cannot be compiled here: {done.stderr.strip()}")
    return target


class Commands:
    """Runs `devil-pipe` and Dask's commands. A context manager, which ends all that it started."""

    def __init__(self, scratch: Path) -> None:
        """Import everything once; `scratch` is a folder for logs, on the same disk as what is worked on."""
        self.scratch = scratch
        self.number = 0
        self.running: set[int] = set()
        (scratch / "aside").mkdir(parents=True, exist_ok=True)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        env = {**os.environ, **threads, "HF_HUB_OFFLINE": "1", "HOME": str(scratch), "MALLOC_ARENA_MAX": "1"}
        env |= {"LD_PRELOAD": str(compiled(scratch)), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-c", _SERVER, *IMPORTS]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert self._line() == "ready"

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        for process in tuple(self.running):
            kill(process)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def ask(self, **what: Any) -> str:
        """One question to the server, and its answer."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(what) + "\n")
        self._server.stdin.flush()
        return self._line()

    def start(
        self,
        folder: Path,
        *arguments: str,
        kind: str = "devil-pipe",
        arm: Arm | None = None,
        clock: int = 0,
        limit: int = 0,
    ) -> Child:
        """Begin a command in `folder`, with a fault, another clock, or a limit on the bytes of a file."""
        self.number += 1
        log = self.scratch / f"said-{self.number % 16}.txt"
        log.unlink(missing_ok=True)
        process = int(
            self.ask(
                folder=str(folder),
                log=str(log),
                aside=str(self.scratch / "aside"),
                kind=kind,
                arguments=arguments,
                arm=asdict(arm) if arm else None,
                clock=clock,
                limit=limit,
            )
        )
        self.running.add(process)
        return Child(self, process, log)

    def run(self, folder: Path, *arguments: str, **how: Any) -> Ended:
        """A command from its beginning to its end."""
        return self.start(folder, *arguments, **how).end()


@dataclass
class Child:
    """A command that runs."""

    commands: Commands
    process: int
    log: Path

    def code(self) -> int | None:
        """Its exit code, or None while it runs."""
        if self.process not in self.commands.running:
            return 0
        answer = self.commands.ask(poll=self.process)
        if answer == "running":
            return None
        self.commands.running.discard(self.process)
        return int(answer)

    @property
    def stopped(self) -> bool:
        """Whether SIGSTOP has reached it."""
        with suppress(OSError):
            return Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()[0] in "tT"
        return False

    def until(self, true: Callable[[], bool]) -> Ended | None:
        """Wait until something holds; gives how the command ended where that came first."""
        limit = time.monotonic() + HUNG
        while not true():
            if (code := self.code()) is not None:
                return Ended(code, self.log.read_text(errors="replace"))
            if time.monotonic() > limit:
                kill(self.process)
                while self.code() is None:
                    time.sleep(0.01)
                return Ended(None, self.log.read_text(errors="replace"))
            time.sleep(0.004)
        return None

    def end(self) -> Ended:
        """Wait for its end."""
        found = self.until(lambda: False)
        assert found is not None
        return found

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        kill(self.process, number)


def kill(process: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process, if there is one."""
    if process > 0:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def operations(said: str) -> dict[int, int]:
    """How many operations of each kind an armed command made, as it says at its end."""
    changes, reads = said.rpartition("operations: ")[2].split()[:2]
    return {CHANGES: int(changes), READS: int(reads)}


def words(lines: Sequence[str]) -> str:
    """Lines as one, cut to what a table of trials can hold."""
    return " | ".join(lines)[:600]
