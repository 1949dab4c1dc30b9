"""Stores that fsspec reaches: in memory, in a folder by URL, and on a real S3-speaking server on loopback."""

from __future__ import annotations

import gc
import logging
import pickle
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import s3fs  # type: ignore[import-untyped]
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer

from devil_pipe.store.errors import InputError
from devil_pipe.store.place import RemotePlace, Span, place
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.schema import LayerSpec
from devil_pipe.store.writer import StoreWriter

from .stores import ENCODINGS, files, identity, keys, random_maps, write_one, write_store

OF = identity(7)
MAPS = random_maps(OF)
INVALID = {4: "why"}


@pytest.fixture
def memory() -> Iterator[str]:
    """A URL of an empty root in this process's memory."""
    root = f"/{uuid.uuid4().hex}"
    yield f"memory:/{root}/s"
    for name in [name for name in MemoryFileSystem.store if name.startswith(root)]:
        del MemoryFileSystem.store[name]


def remote_files(url: str) -> dict[str, bytes]:
    there = place(url)
    names = there.names("")
    return dict(zip(names, there.read(names), strict=True))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_same_bytes_lie_there_as_in_a_folder(tmp_path: Path, memory: str, encoding: str) -> None:
    of = identity(7, encoding)
    maps = random_maps(of)
    for root in (memory, tmp_path / "s"):
        write_store(root, of, maps, 3, INVALID, keys(of))
    assert remote_files(memory) == files(tmp_path / "s")
    here, there = FeatureStore(tmp_path / "s"), FeatureStore(memory, of)
    rows = [6, 0, 3, 5, 0]
    for layer in of.layers:
        ours, theirs = (store[layer.name].stored(rows, verify=True) for store in (here, there))
        assert ours.values.tobytes() == theirs.values.tobytes()
        assert (ours.bounds is None) == (theirs.bounds is None)
        if ours.bounds is not None and theirs.bounds is not None:
            assert ours.bounds.tobytes() == theirs.bounds.tobytes()
        if here[layer.name].grid is not None:
            for wanted in (0, "picture0", slice(0, 3), slice(2, 4), [6, 5]):
                np.testing.assert_array_equal(here[layer.name][wanted], there[layer.name][wanted])
    assert (there.keys, there.valid().tolist()) == (here.keys, here.valid().tolist())
    there.prefetch(rows)  # no more than a hint


def counted(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of ranges in each call that fetches some."""
    assert isinstance(store.place, RemotePlace)
    calls: list[int] = []
    fetch = store.place.files.cat_ranges

    def count(paths: list[str], *arguments: Any, **more: Any) -> Any:
        calls.append(len(paths))
        return fetch(paths, *arguments, **more)

    monkeypatch.setattr(store.place.files, "cat_ranges", count)
    return calls


def test_rows_are_fetched_in_one_call_for_each_array(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"float16": [6], "float16+zstd": [3, 6], "uint8": [6, 6], "uint8+zstd": [3, 6, 3, 6]}
    for encoding, first in expected.items():  # compressed: the indices of all three shards, then the rows
        of = identity(7, encoding)
        write_store(f"{memory}/{encoding}", of, random_maps(of), 3)
        store = FeatureStore(f"{memory}/{encoding}")
        with monkeypatch.context() as patch:
            calls = counted(store, patch)
            store["fine"].stored([6, 0, 3, 5, 1, 2])
            assert calls == first
            calls.clear()
            store["fine"].stored([3, 6])
            assert calls == [2] * (2 if encoding.startswith("uint8") else 1)  # indices are kept
            calls.clear()
            assert store["fine"].stored([]).values.shape == (0, 8, 3)
            assert calls == []


def test_one_file_comes_back_as_one_and_none_as_none(memory: str) -> None:
    there = place(memory)
    there.commit("a", b"abc")
    there.commit("b", bytearray(b"defg"))
    assert there.read(["a"]) == [b"abc"]
    assert there.read(["b", "a", "b"]) == [b"defg", b"abc", b"defg"]
    assert there.read([]) == []
    assert [part.tobytes() for part in there.spans([Span("b", 1, 3), Span("a", 2, 9), Span("b", 0, 1)])] == [
        b"ef",
        b"c",
        b"d",
    ]
    assert there.sizes(["b", "c", "no/such"]) == [4, None, None]
    with pytest.raises(FileNotFoundError):
        there.read(["a", "c"])
    there.remove("a")
    there.remove("a")
    assert there.names("") == ["b"]
    assert there.names("nowhere") == []


def test_a_name_with_the_signs_of_patterns_is_a_name(memory: str) -> None:
    of = identity(7, layers=(LayerSpec(name="block[0]*?", channels=2, height=1, width=2),))
    write_store(memory, of, random_maps(of), 3)
    store = FeatureStore(memory)
    found = store["block[0]*?"].stored([5, 0], verify=True).values
    np.testing.assert_array_equal(found, random_maps(of)["block[0]*?"][[5, 0]])
    name = store.file("block[0]*?", 1)
    assert len(store.place.read([name])[0]) == store.manifest.shards[1].files["block[0]*?"].size


def test_a_shard_without_its_marker_does_not_exist(memory: str) -> None:
    writer = StoreWriter(memory, OF, 3)
    write_one(writer, 0, MAPS, INVALID)
    write_one(writer, 2, MAPS, INVALID)
    writer.place.remove(writer.marker(2))  # killed before the last request
    assert StoreWriter(memory, OF, 3).missing_shards() == [1, 2]
    assert [writer.is_committed(shard) for shard in range(3)] == [True, False, False]
    with pytest.raises(InputError, match=rf"{memory}/manifest\.json: expected a finished store"):
        FeatureStore(memory)
    write_store(memory, OF, MAPS, 3, INVALID)
    writer.place.commit(writer.file("fine", 1), b"short")
    with pytest.raises(InputError, match=rf"{memory}/.*/fine/c\.1\.0\.0: expected \d+ bytes, found 5 bytes"):
        FeatureStore(memory)
    assert writer.missing_shards() == [1]


def test_damage_is_found_where_it_lies(memory: str) -> None:
    writer = write_store(memory, OF, MAPS, 3)
    store = FeatureStore(memory)
    name = writer.file("fine", 1)
    content = bytearray(store.place.read([name])[0])
    content[2 * 8 * 3 + 4] ^= 1  # the first byte of row 4
    store.place.commit(name, content)
    store["fine"].stored([3, 5], verify=True)
    with pytest.raises(InputError, match=rf"{memory}/{name}: row 4 does not match its checksum"):
        store["fine"].stored([3, 4], verify=True)
    store.place.remove(name)
    with pytest.raises(InputError, match=rf"{memory}.*a file is gone"):
        store["fine"].stored([0, 3])


def test_folders_are_made_where_a_protocol_has_them(tmp_path: Path) -> None:
    write_store(f"file://{tmp_path}/not/there/s", OF, MAPS, 3, INVALID)
    write_store(tmp_path / "s", OF, MAPS, 3, INVALID)
    assert files(tmp_path / "not/there/s") == files(tmp_path / "s")


@pytest.mark.parametrize("url", ["nope://bucket/x", "nope://"])
def test_an_unknown_protocol_is_named(url: str) -> None:
    for opened in (FeatureStore, lambda root: StoreWriter(root, OF, 3)):
        with pytest.raises(InputError, match=rf"{url}: expected a protocol that fsspec can open here: .*nope"):
            opened(url)


# S3: moto's server is another's reading of the protocol, and s3fs speaks it over real sockets.


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Callable[[], None]]]:
    """Starts a server with the bucket `pictures`, to which S3 URLs then lead; what it gives stops the server."""
    stops: list[Callable[[], None]] = []

    def begin() -> Callable[[], None]:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }.items():
            monkeypatch.setenv(name, value)

        def stop() -> None:
            if server._server is not None:
                server.stop()
                server._server.server_close()
                server._server = None

        stops.append(stop)
        s3fs.S3FileSystem.clear_instance_cache()  # an instance keeps the address of the server it was made for
        s3 = fsspec.filesystem("s3")
        if s3.exists("pictures"):  # moto's memory outlives its servers
            s3.rm("pictures", recursive=True)
        s3.mkdir("pictures")
        return stop

    yield begin
    for stop in stops:
        stop()
    for made in list(s3fs.S3FileSystem._cache.values()):
        if made._s3 is not None:
            s3fs.S3FileSystem.close_session(made.loop, made._s3)
    s3fs.S3FileSystem.clear_instance_cache()
    gc.collect()  # what was left open would warn here, and a warning is an error


def requests(caplog: pytest.LogCaptureFixture, method: str) -> list[str]:
    """The paths that the server was asked for."""
    asked = [str(record.args) for record in caplog.records if record.name == "werkzeug"]
    return [line.split(method + " ")[1].split(" ")[0] for line in asked if method + " " in line]


def test_a_store_on_s3_is_the_store_in_a_folder(
    tmp_path: Path, start: Callable[[], Callable[[], None]], caplog: pytest.LogCaptureFixture
) -> None:
    start()
    of = identity(40)
    maps, url = random_maps(of), "s3://pictures/stores/x"
    write_store(tmp_path / "x", of, maps, 4, INVALID, keys(of))
    killed = StoreWriter(url, of, 4)
    for shard in range(7):
        write_one(killed, shard, maps, INVALID)
    killed.place.remove(killed.marker(6))  # as if it had been killed before its last request
    with pytest.raises(InputError, match=rf"{url}/manifest\.json: expected a finished store"):
        FeatureStore(url)
    caplog.set_level(logging.INFO, logger="werkzeug")
    caplog.clear()
    resumed = StoreWriter(url, of, 4)
    assert resumed.missing_shards() == [6, 7, 8, 9]
    for shard in resumed.missing_shards():
        write_one(resumed, shard, maps, INVALID)
    resumed.finalise(keys(of))
    put = requests(caplog, "PUT")
    assert len(put) == len(set(put)) == 4 * 3 + 4 + 1  # shards and markers, two row arrays, the manifest: one each
    assert remote_files(url) == files(tmp_path / "x")

    store = pickle.loads(pickle.dumps(FeatureStore(url, of)))  # noqa: S301 (our own bytes)
    draw = np.random.default_rng(0)
    for _ in range(5):
        rows = draw.permutation(np.flatnonzero(store.valid()))
        for layer in of.layers:
            found = store[layer.name].stored(rows, verify=True).values
            assert found.tobytes() == maps[layer.name][rows].tobytes()
    np.testing.assert_array_equal(store["fine"]["picture0"], maps["fine"][0])
    np.testing.assert_array_equal(store["fine"][6:12], maps["fine"][6:12])


def test_a_bucket_that_is_not_there_is_named_and_not_made(start: Callable[[], Callable[[], None]]) -> None:
    start()
    with pytest.raises(InputError, match=r"s3://pictrues/x/.*: cannot be written: no such bucket"):
        StoreWriter("s3://pictrues/x", OF, 3)
    with pytest.raises(InputError, match=r"s3://pictrues/x/manifest\.json: expected a finished store"):
        FeatureStore("s3://pictrues/x")
    assert not fsspec.filesystem("s3").exists("pictrues")


def test_a_server_that_is_gone_is_named(start: Callable[[], Callable[[], None]]) -> None:
    stop = start()
    url = "s3://pictures/x"
    writer = write_store(url, OF, MAPS, 3)
    store = FeatureStore(url)
    stop()
    for ask in (
        lambda: FeatureStore(url),
        lambda: store["fine"].stored([0, 6]),
        lambda: StoreWriter(url, OF, 3),
        lambda: write_one(writer, 0, MAPS),
        writer.missing_shards,
    ):
        with pytest.raises(InputError, match=rf"{url}.*Could not connect to the endpoint URL"):
            ask()
