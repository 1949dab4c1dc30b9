"""Stage one on a GPU beside a bare forward loop on pictures that already lie there: CLIP's two, random weights."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import torch
from _extraction import over_demo
from _measure import interleaved, rates, write

from devil_pipe.stages.common.progress import Mode, speak
from devil_pipe.stages.extract.layers import Taps
from devil_pipe.stages.extract.pictures import sides
from devil_pipe.stages.extract.worker import Worker
from devil_pipe.store.writer import StoreWriter

ROWS, BATCH, ROUNDS = 4096, 128, 3
BASE = "bare forward loop"


def measure(backbone: str) -> dict[str, dict[str, float]]:
    """Rates of `Worker.make` and of the loop, for one backbone."""
    runtime = {"batch_size": BATCH, "decoders": os.cpu_count(), "device": "cuda"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = over_demo(folder, ROWS, backbone=backbone, weights="random", runtime=runtime)
        worker = Worker(config, check=False)
        height, width = sides(worker.transform.size)
        pixels = torch.randn(BATCH, 3, height, width, device="cuda").to(memory_format=torch.channels_last)

        def loop() -> None:
            with Taps(worker.backbone.module, worker.taps) as read, torch.inference_mode():
                for _ in range(ROWS // BATCH):
                    read(pixels)
                torch.cuda.synchronize()

        def make() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as store:
                worker.writer = StoreWriter(store, worker.identity, config.shard_rows)
                times = worker.make(range(len(worker.writer.ranges)))
            print(backbone, ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in times.as_dict().items()))

        return rates(interleaved({BASE: loop, "Worker.make": make}, ROUNDS), BASE, ROWS)


def main() -> None:
    if not torch.cuda.is_available():
        print("gpu_extraction: not run: no CUDA device")
        sys.exit()
    speak(Mode.QUIET)
    found = {backbone: measure(backbone) for backbone in ("clip_rn50", "clip_vit_b32")}
    write(
        "gpu_extraction",
        base=BASE,
        unit="pictures",
        ways=found,
        rounds=ROUNDS,
        data=f"{ROWS} demo composites, 224 pixels, batches of {BATCH}, {os.cpu_count()} decoders",
        gpu=torch.cuda.get_device_name(),
    )
    for backbone, ways in found.items():
        told = ", ".join(f"{way} {rate['per_second']:,.0f} pictures/s" for way, rate in ways.items())
        print(f"gpu_extraction, {backbone}: {told} (×{ways['Worker.make']['times_as_fast_as_base']:.2f})")


if __name__ == "__main__":
    main()
