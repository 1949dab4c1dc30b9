"""Backbone inference with and without keeping freed memory in the process (two processes, interleaved)."""

from __future__ import annotations

import subprocess
import sys

from _measure import report

ROUNDS, BATCHES, SIZE = 5, 4, 32

PROGRAM = f"""
import sys, time, torch
from devil_pipe.stages.common.memory import keep_freed_memory
from devil_pipe.stages.extract.backbones import load
if sys.argv[1] == "kept":
    keep_freed_memory()
module = load("effnet_lite0", "random").module.to(memory_format=torch.channels_last)
pixels = torch.randn({SIZE}, 3, 224, 224).to(memory_format=torch.channels_last)
with torch.inference_mode():
    module(pixels)
    for _ in sys.stdin:
        begun = time.perf_counter()
        for _ in range({BATCHES}):
            module(pixels)
        print(time.perf_counter() - begun, flush=True)
"""


def main() -> None:
    workers = {
        name: subprocess.Popen(
            [sys.executable, "-c", PROGRAM, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("returned", "kept")
    }
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(ROUNDS):
        for name, worker in workers.items():
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
            seconds[name].append(float(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    report("allocator", seconds, "returned", BATCHES * SIZE, "pictures", backbone="effnet_lite0", batch_size=SIZE)


if __name__ == "__main__":
    main()
