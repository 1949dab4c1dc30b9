"""What the translator wrote with all layers, picture by picture (or unit by unit), out of `predictions.parquet`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from devil_pipe.pipeline.report.metrics import ALL_LAYERS
from devil_pipe.pipeline.report.reading import require
from devil_pipe.store.errors import InputError

SHUFFLED = "shuffled"
COLUMNS = ["row", "key", "split", "condition", "description", "references", "object", "named", "loss"]


@dataclass(frozen=True)
class Described:
    """One row's description from all layers, and the loss of its reference in nats a token."""

    key: str
    split: str
    description: str
    references: list[str]
    object: str
    named: bool | None
    """Whether the description names the object; None where the index knows none."""
    loss: float
    shuffled: float | None
    """The same loss with another row's features; None where that control did not run."""

    @property
    def gap(self) -> float | None:
        """What the row's own features are worth, nats a token; around zero, nothing."""
        return None if self.shuffled is None else self.shuffled - self.loss


def read_predictions(path: Path, run: str) -> list[Described]:
    """Every scored row in the order of the index.

    Raises:
        InputError: the file is missing, no Parquet, or has other columns.
    """
    try:
        conditions = [("condition", "in", [ALL_LAYERS, SHUFFLED])]
        rows = pq.read_table(require(path, "evaluate", run), columns=COLUMNS, filters=conditions).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: expected predictions with the columns {', '.join(COLUMNS)}: {error}. "
            f"Make it anew with `devil-pipe evaluate {run}`."
        ) from error
    shuffled = {row["row"]: row["loss"] for row in rows if row["condition"] == SHUFFLED}
    return [
        Described(
            row["key"],
            row["split"],
            row["description"],
            row["references"],
            row["object"] or "",
            row["named"],
            row["loss"],
            shuffled.get(row["row"]),
        )
        for row in sorted(rows, key=lambda row: row["row"])
        if row["condition"] == ALL_LAYERS
    ]


def draw(described: Sequence[Described], count: int, seed: int) -> list[Described]:
    """At most `count` of them at random, in the order they came in."""
    chosen = random.Random(f"report {seed}").sample(range(len(described)), min(count, len(described)))
    return [described[place] for place in sorted(chosen)]
