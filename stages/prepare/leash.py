"""A script: runs a command, and ends it with all that it started as soon as our standard input closes.

Whoever starts it holds the other end of that pipe; so the command also ends when its starter is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    """Run the command as a group of its own. Returns its exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def wait_for_the_end() -> None:
        while os.read(0, 1):
            pass
        os.killpg(child.pid, signal.SIGKILL)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]) % 256)  # without waiting for the thread that reads
