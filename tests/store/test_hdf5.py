"""A store as one HDF5 file and back: the same bytes; what is damaged, foreign or sly is refused by name."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from devil_pipe.store.errors import InputError
from devil_pipe.store.hdf5 import export_hdf5, import_hdf5
from devil_pipe.store.place import place
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.schema import LayerSpec
from devil_pipe.store.writer import StoreWriter

from ..small_disk import small_disk
from .stores import ENCODINGS, files, identity, keys, random_maps, write_store

INVALID = {0: "", 4: "ein Grund – 理由", 5: "gone"}
OLD = Path(__file__).parent / "data/store-1.0"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    of = identity(8)
    write_store(tmp_path / "s", of, random_maps(of), 3, INVALID, keys(of))
    export_hdf5(FeatureStore(tmp_path / "s"), tmp_path / "s.h5")
    return tmp_path / "s.h5"


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("named", [True, False])
def test_there_and_back_is_the_same_store(tmp_path: Path, encoding: str, named: bool) -> None:
    layers = tuple(LayerSpec(name=name, channels=2, height=2, width=3) for name in ("s8", "block 3", "é.reason"))
    of = identity(11, encoding, layers=layers)
    write_store(tmp_path / "s", of, random_maps(of), 4, INVALID, keys(of) if named else None)
    told: list[int] = []
    export_hdf5(FeatureStore(tmp_path / "s"), tmp_path / "s.h5", advance=told.append)
    manifest = import_hdf5(tmp_path / "s.h5", tmp_path / "back", advance=told.append)
    assert files(tmp_path / "back") == files(tmp_path / "s")
    assert manifest == FeatureStore(tmp_path / "s").manifest
    assert told == [4, 4, 3, 4, 4, 3]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_tool_finds_arrays_and_texts_in_it(tmp_path: Path, encoding: str) -> None:
    of = identity(8, encoding)
    maps = random_maps(of)
    write_store(tmp_path / "s", of, maps, 3, INVALID, keys(of))
    export_hdf5(FeatureStore(tmp_path / "s"), tmp_path / "s.h5")
    good = [row for row in range(8) if row not in INVALID]
    with h5py.File(tmp_path / "s.h5") as file:
        assert set(file) == set(maps) | {"valid", "key", ".reason"}
        for name, values in maps.items():
            data = file[name]
            assert data.chunks == (1, *values.shape[1:])
            assert data.fletcher32
            assert data[:][good].tobytes() == values[good].tobytes()
            empty = data[:][sorted(INVALID)]
            assert np.isnan(empty).all() if values.dtype == np.float16 else not empty.any()
        assert file["valid"][:].tolist() == [row in good for row in range(8)]
        assert file["key"].asstr()[:].tolist() == keys(of)
        assert file[".reason"].asstr()[:].tolist() == [INVALID.get(row, "") for row in range(8)]
        header = json.loads(file.attrs["devil_pipe"])
        assert header == {"identity": of.fields(), "shard_rows": 3}

        def plain(name: str, item: h5py.Dataset) -> None:
            assert item.dtype.kind in "fu" or h5py.check_string_dtype(item.dtype), f"{name}: {item.dtype}"
            assert h5py.check_ref_dtype(item.dtype) is None

        file.visititems(plain)


def test_shards_without_a_good_row(tmp_path: Path) -> None:
    of = identity(8)
    write_store(tmp_path / "s", of, random_maps(of), 3, dict.fromkeys(range(3, 6), "gone"))
    export_hdf5(FeatureStore(tmp_path / "s"), tmp_path / "s.h5")
    import_hdf5(tmp_path / "s.h5", tmp_path / "back")
    assert files(tmp_path / "back") == files(tmp_path / "s")


def test_a_store_elsewhere(exported: Path) -> None:
    root = f"memory://{uuid.uuid4().hex}/s"
    import_hdf5(exported, root)
    before = files(exported.parent / "s")
    lies = place(root)
    assert dict(zip(sorted(before), lies.read(sorted(before)), strict=True)) == before
    export_hdf5(FeatureStore(root), exported, force=True)
    import_hdf5(exported, exported.parent / "back")
    assert files(exported.parent / "back") == before


def test_what_is_there_stays_unless_forced(exported: Path) -> None:
    store, before = FeatureStore(exported.parent / "s"), exported.read_bytes()
    with pytest.raises(InputError, match=r"s\.h5: is there already.*--force"):
        export_hdf5(store, exported)
    assert exported.read_bytes() == before
    export_hdf5(store, exported, force=True)
    with pytest.raises(InputError, match="is there already"):
        export_hdf5(store, exported.parent / "s", force=True)
    with pytest.raises(InputError, match=r"manifest\.json: a store is there already.*--force"):
        import_hdf5(exported, exported.parent / "s")
    assert import_hdf5(exported, exported.parent / "s", force=True) == store.manifest
    with pytest.raises(InputError, match="expected the folder"):
        export_hdf5(store, exported.parent / "no/s.h5")


def test_a_stopped_import_goes_on(exported: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_hdf5(exported, exported.parent / "back", advance=stop)
    with pytest.raises(InputError, match="expected a finished store"):
        FeatureStore(exported.parent / "back")
    told: list[int] = []
    import_hdf5(exported, exported.parent / "back", advance=told.append)
    assert told == [3, 2], "the first shard was kept"
    assert files(exported.parent / "back") == files(exported.parent / "s")


def test_a_stopped_or_failed_export_leaves_nothing(exported: Path) -> None:
    store, before = FeatureStore(exported.parent / "s"), set(exported.parent.iterdir())

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_hdf5(store, exported.parent / "t.h5", advance=stop)
    path = next((exported.parent / "s").glob("*/fine/c.1.0.0"))
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(InputError, match=r"c\.1\.0\.0: row 3 does not match its checksum"):
        export_hdf5(store, exported.parent / "t.h5")
    assert set(exported.parent.iterdir()) == before


@pytest.mark.parametrize("kilobytes", [4, 8, 16, 32, 64, 128])
def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kilobytes: int
) -> None:
    of = identity(2000)
    write_store(tmp_path / "s", of, random_maps(of), 500, None, keys(of))
    with small_disk(tmp_path / "disk", kilobytes) as resize:
        with pytest.raises(InputError, match=r"s\.h5: cannot be written: No space left on device"):
            export_hdf5(FeatureStore(tmp_path / "s"), tmp_path / "disk/s.h5")
        assert list((tmp_path / "disk").iterdir()) == []
        assert capfd.readouterr().err == ""
        resize(10_000)
        export_hdf5(FeatureStore(tmp_path / "s"), tmp_path / "disk/s.h5")
        import_hdf5(tmp_path / "disk/s.h5", tmp_path / "back")
    assert files(tmp_path / "back") == files(tmp_path / "s")


def test_schema_1_0_can_leave_and_not_come_back(tmp_path: Path) -> None:
    export_hdf5(FeatureStore(OLD), tmp_path / "old.h5")
    with pytest.raises(InputError, match=r"old\.h5: holds a store of schema 1\.0, which is read and no longer written"):
        import_hdf5(tmp_path / "old.h5", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def replace(name: str, values: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        if values is not None:
            file[name] = values

    return change


def header(**changes: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.attrs["devil_pipe"] = json.dumps(json.loads(file.attrs["devil_pipe"]) | changes)

    return change


def external(file: h5py.File) -> None:
    del file["fine"]
    file.create_dataset("fine", (8, 8, 3), "<f2", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File) -> None:
    del file["fine"]
    layout = h5py.VirtualLayout((8, 8, 3), "<f2")
    layout[:] = h5py.VirtualSource("other.h5", "x", (8, 8, 3))
    file.create_virtual_dataset("fine", layout)


def references(file: h5py.File) -> None:
    del file["key"]
    file.create_dataset("key", data=[file["fine"].ref] * 8, dtype=h5py.ref_dtype)


def no_number(file: h5py.File) -> None:
    file["fine"][3, 1, 2] = np.inf


FOREIGN: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "no attribute": (lambda file: file.attrs.clear(), "it has no attribute devil_pipe"),
    "number for text": (lambda file: file.attrs.create("devil_pipe", 3), "expected text in the attribute devil_pipe"),
    "no JSON": (lambda file: file.attrs.create("devil_pipe", "{"), "attribute devil_pipe: expected a header"),
    "another schema": (header(identity={"schema_version": "9.9"}), "schema_version"),
    "shards of nothing": (header(shard_rows=0), "shard_rows"),
    "more": (header(secret=1), "secret"),
    "no array": (replace("coarse", None), "expected a dataset 'coarse', found none"),
    "no valid": (replace("valid", None), "expected a dataset 'valid', found none"),
    "no reasons": (replace(".reason", None), "expected a dataset '.reason', found none"),
    "shape": (
        replace("fine", np.zeros((8, 8, 4), "<f2")),
        r"'fine': expected the shape \(8, 8, 3\), found \(8, 8, 4\)",
    ),
    "type": (replace("fine", np.zeros((8, 8, 3), "<f4")), "'fine': expected float16, found float32"),
    "byte order": (replace("fine", np.zeros((8, 8, 3), ">f2")), "'fine': expected float16, found >f2"),
    "keys": (replace("key", np.arange(8)), "'key': expected text, found int64"),
    "too few keys": (replace("key", ["a"]), r"'key': expected the shape \(8,\), found \(1,\)"),
    "keys of bytes": (replace("key", np.array([b"\xff"] * 8, "S1")), "'key': expected UTF-8"),
    "valid of 2": (replace("valid", np.full(8, 2, "u1")), "'valid': expected 0 or 1, found 2"),
    "valid of floats": (replace("valid", np.ones(8)), "'valid': expected uint8, found float64"),
    "group": (lambda file: (replace("fine", None)(file), file.create_group("fine")), "expected 'fine' as a dataset"),
    "soft link": (replace("fine", h5py.SoftLink("/coarse")), "'fine' as a dataset of the file itself"),
    "link elsewhere": (replace("fine", h5py.ExternalLink("x.h5", "/fine")), "'fine' as a dataset of the file itself"),
    "values elsewhere": (external, "'fine' as a dataset of the file itself"),
    "virtual": (virtual, "'fine' as a dataset of the file itself"),
    "references": (references, "'key': expected text, found object"),
    "no number": (no_number, "layer fine, row 3: features are NaN"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_files_are_refused_by_name(exported: Path, case: str) -> None:
    change, says = FOREIGN[case]
    with h5py.File(exported, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=says) as caught:
        import_hdf5(exported, exported.parent / "back")
    assert str(caught.value).startswith(str(exported))
    with pytest.raises(InputError, match="expected a finished store"):
        FeatureStore(exported.parent / "back")


@pytest.mark.parametrize("content", [None, b"", b"a text that is called HDF5", b"\x89HDF\r\n\x1a\n" + bytes(600)])
def test_files_that_are_no_hdf5(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "s.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"s\.h5: expected an HDF5 file of `devil-pipe store export`"):
        import_hdf5(path, tmp_path / "back")


def test_a_cut_file(exported: Path) -> None:
    content = exported.read_bytes()
    for left in range(0, len(content), len(content) // 7):
        exported.write_bytes(content[:left])
        with pytest.raises(InputError, match=rf"^{exported}: "):
            import_hdf5(exported, exported.parent / "back")


@pytest.mark.parametrize("encoding", ["float16", "float16+zstd"])
def test_a_flipped_bit_in_the_numbers_is_found(tmp_path: Path, encoding: str) -> None:
    of = identity(8, encoding)
    write_store(tmp_path / "s", of, random_maps(of), 3, INVALID, keys(of))
    path = tmp_path / "s.h5"
    export_hdf5(FeatureStore(tmp_path / "s"), path)
    with h5py.File(path) as file:
        chunks = [file["fine"].id.get_chunk_info(number) for number in range(5)]
    content = path.read_bytes()
    for chunk in chunks:
        flipped = bytearray(content)
        flipped[chunk.byte_offset + chunk.size // 2] ^= 8
        path.write_bytes(flipped)
        row = chunk.chunk_offset[0]
        begin = row - row % 3
        stop = min(begin + 3, 8)
        with pytest.raises(InputError, match=rf"s\.h5: damaged: 'fine', rows {begin} to {stop - 1}, cannot be read"):
            import_hdf5(path, tmp_path / f"back{row}")
        assert begin // 3 in StoreWriter(tmp_path / f"back{row}", of, 3).missing_shards()
