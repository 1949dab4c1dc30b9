"""Interleaved timing of several ways to do one thing, and their result as JSON and a line of text."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LOAD_BEFORE = os.getloadavg()


def interleaved(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round: a noisy minute hits all of them, and no way always follows the same one."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            begun = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def rates(seconds: dict[str, list[float]], base: str, units: float) -> dict[str, dict[str, float]]:
    """By way: median seconds, units a second, and how many times faster than `base` (median over the rounds)."""
    return {
        way: {
            "median_seconds": round(statistics.median(values), 6),
            "per_second": round(units / statistics.median(values), 1),
            "times_as_fast_as_base": round(
                statistics.median(one / other for one, other in zip(seconds[base], values, strict=True)), 3
            ),
        }
        for way, values in seconds.items()
    }


def report(name: str, seconds: dict[str, list[float]], base: str, units: float, unit: str, **facts: Any) -> None:
    """Write results/NAME.json and print each way's rate, and its ratio to the base's, round by round."""
    found = rates(seconds, base, units)
    write(name, base=base, unit=unit, ways=found, rounds=len(seconds[base]), **facts)
    told = ", ".join(
        f"{way} {rate['per_second']:,.0f} {unit}/s (×{rate['times_as_fast_as_base']:.2f})"
        for way, rate in found.items()
    )
    print(f"{name}: {told}")


def write(name: str, **facts: Any) -> None:
    """Write results/NAME.json with the machine's facts, and how busy it was before and after."""
    result = {"benchmark": name, "command": f"python benchmarks/{name}.py", **machine(), **facts}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What a reader of the figures has to know of the machine."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_before": [round(value, 2) for value in LOAD_BEFORE],
        "load_after": [round(value, 2) for value in os.getloadavg()],
    }
    if (torch := sys.modules.get("torch")) is not None:
        facts |= {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
