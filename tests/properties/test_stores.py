"""Stores of any layers, encoding, shard size and order of writing: what is read is what was written, or an error."""

from __future__ import annotations

import json
import math
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devil_pipe.stages.extract.encode import encode
from devil_pipe.store.errors import InputError
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.schema import Identity, LayerSpec
from devil_pipe.store.verify import verify
from devil_pipe.store.writer import StoreWriter

from ..store.stores import files, identity, keys, random_maps, write_one, write_store
from .profiles import cases, few

NAMES = st.sampled_from(["s8", "L21", "block 3", "é", "layer.1", "a[b]"])
SIZE = st.integers(1, 4)
ENCODING = st.builds(
    lambda whole, codec: whole + codec,
    st.one_of(
        st.sampled_from(["float16", "uint8", "units"]),
        st.integers(1, 20).map("partition:{}".format),
        st.integers(1, 5).map("pool:{}".format),
    ),
    st.sampled_from(["", "+zstd"]),
)


@dataclass(frozen=True)
class Case:
    """What is to be written, in which order, and what lies in it."""

    of: Identity
    shard_rows: int
    invalid: dict[int, str]
    order: list[int]

    @property
    def maps(self) -> dict[str, np.ndarray]:
        return random_maps(self.of, seed=1)

    @property
    def good(self) -> list[int]:
        return [row for row in range(self.of.rows) if row not in self.invalid]


@st.composite
def stores(draw: st.DrawFn) -> Case:
    rows, shard_rows = draw(st.integers(1, 11)), draw(st.integers(1, 6))
    layers = tuple(
        LayerSpec(name=name, channels=draw(SIZE), height=draw(SIZE), width=draw(SIZE))
        for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    )
    of = identity(rows, draw(ENCODING), layers=layers)
    invalid = {row: f"reason {row}" for row in draw(st.sets(st.integers(0, rows - 1)))}
    return Case(of, shard_rows, invalid, draw(st.permutations(range(math.ceil(rows / shard_rows)))))


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        yield Path(place) / "store"


@few
@given(stores(), st.data())
def test_any_order_with_any_stops_gives_the_same_bytes(case: Case, data: st.DataObject) -> None:
    """Each stretch of shards by a writer of its own; until the last one the store is a partial one, and says so."""
    stops = data.draw(st.sets(st.integers(0, len(case.order))), label="a new writer comes before these")
    with folder() as straight, folder() as stopped:
        write_store(straight, case.of, case.maps, case.shard_rows, case.invalid, keys(case.of))
        writer = StoreWriter(stopped, case.of, case.shard_rows)
        for done, shard in enumerate(case.order):
            if done in stops:
                with pytest.raises(InputError, match="expected a finished store"):
                    FeatureStore(stopped)
                report = verify(stopped, threads=1)
                assert [finding.problem for finding in report.findings if not finding.note] == ["unfinished"]
                assert (report.committed, report.shards) == (done, len(case.order))
                writer = StoreWriter(stopped, case.of, case.shard_rows)
                assert writer.missing_shards() == sorted(case.order[done:])
                with pytest.raises(InputError, match="are not committed"):
                    writer.finalise()
            write_one(writer, shard, case.maps, case.invalid)
        writer.finalise(keys(case.of))
        assert files(stopped) == files(straight)
        assert verify(stopped, threads=1).whole


@cases
@given(stores(), st.data())
def test_a_selection_is_numpys(case: Case, data: st.DataObject) -> None:
    """Rows and keys in any order with repeats, slices with any step, layers in any order."""
    good = case.good
    asked = data.draw(st.lists(st.sampled_from(good), max_size=12) if good else st.just([]), label="rows")
    part = data.draw(st.slices(case.of.rows), label="slice")
    with folder() as root:
        write_store(root, case.of, case.maps, case.shard_rows, case.invalid, keys(case.of))
        store, names = FeatureStore(root), keys(case.of)
        for layer in data.draw(st.permutations(case.of.layers), label="layers"):
            opened, expected = store[layer.name], case.maps[layer.name]
            stored = opened.stored(asked)
            np.testing.assert_array_equal(stored.values, expected[np.array(asked, dtype=int)])
            if opened.grid is None:
                with pytest.raises(InputError, match="no locations"):
                    opened[asked]
                continue
            whole = stored.maps() if stored.bounds is not None else expected[np.array(asked, dtype=int)]
            np.testing.assert_array_equal(opened[asked], whole)
            np.testing.assert_array_equal(opened[[names[row] for row in asked]], whole)
            inside = range(case.of.rows)[part]
            if set(inside) <= set(good):
                np.testing.assert_array_equal(opened[part], opened[list(inside)])
            else:
                with pytest.raises(InputError, match="has no features"):
                    opened[part]


@few
@given(stores(), st.data())
def test_a_byte_that_changed_in_a_shard_is_found(case: Case, data: st.DataObject) -> None:
    """`verify` finds it wherever it is; what is read with `verify=True` is right or refused, row by row."""
    with folder() as root:
        write_store(root, case.of, case.maps, case.shard_rows, case.invalid, keys(case.of))
        shards = sorted(path for path in root.rglob("c.*.0.0"))
        path = data.draw(st.sampled_from(shards))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        report = verify(root, threads=1)
        assert not report.whole
        assert {finding.file for finding in report.findings} == {str(path)}
        store = FeatureStore(root)
        for layer in case.of.layers:
            for row in case.good:
                with suppress(InputError):
                    found = store[layer.name].stored([row], verify=True)
                    for array, values in zip(store[layer.name].arrays, found.arrays(), strict=True):
                        assert values[0].tobytes() == case.maps[array.name][row].tobytes()


@few
@given(stores(), st.data())
def test_a_manifest_that_changed_never_moves_a_row(case: Case, data: st.DataObject) -> None:
    """It has no checksum and says which rows have no chunk, so a number in it decides where all others lie."""
    with folder() as root:
        write_store(root, case.of, case.maps, case.shard_rows, case.invalid, keys(case.of))
        path = root / "manifest.json"
        if data.draw(st.booleans(), label="another row without features"):
            values = json.loads(path.read_bytes())
            shard = data.draw(st.sampled_from(values["shards"]))
            gone = {str(row): "?" for row in data.draw(st.sets(st.integers(shard["start"], shard["stop"] - 1)))}
            changed = set(gone) != set(shard["invalid"])
            shard["invalid"] = gone
            path.write_text(json.dumps(values), encoding="utf-8")
            if changed:
                with pytest.raises(InputError, match=r"manifest\.json"):
                    FeatureStore(root)
                return
        else:
            content = bytearray(path.read_bytes())
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            path.write_bytes(content)
        try:
            store = FeatureStore(root)
        except InputError as error:
            assert str(root) in str(error)  # noqa: PT017 - either outcome is right
            return
        assert np.flatnonzero(store.valid()).tolist() == case.good
        for layer in store.layers:
            found = store[layer.name].stored(case.good)
            for array, read in zip(store[layer.name].arrays, found.arrays(), strict=True):
                assert read.tobytes() == case.maps[array.name][case.good].tobytes()


def groups(layer: LayerSpec, count: int, row: int) -> list[list[int]]:
    """The locations of each group of a partition, as SPEC.md, 3 says."""
    order = np.random.default_rng([zlib.crc32(layer.name.encode()), row]).permutation(layer.locations).tolist()
    count = min(count, layer.locations)
    sizes = [layer.locations // count + (place < layer.locations % count) for place in range(count)]
    return [[order.pop(0) for _ in range(size)] for size in sizes]


def cells(layer: LayerSpec, side: int) -> list[list[int]]:
    """The locations of each cell of a coarser grid, as SPEC.md, 3 says."""
    h, w = min(layer.height, side), min(layer.width, side)
    rows = [range(i * layer.height // h, -(-(i + 1) * layer.height // h)) for i in range(h)]
    columns = [range(j * layer.width // w, -(-(j + 1) * layer.width // w)) for j in range(w)]
    return [[y * layer.width + x for y in down for x in across] for down in rows for across in columns]


@cases
@given(
    st.builds(LayerSpec, name=NAMES, channels=SIZE, height=st.integers(1, 6), width=st.integers(1, 6)),
    ENCODING.filter(lambda text: not text.startswith("units")),
    st.integers(1, 4),
    st.floats(1e-6, 1e4),
    st.floats(-100, 100),
)
def test_what_is_read_is_what_was_extracted_to_the_encodings_error(
    layer: LayerSpec, encoding: str, rows: int, spread: float, offset: float
) -> None:
    """From full float32 maps through encoding, writing and reading; the errors are those that SPEC.md states."""
    draw = np.random.default_rng(rows)
    exact = (draw.normal(size=(rows, layer.locations, layer.channels)) * spread + offset).clip(-60000, 60000)
    exact = exact.astype(np.float32).astype(np.float64)
    of = identity(rows, encoding, layers=(layer,))
    with folder() as root:
        coded = encode(torch.from_numpy(exact).float(), layer, of.stored_as, range(rows))
        write_store(root, of, coded, 2)
        stored = FeatureStore(root)[layer.name].stored(range(rows), verify=True)
    size, reduce = of.stored_as.size, of.stored_as.reduce
    for row in range(rows):
        if reduce == "partition":
            expected = [exact[row][members].mean(axis=0) for members in groups(layer, size, row)]
        elif reduce == "pool":
            expected = [exact[row][members].mean(axis=0) for members in cells(layer, size)]
        else:
            expected = list(exact[row])
        found = stored.maps()[row].astype(np.float64)
        # Half a step of float16; a mean's own rounding in float32 is some thousand times less.
        error = np.maximum(np.abs(expected) * 2.0**-11, 2.0**-25) + 1e-6 * np.abs(exact[row]).max()
        if (
            of.stored_as.values == "uint8"
        ):  # and half a 255th of the bounds, themselves two steps of float16 further out
            least, most = exact[row].min(axis=0), exact[row].max(axis=0)
            slack = 2 * np.maximum(np.maximum(np.abs(least), np.abs(most)) * 2.0**-10, 2.0**-24)
            error = error + (most - least + 2 * slack) / 510 + slack / 255
        assert (np.abs(found - expected) <= error).all()
