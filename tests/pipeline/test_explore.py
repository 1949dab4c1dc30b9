"""The explorer's server: what it takes and refuses, that it looks once, works one at a time, and keeps to itself."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from devil_pipe.pipeline.cli import app
from devil_pipe.pipeline.explorer.app import STATIC, Explorer, application
from devil_pipe.pipeline.explorer.pictures import Dropped, Library, RunPictures
from devil_pipe.pipeline.explorer.serve import _names, listen
from devil_pipe.pipeline.explorer.sides import Side
from devil_pipe.pipeline.explorer.turns import BusyError, Turns
from devil_pipe.store.errors import UsageError

from .explore_fixture import LAYERS, Silent

BYTES = {"Content-Type": "application/octet-stream"}
ASK = {"kind": "sample", "name": "photo:cat"}
LIMIT = 300_000


class Site:
    """A client of an explorer whose explainer is `Silent`."""

    def __init__(self, folder: Path, pictures: RunPictures | None = None, waiting: int = 8) -> None:
        self.explainer = Silent()
        self.dropped = Dropped(folder, most_bytes=10_000)
        self.turns = Turns(waiting)
        side = Side("tiny", self.explainer, kept=2)  # type: ignore[arg-type]
        explorer = Explorer([side], Library(pictures, self.dropped), self.turns, None, LIMIT)
        self.client = TestClient(application(explorer, ["testserver"]), raise_server_exceptions=False)

    def ask(self, what: str, **more: Any) -> Any:
        return self.client.post(f"/api/{what}", json=ASK | more)

    def drop(self, content: bytes, **headers: str) -> Any:
        return self.client.post("/api/picture", content=content, headers=BYTES | headers)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.explainer.hold.set()
    assert made.turns.stop(10)


def png(size: tuple[int, int] = (8, 6), colour: str = "red", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_dropped_picture_is_named_by_its_content_and_shown_decoded_anew(site: Site) -> None:
    first, again = site.drop(png()).json(), site.drop(png()).json()
    assert first == again
    assert (first["width"], first["height"]) == (8, 6)
    shown = site.client.get("/pixels", params={"picture": first["name"]})
    assert shown.headers["content-type"] == "image/jpeg"
    assert shown.content != png()
    assert Image.open(io.BytesIO(shown.content)).size == (8, 6)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"<html><body>hello", "HTML page"),
        (png()[:40], "PNG that is cut short"),
        (b"x", "not a"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason_and_not_kept(
    site: Site, tmp_path: Path, content: bytes, words: str
) -> None:
    answer = site.drop(content)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert list(tmp_path.iterdir()) == []


def test_more_bytes_than_allowed_are_refused_announced_or_not(site: Site, tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield from [bytes(LIMIT // 2)] * 3

    for answer in (site.drop(bytes(LIMIT + 1)), site.client.post("/api/picture", content=parts(), headers=BYTES)):
        assert answer.status_code == 413
        assert "0.3 MB" in answer.json()["error"]
    assert list(tmp_path.iterdir()) == []


def test_more_pixels_than_a_picture_may_have_are_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devil_pipe.stages.common.decoding.MOST_PIXELS", 40)
    answer = site.drop(png((8, 6)))
    assert answer.status_code == 400
    assert "pixels" in answer.json()["error"]


def test_a_foreign_page_cannot_post_without_being_asked(site: Site) -> None:
    """Types that a browser sends to another site without a preflight are all refused."""
    for kind in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded"):
        assert site.client.post("/api/picture", content=png(), headers={"Content-Type": kind}).status_code == 400
        assert site.client.post("/api/describe", content=b"{}", headers={"Content-Type": kind}).status_code == 400


def test_another_name_for_this_machine_is_not_answered(site: Site) -> None:
    assert site.client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert site.client.get("/").status_code == 200


def test_every_answer_forbids_what_is_not_from_here(site: Site) -> None:
    for address in ("/", "/static/main.js", "/api/about", "/pixels?picture=no", "/nothing"):
        policy = site.client.get(address).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy


def test_the_page_names_only_files_that_are_there() -> None:
    page = (STATIC / "page.html").read_text(encoding="utf-8")
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    for path in STATIC.glob("*.js"):
        named += [f"static/{name}" for name in re.findall(r'from "\./([^"]+)"', path.read_text(encoding="utf-8"))]
    assert named
    assert [name for name in named if not (STATIC.parent / name).is_file()] == []
    texts = {
        path.name: path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        for path in STATIC.iterdir()
    }
    assert [name for name, text in texts.items() if re.search(r"https?://|@import|url\(", text)] == []


def test_every_element_that_a_script_asks_for_is_on_the_page() -> None:
    page = (STATIC / "page.html").read_text(encoding="utf-8")
    there = set(re.findall(r'id="([^"]+)"', page))
    scripts = "".join(path.read_text(encoding="utf-8") for path in STATIC.glob("*.js"))
    assert set(re.findall(r'element\("([^"]+)"\)', scripts)) <= there


def test_answers_carry_margins_and_nothing_that_was_not_asked(site: Site) -> None:
    found = site.ask("describe", layers=[None, "s16"], at=[5, 6]).json()["descriptions"]
    assert [one["layer"] for one in found] == [None, "s16"]
    assert found[0]["margin"] == {"nats": 2.0, "low": -1.0, "high": 3.0, "resamples": 16}
    assert found[0]["weak"] is True
    bare = site.ask("describe", layers=["s16"], margin=False).json()["descriptions"][0]
    assert (bare["margin"], bare["weak"]) == (None, None)
    maps = site.ask("maps", layer="s32", queries=["cat", "dog"]).json()["maps"]
    assert [one["query"] for one in maps] == ["cat", "dog"]
    assert maps[0]["values"] == [[0, 1], [2, 3]]


def test_a_picture_is_looked_at_once_and_only_the_last_are_kept(site: Site) -> None:
    for _ in range(3):
        site.ask("describe", layers=["s16"])
        site.ask("maps", layer="s32", queries=["cat"])
    assert site.explainer.looks == 1
    for name in ("photo:coffee", "photo:rocket", "photo:cat"):
        site.ask("describe", layers=["s16"], name=name)
    assert site.explainer.looks == 4  # two are kept; the cat was the oldest


@pytest.mark.parametrize(
    ("what", "question", "words"),
    [
        ("describe", {"layers": []}, "layers"),
        ("describe", {"layers": ["s16"], "at": [1]}, "at"),
        ("describe", {"layers": ["s16"], "side": 1}, "side: expected a number below 1, got 1"),
        ("describe", {"layers": ["s16"], "kind": "file"}, "kind"),
        ("describe", {"layers": ["s16"], "more": 1}, "more"),
        ("maps", {"layer": None, "queries": []}, "queries"),
        ("maps", {"layer": None, "queries": [""]}, "queries"),
        ("maps", {"layer": None, "queries": ["x"] * 9}, "queries"),
        ("maps", {"layer": None, "queries": ["x" * 201]}, "queries"),
    ],
)
def test_a_malformed_question_is_answered_with_what_is_wrong(
    site: Site, what: str, question: dict[str, Any], words: str
) -> None:
    answer = site.ask(what, **question)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "0" * 31, "g" * 32, "0" * 32, ""])
def test_no_name_leads_out_of_the_folder_of_dropped_pictures(site: Site, tmp_path: Path, name: str) -> None:
    (tmp_path.parent / "secret").write_bytes(png())
    assert site.client.get("/api/picture", params={"picture": name}).status_code in (400, 404)


def test_a_picture_that_had_to_go_is_said_to_be_gone(site: Site) -> None:
    random = np.random.default_rng(0)
    contents = []
    for _ in range(3):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (40, 40, 3), np.uint8)).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    names = [site.drop(content).json()["name"] for content in contents]  # 4.8 kB each, 10 kB are kept
    answers = [site.client.get("/api/picture", params={"picture": name}) for name in names]
    assert [answer.status_code for answer in answers] == [404, 200, 200]
    assert "no longer here" in answers[0].json()["error"]


def test_one_computation_at_a_time_in_the_order_of_asking(site: Site) -> None:
    site.explainer.hold.clear()
    with ThreadPoolExecutor(4) as crowd:
        asked = []
        for number in range(4):
            asked.append(crowd.submit(site.ask, "describe", layers=["s16"], at=[number, 0]))
            time.sleep(0.1)
        time.sleep(0.2)
        begun = len(site.explainer.asked)
        site.explainer.hold.set()
        assert [future.result().status_code for future in asked] == [200] * 4
    assert begun == site.explainer.most == 1
    assert site.explainer.asked == [f"describe ({number}.0, 0.0)" for number in range(4)]


def test_who_gave_up_waiting_is_never_begun() -> None:
    turns, begun, go = Turns(), [], threading.Event()
    first = turns.submit(lambda: go.wait(10))
    second = turns.submit(lambda: begun.append(2))
    second.cancel()
    third = turns.submit(lambda: begun.append(3))
    go.set()
    third.result(10)
    assert first.result() is True
    assert begun == [3]
    assert turns.stop(10)


def test_a_full_queue_says_so_and_stopping_drops_what_waits() -> None:
    turns, go = Turns(1), threading.Event()
    first = turns.submit(lambda: go.wait(10))
    while not first.running():
        time.sleep(0.01)
    second = turns.submit(lambda: None)
    with pytest.raises(BusyError, match="waiting"):
        turns.submit(lambda: None)
    threading.Timer(0.2, go.set).start()
    assert turns.stop(10)
    with pytest.raises(CancelledError):
        second.result(1)


def test_a_fault_of_ours_is_an_answer_too_and_the_next_question_is_answered(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret of the machine")

    with monkeypatch.context() as patch:
        patch.setattr(site.explainer, "describe_many", broken)
        answer = site.ask("describe", layers=["s16"])
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert site.ask("describe", layers=["s16"]).status_code == 200


def test_a_taken_port_and_a_strange_host_are_said_before_anything_is_loaded() -> None:
    with listen("127.0.0.1", 0) as opened:
        port = opened.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} of 127.0.0.1 is taken.*--port"):
            listen("127.0.0.1", port)
    with pytest.raises(UsageError, match="--host"):
        listen("no such host", 0)
    with pytest.raises(UsageError, match=r"--host 192\.0\.2\.1"):  # of a network that is for examples alone
        listen("192.0.2.1", 0)


def test_a_wrong_command_is_one_line_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explore(*words: str) -> Result:
        return CliRunner().invoke(app, ["explore", "--no-browser", *words])

    monkeypatch.chdir(tmp_path)
    with listen("127.0.0.1", 0) as opened:
        port = str(opened.getsockname()[1])
        for words, code, message in (
            (["--run", "a", "--translator", "b"], 2, "got both"),
            (["--run", "a", "--port", port], 2, f"port {port} of 127.0.0.1 is taken"),
            (["--run", "none", "--port", "0"], 2, "none"),
            (["--translator", "nowhere", "--port", "0"], 1, "nowhere"),
        ):
            found = explore(*words)
            assert found.exit_code == code, found.output
            assert message in found.output
            assert "Traceback" not in found.output
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        monkeypatch.delitem(sys.modules, "devil_pipe.pipeline.explorer.serve")
        found = explore("--port", "0")
    assert found.exit_code == 2
    assert "pip install 'devil-pipe[explore]'" in found.output


def test_only_on_the_network_it_answers_to_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "*" not in _names("127.0.0.1") + _names("::1") + _names("localhost")
    assert capsys.readouterr().err == ""
    assert _names("0.0.0.0") == ["*"]
    assert "no password" in capsys.readouterr().err


def test_layers_of_the_double_are_those_of_the_run() -> None:
    assert tuple(layer.name for layer in Silent().layers) == LAYERS
