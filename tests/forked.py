"""Real `devil-pipe` processes without paying for their imports each time.

One process imports what the commands import, and forks a child for each command. The child is what `devil-pipe` would
be after its imports: it parses its arguments, works, and can be killed at any moment.
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

_SERVER = """
import importlib, json, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore Ctrl-C, and we with it
for name in sys.argv[1:]:
    importlib.import_module(name)
from devil_pipe.pipeline.cli import main
print("ready", flush=True)
for line in sys.stdin:
    folder, log, arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 1)
        os.dup2(written, 2)
        sys.argv = ["devil-pipe", *arguments]
        code = 0
        try:
            main()
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 70
        sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Commands:
    """Runs `devil-pipe` commands as processes of their own, one after another. A context manager."""

    def __init__(
        self, imports: Sequence[str], environment: dict[str, str] | None = None, through: Sequence[str] = ()
    ) -> None:
        # One thread: where cores are shared, waiting for each other costs more than the work of a tiny case.
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})}
        command = [*through, sys.executable, "-c", _SERVER, *imports]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert self._line() == "ready"

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def run(
        self,
        folder: Path,
        *arguments: str,
        kill_after: float | None = None,
        counted_from: Callable[[], bool] = lambda: True,
        meanwhile: Callable[[int], None] | None = None,
    ) -> tuple[int, str]:
        """Run a command in `folder`; give its exit code (−9 if it was killed) and what it said.

        `kill_after` seconds after `counted_from` is true (at once, if not given) it gets SIGKILL, if it is still there.
        `meanwhile` is called while it runs, with its process's number.
        """
        log = folder / "said.txt"
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps([str(folder), str(log), arguments]) + "\n")
        self._server.stdin.flush()
        child = int(self._line())
        if meanwhile is not None:
            try:
                meanwhile(child)
            except BaseException:
                os.kill(child, signal.SIGKILL)
                self._line()  # so that the next command reads its own answer
                raise
        if kill_after is not None:
            limit = time.monotonic() + 60
            while not counted_from() and time.monotonic() < limit:
                time.sleep(0.001)
            time.sleep(kill_after)
            # The server waits for the child and reads no more until then, so a child that has ended is at worst
            # a number that is no longer taken.
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return int(self._line()), log.read_text(errors="replace")
