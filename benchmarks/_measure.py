"""Interleaved timing of several ways to do one thing, and their result as JSON and a line of text."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def interleaved(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; a noisy minute hits all of them."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def report(name: str, seconds: dict[str, list[float]], base: str, units: float, unit: str, **facts: Any) -> None:
    """Write results/NAME.json and print the ratio of each way's median to the base's."""
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    result = {
        "benchmark": name,
        "command": f"python benchmarks/{name}.py",
        "median_seconds": {way: round(value, 6) for way, value in medians.items()},
        f"{unit}_per_second": {way: round(units / value, 1) for way, value in medians.items()},
        "times_faster_than": {base: {way: round(medians[base] / value, 2) for way, value in medians.items()}},
        "rounds": len(seconds[base]),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **facts,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    told = ", ".join(
        f"{way} {units / value:,.0f} {unit}/s (×{medians[base] / value:.2f})" for way, value in medians.items()
    )
    print(f"{name}: {told}")
