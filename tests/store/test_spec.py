"""SPEC.md and what is written say the same: its examples, tables and tree are compared with stores on disk."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import devil_pipe.store
from devil_pipe.stages.extract.encode import partition
from devil_pipe.store.schema import SCHEMA_VERSION, Identity, Manifest, ShardRecord

from .stores import ENCODINGS, LAYERS, files, identity, keys, random_maps, write_store

SPEC = (Path(devil_pipe.store.__path__[0]) / "SPEC.md").read_text(encoding="utf-8")
DATA = Path(__file__).parent / "data"
FINE = LAYERS[0]


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", SPEC, re.DOTALL | re.MULTILINE)


def table(first: str) -> list[list[str]]:
    """The rows of the table whose head begins so."""
    (body,) = re.findall(rf"^\| {first} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", SPEC, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()]


def code(cell: str) -> list[str]:
    return re.findall("`([^`]+)`", cell)


def write(root: Path, encoding: str) -> Path:
    of = identity(7, encoding)
    writer = write_store(root, of, random_maps(of), 4, {1: "broken"}, keys(of))
    return root / writer.folder


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_store_holds_the_files_of_the_tree_and_no_other(tmp_path: Path, encoding: str) -> None:
    folder = write(tmp_path / "s", encoding).name
    lines = [line for line in blocks("")[0].splitlines() if line.strip()]
    paths: list[str] = []
    parents: list[str] = []
    for line in lines:
        name = line.split()[0]
        if name.endswith("/"):
            parents = [*parents[: (len(line) - len(line.lstrip())) // 2], name]
        else:
            paths.append("".join(parents[1 : (len(line) - len(line.lstrip())) // 2]) + name)
    for own, name in {"uint8": ".bounds", "units": ".exemplars"}.items():
        if not encoding.startswith(own):
            paths = [path for path in paths if name not in path]
    expected = {
        path.replace("IDENTITY", folder)
        .replace("LAYER", layer.name)
        .replace("c.K", f"c.{shard}")
        .replace("KKKKKK", f"{shard:06d}")
        for path, layer, shard in product(paths, LAYERS, range(2))
    }
    assert set(files(tmp_path / "s")) == expected


@pytest.mark.parametrize("codec", ["", "+zstd"])
@pytest.mark.parametrize("encoding", ["float16", "uint8", "partition:3", "pool:1", "units"])
def test_the_table_of_encodings(tmp_path: Path, encoding: str, codec: str) -> None:
    group = zarr.open_group(write(tmp_path / "s", encoding + codec), mode="r", zarr_format=3)
    attributes = {code(kind)[0]: set(code(others)) for kind, others in table("`kind`")}
    described = [line for line in table("encoding") if code(line[0]) == [encoding]]
    assert {code(line[1])[0] for line in described} == {name for name in group if name.startswith("fine")}
    for _, array, dtype, row, dimensions, kind in described:
        found = group[code(array)[0]]
        assert isinstance(found, zarr.Array)
        assert found.dtype == np.dtype(dtype)
        assert found.shape == (7, *map(int, row.split(" × ")))
        assert found.metadata.dimension_names == ("row", *code(dimensions))
        assert found.attrs["kind"] == code(kind)[0]
        assert set(found.attrs) == {"kind"} | attributes[code(kind)[0]]
        inner = [each["name"] for each in found.metadata.to_dict()["codecs"][0]["configuration"]["codecs"]]
        assert inner == ["bytes", *(["zstd"] if codec else []), "crc32c"]


def test_the_table_names_every_encoding() -> None:
    assert {code(line[0])[0] + codec for line in table("encoding") for codec in ("", "+zstd")} == set(ENCODINGS)


def test_the_examples_are_what_lies_on_the_disk() -> None:
    store = DATA / "store-1.1-float16"
    array, marker = (json.loads(block) for block in blocks("json"))
    folder = next(path for path in store.iterdir() if path.is_dir() and path.name != "commits")
    assert array == json.loads((folder / "fine/zarr.json").read_text())
    assert marker == json.loads((store / "commits" / folder.name / "000001.json").read_text())


def fields(rows: list[list[str]], version: str) -> set[str]:
    return {code(name)[0] for name, since, _ in rows if since <= version}


@pytest.mark.parametrize(
    ("version", "name"), [("1.0", "store-1.0"), ("1.1", "store-1.1-float16"), ("1.2", "store-1.2-units")]
)
def test_the_fields_of_identity_and_manifest(version: str, name: str) -> None:
    manifest: dict[str, Any] = json.loads((DATA / name / "manifest.json").read_text())
    assert fields(table("field"), version) == set(manifest["identity"])
    assert fields(table("field of the manifest"), version) == set(manifest)
    assert fields(table("field"), SCHEMA_VERSION) == set(Identity.model_fields)
    assert fields(table("field of the manifest"), SCHEMA_VERSION) == set(Manifest.model_fields)
    assert set(json.loads(blocks("json")[1])) == set(ShardRecord.model_fields)
    assert manifest["identity"]["schema_version"] == version
    text = json.dumps(manifest["identity"], sort_keys=True, separators=(",", ":"))
    assert manifest["folder"] == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_a_partition_is_drawn_as_written() -> None:
    said = re.search(r"row (\d+): `order` is ([\d ]+) and\s+`group_sizes` ([\d ]+)\.", SPEC)
    assert said is not None
    order, sizes = ([int(item) for item in said[part].split()] for part in (2, 3))
    assert list(FINE.group_sizes(3)) == sizes
    group = partition(FINE, 3, int(said[1]))
    for number, size in enumerate(sizes):
        assert set(np.flatnonzero(group == number)) == set(order[:size])
        order = order[size:]


def test_the_version_is_that_of_the_code() -> None:
    assert SPEC.startswith(f"# The feature store, schema {SCHEMA_VERSION}\n")
