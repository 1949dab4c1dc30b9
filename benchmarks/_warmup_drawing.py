"""The warm-up's curves as a picture, and their ends as a table."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

TITLES = {"small": "small demo", "large": "small demo", "free": "free captions"}
COLOURS = {"warm-up": "#0b6e4f", "by position": "#0b6e4f", "bag of words": "#c05621", "none": "#6b7280"}


def draw(kept: dict[str, Any], path: Path) -> None:
    """Loss gap, and named objects (or words), against seconds of training; each seed a thin line."""
    mpl.rcParams["svg.hashsalt"] = "warmup"  # else every drawing is another file
    drawn = [run["study"] for run in kept["runs"].values() if len(run["curve"]) > 1]
    studies = [name for name in TITLES if name in drawn]
    figure, axes = plt.subplots(2, len(studies), figsize=(4.2 * len(studies), 6), squeeze=False, sharex="col")
    for column, study in enumerate(studies):
        runs = [run for run in kept["runs"].values() if run["study"] == study]
        second = "words" if study == "free" else "object_accuracy"
        for run in runs:
            seconds = [point["seconds"] for point in run["curve"]]
            for row, key in enumerate(("gap", second)):
                axes[row, column].plot(
                    seconds, [point[key] for point in run["curve"]], color=COLOURS[run["arm"]], marker=".", lw=1,
                    label=run["arm"] if run["seed"] == min(item["seed"] for item in runs) else None,
                )  # fmt: skip
        size = runs[0]["trainable_parameters"] / 1e6
        axes[0, column].set(title=f"{TITLES[study]}, {size:.3g} M parameters")
        axes[1, column].set(xlabel="seconds of training", ylim=(-0.03, 1.03 if second == "object_accuracy" else None))
        axes[0, column].legend(frameon=False)
    axes[0, 0].set(ylabel="loss gap, nats a token")
    for column, study in enumerate(studies):
        axes[1, column].set(ylabel="share of words written" if study == "free" else "objects named rightly")
    for axis in axes.flat:
        axis.grid(alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def table(kept: dict[str, Any]) -> list[str]:
    """The last point of each arm: mean ± standard deviation over its seeds, as Markdown."""
    arms: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in kept["runs"].values():
        arms[run["study"], run["arm"]].append(run)
    lines = [
        "| study | arm | seeds | steps | loss, own / shuffled | gap | named, all layers | each layer alone | words |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for (study, arm), runs in arms.items():
        ends = [run["curve"][-1] for run in runs]
        layers = ", ".join(
            f"{name} {_told([end['layers'][name].get('object_accuracy') for end in ends])}"
            for name in sorted(ends[0].get("layers", {}), key=lambda name: (len(name), name))
        )
        cells = [
            study, arm, str(len(runs)), " + ".join(str(count) for count in runs[0]["steps"].values()),
            f"{_told([end['loss'] for end in ends])} / {_told([end['shuffled'] for end in ends])}",
            _told([end["gap"] for end in ends]), _told([end.get("object_accuracy") for end in ends]), layers,
            f"{_told([end['words'] for end in ends])} (shuffled {_told([end['words_shuffled'] for end in ends])})",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _told(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{spread}"
