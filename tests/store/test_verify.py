"""Every kind of damage is found, named, and undone by writing just the damaged shards again."""

from __future__ import annotations

import errno
import json
import shutil
import struct
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devil_pipe.store import layout
from devil_pipe.store.errors import InputError
from devil_pipe.store.place import LocalPlace, place
from devil_pipe.store.schema import BOUNDS
from devil_pipe.store.verify import Report, discard, verify
from devil_pipe.store.writer import StoreWriter

from .stores import ENCODINGS, crc32c, files, identity, index_of, keys, random_maps, write_one, write_store

ROWS, SHARD_ROWS = 8, 3
INVALID = {4: "not a picture"}
OLD = Path(__file__).parent / "data/store-1.0"
every_encoding = pytest.mark.parametrize("encoding", ENCODINGS)


class Store:
    """A finished store of three shards, the last of two rows, and what its files were."""

    def __init__(self, root: Path, encoding: str = "float16", seed: int = 0) -> None:
        self.root, self.of = root, identity(ROWS, encoding)
        self.maps, self.keys = random_maps(self.of, seed), keys(self.of)
        self.writer = self.write()
        self.before = files(root)

    def write(self) -> StoreWriter:
        return write_store(self.root, self.of, self.maps, SHARD_ROWS, INVALID, self.keys)

    def written(self) -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in self.root.rglob("c.?.0.0")}

    def path(self, array: str = "fine", shard: int = 1) -> Path:
        return self.root / self.writer.file(array, shard)

    def marker(self, shard: int = 1) -> Path:
        return self.root / self.writer.marker(shard)

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    def commit(self, array: str, shard: int, content: bytes) -> None:
        """Put bytes in place as if they had been committed: size and SHA-256 are right."""
        self.path(array, shard).write_bytes(content)
        record = json.loads(self.marker(shard).read_text())
        record["files"][array] = {"size": len(content), "sha256": sha256(content).hexdigest()}
        self.marker(shard).write_text(json.dumps(record))
        self.writer.finalise(self.keys)

    def is_mended(self, *shards: int) -> None:
        """After `verify` and `discard`: `extract` would write these shards and no others, and all is as it was."""
        times = self.written()
        gone = discard(self.root, verify(self.root))
        assert set(gone) <= set(self.before)
        of_shards = {self.writer.marker(shard) for shard in shards}
        of_shards |= {self.writer.file(array.name, shard) for array in self.of.arrays for shard in shards}
        assert {name for name in self.before if name not in files(self.root)} == of_shards | {"manifest.json"}
        assert StoreWriter(self.root, self.of, SHARD_ROWS).missing_shards() == sorted(shards)
        self.write()
        assert files(self.root) == self.before
        now = self.written()
        assert {name for name in times if now[name] == times[name]} == set(times) - {
            str(self.root / x) for x in of_shards
        }
        assert verify(self.root).whole


def faults(report: Report) -> list[tuple[str, int | None, str | None]]:
    return [(item.problem, item.shard, item.array) for item in report.findings if not item.note]


def only(report: Report) -> Any:
    (finding,) = report.findings
    return finding


@every_encoding
def test_a_whole_store_has_no_fault_and_every_file_is_read(tmp_path: Path, encoding: str) -> None:
    store = Store(tmp_path / "s", encoding)
    told: list[int] = []
    report = verify(
        store.root, index=store.of.index, keys=store.keys, threads=2, watch=lambda n: lambda: told.append(n)
    )
    assert report.findings == ()
    assert report.files == 3 * len(store.of.arrays)
    assert told == [report.files] * report.files
    assert discard(store.root, report) == []
    assert files(store.root) == store.before


LENGTHS: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda _: None,
    "truncated": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
}


@every_encoding
@pytest.mark.parametrize("problem", LENGTHS)
def test_a_file_of_another_length(tmp_path: Path, encoding: str, problem: str) -> None:
    store = Store(tmp_path / "s", encoding)
    array = store.of.arrays[-1].name
    path = store.path(array)
    whole = path.read_bytes()
    path.unlink()
    if (content := LENGTHS[problem](whole)) is not None:
        path.write_bytes(content)
    report = verify(store.root)
    assert faults(report) == [(problem, 1, array)]
    assert only(report).file == str(path)
    assert f"expected {len(whole)} bytes" in only(report).what
    assert "`devil-pipe extract`" in only(report).mend
    store.is_mended(1)


@pytest.mark.parametrize("left", [0, 3, 51, 52, 60])
def test_a_file_cut_anywhere(tmp_path: Path, left: int) -> None:
    store = Store(tmp_path / "s")
    store.path().write_bytes(store.path().read_bytes()[:left])
    assert faults(verify(store.root)) == [("truncated", 1, "fine")]


@every_encoding
def test_a_flipped_bit_anywhere_is_found_with_its_row(tmp_path: Path, encoding: str) -> None:
    store = Store(tmp_path / "s", encoding)
    draw = np.random.default_rng(0)
    for array in store.of.arrays:
        path = store.path(array.name)
        whole = path.read_bytes()
        chunks = {3 + number: entry for number, entry in enumerate(index_of(whole, SHARD_ROWS))}
        assert [row for row, (offset, _) in chunks.items() if offset == 2**64 - 1] == [4]
        begins = [offset for row, (offset, _) in chunks.items() if row != 4]
        for at in [*begins, len(whole) - 1, len(whole) - 5, *draw.integers(0, len(whole), 6).tolist()]:
            flipped = bytearray(whole)
            flipped[at] ^= 1 << int(draw.integers(8))
            path.write_bytes(flipped)
            hit = [row for row, (offset, length) in chunks.items() if offset <= at < offset + length]
            found = only(verify(store.root))
            assert (found.problem, found.shard, found.array) == ("bits" if hit else "index", 1, array.name)
            assert list(found.rows) == hit
        path.write_bytes(whole)
    store.path(store.of.arrays[0].name, 2).write_bytes(b"\0" * store.path(store.of.arrays[0].name, 2).stat().st_size)
    store.is_mended(2)


@every_encoding
@pytest.mark.parametrize("harm", ["exchanged", "shifted", "shorter", "invalid row has one", "beyond the end"])
def test_an_index_that_points_elsewhere_is_found_though_its_checksums_are_right(
    tmp_path: Path, encoding: str, harm: str
) -> None:
    store = Store(tmp_path / "s", encoding)
    array = store.of.arrays[0].name
    content = store.path(array).read_bytes()
    body, entries = content[: -16 * SHARD_ROWS - 4], [list(entry) for entry in index_of(content, SHARD_ROWS)]
    match harm:
        case "exchanged":
            entries[0], entries[2] = entries[2], entries[0]
            rows = {3, 5}
        case "shifted":
            entries[2][0] += 1
            rows = {5}
        case "shorter":
            entries[2][1] -= 1
            rows = set() if encoding.endswith("zstd") else {5}
        case "invalid row has one":
            entries[1] = entries[0]
            rows = {4}
        case "beyond the end":
            entries[2][1] = 2**63
            rows = {5}
    table = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    store.commit(array, 1, body + table + struct.pack("<I", crc32c(table)))
    found = verify(store.root).findings
    assert {(item.problem, item.shard, item.array) for item in found} >= {("index", 1, array)}
    if rows:  # of exchanged compressed chunks of one length the first alone need be out of place
        assert set(found[0].rows) == rows
    discard(store.root, verify(store.root))
    store.write()
    assert files(store.root) == store.before


@every_encoding
def test_swapped_shards_are_named(tmp_path: Path, encoding: str) -> None:
    store = Store(tmp_path / "s", encoding)
    array = store.of.arrays[0].name
    one, two = store.path(array, 0), store.path(array, 1)
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)
    report = verify(store.root)
    assert faults(report) == [("swapped", 0, array), ("swapped", 1, array)]
    assert [item.what for item in report.findings] == ["holds shard 1 of this array", "holds shard 0 of this array"]
    store.is_mended(0, 1)


def test_the_shard_of_another_array_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    shutil.copyfile(store.path("coarse", 2), store.path("fine", 0))
    found = only(verify(store.root))
    assert (found.problem, found.shard, found.what) == ("swapped", 0, "holds shard 2 of array coarse")


@every_encoding
def test_the_shard_of_another_store(tmp_path: Path, encoding: str) -> None:
    store, other = Store(tmp_path / "s", encoding), Store(tmp_path / "other", encoding, seed=1)
    array = store.of.arrays[0].name
    shutil.copyfile(other.path(array), store.path(array))
    assert faults(verify(store.root)) == [("foreign", 1, array)]
    store.is_mended(1)


def test_bytes_of_something_else(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    store.path().write_bytes(np.random.default_rng(0).bytes(store.path().stat().st_size))
    assert faults(verify(store.root)) == [("foreign", 1, "fine")]


@every_encoding
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, value: float
) -> None:
    """Our writer refuses them; another's may not."""
    store = Store(tmp_path / "s", encoding)
    array = "coarse" + BOUNDS if encoding.startswith("uint8") else "coarse"
    spoilt = {name: values.copy() for name, values in store.maps.items()}
    spoilt[array][[3, 5, 6], 0, 4] = value
    with monkeypatch.context() as patched:
        patched.setattr(layout, "first_not_finite", lambda *_: None)
        for shard in (1, 2):
            write_one(store.writer, shard, spoilt, INVALID)
        store.writer.finalise(store.keys)
    report = verify(store.root)
    assert faults(report) == [("values", 1, array), ("values", 2, array)]
    assert [item.rows for item in report.findings] == [(3, 5), (6,)]
    discard(store.root, report)
    assert StoreWriter(store.root, store.of, SHARD_ROWS).missing_shards() == [1, 2]
    store.write()
    assert files(store.root) == store.before


def change(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


MARKERS: dict[str, tuple[Callable[[Store], Any], str]] = {
    "gone": (lambda store: store.marker().unlink(), "no such file"),
    "empty": (lambda store: store.marker().write_bytes(b""), "cannot be read"),
    "bytes": (lambda store: store.marker().write_bytes(b"\xff\xfe"), "cannot be read"),
    "cut": (lambda store: store.marker().write_bytes(store.marker().read_bytes()[:80]), "cannot be read"),
    "another's": (lambda store: shutil.copyfile(store.marker(2), store.marker()), "found shard 2, rows 6 to 8"),
    "arrays": (lambda store: change(store.marker(), lambda x: x["files"].pop("fine")), "fine"),
    "rows": (lambda store: change(store.marker(), lambda x: x["invalid"].update({"7": ""})), "beyond 3 to 6"),
}


@pytest.mark.parametrize("harm", MARKERS)
def test_a_marker_that_cannot_be_used(tmp_path: Path, harm: str) -> None:
    store = Store(tmp_path / "s")
    do, says = MARKERS[harm]
    do(store)
    found = only(verify(store.root))
    assert (found.problem, found.shard, found.file) == ("marker", 1, str(store.marker()))
    assert says in found.what
    discard(store.root, verify(store.root))
    assert StoreWriter(store.root, store.of, SHARD_ROWS).missing_shards() == [1]
    store.write()
    assert files(store.root) == store.before


def test_a_marker_that_disagrees_where_the_manifest_is_wrong(tmp_path: Path) -> None:
    """The files are what the marker says: the manifest alone has to be written again."""
    store = Store(tmp_path / "s")
    change(store.manifest, lambda x: x["shards"][1]["files"]["fine"].update(sha256="0" * 64))
    report = verify(store.root)
    assert faults(report) == [("marker", 1, None)]
    assert "disagrees with the manifest" in only(report).what
    assert discard(store.root, report) == ["manifest.json"]
    store.write()
    assert files(store.root) == store.before


def test_a_marker_that_disagrees_where_the_marker_is_wrong(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    change(store.marker(), lambda x: x["files"]["fine"].update(sha256="0" * 64))
    assert faults(verify(store.root)) == [("marker", 1, None), ("foreign", 1, "fine")]
    store.is_mended(1)
    change(store.marker(), lambda x: x["files"]["fine"].update(size=1))
    assert faults(verify(store.root)) == [("marker", 1, None), ("marker", 1, "fine")]
    store.is_mended(1)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1, 2]"])
def test_a_manifest_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path / "s")
    store.manifest.write_bytes(content)
    report = verify(store.root)
    assert faults(report) == [("manifest", None, None)]
    assert report.files == 6, "the markers say what else to look at"
    assert discard(store.root, report) == ["manifest.json"]
    store.write()
    assert files(store.root) == store.before


def test_a_manifest_that_leads_out_of_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    change(store.manifest, lambda x: x.update(folder="../elsewhere"))
    report = verify(store.root)
    assert faults(report) == [("manifest", None, None)]
    assert discard(store.root, report) == ["manifest.json"]


def test_a_half_finished_store(tmp_path: Path) -> None:
    """Without a manifest the markers are the truth; what has none yet is no fault of its own."""
    of = identity(ROWS)
    maps = random_maps(of)
    writer = StoreWriter(tmp_path / "s", of, SHARD_ROWS)
    assert [item.problem for item in verify(tmp_path / "s").findings] == ["unfinished"]
    write_one(writer, 0, maps)
    write_one(writer, 2, maps)
    (tmp_path / "s" / writer.file("fine", 1)).write_bytes(b"not committed")
    report = verify(tmp_path / "s")
    assert [(item.problem, item.note) for item in report.findings] == [("unfinished", False), ("uncommitted", True)]
    assert "2 of 3 shards" in report.findings[0].what
    assert (report.files, report.committed, report.shards) == (4, 2, 3)
    assert discard(tmp_path / "s", report) == []
    path = tmp_path / "s" / writer.file("coarse", 2)
    path.write_bytes(path.read_bytes()[1:])
    report = verify(tmp_path / "s")
    assert faults(report) == [("unfinished", None, None), ("truncated", 2, "coarse")]
    discard(tmp_path / "s", report)
    assert StoreWriter(tmp_path / "s", of, SHARD_ROWS).missing_shards() == [1, 2]


def test_a_finished_store_whose_manifest_is_lost(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    store.manifest.unlink()
    report = verify(store.root)
    assert faults(report) == [("unfinished", None, None)]
    assert report.files == 6
    store.write()
    assert files(store.root) == store.before


ROW_ARRAYS: dict[str, Callable[[bytes], bytes | None]] = {
    **LENGTHS,
    "bits": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "another order": lambda content: content[:1] + content[2:3] + content[1:2] + content[3:],
}


@pytest.mark.parametrize("array", ["valid", "key"])
@pytest.mark.parametrize("harm", ROW_ARRAYS)
def test_damaged_arrays_of_rows(tmp_path: Path, array: str, harm: str) -> None:
    store = Store(tmp_path / "s")
    path = store.root / store.writer.folder / array / "c.0"
    whole = path.read_bytes()
    path.unlink()
    if (content := ROW_ARRAYS[harm](whole)) is not None:
        if content == whole:
            content = whole[:-1] + b"\0"
        path.write_bytes(content)
    report = verify(store.root)
    assert faults(report) == [("rows", None, array)]
    assert only(report).file == str(path)
    discard(store.root, report)
    assert StoreWriter(store.root, store.of, SHARD_ROWS).missing_shards() == [], "no features are computed for it"
    store.write()
    assert files(store.root) == store.before


def recommit_rows(store: Store, array: str, content: bytes) -> None:
    (store.root / store.writer.folder / array / "c.0").write_bytes(content)
    new = {"size": len(content), "sha256": sha256(content).hexdigest()}
    change(store.manifest, lambda x: x["rows"].update({array: new}))


def test_valid_is_held_against_the_markers(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    recommit_rows(store, "valid", layout.encode_valid(np.ones(ROWS, dtype=bool)))
    assert [item.what for item in verify(store.root).findings] == ["is not what the markers say"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (layout.encode_keys(["a", "b"]), "expected 8 keys, found 2"),
        (struct.pack("<III", 8, 900, 0), "does not match its checksum"),
        (b"\x08\0\0\0" + struct.pack("<I", crc32c(b"\x08\0\0\0")), "cannot be read"),
    ],
)
def test_keys_that_are_none(tmp_path: Path, content: bytes, says: str) -> None:
    store = Store(tmp_path / "s")
    recommit_rows(store, "key", content)
    assert says in only(verify(store.root)).what


def test_keys_out_of_step_with_the_index(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    moved = [*store.keys[:5], store.keys[6], store.keys[5], store.keys[7]]
    found = only(verify(store.root, index=store.of.index, keys=moved))
    assert (found.problem, found.array) == ("rows", "key")
    assert f"row 5: expected key {store.keys[6]!r} of the index, found {store.keys[5]!r}" in found.what


@pytest.mark.parametrize(("digest", "count"), [("f" * 64, 8), ("0" * 64, 9), ("f" * 64, 7)])
def test_rows_out_of_step_with_the_index(tmp_path: Path, digest: str, count: int) -> None:
    """Another index is no damage: nothing is taken away for it."""
    store = Store(tmp_path / "s")
    report = verify(store.root, index=digest, keys=[str(row) for row in range(count)])
    assert faults(report) == [("identity", None, None)]
    assert f"the index now has {count} rows, digest {digest[:12]}" in only(report).what
    assert discard(store.root, report) == []
    assert files(store.root) == store.before


METADATA: dict[str, Callable[[Path], Any]] = {
    "gone": lambda path: path.unlink(),
    "no JSON": lambda path: path.write_text("{"),
    "a list": lambda path: path.write_text("[]"),
    "another": lambda path: change(path, lambda x: x.update(attributes={"grid": [9, 9]})),
}


@pytest.mark.parametrize("name", ["", "fine/", "valid/", "key/"])
@pytest.mark.parametrize("harm", METADATA)
def test_damaged_metadata(tmp_path: Path, name: str, harm: str) -> None:
    store = Store(tmp_path / "s")
    path = store.root / store.writer.folder / f"{name}zarr.json"
    METADATA[harm](path)
    report = verify(store.root)
    assert faults(report) == [("metadata", None, None)]
    assert only(report).file == str(path)
    discard(store.root, report)
    assert StoreWriter(store.root, store.of, SHARD_ROWS).missing_shards() == []
    store.write()
    assert files(store.root) == store.before


def test_metadata_and_manifest_lost_together(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    store.manifest.unlink()
    (store.root / store.writer.folder / "zarr.json").write_text("{}")
    report = verify(store.root)
    assert [item.problem for item in report.findings if not item.note] == ["metadata", "unfinished"]
    discard(store.root, report)
    store.write()
    assert files(store.root) == store.before


def test_files_that_nobody_names_are_notes(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    write_store(store.root, identity(ROWS, "uint8"), random_maps(identity(ROWS, "uint8")), SHARD_ROWS)
    store.write()
    (store.root / "seconds.json").write_text("{}")
    (store.root / "notes.txt").write_text("mine")
    store.path(shard=7).write_bytes(b"beyond the last")
    store.path(shard=9).with_name(".c.1.0.0.4711.partial").write_bytes(b"half")
    report = verify(store.root)
    assert report.whole
    assert sorted(item.problem for item in report.findings) == ["beside", "partial", "stray", "stray"]
    named = " ".join(map(str, report.findings))
    assert all(name in named for name in ("notes.txt", "c.7.0.0", ".c.1.0.0.4711.partial"))
    assert discard(store.root, report) == []


def test_a_file_that_cannot_be_read_is_not_taken_for_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "s")
    name, read = store.writer.file("fine", 1), LocalPlace.read

    def failing(self: LocalPlace, names: Sequence[str]) -> list[bytes]:
        if name in names:
            raise OSError(errno.EIO, "Input/output error", name)
        return read(self, names)

    monkeypatch.setattr(LocalPlace, "read", failing)
    report = verify(store.root)
    assert faults(report) == [("unreadable", 1, "fine")]
    assert "Input/output error" in only(report).what
    assert discard(store.root, report) == []


def test_no_more_files_are_held_than_there_are_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = identity(40)
    write_store(tmp_path / "s", of, random_maps(of), 1)
    from devil_pipe.store import check

    lock, held, most, examine = threading.Lock(), [0], [0], check.examine

    def counted(*arguments: Any) -> Any:
        with lock:
            held[0] += 1
            most[0] = max(most[0], held[0])
        time.sleep(0.002)
        found = examine(*arguments)
        with lock:
            held[0] -= 1
        return found

    monkeypatch.setattr(check, "examine", counted)
    assert verify(tmp_path / "s", threads=3).whole
    assert 1 < most[0] <= 3


@every_encoding
def test_a_store_elsewhere(encoding: str) -> None:
    root = f"memory://{uuid.uuid4().hex}/s"
    of = identity(ROWS, encoding)
    maps = random_maps(of)
    writer = write_store(root, of, maps, SHARD_ROWS, INVALID, keys(of))
    lies = place(root)
    assert verify(root, keys=keys(of)).findings == ()
    manifest = lies.read(["manifest.json"])[0]
    array = of.arrays[0].name
    flipped = bytearray(lies.read([writer.file(array, 0)])[0])
    flipped[0] ^= 1
    lies.commit(writer.file(array, 0), flipped)
    lies.commit(writer.file(array, 2), b"short")
    report = verify(root)
    assert faults(report) == [("bits", 0, array), ("truncated", 2, array)]
    assert report.findings[0].file == f"{root}/{writer.file(array, 0)}"
    gone = discard(root, report)
    assert gone[0] == "manifest.json"
    assert sorted(gone[1:3]) == [writer.marker(0), writer.marker(2)]
    assert len(gone) == 1 + 2 + 2 * len(of.arrays)
    again = StoreWriter(root, of, SHARD_ROWS)
    assert again.missing_shards() == [0, 2]
    write_store(root, of, maps, SHARD_ROWS, INVALID, keys(of))
    assert lies.read(["manifest.json"])[0] == manifest
    assert verify(root).whole


def test_a_store_of_the_first_schema_is_checked_and_never_touched(tmp_path: Path) -> None:
    assert verify(OLD).findings == ()
    shutil.copytree(OLD, tmp_path / "s")
    before = files(tmp_path / "s")
    path = next((tmp_path / "s").glob("*/fine/c/1/0/0"))
    path.write_bytes(path.read_bytes()[:-1])
    report = verify(tmp_path / "s")
    assert faults(report) == [("truncated", 1, "fine")]
    assert "from a copy" in only(report).mend
    assert discard(tmp_path / "s", report) == []
    assert files(tmp_path / "s").keys() == before.keys()


@pytest.mark.parametrize("root", ["nothing", ".", "memory://nothing-there"])
def test_no_store_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("")
    with pytest.raises(InputError, match="expected a store"):
        verify(root)
