"""What lies on the disk, seen by zarr-python and byte by byte, not by our reader."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from pydantic import ValidationError

from devil_pipe.store.errors import InputError
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.schema import Identity, LayerSpec

from .stores import ENCODINGS, crc32c, identity, index_of, keys, random_maps, write_store

MISSING = 2**64 - 1


def test_the_checksum_of_these_tests_is_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the algorithm's published check value


def test_zarr_understands_the_metadata(tmp_path: Path) -> None:
    of = identity(7)
    writer = write_store(tmp_path / "s", of, random_maps(of), 3, {4: "broken"}, keys(of))
    group = zarr.open_group(tmp_path / "s" / writer.folder, mode="r", zarr_format=3)
    header = group.attrs["devil_pipe"]
    assert header["shard_rows"] == 3
    assert Identity.model_validate_json(json.dumps(header["identity"])) == of
    assert group["coarse"].shape == (7, 2, 5)
    fine = group["fine"]
    assert (fine.shape, fine.chunks, fine.shards) == ((7, 8, 3), (1, 8, 3), (3, 8, 3))
    assert fine.dtype == np.float16
    assert np.isnan(fine.fill_value)
    assert fine.metadata.dimension_names == ("row", "location_fine", "channel_fine")
    assert dict(fine.attrs) == {"kind": "map", "grid": [2, 4], "of_grid": [2, 4], "channels": 3}
    # zarr writes its own form of the same metadata: nothing in ours was misread or dropped
    again = zarr.create_array(
        store={},
        shape=(7, 8, 3),
        chunks=(1, 8, 3),
        shards=(3, 8, 3),
        dtype="float16",
        fill_value=np.nan,
        compressors=zarr.codecs.Crc32cCodec(),
        dimension_names=("row", "location_fine", "channel_fine"),
        attributes=dict(fine.attrs),
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    np.testing.assert_equal(again.metadata.to_dict(), fine.metadata.to_dict())  # in which NaN is NaN
    assert group["valid"][:].tolist() == [row != 4 for row in range(7)]
    assert group["key"][:].tolist() == keys(of)
    assert {name for name, _ in group.members()} == {"fine", "coarse", "valid", "key"}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_xarray_opens_it_as_one_data_set(tmp_path: Path, encoding: str) -> None:
    of = identity(7, encoding)
    maps = random_maps(of)
    writer = write_store(tmp_path / "s", of, maps, 3, {4: "broken"}, keys(of))
    with xarray.open_zarr(tmp_path / "s" / writer.folder, consolidated=False, chunks=None) as found:
        assert set(found.variables) == {array.name for array in of.arrays} | {"key", "valid"}
        good = found.isel(row=found.valid.values)
        assert good.sizes["row"] == 6
        for array in of.arrays:
            assert good[array.name].dims == array.dimensions
            np.testing.assert_array_equal(good[array.name].values, np.delete(maps[array.name], 4, axis=0))
        assert found["key"].values.tolist() == keys(of)


def test_every_byte_of_a_shard(tmp_path: Path) -> None:
    of, shard_rows = identity(7), 4
    maps = random_maps(of)
    writer = write_store(tmp_path / "s", of, maps, shard_rows, {1: "broken", 6: "gone"})
    for layer in of.layers:
        whole = layer.locations * layer.channels * 2
        for shard, rows in enumerate([range(4), range(4, 7)]):  # the last shard has three rows, and four entries
            content = (tmp_path / "s" / writer.folder / layer.name / f"c.{shard}.0.0").read_bytes()
            good = [row for row in rows if row not in (1, 6)]
            assert len(content) == len(good) * (whole + 4) + shard_rows * 16 + 4
            expected: list[tuple[int, int]] = []
            for row in range(rows.start, rows.start + shard_rows):
                place = sum(other < row for other in good) * (whole + 4)
                expected.append((place, whole + 4) if row in good else (MISSING, MISSING))
            assert list(index_of(content, shard_rows)) == expected
            for place, row in enumerate(good):
                start = place * (whole + 4)
                chunk = content[start : start + whole]
                assert chunk == maps[layer.name][row].astype("<f2").tobytes()
                assert struct.unpack("<I", content[start + whole : start + whole + 4])[0] == crc32c(chunk)


def test_the_manifest_describes_the_files_and_repeats_to_the_byte(tmp_path: Path) -> None:
    of = identity(7)
    maps = random_maps(of)
    for name in "ab":
        write_store(tmp_path / name, of, maps, 3, {4: "why"}, keys(of))
    written = (tmp_path / "a/manifest.json").read_bytes()
    assert written == (tmp_path / "b/manifest.json").read_bytes()
    manifest = json.loads(written)
    assert [(shard["start"], shard["stop"]) for shard in manifest["shards"]] == [(0, 3), (3, 6), (6, 7)]
    assert [shard["invalid"] for shard in manifest["shards"]] == [{}, {"4": "why"}, {}]
    for shard in manifest["shards"]:
        assert set(shard["files"]) == {"fine", "coarse"}
        for layer, record in shard["files"].items():
            content = (tmp_path / "a" / manifest["folder"] / layer / f"c.{shard['shard']}.0.0").read_bytes()
            assert record == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert set(manifest["rows"]) == {"valid", "key"}
    for name, record in manifest["rows"].items():
        content = (tmp_path / "a" / manifest["folder"] / name / "c.0").read_bytes()
        assert record == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_store(tmp_path / "a", of, maps, 3, {4: "why"}, keys(of))  # again over a finished store
    assert (tmp_path / "a/manifest.json").read_bytes() == written


def test_the_identitys_digest_is_that_of_its_sorted_json() -> None:
    of = identity()
    text = json.dumps(json.loads(of.model_dump_json()), sort_keys=True).replace(", ", ",").replace(": ", ":")
    assert of.digest == hashlib.sha256(text.encode()).hexdigest()


CHANGES: list[dict[str, Any]] = [
    {"backbone": "other"},
    {"weights": "random:1"},
    {"layers": tuple(reversed(identity().layers))},
    {"layers": identity().layers[:1]},
    {"transform": {"resize": [8, 9]}},
    {"index": "1" * 64},
    {"rows": 8},
    {"encoding": "pool:1"},
    {"compute": "bfloat16"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_each_field_changes_the_digest_and_a_mismatch_names_both_sides(tmp_path: Path, change: dict[str, Any]) -> None:
    of, other = identity(), identity(**change)
    assert other.digest != of.digest
    write_store(tmp_path / "s", of, random_maps(of), 3)
    with pytest.raises(InputError) as caught:
        FeatureStore(tmp_path / "s", other)
    said = str(caught.value)
    ((key, _),) = change.items()
    assert str(tmp_path / "s" / "manifest.json") in said
    for side in (other, of):
        assert repr(side.model_dump(mode="json")[key]) in said
    assert said.index(repr(other.model_dump(mode="json")[key])) < said.rindex(repr(of.model_dump(mode="json")[key]))
    for unchanged in {"backbone", "weights", "index", "rows"} - {key}:
        assert f"{unchanged}: " not in said.split("(expected against found)")[1]


def test_two_identities_lie_side_by_side_and_the_manifest_names_one(tmp_path: Path) -> None:
    first, second = identity(), identity(weights="random:1")
    for of, seed in ((first, 0), (second, 1), (first, 0)):
        write_store(tmp_path / "s", of, random_maps(of, seed), 3)
    read = FeatureStore(tmp_path / "s", first)["fine"].stored([5]).values
    np.testing.assert_array_equal(read[0], random_maps(first, 0)["fine"][5])
    assert len([path for path in (tmp_path / "s").iterdir() if path.is_dir() and path.name != "commits"]) == 2


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\0b"])
def test_a_layer_cannot_leave_the_store(name: str) -> None:
    with pytest.raises(ValidationError, match="without slashes"):
        LayerSpec(name=name, channels=1, height=1, width=1)


@pytest.mark.parametrize("name", ["key", "valid", "fine.bounds"])
def test_a_layer_takes_no_name_of_the_stores_own(name: str) -> None:
    with pytest.raises(ValidationError, match="the store's own arrays"):
        LayerSpec(name=name, channels=1, height=1, width=1)
    with pytest.raises(ValidationError, match="expected names that differ"):
        identity(layers=(LayerSpec(name="a", channels=1, height=1, width=1),) * 2)


def test_an_unknown_version_or_key_is_refused(tmp_path: Path) -> None:
    of = identity()
    write_store(tmp_path / "s", of, random_maps(of), 3)
    path = tmp_path / "s/manifest.json"
    manifest = json.loads(path.read_text())
    later = {**manifest, "identity": {**manifest["identity"], "schema_version": "1.2"}}
    for damaged in (json.dumps(later), json.dumps({**manifest, "codec": "zstd"}), path.read_text()[:-40], "\xff"):
        path.write_text(damaged, encoding="latin-1")
        with pytest.raises(InputError, match=r"manifest\.json: expected a manifest of schema 1\.0 or 1\.1"):
            FeatureStore(tmp_path / "s")


HARM: list[tuple[str, Any]] = [
    ("folder: expected", lambda manifest: manifest | {"folder": "../elsewhere"}),
    ("shards: expected 3 that hold rows 0 to 6", lambda manifest: manifest | {"shards": manifest["shards"][:-1]}),
    ("shards: expected 3", lambda manifest: manifest | {"shards": manifest["shards"][::-1]}),
    ("shards: expected 4 that hold", lambda manifest: manifest | {"shard_rows": 2}),
    ("shard_rows", lambda manifest: manifest | {"shard_rows": 0}),
    ("shard 1: expected files", lambda manifest: deep(manifest, "files", {})),
    ("shard 1: names rows", lambda manifest: deep(manifest, "invalid", {"0": "not one of shard 1"})),
]


def deep(manifest: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    first, second, *rest = manifest["shards"]
    return manifest | {"shards": [first, second | {key: value}, *rest]}


@pytest.mark.parametrize(("said", "harm"), HARM)
def test_a_manifest_that_does_not_fit_together_is_refused(tmp_path: Path, said: str, harm: Any) -> None:
    of = identity()
    write_store(tmp_path / "s", of, random_maps(of), 3)
    path = tmp_path / "s/manifest.json"
    path.write_text(json.dumps(harm(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=rf"manifest\.json(?s:.*){said}"):
        FeatureStore(tmp_path / "s")


@pytest.mark.parametrize(
    "encoding", ["", "float32", "uint8 ", "partition", "partition:0", "pool:-1", "zstd", "float16+lz4"]
)
def test_an_unknown_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(ValidationError, match=r"expected float16, uint8, partition:GROUPS, pool:SIDE or units"):
        Identity(**{**identity().model_dump(), "encoding": encoding})


def test_the_type_is_that_of_the_encoding() -> None:
    with pytest.raises(ValidationError, match=r"dtype: expected that of encoding 'uint8', got 'float16'"):
        identity(encoding="uint8", dtype="float16")
