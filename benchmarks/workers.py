"""Stage one by two worker processes beside one, where each backbone has one thread.

Both clusters are up and have loaded the backbone before the clock starts; each round makes all shards anew. One worker
has a core to itself for decoding and writing, so that two cannot be twice as fast on two cores.
"""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # workers inherit them

from _extraction import over_demo
from _measure import interleaved, rates, write
from distributed import LocalCluster

from devil_pipe.stages.common.progress import Mode, speak
from devil_pipe.stages.extract import cluster
from devil_pipe.stages.extract.worker import Worker

ROWS, SHARD_ROWS, ROUNDS = 512, 32, 5


class Workers:
    """Some worker processes, and a store that they make again and again."""

    def __init__(self, folder: Path, count: int, stack: ExitStack) -> None:
        folder.mkdir()
        started = LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        )
        runtime = {"scheduler": stack.enter_context(started).scheduler_address}
        config = over_demo(folder, ROWS, shard_rows=SHARD_ROWS, runtime=runtime)
        self.worker = Worker(config, check=False)  # it only says what is to be made

    def __call__(self) -> None:
        writer = self.worker.writer
        root = Path(self.worker.config.location)
        shutil.rmtree(root / "commits", ignore_errors=True)
        for path in (root / writer.folder).glob("*/c.*"):
            path.unlink()
        cluster.make(self.worker, writer.missing_shards())


def main() -> None:
    speak(Mode.QUIET)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        ways = {
            "one worker": Workers(Path(name) / "one", 1, stack),
            "two workers": Workers(Path(name) / "two", 2, stack),
        }
        seconds = interleaved(dict(ways), ROUNDS)
        decoders = ways["one worker"].worker.runtime.decoders
    found = rates(seconds, "one worker", ROWS)
    write(
        "workers",
        base="one worker",
        unit="pictures",
        ways=found,
        rounds=ROUNDS,
        data=f"{ROWS} demo composites, 224 pixels, shards of {SHARD_ROWS}, {decoders} decoders in each worker",
        backbone="effnet_lite0, float32, layers s8 s16 s32, one thread in each worker",
    )
    told = ", ".join(f"{way} {statistics.median(values):.2f} s" for way, values in seconds.items())
    print(f"workers: {told}: ×{found['two workers']['times_as_fast_as_base']:.2f}")


if __name__ == "__main__":
    main()
