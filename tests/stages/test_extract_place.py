"""A store that lies elsewhere than in stores/: written, resumed and read through fsspec; DVC watches its manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from devil_pipe.stages.extract.config import ExtractConfig, Runtime
from devil_pipe.stages.extract.run import run
from devil_pipe.store.reader import FeatureStore

URL = "memory://bucket/stores"


def config(data: Path, **changes: Any) -> ExtractConfig:
    values: dict[str, Any] = {
        "name": "small",
        "data": data.name,
        "backbone": "effnet_lite0",
        "weights": "random",
        "layers": ("s32",),
        "image_size": 64,
        "shard_rows": 4,
        "runtime": Runtime(batch_size=3, decoders=2, device="cpu"),
        "data_dir": data,
        "out": data.parents[1] / "small",
    }
    return ExtractConfig(**values | changes)


@pytest.fixture
def bucket() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def test_a_remote_store_is_the_local_one(tiny_data: Callable[..., Path], bucket: Any) -> None:
    data = tiny_data(count=10)
    run(config(data))
    run(config(data, place=URL, out=data.parents[1] / "elsewhere"))
    local, remote = FeatureStore(data.parents[1] / "small"), FeatureStore(f"{URL}/small")
    assert remote.manifest == local.manifest
    assert (remote["s32"][[7, 0, 9]] == local["s32"][[7, 0, 9]]).all()
    assert remote.keys == local.keys
    # DVC watches a file: the manifest lies in stores/ as well, and nothing else does
    beside = data.parents[1] / "elsewhere"
    assert [path.name for path in beside.iterdir()] == ["manifest.json"]
    assert (beside / "manifest.json").read_bytes() == bucket.cat(f"{URL}/small/manifest.json")


def test_a_remote_store_goes_on_where_it_stopped(tiny_data: Callable[..., Path], bucket: Any) -> None:
    data = tiny_data(count=10)
    run(config(data, place=URL))
    whole = bucket.cat(f"{URL}/small/manifest.json")
    (marker,) = [path for path in bucket.find(f"{URL}/small") if path.endswith("000001.json")]
    bucket.rm(marker)
    before = {path: bucket.modified(path) for path in bucket.find(f"{URL}/small") if "/c." in path}
    run(config(data, place=URL))
    written = {path for path, when in before.items() if bucket.modified(path) != when and "s32" in path}
    assert [path.rpartition("/")[2] for path in written] == ["c.1.0.0"]
    assert bucket.cat(f"{URL}/small/manifest.json") == whole
