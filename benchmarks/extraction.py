"""Stage one's wall time beside decoding alone and the backbone alone: the same pictures, batches and threads.

Processor seconds stand beside the wall's: where every core is busy, doing two things at once has nothing left to give,
and the sum of both parts' processor seconds over the number of cores is the least that can be reached.
"""

from __future__ import annotations

# ruff: noqa: E402
from devil_pipe.stages.common.memory import keep_freed_memory

keep_freed_memory(of_all_threads=True)  # as `devil-pipe extract` does: before PyTorch is imported

import resource
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from _extraction import over_demo
from _measure import interleaved, rates, write

from devil_pipe.stages.common.progress import Mode, speak
from devil_pipe.stages.extract.layers import Taps
from devil_pipe.stages.extract.worker import Times, Worker
from devil_pipe.store.writer import StoreWriter

ROWS, ROUNDS = 512, 5
DECODE, FORWARD, MAKE = "decoding alone", "backbone alone", "Worker.make"


class Stage:
    """One worker, and its parts by themselves."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, over_demo(folder, ROWS)
        self.worker = Worker(self.config)
        self.shards = list(range(len(self.worker.writer.ranges)))
        self.times: list[Times] = []
        self.pixels: list[torch.Tensor] = []
        self.decode(keep=True)

    def decode(self, *, keep: bool = False) -> None:
        """Read and decode every picture, in batches and threads as the worker does."""
        with ThreadPoolExecutor(self.worker.runtime.decoders) as decoders:
            for batch in self.worker._decoded(self.shards, decoders, Times()):
                if keep:
                    good = [item for item in batch if isinstance(item, torch.Tensor)]
                    self.pixels.append(torch.stack(good).to(memory_format=torch.channels_last))

    def forward(self) -> None:
        """The backbone over batches that lie ready; its maps are dropped."""
        with Taps(self.worker.backbone.module, self.worker.taps) as read, torch.inference_mode():
            for pixels in self.pixels:
                read(pixels)

    def make(self) -> None:
        """All of it, into a new store."""
        with tempfile.TemporaryDirectory(dir=self.folder) as store:
            self.worker.writer = StoreWriter(store, self.worker.identity, self.config.shard_rows)
            self.times.append(self.worker.make(self.shards))


def processor_seconds(way: Callable[[], None], into: list[float]) -> Callable[[], None]:
    """The same way, which also notes the processor time of all its threads."""

    def noted() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF)
        way()
        after = resource.getrusage(resource.RUSAGE_SELF)
        into.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    return noted


def main() -> None:
    speak(Mode.QUIET)
    with tempfile.TemporaryDirectory() as name:
        stage = Stage(Path(name))
        ways = {DECODE: stage.decode, FORWARD: stage.forward, MAKE: stage.make}
        busy: dict[str, list[float]] = {way: [] for way in ways}
        seconds = interleaved({way: processor_seconds(run, busy[way]) for way, run in ways.items()}, ROUNDS)
        runtime = stage.worker.runtime
    larger = max((DECODE, FORWARD), key=lambda way: statistics.median(seconds[way]))
    over = {
        alone: round(statistics.median(a / b for a, b in zip(seconds[MAKE], seconds[alone], strict=True)), 3)
        for alone in (DECODE, FORWARD)
    }
    spent = {
        kind: round(statistics.median(times.as_dict()[kind] for times in stage.times[1:]), 3)
        for kind in stage.times[0].as_dict()
    }
    write(
        "extraction",
        base=larger,
        unit="pictures",
        ways=rates(seconds, larger, ROWS),
        wall_over=over,
        processor_seconds={way: round(statistics.median(values[1:]), 3) for way, values in busy.items()},
        where_the_time_went=spent,
        rounds=ROUNDS,
        data=f"{ROWS} demo composites, 224 pixels, batches of {runtime.batch_size}, decoders {runtime.decoders}",
        backbone="effnet_lite0, float32, layers s8 s16 s32",
    )
    told = ", ".join(f"{way} {statistics.median(values):.2f} s" for way, values in seconds.items())
    kinds = ", ".join(f"{kind} {value:.2f} s" for kind, value in spent.items())
    print(f"extraction: {told}: {over[larger]:.2f} times {larger}; {kinds}")


if __name__ == "__main__":
    main()
