"""`devil-pipe extract` as a process: killed, on a full disk, without a network."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.schema import ShardRecord, parse_record

from ..forked import Commands
from ..small_disk import small_disk

pytestmark = pytest.mark.slow

BROKEN = 5  # the row whose picture is none
STORE = {
    "data": "tiny",
    "backbone": "effnet_lite0",
    "weights": "random",
    "layers": ["s8", "s32"],
    "image_size": 64,
    "shard_rows": 2,
    "runtime": {"batch_size": 2, "decoders": 1, "device": "cpu"},
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    empty = str(tmp_path_factory.mktemp("home"))
    with Commands(["devil_pipe.stages.extract.run", "timm", "open_clip"], {"HF_HOME": empty, "HOME": empty}) as running:
        yield running


@pytest.fixture
def project(tmp_path: Path, tiny_data: Callable[..., Path]) -> Path:
    """A folder with the configuration of a store of 12 shards over 24 pictures, one of them broken."""

    def spoil(pictures: Path) -> None:
        (pictures / f"{BROKEN:03d}.png").write_text("a text")

    tiny_data(count=24, spoil=spoil)
    listing = {"data": ["tiny"], "stores": {"tiny": {"data": "tiny"}}, "runs": {}}
    (tmp_path / "configs/stores").mkdir(parents=True)
    (tmp_path / "configs/pipeline.yaml").write_text(yaml.safe_dump(listing))
    (tmp_path / "configs/stores/tiny.yaml").write_text(yaml.safe_dump(STORE))
    return tmp_path


def shown(store: Path) -> dict[str, bytes]:
    """Every file that a reader could come to: partial files have a dot before their names. Seconds are no content."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and path.name[0] != "." and path.name != "seconds.json"
    }


def check_what_counts(store: Path, whole: dict[str, bytes]) -> int:
    """Each file under its final name is whole, each marker has its shards, no manifest is early; counts the markers."""
    found = shown(store)
    assert all(whole[name] == content for name, content in found.items())
    markers = [path for path in store.glob("commits/*/*.json") if path.name[0] != "."]
    for marker in markers:
        record = parse_record(ShardRecord, marker.read_bytes(), str(marker))
        for array, file in record.files.items():
            assert (store / marker.parent.name / array / f"c.{record.shard}.0.0").stat().st_size == file.size
    assert ("manifest.json" in found) <= (len(markers) == 12)
    return len(markers)


def undisturbed(commands: Commands, project: Path) -> tuple[dict[str, bytes], float]:
    """The finished store's files, and the seconds from its first file to its last."""
    code, said = commands.run(project, "extract", "tiny")
    assert code == 0, said
    store = project / "stores/tiny"
    begun = min(path.stat().st_mtime for path in store.glob("*/zarr.json"))
    took = (store / "manifest.json").stat().st_mtime - begun
    whole = shown(store)
    assert (
        len(whole) == 12 * 3 + 5 + 2 + 1
    )  # two layers and a marker a shard, five zarr.json, key and valid, the manifest
    shutil.rmtree(project / "stores")
    return whole, took


def test_killed_at_ten_points_it_goes_on_and_ends_in_the_same_bytes(commands: Commands, project: Path) -> None:
    whole, took = undisturbed(commands, project)
    store = project / "stores/tiny"
    draw, committed, lives = random.Random(0), 0, 1
    killed_with: list[int] = []
    goals = sorted(draw.sample(range(11), 10))

    def has_gone_on() -> bool:
        """It writes, and has come to the point where this life is to end: a number of shards, whatever the speed."""
        if goal == 0:
            return any(store.glob("*/zarr.json"))
        return len(list(store.glob("commits/*/0*.json"))) >= goal

    for _ in range(60):
        last = len(killed_with) == 10
        goal = 0 if last else goals[len(killed_with)]
        after = None if last else took / 12 * draw.uniform(0, 1)
        code, said = commands.run(project, "extract", "tiny", kill_after=after, counted_from=has_gone_on)
        now = check_what_counts(store, whole)
        assert now >= committed, "a committed shard was lost"
        committed = now
        assert code in (0, -9), said
        if code == -9:
            killed_with.append(committed)
            continue
        assert shown(store) == whole
        reader = FeatureStore(store)
        for layer in reader.layers:
            reader[layer.name].stored([row for row in range(24) if row != BROKEN], verify=True)
        if last:
            break
        shutil.rmtree(store)
        committed, lives, took = 0, lives + 1, took * 0.8  # on a machine that got faster, kill earlier
    assert len(killed_with) == 10, f"finished {lives} times before it was killed ten times"
    assert len({count for count in killed_with if count < 12}) > 2, "the kills came at one and the same point"


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(commands: Commands, project: Path) -> None:
    whole, _ = undisturbed(commands, project)
    with small_disk(project / "stores", kilobytes=160) as resize:
        code, said = commands.run(project, "extract", "tiny")
        *_, last = said.splitlines()
        assert code == 1
        assert last.startswith("error: stores/tiny/")
        assert "No space left on device while writing; what was committed before is kept" in last
        assert "Traceback" not in said
        assert 0 < check_what_counts(project / "stores/tiny", whole) < 12
        assert not list((project / "stores").rglob("*.partial"))
        resize(10_000)
        code, said = commands.run(project, "extract", "tiny")
        assert code == 0, said
        assert shown(project / "stores/tiny") == whole


@pytest.mark.parametrize("backbone", ["in_rn50", "clip_rn50"])
def test_without_a_network_one_line_says_what_to_do(commands: Commands, project: Path, backbone: str) -> None:
    code, said = commands.run(project, "extract", "--backbone", backbone, "--data", "tiny")
    *before, line = said.splitlines()
    assert code == 1
    assert before in ([], [f"wrote configs/stores/tiny-{backbone}.yaml"])
    assert line.startswith(f"error: weights of {backbone}: cannot be fetched from the model hub (")
    assert "--weights FILE" in line
    assert "--weights random" in line


def test_the_random_weights_of_a_store_are_said_and_recorded(commands: Commands, project: Path) -> None:
    arguments = ("extract", "--backbone", "effnet_lite0", "--data", "tiny", "--weights", "random", "--layers", "s32")
    code, said = commands.run(project, "--quiet", *arguments)
    assert code == 0, said
    assert "random weights: its features mean nothing" in said
    manifest = json.loads((project / "stores/tiny-effnet_lite0-random-s32/manifest.json").read_text())
    assert manifest["identity"]["weights"] == "random:0"
    code, said = commands.run(project, *arguments)
    assert code == 0, said
