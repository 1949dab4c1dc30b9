"""One pass over a layer of a store: each unit's top rows, and the exact quantile of all its activations.

Features are float16 (quantised ones decode to it), so a unit has at most 65,536 different activations. How often each
occurs is counted, which gives the exact quantile of any number of rows in 0.25 MiB a unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
from jaxtyping import Float16, Float32, Int64, UInt16

from devil_pipe.stages.common.progress import bar
from devil_pipe.store.errors import InputError
from devil_pipe.store.layer import StoredLayer
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.schema import LayerSpec

CODES = 1 << 16
BLOCK = 32 << 20
"""Bytes of feature maps that are held at once."""

_SIGN = 0x8000


@dataclass(frozen=True)
class Scan:
    """What one pass found of some units of a layer."""

    layer: LayerSpec
    units: list[int]
    rows: Int64[np.ndarray, "units exemplars"]
    """The rows with the highest maxima over locations, the highest first; of equal ones the earlier row first."""

    peaks: Float16[np.ndarray, "units exemplars"]
    """Those maxima."""

    thresholds: Float32[np.ndarray, " units"]
    """The quantile of each unit's activations, over all locations of all rows."""

    mean: Float32[np.ndarray, " channels"]
    """Of every channel of the layer, over all locations of all rows."""

    maxima: Float16[np.ndarray, "kept units"]
    """The maximum over locations of the rows that were asked for."""


def scan(
    store: FeatureStore,
    layer: LayerSpec,
    rows: Sequence[int],
    units: Sequence[int],
    *,
    exemplars: int,
    quantile: float,
    keep: Sequence[int],
) -> Scan:
    """Read a layer's rows once; memory depends on the number of units and not on that of rows.

    Args:
        store: opened.
        layer: of the store.
        rows: with features, ascending, each once; at least as many as `exemplars`.
        units: channels of the layer.
        exemplars: top rows of each unit.
        quantile: of all activations of a unit, linear between neighbours as `numpy.quantile` has it.
        keep: of these of the rows all units' maxima are kept.

    Raises:
        InputError: the store has no locations, or is damaged.
    """
    stored = with_locations(store, layer.name)
    places = {row: place for place, row in enumerate(keep)}
    counts = Counts(len(units), len(rows) * stored.arrays[0].shape[0])
    top = Top(len(units), exemplars)
    summed = np.zeros(layer.channels)
    maxima = np.empty((len(keep), len(units)), np.float16)
    with bar(f"scan {layer.name}", len(rows), "rows") as shown:
        for part, maps in blocks(stored, rows):
            summed += maps.astype(np.float32).sum(axis=1).sum(axis=0, dtype=np.float64)
            codes = encode(maps[:, :, units])
            counts.add(codes)
            highest = codes.max(axis=1)
            top.add(highest, part)
            kept = [place for place, row in enumerate(part) if row in places]
            maxima[[places[part[place]] for place in kept]] = decode(highest[kept])
            shown.advance(len(part))
    locations = stored.arrays[0].shape[0]
    return Scan(
        layer,
        list(units),
        top.rows.T,
        decode(top.codes.T),
        counts.quantile(quantile),
        (summed / (len(rows) * locations)).astype(np.float32),
        maxima,
    )


def maxima_of(
    store: FeatureStore, layer: LayerSpec, rows: Sequence[int], units: Sequence[int]
) -> Float16[np.ndarray, "rows units"]:
    """The maximum over locations of some units on some rows. Raises InputError as `scan`."""
    stored = with_locations(store, layer.name)
    return np.concatenate([decode(encode(maps[:, :, units]).max(axis=1)) for _, maps in blocks(stored, rows)])


def with_locations(store: FeatureStore, layer: str) -> StoredLayer:
    """A layer whose maps have locations. Raises InputError for a store of groups' or units' means."""
    found = store[layer]
    if found.grid is None:
        raise InputError(
            f"{store.place.show()}: expected feature maps with locations, by which exemplars and masks are found, "
            f"got encoding {store.identity.encoding!r}, which keeps means alone; extract again with encoding "
            "float16, uint8 or pool:SIDE"
        )
    return found


def blocks(
    layer: StoredLayer, rows: Sequence[int]
) -> Iterator[tuple[Sequence[int], Float16[np.ndarray, "rows locations channels"]]]:
    """Rows in the order given with their maps, `BLOCK` bytes at a time."""
    count = max(1, BLOCK // (2 * layer.arrays[0].shape[0] * layer.spec.channels))
    for begin in range(0, len(rows), count):
        part = rows[begin : begin + count]
        neighbours = part[-1] - part[0] == len(part) - 1
        yield part, layer[slice(part[0], part[-1] + 1) if neighbours else part]


def encode(values: Float16[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
    """Whole numbers in the order of the values, in which NumPy finds maxima many times as fast."""
    bits = values.view(np.uint16)
    bits = np.where(bits == _SIGN, np.uint16(0), bits)  # minus zero is no smaller than zero
    return np.where(bits & _SIGN, ~bits, bits | np.uint16(_SIGN))


def decode(codes: UInt16[np.ndarray, "*shape"]) -> Float16[np.ndarray, "*shape"]:
    """The values that `encode` made the codes of."""
    return np.where(codes & _SIGN, codes & np.uint16(_SIGN - 1), ~codes).view(np.float16)


class Counts:
    """How often each value occurs, unit by unit."""

    def __init__(self, units: int, most: int) -> None:
        """`most` values will be counted of each unit, at most."""
        self.counts = np.zeros((units, CODES), np.uint32 if most < 1 << 32 else np.uint64)

    def add(self, codes: UInt16[np.ndarray, "rows locations units"]) -> None:
        """Count some more."""
        columns = np.ascontiguousarray(codes.reshape(-1, codes.shape[2]).T)
        for counts, column in zip(self.counts, columns, strict=True):
            found = np.bincount(column)
            counts[: len(found)] += found.astype(counts.dtype)

    def quantile(self, share: float) -> Float32[np.ndarray, " units"]:
        """The exact quantile of each unit's values, linear between the two nearest."""
        return np.array([_quantile(counts, share) for counts in self.counts], np.float32)


def _quantile(counts: np.ndarray, share: float) -> float:
    upto = counts.cumsum(dtype=np.uint64)
    place = (int(upto[-1]) - 1) * share
    around = np.array([floor(place), ceil(place)], dtype=np.uint64)
    low, high = decode(np.searchsorted(upto, around, side="right").astype(np.uint16)).astype(np.float64)
    return float(low + (high - low) * (place - floor(place)))


class Top:
    """The rows with the highest maxima so far, unit by unit; rows have to come in their order."""

    def __init__(self, units: int, count: int) -> None:
        self.count = count
        self.codes = np.empty((0, units), np.uint16)
        """The highest maxima, the highest first."""

        self.rows = np.empty((0, units), np.int64)
        """Their rows."""

    def add(self, maxima: UInt16[np.ndarray, "rows units"], rows: Sequence[int]) -> None:
        """Let these rows compete. A row does not take the place of an earlier one that is as high."""
        codes = np.concatenate([self.codes, maxima])
        numbers = np.concatenate([self.rows, np.broadcast_to(np.array(rows)[:, None], maxima.shape)])
        order = np.argsort(~codes, axis=0, kind="stable")[: self.count]
        self.codes = np.take_along_axis(codes, order, axis=0)
        self.rows = np.take_along_axis(numbers, order, axis=0)
