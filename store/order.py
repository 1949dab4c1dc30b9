"""In which order an epoch sees a store's rows, and how well an order mixes beside a perfect shuffle.

Both orders are functions of (seed, epoch) alone: a position is enough to go on in the middle of an epoch. On a local
disk any row costs the same: a full permutation. Where every read is a round trip the order goes through windows of a
few shards, each shard read once and whole; rows are shuffled within a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int


def permutation(count: int, seed: int, epoch: int) -> Int[np.ndarray, " count"]:
    """A full permutation of `count` items, each equally likely."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def parts(count: int, number: int) -> list[range]:
    """`count` positions cut into `number` neighbouring parts of sizes that differ by one at most, larger ones first."""
    least, more = divmod(count, number)
    starts = [part * least + min(part, more) for part in range(number + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


def windows(
    shards: Int[np.ndarray, " items"], size: int, seed: int, epoch: int, part: range | None = None
) -> list[Int[np.ndarray, " _window"]]:
    """Every item once, a window of neighbouring shards of a random order after the other, permuted within each.

    All processes put the shards into one random order and lay the items of each down in random order; a process takes
    a `part` of the positions. So a shard is read by one process, but for those at the edges of parts, whose rows two
    share. Windows hold as even a number of shards as can be, so that the last one mixes as well as the others.

    Args:
        shards: the shard in which each item lies.
        size: shards in a window, at most.
        seed: with the epoch it decides the order.
        epoch: counted from 0.
        part: the positions of the epoch that are wanted (see `parts`); None: all.

    Returns:
        Items of each window, in the order in which they are seen.
    """
    random = np.random.default_rng([seed, epoch])
    _, of_item = np.unique(shards, return_inverse=True)
    shuffled = random.permutation(len(shards))
    place = random.permutation(int(of_item.max(initial=-1)) + 1)  # of each shard in the random order
    laid = shuffled[np.argsort(place[of_item[shuffled]], kind="stable")]
    mine = laid if part is None else laid[part.start : part.stop]
    if not len(mine):
        return []
    at = place[of_item[mine]]
    at = at - at[0]  # neighbours in the order: 0, 1, 2, …
    held = int(at[-1]) + 1
    count = -(-held // size)
    window = at * count // held
    # Again in random order: a shard cut in two would bring its rows early in one part and late in the other.
    again = random.permutation(len(mine))
    sorted_again = again[np.argsort(window[again], kind="stable")]
    return np.split(mine[sorted_again], np.searchsorted(window, np.arange(1, count)))


@dataclass(frozen=True)
class Mixing:
    """How well an order mixes the rows of a store, measured or expected."""

    serial: float
    """Mean absolute correlation of the positions of rows that follow each other at lags up to a batch; 0 is best."""

    spread: float
    """Variance of the positions within a batch over that of all positions; 1 is a fair sample."""

    shards: float
    """Effective number of shards in a batch: 1 / Σ share², the number of shards if all gave the same number of rows."""


def mixing(order: Int[np.ndarray, " rows"], batch: int, shard_rows: int) -> Mixing:
    """Measure an order of the rows 0 … N − 1, whose positions on disk are their numbers; N of two batches at least."""
    position = order.astype(np.float64)
    position -= position.mean()
    variance = float(position @ position) / len(order)
    lagged = [float(position[:-lag] @ position[lag:]) / (len(order) - lag) / variance for lag in range(1, batch + 1)]
    whole = order[: len(order) // batch * batch].reshape(-1, batch)
    within = whole.var(axis=1, ddof=1).mean() / order.var(ddof=1)
    shards = np.sort(whole // shard_rows, axis=1)
    return Mixing(
        serial=float(np.abs(lagged).mean()),
        spread=float(within),
        shards=float(1 / np.mean([_concentration(row) for row in shards])),
    )


def _concentration(shards: Int[np.ndarray, " batch"]) -> float:
    """Σ share² over the shards of a batch."""
    counts = np.unique(shards, return_counts=True)[1]
    return float(((counts / len(shards)) ** 2).sum())


def perfect_mixing(rows: int, batch: int, shard_rows: int) -> Mixing:
    """What a perfect shuffle is expected to measure.

    A serial correlation is normal with variance 1/N, nearly; the other two are exact: two rows of a batch are a random
    pair of all rows, which lie in one shard with probability Σ nₛ(nₛ − 1) / N(N − 1).
    """
    sizes = np.array([min(shard_rows, rows - start) for start in range(0, rows, shard_rows)], dtype=np.float64)
    together = float((sizes * (sizes - 1)).sum() / (rows * (rows - 1)))
    return Mixing(serial=float(np.sqrt(2 / (np.pi * rows))), spread=1.0, shards=batch / (1 + (batch - 1) * together))


def windows_mixing(rows: int, batch: int, shard_rows: int, size: int) -> Mixing:
    """What windows of `size` full shards are expected to measure, where the batch is small beside the window.

    Rows of one window lie in one shard with probability 1/size, and else in two random shards: so positions follow
    each other with a correlation of 1/size (less what lies in the next window), and 1/size of the variance is missing.
    """
    together = (shard_rows - 1) / (size * shard_rows - 1)
    inside = 1 - (batch + 1) / (2 * size * shard_rows)  # share of the pairs at lags up to a batch within one window
    return Mixing(
        serial=together * inside * (1 - (shard_rows / rows) ** 2),
        spread=1 - together,
        shards=batch / (1 + (batch - 1) * together),
    )
