"""In which order an epoch's examples come, and which of them share a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def epoch_order(
    lengths: Int[np.ndarray, " examples"], batch_size: int, window: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Every example once, in batches of similar caption length, the batches in random order.

    Sorting happens within windows of `window` batches: the wider, the less padding is computed, and the less a
    batch is a fair sample (with windows as long as the data, short and long captions never meet).
    """
    random = np.random.default_rng([seed, epoch])
    batches = _by_length(random.permutation(len(lengths)), lengths, batch_size, window)
    return [batches[place] for place in random.permutation(len(batches))]


def _by_length(
    members: Int[np.ndarray, " members"], lengths: Int[np.ndarray, " examples"], batch_size: int, window: int
) -> list[np.ndarray]:
    """Batches of the members, sorted by length within every `window` batches."""
    batches: list[np.ndarray] = []
    for begin in range(0, len(members), window * batch_size):
        part = members[begin : begin + window * batch_size]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[place : place + batch_size] for place in range(0, len(part), batch_size)]
    return batches


def windows_order(
    members: Sequence[Int[np.ndarray, " _window"]],
    lengths: Int[np.ndarray, " examples"],
    batch_size: int,
    window: int,
    random: np.random.Generator,
) -> list[list[np.ndarray]]:
    """The batches of each window of the store (`devil_pipe.store.order.windows`), each batch whole but the very last.

    Captions are sorted by length, and batches shuffled, within a window of the store. What does not fill a batch goes
    into the next window: a random choice, since the members come in random order.
    """
    planned: list[list[np.ndarray]] = []
    left = np.empty(0, dtype=np.int64)
    for number, more in enumerate(members):
        pool = np.concatenate([left, more])
        whole = len(pool) if number == len(members) - 1 else len(pool) // batch_size * batch_size
        pool, left = pool[:whole], pool[whole:]
        batches = _by_length(pool, lengths, batch_size, window)
        planned.append([batches[place] for place in random.permutation(len(batches))])
    return planned
