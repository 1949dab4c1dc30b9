"""Training in several processes of this machine, and what happens when one of them is lost.

`start` is the parent of `devil-pipe train RUN --processes N`. `accelerate launch` and `torchrun` start processes by
themselves, also on several machines; what such a process does is the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, NoReturn

import torch

from devil_pipe.store.errors import InputError

GRACE = 10.0  # seconds that the others have to say what they know, once one has ended
POLL = 0.1
_LOST = 75  # exit code of a process that noticed that another is gone: its parent says which
_PARENT = "DEVIL_PIPE_TRAIN_PARENT"
GOES_ON = "what was saved is kept, and the same command goes on there"


def world_size() -> int:
    """How many processes train together, this one included, by whichever launcher; 1: it is alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start(command: Sequence[str], count: int) -> int:
    """Run a command as `count` processes that find each other on the loopback address, and wait for them.

    The first one speaks for all. They end when this process does, however it ends.

    Returns:
        the exit code; other than 0, the first process has said why.

    Raises:
        InputError: another process failed, or was lost.
    """
    # A store of the parent's own, as torchrun has it: its port is free, and taken from the first moment.
    meeting = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    common = {
        **os.environ,
        _PARENT: str(os.getpid()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(meeting.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    common.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))
    common.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    with ExitStack() as stack:
        said: list[IO[bytes]] = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        started: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, started)
        for rank in range(count):
            process = subprocess.Popen(
                command,
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,  # its end is the parent's
                stdout=None if rank == 0 else subprocess.DEVNULL,
                stderr=None if rank == 0 else said[rank],
                start_new_session=True,  # Ctrl-C reaches the parent alone, which ends them
            )
            started.append(process)
        return _outcome(_wait(started), said)


@dataclass(frozen=True)
class _Ended:
    rank: int
    code: int
    ours: bool
    """Whether it was this process that ended it."""


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> list[_Ended]:
    """Wait for all; once one has failed the others are ended after a grace. In the order in which they ended."""
    ended: list[_Ended] = []
    deadline = float("inf")
    while len(ended) < len(started):
        known = {one.rank for one in ended}
        late = time.monotonic() > deadline
        for rank, process in enumerate(started):
            if rank not in known and late:
                process.kill()
                process.wait()
            if rank not in known and process.poll() is not None:
                ended.append(_Ended(rank, process.returncode, late))
                if process.returncode:
                    deadline = min(deadline, time.monotonic() + GRACE)
        if len(ended) < len(started):
            time.sleep(POLL)
    return ended


def _outcome(ended: Sequence[_Ended], said: Sequence[IO[bytes]]) -> int:
    failed = [one for one in ended if one.code and not one.ours]
    if not failed:
        return 0
    causes = [one for one in failed if one.code != _LOST]
    if not causes:
        raise InputError(
            "the processes lost each other: one of them was silent for longer than "
            f"runtime.train.lost_after_seconds, or the connection broke; {GOES_ON}"
        )
    if any(one.rank == 0 and one.code > 0 for one in causes):
        return next(one.code for one in causes if one.rank == 0)  # it has said why
    first = causes[0]
    raise InputError(f"process {first.rank + 1} of {len(ended)} {_how(first, said[first.rank])}; {GOES_ON}")


def _how(one: _Ended, said: IO[bytes]) -> str:
    if one.code < 0:
        why = ": too little memory, most likely" if one.code == -signal.SIGKILL else ""
        return f"was ended by {signal.Signals(-one.code).name}{why}"
    said.seek(0)
    text = said.read().decode(errors="replace").strip()
    if one.code > 2:  # no plain words: everything it said
        print(text, file=sys.stderr, flush=True)
    last = text.splitlines()[-1].removeprefix("error: ") if text else "without a word"
    return f"ended with exit code {one.code} ({last})"


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


@contextmanager
def together(count: int) -> Iterator[None]:
    """What one of `count` processes does: a lost connection ends it in words, and so does the loss of its parent.

    Raises:
        InputError: another process is gone.
    """
    if _PARENT in os.environ:
        threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        if count == 1 or not _is_lost(error):
            raise
        if _PARENT in os.environ:
            _leave()
        raise InputError(
            f"the connection to another process was lost ({str(error).strip().splitlines()[0][:160]}); {GOES_ON}"
        ) from error


def _is_lost(error: RuntimeError) -> bool:
    """Gloo's errors come as plain RuntimeErrors that name it."""
    return isinstance(error, torch.distributed.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))


def _leave() -> NoReturn:
    # At once: taken apart at the interpreter's end, a connection that broke may abort the process (SIGABRT).
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(_LOST)


def _leave_with_parent() -> None:
    # Not through sys.stdin, whose lock would be held while the interpreter ends.
    while os.read(0, 1024):
        pass
    os._exit(_LOST)
