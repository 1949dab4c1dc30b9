"""How well the orders of an epoch mix at CC3M's size, beside a perfect shuffle's expectation (store/order.py)."""

from __future__ import annotations

import time
from dataclasses import asdict

import numpy as np
from _measure import write

from devil_pipe.store.order import mixing, perfect_mixing, permutation, windows, windows_mixing

ROWS, SHARD_ROWS, BATCH, SEED = 3_000_000, 256, 64, 0
SIZES = (4, 8, 16)


def main() -> None:
    orders = {"permutation": lambda: permutation(ROWS, SEED, 0)}
    expected = {"permutation": perfect_mixing(ROWS, BATCH, SHARD_ROWS)}
    shards = np.arange(ROWS) // SHARD_ROWS
    for size in SIZES:
        orders[f"windows of {size}"] = lambda size=size: np.concatenate(windows(shards, size, SEED, 0))
        expected[f"windows of {size}"] = windows_mixing(ROWS, BATCH, SHARD_ROWS, size)
    perfect = expected["permutation"]
    result, told = {}, []
    for name, make in orders.items():
        begun = time.perf_counter()
        order = make()
        seconds = time.perf_counter() - begun
        found = mixing(order, BATCH, SHARD_ROWS)
        result[name] = {
            "measured": asdict(found),
            "expected": asdict(expected[name]),
            "shards_over_perfect": round(found.shards / perfect.shards, 4),
            "seconds_to_draw": round(seconds, 2),
        }
        told.append(
            f"{name}: {found.shards:.1f} shards a batch ({found.shards / perfect.shards:.2f} of a perfect shuffle's), "
            f"spread {found.spread:.3f}, serial correlation {found.serial:.4f}"
        )
    write("mixing", rows=ROWS, shard_rows=SHARD_ROWS, batch=BATCH, seed=SEED, orders=result)
    print("mixing: " + "; ".join(told))


if __name__ == "__main__":
    main()
