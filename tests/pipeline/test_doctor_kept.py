"""The doctor on stores and runs that were really made: each damage is found, and the command it names mends it."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ..store import stores as small
from .doctor_fixture import Found, asked, call, troubles
from .explain_fixture import project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures, their store `drawn` and the translator `tiny`, made by the stages themselves."""
    root = project(tmp_path_factory.mktemp("made"))
    pictures = {"pictures": str(root / "pictures"), "captions": str(root / "captions.jsonl")}
    (root / "configs/data").mkdir()
    (root / "configs/data/drawn.yaml").write_text(yaml.safe_dump({"source": "folder", "folder": pictures}))
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to spoil."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def mend(command: str) -> None:
    """Do what the doctor said: commands of ours here, others in a shell."""
    for one in command.split("; "):
        words = shlex.split(one)
        if words[0] == "devil-pipe":
            result = call(*words[1:])
            assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        else:
            assert os.system(one) == 0


def shard(here: Path) -> Path:
    (path,) = here.glob("stores/drawn/*/s16/c.*")
    return path


def truncated(here: Path) -> None:
    shard(here).write_bytes(shard(here).read_bytes()[:-7])


def flipped(here: Path) -> None:
    content = bytearray(shard(here).read_bytes())
    content[40] ^= 4
    shard(here).write_bytes(content)


def header(here: Path) -> None:
    (path,) = here.glob("stores/drawn/*/zarr.json")
    path.write_text("{")
    (here / "stores/drawn/manifest.json").unlink()


def manifest(here: Path) -> None:
    path = here / "stores/drawn/manifest.json"
    path.write_bytes(path.read_bytes()[:100])


def unfinished(here: Path) -> None:
    (here / "stores/drawn/manifest.json").unlink()


def empty(here: Path) -> None:
    shutil.rmtree(here / "stores/drawn")
    (here / "stores/drawn").mkdir()


def test_what_was_made_is_well(here: Path) -> None:
    found = asked("stores,runs", "--deep")
    assert not troubles(found)
    store, run = found
    assert store["what"].startswith("drawn: whole, 6 rows")
    assert "its store drawn is the one it was trained on" in run["what"]


@pytest.mark.parametrize(
    ("spoil", "words", "state", "says"),
    [
        (truncated, [], "problem", "missing or have another size"),
        (flipped, ["--deep"], "problem", "s16"),
        (header, [], "problem", "nothing can be read"),
        (manifest, [], "problem", "manifest cannot be read"),
        (unfinished, [], "note", "unfinished, 1 of 1 shards"),
        (empty, [], "note", "nothing was extracted yet"),
    ],
)
def test_a_damaged_store_is_mended_by_what_the_doctor_says(
    here: Path, spoil: Callable[[Path], None], words: list[str], state: str, says: str
) -> None:
    spoil(here)
    (wrong,) = troubles(asked("stores", *words))
    assert wrong["state"] == state
    assert says in wrong["what"]
    mend(wrong["mend"])
    assert not troubles(asked("stores,runs", "--deep"))


def test_a_store_without_a_configuration_says_how_far_a_command_goes(here: Path) -> None:
    of = small.identity(5)
    small.write_store(here / "stores/brought", of, small.random_maps(of), 2)
    assert not troubles(asked("stores", "--deep"))
    (file,) = (here / "stores/brought").glob("*/fine/c.0*")
    file.write_bytes(b"")
    (wrong,) = troubles(asked("stores"))
    assert wrong["mend"] == "devil-pipe store verify brought --discard"
    assert "import or extract it again" in wrong["advice"]


def test_half_written_files_are_noted_once_they_are_old(here: Path) -> None:
    left = here / "stores/drawn" / ".x.0123.partial"
    left.write_bytes(b"half")
    also = here / "runs/tiny/checkpoint/.translator.safetensors.abcd1234"
    also.write_bytes(b"half")
    assert not troubles(asked("stores,runs")), "somebody may be writing them"
    hours = time.time() - 7200
    for path in (left, also):
        os.utime(path, (hours, hours))
    found = troubles(asked("stores,runs"))
    assert [item["state"] for item in found] == ["note", "note"]
    for item in found:
        mend(item["mend"])
    assert (left.exists(), also.exists()) == (False, False)
    assert not troubles(asked("stores,runs", "--deep"))


def test_a_store_that_lies_elsewhere_is_looked_at_on_demand(here: Path) -> None:
    path = here / "configs/stores/drawn.yaml"
    path.write_text(path.read_text() + "place: memory://somewhere\n")
    (told,) = troubles(asked("stores"))
    assert "--network" in told["what"]
    (told,) = troubles(asked("stores", "--network"))
    assert (told["state"], told["mend"]) == ("note", "devil-pipe extract drawn")


def test_a_configuration_that_was_changed_since_is_noted(here: Path) -> None:
    path = here / "configs/stores/drawn.yaml"
    path.write_text(path.read_text() + "encoding: uint8\n")
    (told,) = troubles(asked("stores"))
    assert (told["state"], told["mend"]) == ("note", "devil-pipe extract drawn")
    assert "encoding float16, configured uint8" in told["what"]
    mend(told["mend"])
    wrong = only_run(asked("runs"))
    assert (wrong["state"], wrong["mend"]) == ("problem", "devil-pipe train tiny")
    assert "encoding: 'float16' against 'uint8'" in wrong["what"]


def only_run(found: Found) -> dict[str, str]:
    (run,) = troubles(found)
    return run


def test_runs_whose_files_are_damaged(here: Path) -> None:
    checkpoint = here / "runs/tiny/checkpoint"
    weights = checkpoint / "translator.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-3])
    wrong = only_run(asked("runs"))
    assert (wrong["state"], wrong["mend"]) == ("problem", "devil-pipe train tiny")
    assert "translator.safetensors: cannot be read" in wrong["what"]
    weights.write_bytes(content)
    card = checkpoint / "config.yaml"
    text = card.read_text()
    card.write_text(text.replace("width: 16", "width: 32"))
    assert not troubles(asked("runs")), "what the weights are is only seen by reading them"
    assert "expected the weights that" in only_run(asked("runs", "--deep"))["what"]
    card.write_text("translator: [\n")
    assert "config.yaml: expected YAML" in only_run(asked("runs"))["what"]
    card.write_text(text)
    state = here / "runs/tiny/train/state.safetensors"
    state.parent.mkdir()
    state.write_bytes(b"half")
    wrong = only_run(asked("runs"))
    assert wrong["mend"] == "rm runs/tiny/train/state.safetensors"
    mend(wrong["mend"])
    assert not troubles(asked("runs", "--deep"))


def test_runs_that_are_not_finished_or_have_lost_their_parts(here: Path) -> None:
    (here / "runs/fresh").mkdir()
    told = only_run(asked("runs"))
    assert ("holds no translator yet" in told["what"], told["mend"]) == (True, "")
    assert "configs/runs/fresh.yaml" in told["advice"]
    (here / "runs/fresh").rmdir()
    shutil.rmtree(here / "stores")
    told = only_run(asked("runs"))
    assert (told["state"], told["mend"]) == ("note", "devil-pipe extract drawn")
    (here / "configs/runs/tiny.yaml").unlink()
    assert "put it back first" in only_run(asked("runs"))["advice"]
