"""CC3M from its TSV files, fetched by the real img2dataset from a server on loopback."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import uv
import yaml
from PIL import Image

from devil_pipe.stages.prepare import download
from devil_pipe.stages.prepare.cc3m import LIST_SCHEMA, write_lists
from devil_pipe.stages.prepare.config import DownloadConfig, Img2datasetConfig
from devil_pipe.stages.prepare.index import read_index, read_picture
from devil_pipe.stages.prepare.links import reason
from devil_pipe.store.errors import InputError

from .link_server import LinkServer, serving
from .webdataset_fixture import jpeg

# path, and what must become of it: "" for a picture, else the reason
FIRST = [
    ("good/0.jpg", ""),
    ("404/1.jpg", "HTTP 404"),
    ("slow/2.jpg", "timed out"),
    ("moved/3.jpg", ""),
    ("loop/4.jpg", "redirect loop"),
    ("page/5.jpg", "no picture, or damaged"),
    ("half/6.jpg", "cut short on the way"),
    ("large/7.jpg", ""),
    ("404/8.jpg", "HTTP 404"),
    ("500/9.jpg", "HTTP 500"),
]
SECOND = [(f"gated/{number}.jpg", "") for number in range(10, 18)]
SECOND += [("cut/18.jpg", "no picture, or damaged"), ("refused", "connection refused")]
VALIDATION = [("good/20.jpg", ""), ("410/21.jpg", "HTTP 410")]
TRAINING, VALIDATING = "Train_GCC-training.tsv", "Validation_GCC-1.1.0-Validation.tsv"
SHARDS = "data/cc3m/shards"
ALL = FIRST + SECOND + VALIDATION


@dataclass
class Fetched:
    folder: Path
    server: LinkServer
    asked_before: Counter[str]
    left_running: list[str]
    killed: int
    said: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = read_index(self.folder / "data/cc3m/index.parquet").to_pylist()
        return rows

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "data/cc3m/summary.json").read_text())
        return found


def startable() -> None:
    """Skip where img2dataset is neither on PATH nor to be had by uv."""
    command = download.command("")
    if Path(command[0]) != Path(uv.find_uv_bin()):
        return
    done = subprocess.run([*command[:-1], "python", "-V"], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["uv said nothing"]
        pytest.skip(f"img2dataset {download.VERSION} is not on PATH, and uv cannot fetch it: {said[-1]}")


def caption(path: str) -> str:
    """What a line says of a link; quotation marks and commas mean nothing in the published files."""
    return f'"a picture of {path}, n° {len(path)}'


def tsv(path: Path, links: list[tuple[str, str]], server: LinkServer, refused: str) -> Path:
    lines = [f"{caption(link)}\t{refused if link == 'refused' else server.url(link)}\n" for link, _ in links]
    path.write_text("".join(lines), encoding="utf-8")
    return path


# Its processes import OpenCV, pandas and more three times over.
@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fetched]:
    """`devil-pipe prepare cc3m --tsv … --tsv-val …`, killed after its first shard, then run again to its end."""
    startable()
    folder = tmp_path_factory.mktemp("cc3m")
    with serving() as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # a port that nobody listens on
        refused = f"http://127.0.0.1:{closed.getsockname()[1]}/x.jpg"
        tsv(folder / TRAINING, FIRST + SECOND, server, refused)
        tsv(folder / VALIDATING, VALIDATION, server, refused)
        section = {"image_size": 64, "shard_pictures": 10, "processes": 1, "threads": 16, "timeout": 2, "retries": 0}
        (folder / "configs/data").mkdir(parents=True)
        (folder / "configs/data/cc3m.yaml").write_text(
            yaml.safe_dump(
                {"source": "img2dataset", "img2dataset": {"shards": "data/cc3m/shards", "download": section}}
            )
        )
        words = [
            "prepare",
            "cc3m",
            "--tsv",
            "Train_GCC-training.tsv",
            "--tsv-val",
            "Validation_GCC-1.1.0-Validation.tsv",
        ]
        command = [sys.executable, "-m", "devil_pipe.pipeline.cli", *words]
        first = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE)
        while first.poll() is None and not (folder / "data/cc3m/shards/00000_stats.json").exists():
            time.sleep(0.05)
        while first.poll() is None and not server.asked["gated/10.jpg"]:
            time.sleep(0.05)
        first.kill()
        first.communicate()
        # img2dataset is asked to end by a closing pipe; it must not fetch on beside the next run.
        left = ["?"]
        limit = time.monotonic() + 20
        while left and time.monotonic() < limit:
            left = [str(process.cmdline()) for process in _processes() if str(folder) in " ".join(process.cmdline())]
            time.sleep(0.1)
        before = Counter(server.asked)
        server.gate.set()
        second = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert second.returncode == 0, second.stderr
        yield Fetched(folder, server, before, left, first.returncode, second.stderr)


def _processes() -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"]:
            yield process


@pytest.mark.slow
def test_every_picture_that_arrived_is_a_row_and_every_dead_link_is_counted(fetched: Fetched) -> None:
    arrived = [link for link, why in ALL if not why]
    rows = sorted(fetched.rows, key=lambda row: str(row["key"]))  # in a shard they stand as they arrived
    assert [row["captions"] for row in rows] == [[caption(link)] for link in arrived]
    assert {row["status"] for row in fetched.rows} == {"ok"}
    expected = Counter(why for _, why in ALL if why)
    summary = fetched.summary
    assert summary["dead_links_by_reason"] == dict(expected)
    assert (summary["links"], summary["dead_links"]) == (len(ALL), expected.total())
    assert summary["dead_share"] == pytest.approx(expected.total() / len(ALL), abs=1e-4)
    said = " ".join(fetched.said.split())
    assert f"{expected.total()} of {len(ALL)} links ({expected.total() / len(ALL):.1%}) gave no picture" in said
    assert "2 × HTTP 404" in said


def test_the_training_file_is_train_and_the_validation_file_is_val(fetched: Fetched) -> None:
    counts = Counter(row["split"] for row in fetched.rows)
    assert counts == {
        "train": sum(not why for _, why in FIRST + SECOND),
        "val": sum(not why for _, why in VALIDATION),
    }


def test_a_small_jpeg_keeps_its_bytes_and_a_large_one_its_shape(fetched: Fetched) -> None:
    pictures = {row["captions"][0]: read_picture(row, fetched.folder / "data/cc3m") for row in fetched.rows}
    assert pictures[caption("good/0.jpg")] == jpeg(0)
    assert pictures[caption("moved/3.jpg")] == jpeg(3)
    large = Image.open(io.BytesIO(pictures[caption("large/7.jpg")]))
    assert large.size == (85, 64)  # 400 × 300, the shorter side 64: whole, not cropped


def test_after_a_kill_only_what_was_missing_is_fetched(fetched: Fetched) -> None:
    assert fetched.killed == -signal.SIGKILL
    assert fetched.left_running == []
    paths = [link for link, _ in FIRST]
    assert all(fetched.asked_before[path] for path in paths)
    assert {path: fetched.server.asked[path] for path in paths} == {path: fetched.asked_before[path] for path in paths}
    assert all(fetched.server.asked[link] > fetched.asked_before[link] for link, _ in SECOND if "gated" in link)


def test_done_links_are_not_asked_again_and_other_ones_are_refused(fetched: Fetched) -> None:
    asked = Counter(fetched.server.asked)
    section = yaml.safe_load((fetched.folder / "configs/data/cc3m.yaml").read_text())["img2dataset"]
    names = {"tsv": TRAINING, "tsv_val": VALIDATING, "shards": SHARDS}
    places = {key: fetched.folder / name for key, name in names.items()}
    settings = DownloadConfig.model_validate(section["download"])
    out = fetched.folder / "data/cc3m"

    def fetch(**changed: Any) -> None:
        download.fetch(Img2datasetConfig.model_validate({**places, "download": settings, **changed}), out)

    fetch()
    assert fetched.server.asked == asked
    with pytest.raises(InputError, match=r"made with image_size 64, now 128: move the folder away"):
        fetch(download=settings.model_copy(update={"image_size": 128}))
    with pytest.raises(InputError, match=r"made with other links in train"):
        fetch(tsv=places["tsv_val"])
    with pytest.raises(InputError, match=r"made with other links in val"):
        fetch(tsv_val=None)


def lists(folder: Path, content: bytes, validation: bytes | None = None) -> list[dict[str, Any]]:
    (folder / "t.tsv").write_bytes(content)
    if validation is not None:
        (folder / "v.tsv").write_bytes(validation)
    config = Img2datasetConfig(
        shards=folder / "s", tsv=folder / "t.tsv", tsv_val=folder / "v.tsv" if validation is not None else None
    )
    write_lists(config, folder / "links")
    tables = [pq.read_table(path) for path in sorted((folder / "links").glob("*.parquet"))]
    assert all(table.schema == LIST_SCHEMA for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def test_lines_are_taken_as_they_stand(tmp_path: Path) -> None:
    content = '"ein\u00a0"Hund", 3 €\thttp://a/b.jpg\r\nNone\thttps://c/d e.jpg\n'.encode()
    found = lists(tmp_path, content, b"x\thttp://v\n")
    assert [tuple(row.values()) for row in found] == [
        ("http://a/b.jpg", '"ein\u00a0"Hund", 3 €', "train"),
        ("https://c/d e.jpg", "None", "train"),
        ("http://v", "x", "val"),
    ]
    assert {row["split"] for row in lists(tmp_path, content)} == {""}  # drawn by the shares


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"t\.tsv: expected lines of caption TAB link, got an empty file"),
        (b"a dog http://a\n", r"t\.tsv, line 1: expected caption TAB link, got 1 cells: 'a dog http://a'"),
        (b"a\thttp://a\nb\thttp://b\tc\n", r"t\.tsv, line 2: expected caption TAB link, got 3 cells"),
        (b"caption\turl\n", r"line 1: expected a link of http.*got 'url': the published file has no header, remove"),
        (b"a\thttp://a\nb\tfile:///etc/passwd\n", r"line 2: expected a link of http:// or https://, got 'file:///etc"),
        (b"a\thttp://a\ncaf\xe9\thttp://b\n", r"t\.tsv, line 2: expected UTF-8, got byte 0xe9 at 4"),
    ],
)
def test_a_broken_line_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        lists(tmp_path, content)
    assert not (tmp_path / "links/0-train.parquet").exists()


def test_what_stands_in_the_way_of_fetching_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("a dog\thttp://127.0.0.1:9/a.jpg\n")
    out, shards = tmp_path / "data", tmp_path / "shards"

    def fetch(**changed: Any) -> None:
        values = {"shards": shards, "tsv": tmp_path / "t.tsv", **changed}
        download.fetch(Img2datasetConfig.model_validate(values), out)

    with pytest.raises(InputError, match=r"img2dataset\.tsv: expected a TSV file .*none\.tsv"):
        fetch(tsv=tmp_path / "none.tsv")
    with pytest.raises(InputError, match=r"download\.command: expected a command that exists, got 'no-such"):
        fetch(download={"command": "no-such-program -x"})
    with pytest.raises(InputError, match=r"ended with code 3: no network here; .*uv tool install img2dataset"):
        fetch(download={"command": "sh -c 'echo no network here; exit 3'"})
    with pytest.raises(InputError, match=r"expected 1 finished shards, got 0: the same command fetches the others"):
        fetch(download={"command": "true"})
    with pytest.raises(InputError, match=r"without \* \? \[ \]"):
        fetch(shards=tmp_path / "a[b]")
    shards.mkdir()
    (shards / "00000_stats.json").write_text("{}")
    (out / "links/made_with.json").unlink()
    with pytest.raises(InputError, match=r"got shards that another command made: leave tsv out"):
        fetch()


def test_a_shard_that_is_not_whole_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "00000_stats.json").write_text("{}")
    (tmp_path / "00000.tar").write_bytes(b"cut" * 400)
    download._forget_torn(tmp_path)
    assert not (tmp_path / "00000_stats.json").exists()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("<urlopen error [Errno -2] Name or service not known>", "no such host"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "TLS or certificate"),
        ("HTTP Error 403: Forbidden", "HTTP 403"),
        ("Use of image disallowed by X-Robots-Tag directive", "forbidden by X-Robots-Tag"),
        ("", "other"),
    ],
)
def test_reasons(message: str, expected: str) -> None:
    assert reason(message) == expected
