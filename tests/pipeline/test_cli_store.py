"""`devil-pipe store`: what it says, its exit codes, and that `extract` mends what `verify --discard` took away."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from devil_pipe.pipeline.cli import app
from devil_pipe.pipeline.cli_store import store_app
from devil_pipe.stages.common.progress import Mode, speak
from devil_pipe.stages.prepare.index import Row, index_digest, read_index, to_table, write_index
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.schema import Identity
from devil_pipe.store.writer import StoreWriter

from ..store.stores import files, identity, random_maps, write_one, write_store

COMMANDS = ("ls", "info", "verify", "export", "import")
KEYS = [f"picture {row}" for row in range(8)]
INVALID = {4: "not a picture", 5: "not a picture", 6: "no such file"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with pictures `mine` and a finished store of them, `mine`, as the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")  # narrower than the tables: names come whole all the same
    monkeypatch.setenv("NO_COLOR", "1")
    put_index(KEYS)
    put_store("mine", of_index())
    put("configs/pipeline.yaml", {"data": ["mine"], "stores": {"mine": {"data": "mine"}}, "runs": {}})
    put_config("mine")
    yield tmp_path
    speak(Mode.HUMAN)


def put(name: str, values: Any) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(yaml.safe_dump(values))


def put_config(name: str, **values: Any) -> None:
    put(f"configs/stores/{name}.yaml", {"data": "mine", "backbone": "effnet_lite0", **values})


def put_index(keys: list[str]) -> None:
    Path("data/mine").mkdir(parents=True, exist_ok=True)
    write_index(to_table(Row(key=key, path="x.png", captions=("a word",)) for key in keys), index_path())


def index_path() -> Path:
    return Path("data/mine/index.parquet")


def of_index(encoding: str = "float16") -> Identity:
    return identity(8, encoding, index=index_digest(read_index(index_path())))


def put_store(name: str, of: Identity) -> StoreWriter:
    root = name if "://" in name else f"stores/{name}"
    return write_store(root, of, random_maps(of), 3, INVALID, KEYS)


def call(*words: str) -> Result:
    result = CliRunner().invoke(app, ["store", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def shard(array: str = "fine", number: int = 1) -> Path:
    return next(Path("stores/mine").glob(f"*/{array}/c.{number}.0.0"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5] ^= 4
    path.write_bytes(content)


def test_every_command_has_a_line_and_an_example_of_itself() -> None:
    assert {command.name or command.callback.__name__ for command in store_app.registered_commands} == set(COMMANDS)
    for command in COMMANDS:
        text = " ".join(re.sub("[│╭╮╰╯─]", " ", call(command, "--help").output).split())
        options, _, example = text.partition("Example: ")
        assert example.startswith(f"devil-pipe store {command}")
        assert all(word in options for word in example.split() if word.startswith("--"))


def test_a_whole_store(project: Path) -> None:
    result = call("verify", "mine")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines() == ["stores/mine: whole: 6 files of 3 shards read, nothing wrong"]
    assert call("verify").exit_code == 0, "the pipeline's first store"
    result = call("verify", "stores/mine/")
    assert result.exit_code == 0
    assert "rows are not compared with an index" in result.stderr


def test_damage_is_a_line_each_and_exit_code_1(project: Path) -> None:
    flip(shard())
    shard("coarse", 2).unlink()
    result = call("verify", "mine")
    assert (result.exit_code, result.stdout) == (1, "")
    bits, missing, last = result.stderr.splitlines()
    assert bits.startswith(f"error: {shard()}: row 3 is not what was written")
    assert "coarse/c.2.0.0: no such file" in missing
    assert all("`devil-pipe store verify stores/mine --discard`" in line for line in (bits, missing))
    assert last == "error: stores/mine: 2 faults found, 2 of 3 shards"


def test_damage_as_json(project: Path) -> None:
    flip(shard())
    (project / "stores/mine/notes.txt").write_text("mine")
    result = call("verify", "mine", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["whole"] is False
    assert [
        (item["problem"], item["shard"], item["array"], item["rows"], item["note"]) for item in found["findings"]
    ] == [
        ("bits", 1, "fine", [3], False),
        ("stray", None, None, [], True),
    ]


def test_damage_in_a_batch_jobs_log(project: Path) -> None:
    flip(shard())
    (project / "stores/mine/notes.txt").write_text("mine")
    result = CliRunner().invoke(app, ["--log-json", "store", "verify", "mine"])
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert [line.get("level") for line in lines] == ["error", None, "error"]
    assert "row 3 is not what was written" in lines[0]["message"]
    speak(Mode.HUMAN)
    result = CliRunner().invoke(app, ["--quiet", "store", "verify", "mine"])
    assert [line[:7] for line in result.stderr.splitlines()] == ["error: "] * 2


def test_discard_takes_away_just_what_is_damaged(project: Path) -> None:
    before = files(project / "stores/mine")
    flip(shard())
    result = call("verify", "mine", "--discard")
    assert result.exit_code == 1
    assert "4 files were taken away, and `devil-pipe extract mine` writes just those again" in result.stderr
    gone = before.keys() - files(project / "stores/mine").keys()
    folder = json.loads(before["manifest.json"])["folder"]
    assert gone == {
        "manifest.json",
        f"commits/{folder}/000001.json",
        f"{folder}/fine/c.1.0.0",
        f"{folder}/coarse/c.1.0.0",
    }
    put_store("mine", of_index())
    assert files(project / "stores/mine") == before
    result = call("verify", "mine", "--discard")
    assert result.exit_code == 0
    assert files(project / "stores/mine") == before


def test_rows_out_of_step_with_the_index(project: Path) -> None:
    put_index([*KEYS[:-1], "another"])
    result = call("verify", "mine", "--discard")
    assert result.exit_code == 1
    assert "made from another index of pictures" in result.stderr
    assert "nothing had to be taken away" in result.stderr
    put_index(KEYS[:-1])
    assert "the index now has 7 rows" in call("verify", "mine").stderr
    index_path().write_bytes(b"no parquet")
    result = call("verify", "mine")
    assert result.exit_code == 0
    assert "warning: rows are not compared with the index: expected a Parquet file" in result.stderr


def test_keys_out_of_step_with_the_index(project: Path) -> None:
    """The digest is right, and yet the keys are another's: a store written with the wrong index at hand."""
    shutil.rmtree("stores/mine")
    of = of_index()
    write_store("stores/mine", of, random_maps(of), 3, INVALID, KEYS[::-1])
    result = call("verify", "mine")
    assert result.exit_code == 1
    assert "row 0: expected key 'picture 0' of the index, found 'picture 7'" in result.stderr


@pytest.mark.parametrize("words", [["info"], ["info", "mine"], ["info", "stores/mine"]])
def test_info_says_what_a_store_holds(project: Path, words: list[str]) -> None:
    found = json.loads(call(*words, "--json").stdout)
    of = of_index()
    assert (found["state"], found["digest"], found["identity"]) == ("whole", of.digest, of.fields())
    assert found["rows"] == {
        "of": 8,
        "with_features": 5,
        "without_features": 3,
        "reasons": {"not a picture": 2, "no such file": 1},
    }
    assert found["shards"] == {"committed": 3, "of": 3}
    fine, coarse = found["layers"]
    assert (fine["grid"], fine["channels"], fine["bytes_a_picture"]) == ([2, 4], 3, 2 * 4 * 3 * 2)
    assert (coarse["grid"], coarse["channels"], coarse["bytes_a_picture"]) == ([1, 2], 5, 2 * 5 * 2)
    assert fine["bytes"] == sum(shard("fine", number).stat().st_size for number in range(3))
    size = sum(len(content) for name, content in files(project / "stores/mine").items() if name != "manifest.json")
    assert found["bytes"] == size
    text = call(*words).stdout
    assert all(part in text for part in ("whole", "2×4", of.index, "not a picture (2), no such file (1)", "48 B"))


@pytest.mark.parametrize(
    ("encoding", "stored", "size"),
    [("uint8", "2×4", 24 + 12), ("partition:3+zstd", "3 groups", 18), ("pool:1", "1×1", 6)],
)
def test_info_of_each_encoding(project: Path, encoding: str, stored: str, size: int) -> None:
    put_store("other", of_index(encoding))
    fine = json.loads(call("info", "other", "--json").stdout)["layers"][0]
    assert (fine["stored"], fine["bytes_a_picture"]) == (stored, size)
    assert encoding in call("info", "other").stdout


def test_info_of_an_unfinished_and_of_a_damaged_store(project: Path) -> None:
    of = of_index()
    writer = StoreWriter("stores/half", of, 3)
    assert json.loads(call("info", "half", "--json").stdout)["state"] == "0 of 3 shards"
    write_one(writer, 1, random_maps(of), INVALID)
    found = json.loads(call("info", "half", "--json").stdout)
    assert found["state"] == "1 of 3 shards"
    assert found["rows"]["reasons"] == {"not a picture": 2}
    assert found["rows"]["with_features"] == 1
    shard().unlink()
    assert "damaged" in json.loads(call("info", "mine", "--json").stdout)["state"]
    Path("stores/mine/manifest.json").write_text("{")
    assert "manifest cannot be read, 3 of 3 shards" in call("info", "mine").stdout


def test_ls_lists_finished_unfinished_remote_and_what_lies_beside(project: Path) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    put_config("far", place=root, encoding="uint8")
    put_store(f"{root}/far", of_index("uint8"))
    put_config("broken", encoding="jpeg")
    put_config("later")
    StoreWriter("stores/half", of_index(), 3)
    Path("stores/empty").mkdir()
    put_store("mine", of_index("partition:3"))
    put_store("mine", of_index())
    rows = {row["name"]: row for row in json.loads(call("ls", "--json").stdout)}
    assert set(rows) == {"mine", "far", "half", "empty"}
    assert {name: row["state"] for name, row in rows.items() if name != "empty"} == {
        "mine": "whole",
        "far": "whole",
        "half": "0 of 3 shards",
    }
    assert "expected a store" in rows["empty"]["state"]
    assert (rows["far"]["encoding"], rows["far"]["rows"], rows["far"]["layers"]) == ("uint8", 8, ["fine", "coarse"])
    (beside,) = rows["mine"]["beside"]
    assert beside == of_index("partition:3").digest[:12]
    content = files(project / "stores/mine")
    assert rows["mine"]["beside"][beside] == sum(len(content[name]) for name in content if beside in name)
    result = call("ls")
    assert result.exit_code == 0
    assert "configs/stores/broken.yaml" in result.stderr
    assert f"whole; {beside} beside" in result.stdout


def test_ls_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("ls")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no stores under stores/ yet" in result.stderr
    assert json.loads(call("ls", "--json").stdout) == []


def test_a_remote_store_of_the_configuration_is_verified_and_mended(project: Path) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    put_config("far", place=root)
    writer = put_store(f"{root}/far", of_index())
    copy = Path("stores/far/manifest.json")
    copy.parent.mkdir()
    copy.write_text("what DVC watches")
    assert call("verify", "far").exit_code == 0
    manifest = writer.place.read(["manifest.json"])
    writer.place.commit(writer.file("fine", 2), b"damaged")
    result = call("verify", "far", "--discard")
    assert result.exit_code == 1
    assert f"{root}/far/{writer.file('fine', 2)}: expected" in result.stderr
    assert not copy.exists(), "DVC has to see that the store is not whole"
    assert StoreWriter(f"{root}/far", of_index(), 3).missing_shards() == [2]
    put_store(f"{root}/far", of_index())
    assert writer.place.read(["manifest.json"]) == manifest


def test_export_and_import(project: Path) -> None:
    assert call("export", "mine", "mine.h5").exit_code == 0
    assert call("export", "mine", "mine.h5").exit_code == 1
    assert call("export", "mine", "mine.h5", "--force").exit_code == 0
    before = files(project / "stores/mine")
    for place in ("copy", "./elsewhere/copy"):
        assert call("import", "mine.h5", place).exit_code == 0
    assert files(project / "stores/copy") == files(project / "elsewhere/copy") == before
    result = call("import", "mine.h5", "mine")
    assert result.exit_code == 1
    assert "stores/mine/manifest.json: a store is there already" in result.stderr
    root = f"memory://{uuid.uuid4().hex}"
    put_config("far", place=root)
    assert call("import", "mine.h5", "far").exit_code == 0
    assert json.loads(Path("stores/far/manifest.json").read_text()) == json.loads(before["manifest.json"])
    assert FeatureStore(f"{root}/far").keys == KEYS


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("verify nope", 2, "nope: expected a store of configs/stores/ (there are: mine), a folder, or a URL"),
        ("info nope", 2, "expected a store"),
        ("export nope x.h5", 2, "expected a store"),
        ("info .", 1, "expected a store (manifest.json, or the folder of one), found none"),
        ("verify configs", 1, "expected a store"),
        ("verify memory://nothing/here", 1, "memory://nothing/here: expected a store"),
        ("verify nope://here", 1, "nope://here: expected a protocol"),
        ("info nope://here", 1, "nope://here: expected a protocol"),
        ("verify mine --threads 0", 2, "--threads"),
        ("export mine nope/x.h5", 1, "nope/x.h5: expected the folder nope"),
        ("export mine configs", 1, "configs: is there already"),
        ("export configs x.h5", 1, "configs/manifest.json: expected a finished store"),
        ("import nope.h5 copy", 1, "nope.h5: expected an HDF5 file"),
        ("import configs/pipeline.yaml copy", 1, "configs/pipeline.yaml: expected an HDF5 file"),
        ("export mine", 2, "Missing argument"),
    ],
)
def test_a_mistake_is_one_plain_line(project: Path, words: str, code: int, says: str) -> None:
    result = call(*words.split())
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 or "─ Error ─" in result.stderr


@pytest.mark.slow
def test_extract_computes_just_the_shards_that_were_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_data: Callable[..., Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_data(count=10, spoil=lambda pictures: (pictures / "005.png").write_text("a text"))
    small = {"weights": "random", "layers": ["s16", "s32"], "image_size": 64, "encoding": "uint8+zstd"}
    runtime = {"batch_size": 2, "decoders": 1, "device": "cpu"}
    put_config("tiny", **small, shard_rows=2, runtime=runtime, data="tiny")
    put("configs/pipeline.yaml", {"data": ["tiny"], "stores": {"tiny": {"data": "tiny"}}, "runs": {}})

    def extract() -> dict[str, bytes]:
        result = CliRunner().invoke(app, ["extract", "tiny"])
        assert result.exit_code == 0, result.output
        return {name: content for name, content in files(tmp_path / "stores/tiny").items() if name != "seconds.json"}

    before = extract()
    assert call("verify", "tiny").exit_code == 0
    root = tmp_path / "stores/tiny"
    times = {path: path.stat().st_mtime_ns for path in root.glob("*/*/c.?.0.0")}
    flip(next(root.glob("*/s16/c.1.0.0")))
    next(root.glob("*/s32.bounds/c.3.0.0")).unlink()
    computed: list[int] = []
    write = StoreWriter.write_shard

    def counted(self: StoreWriter, number: int, *arguments: Any) -> Any:
        computed.append(number)
        return write(self, number, *arguments)

    monkeypatch.setattr(StoreWriter, "write_shard", counted)
    assert call("verify", "tiny", "--discard").exit_code == 1
    assert extract() == before
    assert sorted(computed) == [1, 3]
    for path, time in times.items():
        assert (path.stat().st_mtime_ns == time) == (path.name not in ("c.1.0.0", "c.3.0.0"))
    assert call("verify", "tiny").exit_code == 0
    assert np.isfinite(FeatureStore("stores/tiny")["s16"][[2, 3, 6, 7]]).all()
