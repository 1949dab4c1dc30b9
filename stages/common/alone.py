"""One command at a time on a folder. The lock is the system's and ends with its process: nothing is left to remove."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from devil_pipe.store.errors import InputError

WAIT = 3.0  # seconds for the processes of a command that was killed to end


@contextmanager
def alone(folder: Path, command: str) -> Iterator[None]:
    """Hold a folder, made where there is none, for a command that writes in it.

    A folder that the command leaves empty goes again. Systems of files that know no such lock are used without it.

    Raises:
        InputError: the same command is at work there.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder, command):
            yield
    finally:
        with suppress(OSError):  # not empty: the command has left something
            for path in made:
                path.rmdir()


@contextmanager
def _locked(folder: Path, command: str) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        limit = time.monotonic() + WAIT
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise InputError(
                        f"{folder}: another `{command}` is at work here; wait for its end, or stop it: "
                        "it can go on later"
                    ) from None
                time.sleep(0.05)
                continue
            except OSError:  # some network file systems
                pass
            break
        yield
    finally:
        os.close(handle)
