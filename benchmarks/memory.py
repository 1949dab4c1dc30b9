"""Resident memory of stage one over 50,000 pictures: a curve, and its slope once everything has been there once."""

from __future__ import annotations

import tempfile
import time
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import psutil
from _extraction import over_demo
from _measure import RESULTS, write

from devil_pipe.stages.common.progress import Mode, speak
from devil_pipe.stages.extract.worker import Worker

ROWS, EVERY, WARM_UP = 50_000, 250, 10_000
MIB = 1 << 20


def main() -> None:
    speak(Mode.QUIET)
    process = psutil.Process()
    curve: list[tuple[int, float]] = []
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if not curve or done >= curve[-1][0] + EVERY:
            curve.append((done, process.memory_info().rss / MIB))

    with tempfile.TemporaryDirectory() as name:
        worker = Worker(over_demo(Path(name), ROWS, layers=("s32",), image_size=64))
        begun = time.perf_counter()
        worker.make(worker.writer.missing_shards(), advance)
        seconds = time.perf_counter() - begun
    later = np.array([point for point in curve if point[0] >= WARM_UP])
    slope = float(np.polyfit(later[:, 0], later[:, 1], 1)[0]) * 10_000
    spread = float(np.ptp(later[:, 1]))
    write(
        "memory",
        data=f"{ROWS} demo composites (the same ones again and again, decoded each time), 64 pixels, shards of 256",
        backbone="effnet_lite0, float32, layer s32",
        seconds=round(seconds, 1),
        pictures_per_second=round(ROWS / seconds, 1),
        pictures_before_the_fit=WARM_UP,
        slope_mib_per_10000_pictures=round(slope, 3),
        largest_minus_smallest_mib=round(spread, 1),
        largest_step_mib=round(max(after - before for before, after in pairwise(later[:, 1].tolist())), 1),
        curve_pictures_mib=[[pictures, round(mib, 1)] for pictures, mib in curve],
    )
    draw(curve)
    print(
        f"memory: {curve[-1][1]:.0f} MiB after {done:,} pictures; from {WARM_UP:,} on {slope:+.2f} MiB each 10,000, "
        f"{spread:.1f} MiB between the least and the most"
    )


def draw(curve: list[tuple[int, float]]) -> None:
    """The curve as results/memory.svg."""
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "memory"  # else every drawing is another file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3), layout="constrained")
    axes.plot(*np.array(curve).T)
    most = max(held for _, held in curve)
    axes.set(xlabel="pictures", ylabel="resident memory (MiB)", ylim=(0, 1.2 * most), xlim=(0, None))
    figure.savefig(RESULTS / "memory.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
