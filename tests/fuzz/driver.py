"""One harness in a process of its own, with limits of memory and time: a right answer or an `InputError`, no more."""

from __future__ import annotations

import faulthandler
import gc
import hashlib
import json
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from devil_pipe.store.errors import InputError

from .choices import Choices
from .watch import OutsideError, Watch

MEMORY = 1 << 30
"""Bytes that a reader may take beyond what the process had before."""
SECONDS = 20
"""For one input; a busy machine needs some."""
LONGEST = 20_000
"""Characters of a message that a person is to read."""
LARGEST = 384
"""Bytes of an input: decisions, not the file itself."""


class Harness(Protocol):
    """Turns decisions into damaged files in its folder and has them read."""

    def __call__(self, choices: Choices) -> None:
        """Raises InputError where the reader refuses; anything else that is raised is a finding."""


class Driver:
    """Feeds a harness, counts, and keeps each kind of finding once with its input."""

    def __init__(self, name: str, harness: Harness, scratch: Path, keep: Path) -> None:
        self.name, self.harness, self.keep = name, harness, keep
        self.runs = self.refused = 0
        self.findings: dict[str, str] = {}
        self.watch = Watch(scratch)
        self.current, self.status = scratch / "current", scratch / "status.json"
        self.begun = self._told = time.monotonic()
        self.one(b"", watched=False)  # what is imported late and what is cached belongs to no input
        self._limit_memory()
        self.runs = self.refused = 0
        self.begun = time.monotonic()

    def _limit_memory(self) -> None:
        text = Path("/proc/self/status").read_text(encoding="ascii") if sys.platform == "linux" else "VmData: 0 kB"
        had = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (had * 1024 + MEMORY, resource.RLIM_INFINITY))

    def one(self, data: bytes, *, watched: bool = True) -> None:
        """Run one input; what it finds is kept. The input lies in a file meanwhile, should the process die of it."""
        self.current.write_bytes(data)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        self.watch.on = watched
        try:
            self.harness(Choices(data))
        except InputError as error:
            self.watch.on = False
            self.refused += 1
            if len(str(error)) > LONGEST:
                self._found(data, ValueError(f"a message of {len(str(error))} characters: {str(error)[:200]}"))
        except (Exception, OutsideError) as error:
            self.watch.on = False
            self._found(data, error)
        finally:
            self.watch.on = False
            faulthandler.cancel_dump_traceback_later()
        self.runs += 1
        if watched and time.monotonic() - self._told > 0.5:
            self.tell()

    def _found(self, data: bytes, error: BaseException) -> None:
        ours = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "devil_pipe" in frame.filename
            or any(f"/{room}/" in frame.filename for room in ("pipeline", "stages", "store"))
        ]
        where = f"{'/'.join(Path(ours[-1].filename).parts[-2:])}:{ours[-1].lineno}" if ours else "the harness"
        kind = f"{type(error).__name__} at {where}"
        if kind not in self.findings:
            self.keep.mkdir(parents=True, exist_ok=True)
            path = self.keep / f"{hashlib.sha256(data).hexdigest()[:12]}.bin"
            path.write_bytes(data)
            text = "".join(traceback.format_exception(error, limit=-6))
            path.with_suffix(".txt").write_text(text, encoding="utf-8", errors="backslashreplace")
            self.findings[kind] = f"{kind}: {str(error)[:200]!r} ({path})"
            self.tell()

    def tell(self) -> None:
        """Say in a file how far it is: a process that is killed says nothing later."""
        self._told = time.monotonic()
        values = {"runs": self.runs, "refused": self.refused, "seconds": round(self._told - self.begun, 1)}
        self.status.write_text(json.dumps({**values, "findings": list(self.findings.values())}), encoding="utf-8")

    def plain(self, runs: int, seed: int, seconds: float) -> None:
        """Random decisions, the same for the same seed; needs nothing but Python."""
        for number in range(runs):
            source = random.Random(f"{self.name}:{seed}:{number}")
            self.one(source.randbytes(source.choice((8, 32, LARGEST))))
            if time.monotonic() - self.begun > seconds:
                break
        self.tell()

    def guided(self, seconds: float, corpus: Path) -> None:
        """Decisions that atheris (libFuzzer) chooses by which lines of ours they reach. Leaves the process."""
        import atheris

        corpus.mkdir(parents=True, exist_ok=True)
        for number in range(32):
            seed = random.Random(number).randbytes(LARGEST // 4)
            (corpus / f"seed{number}").write_bytes(seed)

        def one(data: bytes) -> None:
            self.one(data)
            if time.monotonic() - self.begun > seconds:
                self.tell()
                sys.stdout.flush()
                os._exit(0)  # libFuzzer has no end that Python sees

        gc.freeze()
        options = [
            f"-max_len={LARGEST}",
            "-timeout=0",
            "-rss_limit_mb=0",
            "-handle_abrt=0",
            "-verbosity=0",
            "-print_final_stats=0",
        ]
        atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={self.current.parent}/", str(corpus)], one)
        self.begun = time.monotonic()
        atheris.Fuzz()


def replay(harness: Callable[[Choices], None], data: bytes) -> None:
    """Run one kept input again; its traceback shows."""
    try:
        harness(Choices(data))
    except InputError as error:
        print(f"refused: {error}")
    else:
        print("read")
