"""The dry run of `extract`: what it says beside what an extraction then writes; and that it leaves no trace."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from devil_pipe.pipeline.cli import app
from devil_pipe.stages.extract import probe as measuring
from devil_pipe.stages.extract.backbones import spec
from devil_pipe.stages.extract.config import ExtractConfig, Runtime
from devil_pipe.stages.extract.estimate import Estimate, columns, estimate, layer_sizes, size
from devil_pipe.stages.extract.layers import planned_layers
from devil_pipe.stages.extract.run import run
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.schema import Encoding

BROKEN = 5


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates are not looked at here: a moment for each will do."""
    monkeypatch.setattr(measuring, "SECONDS", {"decode": 0.05, "forward": 0.05, "whole": 0.3})


def config(root: Path, **changes: Any) -> ExtractConfig:
    values: dict[str, Any] = {
        "name": "some",
        "data": "tiny",
        "backbone": "effnet_lite0",
        "weights": "random",
        "layers": ("s8", "s32"),
        "image_size": 64,
        "shard_rows": 5,
        "runtime": Runtime(batch_size=4, device="cpu"),
        "data_dir": root / "data/tiny",
        "out": root / "stores/some",
    }
    return ExtractConfig(**values | changes)


def files_below(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def spoil(pictures: Path) -> None:
    (pictures / f"{BROKEN:03d}.png").write_text("a text")


@pytest.mark.parametrize("encoding", ["float16", "uint8", "partition:3", "pool:2"])
def test_bytes_and_files_are_those_that_are_then_written(
    tmp_path: Path, tiny_data: Callable[..., Path], encoding: str
) -> None:
    tiny_data(count=12, spoil=spoil)
    wanted = config(tmp_path, encoding=encoding)
    told = estimate(wanted)
    assert not wanted.out.exists()
    run(wanted)
    shards = [path for path in wanted.out.rglob("c.*.0.0") if path.is_file()]
    markers = [path for path in wanted.out.rglob("commits/*/*.json") if path.is_file()]
    assert (told.shards, told.files, told.bytes_are) == (3, len(shards) + len(markers), "exact")
    assert (told.rows, told.usable_rows) == (12, 11)
    for name, layer in told.layers.items():
        own = [path for path in shards if path.parent.name.removesuffix(".bounds") == name]
        assert layer.bytes == sum(path.stat().st_size for path in own)
    assert told.bytes == sum(path.stat().st_size for path in shards)


def test_what_zstd_saves_is_near_what_it_then_saves(tmp_path: Path, tiny_data: Callable[..., Path]) -> None:
    tiny_data(count=12)
    wanted = config(tmp_path, encoding="float16+zstd", layers=("s8",))
    told = estimate(wanted)
    run(wanted)
    (layer,) = planned_layers(spec("effnet_lite0"), ("s8",), 64)
    written = sum(path.stat().st_size for path in wanted.out.rglob("s8/c.*.0.0"))
    chunks = written - 12 * 4 - 3 * (5 * 16 + 4)
    assert told.probe.ratios["s8"] < 1
    assert told.probe.ratios["s8"] == pytest.approx(chunks / (12 * layer.locations * layer.channels * 2), rel=0.05)
    assert told.bytes_are == "at most", "random weights: what is known of real maps is nothing"
    assert any("cannot be known" in line for line in told.warnings)
    assert told.layers["s8"].bytes == 12 * (layer.locations * layer.channels * 2 + 4) + 3 * (5 * 16 + 4)


def test_clip_rn50_of_three_million_pictures_is_the_closed_form() -> None:
    layers = planned_layers(spec("clip_rn50"), (), 224)
    rows, shards = 3_000_000, 11_719
    found = layer_sizes(layers, Encoding.parse("float16"), rows, shards, 256, {})
    for name, locations, channels in [("L21", 28 * 28, 512), ("L39", 14 * 14, 1024), ("L49", 7 * 7, 2048)]:
        assert found[name].bytes == rows * (locations * channels * 2 + 4) + shards * (256 * 16 + 4)
    grouped = layer_sizes(layers, Encoding.parse("partition:16"), rows, 733, 4096, {})
    assert sum(layer.bytes for layer in grouped.values()) == pytest.approx(
        3e6 * 16 * (512 + 1024 + 2048) * 2, rel=0.001
    )
    halved = layer_sizes(layers, Encoding.parse("float16"), rows, shards, 256, {"L21": 0.5})
    assert found["L21"].bytes - halved["L21"].bytes == rows * 784 * 512


def test_real_weights_estimate_what_zstd_saves(tmp_path: Path, asset_or_skip: Callable[[str], Path]) -> None:
    asset_or_skip("efficientnet-lite0")
    told = estimate(config(tmp_path, weights="auto", encoding="uint8+zstd", layers=("s16",)), rows=1000)
    assert (told.bytes_are, told.probe.real_weights, told.probe.real_pictures) == ("estimated", True, False)
    (layer,) = told.layers.values()
    assert 0 < layer.bytes_per_picture < 4 * 4 * 112 + 2 * 112 * 2 + 8
    assert any("estimated from" in line for line in told.warnings)


def test_without_an_index_the_number_of_pictures_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"index\.parquet: .*devil-pipe prepare tiny.*--rows"):
        estimate(config(tmp_path))
    told = estimate(config(tmp_path), rows=1001)
    assert (told.rows, told.usable_rows, told.shards) == (1001, 1001, 201)
    assert not told.probe.real_pictures
    assert any("other pictures than yours" in line for line in told.warnings)


def test_rows_replace_those_of_the_index_and_its_pictures_are_measured(
    tmp_path: Path, tiny_data: Callable[..., Path]
) -> None:
    tiny_data(count=12, spoil=spoil)
    told = estimate(config(tmp_path), rows=500)
    assert (told.rows, told.usable_rows, told.shards) == (500, 500, 100)
    assert told.probe.real_pictures
    assert "11 pictures of the index" in told.text(False)


def test_it_writes_nothing_and_opens_no_connection(
    tmp_path: Path, tiny_data: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's weights are not at hand: a dry run takes random ones at once, and says so."""
    asked: list[object] = []

    def record(*address: object, **_: object) -> list[object]:
        asked.append(address)
        raise OSError("no network in this test")

    tiny_data(count=4)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "getaddrinfo", record)
    monkeypatch.chdir(tmp_path)
    before = files_below(tmp_path)
    wanted = config(tmp_path, backbone="in_rn50", weights="auto", layers=("L49",))
    told = estimate(wanted)
    assert files_below(tmp_path) == before
    assert not asked
    assert not told.probe.real_weights
    assert "a dry run fetches nothing" in told.text(False)


def test_a_disk_that_does_not_suffice_is_said(tmp_path: Path) -> None:
    plenty, little = estimate(config(tmp_path), rows=10**12), estimate(config(tmp_path), rows=1)
    assert plenty.free_bytes is not None
    assert any("does not suffice" in line for line in plenty.warnings)
    assert not any("does not suffice" in line for line in little.warnings)


def test_of_a_url_the_free_space_is_not_known(tmp_path: Path) -> None:
    told = estimate(config(tmp_path, place="memory://bucket"), rows=10**12)
    assert told.free_bytes is None
    assert "not known" in told.text(False)
    assert json.loads(told.text(True))["free_bytes"] is None


def test_every_key_of_the_json_is_documented_and_hours_follow_from_the_rate(tmp_path: Path) -> None:
    told = estimate(config(tmp_path), rows=10**7)
    values = json.loads(told.text(True))
    documented = Estimate.text.__doc__
    assert documented is not None
    for key in (*values, *values["probe"], *values["layers"]["s8"]):
        assert f"`{key}`" in documented, key
    assert values["hours"] == pytest.approx(10**7 / values["probe"]["whole"] / 3600, abs=0.01)
    assert values["bytes"] == sum(layer["bytes"] for layer in values["layers"].values())


def test_the_table_shows_each_layer_and_the_sum(tmp_path: Path) -> None:
    told = estimate(config(tmp_path), rows=1000)
    lines = told.text(False).splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["s8", "s32"]
    assert lines[4].startswith("in all")
    assert lines[4].endswith(size(told.bytes))
    assert max(map(len, lines[1:5])) == len(lines[4]), "numbers end in one column"


def test_wrong_input_is_named(tmp_path: Path, tiny_data: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"weights\.pt"):
        estimate(config(tmp_path, weights=str(tmp_path / "weights.pt")), rows=5)
    with pytest.raises(UsageError, match="layers"):
        estimate(config(tmp_path, layers=("s9",)), rows=5)
    tiny_data(count=4)
    (tmp_path / "pictures/002.png").unlink()
    with pytest.raises(InputError, match=r"002\.png"):
        estimate(config(tmp_path))


SIZES = [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (4.2145e12, "4.21 TB"), (2e15, "2,000.00 TB")]


@pytest.mark.parametrize(("count", "text"), SIZES)
def test_sizes_are_in_powers_of_a_thousand(count: float, text: str) -> None:
    assert size(count) == text


def test_columns_line_up() -> None:
    assert columns([("a", "b", "cc"), ("aaa", "bbbb", "1")]) == ["a       b  cc", "aaa  bbbb   1"]


def test_the_command_keeps_no_configuration_also_of_wrong_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files_below(tmp_path)
    words = ["extract", "--backbone", "effnet_lite0", "--data", "new", "--weights", "random", "--dry-run"]
    good = CliRunner().invoke(app, [*words, "--encoding", "partition:16", "--rows", "3000000", "--json"])
    assert good.exit_code == 0, good.output
    assert json.loads(good.stdout)["layers"]["s8"]["stored"] == [16, 40]
    assert CliRunner().invoke(app, [*words, "--layers", "s9", "--rows", "5"]).exit_code == 2
    assert CliRunner().invoke(app, words).exit_code == 1, "no index, no number of rows"
    assert files_below(tmp_path) == before
