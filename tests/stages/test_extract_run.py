"""The extract stage from an index to a store: rows match, broken pictures have reasons, speed changes nothing."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from devil_pipe.stages.extract.backbones import LITE, load
from devil_pipe.stages.extract.config import ExtractConfig, Runtime
from devil_pipe.stages.extract.layers import Taps
from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.stages.extract.run import run
from devil_pipe.stages.extract.worker import pick_device
from devil_pipe.stages.prepare.index import index_digest, read_index
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.writer import StoreWriter

Data = Callable[..., Path]


def config(data: Path, out: str = "store", batch_size: int = 3, **changes: Any) -> ExtractConfig:
    values: dict[str, Any] = {
        "name": out,
        "data": data.name,
        "backbone": "effnet_lite0",
        "weights": "random",
        "layers": ("s8", "s32"),
        "image_size": 64,
        "shard_rows": 4,
        "runtime": Runtime(batch_size=batch_size, decoders=2, device="cpu"),
        "data_dir": data,
        "out": data.parents[1] / out,
    }
    return ExtractConfig(**values | changes)


def spoil(pictures: Path) -> None:
    """Picture 1 is cut, 4 is a text, 6 is gone, 9 has transparency, 10 is grey and of another size."""
    path = pictures / "001.png"
    path.write_bytes(path.read_bytes()[:-60])
    (pictures / "004.png").write_text("a text that is called a picture")
    (pictures / "006.png").unlink()
    Image.new("RGBA", (30, 90), (200, 10, 10, 99)).save(pictures / "009.png")
    Image.linear_gradient("L").save(pictures / "010.png")


def test_rows_match_the_index_and_features_the_pictures(tiny_data: Data) -> None:
    data = tiny_data(count=11, spoil=spoil)
    run(config(data))
    index = read_index(data / "index.parquet")
    reader = FeatureStore(data.parents[1] / "store")
    assert reader.identity.index == index_digest(index)
    assert (reader.rows, reader.identity.weights) == (11, "random:0")
    assert [layer.name for layer in reader.layers] == ["s8", "s32"]
    assert sorted(reader.manifest.invalid) == [1, 4, 6]
    assert reader.manifest.invalid == {row: index["reason"][row].as_py() for row in (1, 4, 6)}
    assert reader.valid().tolist() == [status == "ok" for status in index["status"].to_pylist()]

    module, transform = load("effnet_lite0", "random").module, Transform(64, *LITE)
    for row, key in enumerate(index["key"].to_pylist()):
        if row in (1, 4, 6):
            continue
        with Image.open(data.parents[1] / "pictures" / f"{key}.png") as picture, torch.inference_mode():
            _, maps = module.forward_intermediates(transform(picture)[None], indices=[2, 4])  # type: ignore[operator]
        for layer, expected in zip(("s8", "s32"), maps, strict=True):
            height, width = expected.shape[2:]
            stored = reader[layer].stored([row], verify=True).values[0].reshape(height, width, -1).astype(np.float32)
            np.testing.assert_allclose(stored, expected[0].permute(1, 2, 0).numpy(), rtol=1e-3, atol=1e-3)
    others = reader["s32"].stored([0, 2, 3, 5, 7, 8, 9, 10]).values.reshape(8, -1).astype(np.float64)
    apart = np.abs(others[:, None] - others[None]).max(-1) + np.eye(8)
    assert apart.min() > 0.01, "each picture has features of its own: the comparison above tells rows apart"


def test_speed_changes_neither_identity_nor_features(tiny_data: Data) -> None:
    data = tiny_data(count=9)
    readers = []
    for number, (batch_size, decoders) in enumerate(((1, 1), (4, 2), (32, 3))):
        runtime = Runtime(batch_size=batch_size, decoders=decoders, device="auto")
        run(config(data, f"store{number}", runtime=runtime))
        readers.append(FeatureStore(data.parents[1] / f"store{number}"))
    first, *rest = readers
    rows = range(9)
    for other in rest:
        assert other.identity.digest == first.identity.digest
        for layer in ("s8", "s32"):
            one, two = (reader[layer].stored(rows).values.astype(np.float32) for reader in (first, other))
            np.testing.assert_allclose(one, two, rtol=2e-3, atol=1e-3)


def test_a_second_run_computes_nothing_and_another_layer_does(tiny_data: Data) -> None:
    data = tiny_data(count=5)
    run(config(data))
    store = data.parents[1] / "store"
    shards = {path: path.stat().st_mtime_ns for path in store.glob("*/s*/c.*")}
    assert len(shards) == 2 * 2, "two layers of two shards"
    manifest = (store / "manifest.json").read_bytes()
    run(config(data))
    assert {path: path.stat().st_mtime_ns for path in store.glob("*/s*/c.*")} == shards
    assert (store / "manifest.json").read_bytes() == manifest
    run(config(data, layers=("s16",)))
    assert (store / "manifest.json").read_bytes() != manifest
    assert [layer.name for layer in FeatureStore(store).layers] == ["s16"]


def test_a_picture_that_broke_after_it_was_indexed_is_a_row_with_a_reason(tiny_data: Data) -> None:
    data = tiny_data(count=5)
    (data.parents[1] / "pictures/003.png").write_bytes(b"overwritten")
    run(config(data))
    manifest = json.loads((data.parents[1] / "store/manifest.json").read_text())
    assert [shard["invalid"] for shard in manifest["shards"]] == [{"3": "cannot be decoded: not a picture"}, {}]


def test_a_shard_without_one_good_picture(tiny_data: Data) -> None:
    data = tiny_data(count=10)
    for row in range(4, 8):
        (data.parents[1] / f"pictures/{row:03d}.png").write_bytes(b"overwritten")
    run(config(data))
    reader = FeatureStore(data.parents[1] / "store")
    assert sorted(reader.manifest.invalid) == [4, 5, 6, 7]
    assert reader["s8"].stored([3, 8], verify=True).values.shape == (2, 64, 40)


def test_no_good_picture_at_all_is_a_mistake(tiny_data: Data) -> None:
    data = tiny_data(count=5)
    for row in range(5):
        (data.parents[1] / f"pictures/{row:03d}.png").write_bytes(b"overwritten")
    with pytest.raises(InputError, match="no picture could be used, such as row 0: cannot be decoded: not a picture"):
        run(config(data))


def test_a_picture_that_vanished_is_named(tiny_data: Data) -> None:
    data = tiny_data(count=5)
    (data.parents[1] / "pictures/003.png").unlink()
    with pytest.raises(InputError, match=r"key '003': expected its picture in .*003\.png.*devil-pipe prepare"):
        run(config(data))


def test_no_index_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected an index of pictures at .*run `devil-pipe prepare`"):
        run(config(tmp_path / "data/none"))


def test_wrong_names_and_sizes(tiny_data: Data) -> None:
    data = tiny_data(count=2)
    with pytest.raises(UsageError, match="backbone: expected one of"):
        run(config(data, backbone="vgg"))
    with pytest.raises(UsageError, match="layers: effnet_lite0 has s2, s4, s8, s16, s32, pooled, got 's64'"):
        run(config(data, layers=("s64",)))
    run(config(data))
    with pytest.raises(InputError, match="expected 3 rows a shard, found 4"):
        run(config(data, shard_rows=3))


@pytest.mark.parametrize("name", ["toaster", "cuda:99"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match=f"device '{name}': cannot be used here: "):
        pick_device(name)


@pytest.mark.parametrize("slow", ["decoding", "the backbone", "the disk"])
def test_what_the_others_wait_for_is_said(
    tiny_data: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], slow: str
) -> None:
    """The backbone is warned about when it starves, and only then."""
    of, name = {
        "decoding": (Transform, "decode"),
        "the backbone": (Taps, "__call__"),
        "the disk": (StoreWriter, "write_shard"),
    }[slow]
    plain = getattr(of, name)

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.3 if slow == "decoding" else 0.6)
        return plain(*arguments)

    data = tiny_data(count=16)
    monkeypatch.setattr(of, name, slowly)
    run(config(data, batch_size=2, layers=("s32",)))
    said = capsys.readouterr().err
    found = re.findall(
        r"(\w+) ([0-9.]+) s\b", next(line for line in said.splitlines() if "where the time went" in line)
    )
    times = {kind: float(seconds) for kind, seconds in found}
    largest = {"decoding": "wait", "the backbone": "forward", "the disk": "hold"}[slow]
    own = ("start", "wait", "forward", "encode", "hold")
    assert max(own, key=lambda kind: times[kind]) == largest
    assert sum(times[kind] for kind in own) == pytest.approx(times["total"], rel=0.2, abs=0.3)
    assert ("the backbone waited for pictures" in said) == (slow == "decoding")
    assert ("the backbone waited for shards to be written" in said) == (slow == "the disk")
