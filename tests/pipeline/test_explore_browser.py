"""The explorer in a real Chromium: click, words, drop, link, two visitors, keyboard, phone, and no foreign request."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from .explore_fixture import DATA, LAYERS, OTHER, RUN, make

pytestmark = pytest.mark.slow  # a minute together: the command starts, and Chromium

PATIENCE = 60_000  # milliseconds; the machine may be busy
WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("project"))


@dataclass
class Started:
    process: subprocess.Popen[str]
    address: str
    said: list[str]
    reading: threading.Thread
    temporary: Path


def start(project: Path, temporary: Path, *words: str) -> Started:
    """`devil-pipe explore` on any free port; its temporary files go to a folder of their own."""
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "devil_pipe.pipeline.cli", "explore", "--port", "0", "--no-browser", *words],
        cwd=project,
        env=os.environ | {"TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    lines: Queue[str] = Queue()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            lines.put(line)
        lines.put("")

    reading = threading.Thread(target=listen, daemon=True)
    reading.start()
    while line := lines.get(timeout=400):
        if found := re.search(r"http://\S+/", line):
            return Started(process, found[0], said, reading, temporary)
    raise AssertionError("".join(said))


def stop(started: Started) -> int:
    started.process.send_signal(signal.SIGINT)
    code = started.process.wait(120)
    started.reading.join(60)  # to the last line
    assert started.process.stderr is not None
    started.process.stderr.close()
    return code


@pytest.fixture(scope="module")
def server(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """Two runs beside each other; after the tests Ctrl-C, of which nothing may be left behind."""
    before = sorted(path.relative_to(project) for path in project.rglob("*"))
    place = tmp_path_factory.mktemp("place") / "temporary"
    started = start(project, place, "--run", RUN, "--compare", OTHER, "--upload", "1", "--device", "cpu")
    yield started
    assert stop(started) == 130
    told = "".join(started.said)
    assert "stopped" in told
    assert "Traceback" not in told
    assert [path for path in place.iterdir() if path.name.startswith("devil-pipe")] == []
    assert sorted(path.relative_to(project) for path in project.rglob("*")) == before


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    named = os.environ.get("DEVIL_PIPE_CHROMIUM", "")  # set in CI, where there must be one
    found = named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium found (Debian: apt install chromium); the explorer is tested in one")
    with sync_playwright() as playwright:
        # Chromium's own sandbox needs rights that a container's root does not have.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


Visit = Callable[..., Page]


@pytest.fixture
def visit(chromium: Browser, server: Started) -> Iterator[Visit]:
    """Opens the page in a context of its own, and fails on a script's error or a request to anywhere else."""
    contexts: list[BrowserContext] = []
    faults: list[str] = []
    home = urlsplit(server.address).netloc

    def watch(address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("blob", "data") and parts.netloc != home:
            faults.append(f"request to {address}")

    def visited(search: str = "", size: dict[str, int] = WIDE) -> Page:
        contexts.append(chromium.new_context(viewport=size))  # type: ignore[arg-type]
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: watch(request.url))
        page.on("websocket", lambda socket: faults.append(f"socket to {socket.url}"))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if "Content Security" in message.text else None)
        page.goto(server.address + search)
        expect(page.locator("#stage")).to_be_enabled(timeout=PATIENCE)
        return page

    yield visited
    for context in contexts:
        context.close()
    assert faults == []


def click(page: Page, across: float, down: float) -> None:
    box = page.locator("#picture").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + across * box["width"], box["y"] + down * box["height"])


def words(page: Page, place: str) -> list[str]:
    """The descriptions under a heading, once none is awaited, in the order of the page."""
    table = page.locator("table.said", has=page.locator("caption", has_text=place))
    expect(table.locator(".text")).to_have_count(2 * (1 + len(LAYERS)), timeout=PATIENCE)
    return table.locator(".text").all_inner_texts()


def settled(page: Page) -> None:
    expect(page.locator(".wait")).to_have_count(0, timeout=PATIENCE)
    expect(page.locator("#status")).to_have_text("", timeout=PATIENCE)


def test_a_click_describes_the_place_on_every_layer_of_both_runs(visit: Visit) -> None:
    page = visit()
    click(page, 0.25, 0.75)
    expect(page.locator("caption", has_text="At 16, 48")).to_be_visible(timeout=PATIENCE)
    assert re.search(r"[?&]at=16,48(&|$)", page.url)
    found = words(page, "At 16, 48")
    assert all(found)
    settled(page)
    table = page.locator("table.said").first
    assert table.locator("th[scope=row]").all_inner_texts() == ["all layers", *LAYERS]
    assert [text.split()[0] for text in table.locator("thead th").all_inner_texts()] == [RUN, OTHER]
    expect(table.locator(".margin")).to_have_count(len(found))
    for line in table.locator(".margin").all_inner_texts():
        said = re.search(r"(weak )?([+−][\d.]+) nats \[([+−][\d.]+), ([+−][\d.]+)\]", line)
        assert said, line
        low = float(said[3].replace("−", "-"))
        if abs(low) > 0.05:  # shown to a tenth
            assert bool(said[1]) == (low <= 0), line
    mark, picture = page.locator("#mark").bounding_box(), page.locator("#picture").bounding_box()
    assert mark is not None
    assert picture is not None
    assert mark["x"] + mark["width"] / 2 == pytest.approx(picture["x"] + picture["width"] / 4, abs=4)
    assert mark["y"] + mark["height"] / 2 == pytest.approx(picture["y"] + picture["height"] * 3 / 4, abs=4)


def test_runs_without_a_common_layer_are_paired_from_the_deepest(visit: Visit) -> None:
    """Two backbones: no column is half empty, and every description names its own layer."""
    script = """async ([first, second]) => {
      const { table, layerRows } = await import("/static/words.js");
      const side = (name, layers) => ({ name, backbone: name, layers: layers.map((name) => ({ name })) });
      const sides = [side("one", first), side("two", second)];
      const says = (layer) => [layer, { text: `says ${layer}` }];
      const answers = [first, second].map((layers) => new Map([null, ...layers].map(says)));
      const made = table("Whole picture", layerRows(sides), sides, answers, () => {});
      return [...made.rows].map((row) => [...row.cells].map((cell) => cell.innerText || cell.textContent));
    }"""
    page = visit()
    head, *lines = page.evaluate(script, [["s8", "s16", "s32"], ["block6", "block12"]])
    assert [cell.split()[0] for cell in head] == ["one", "two"]
    assert lines == [
        ["all layerssays null", "all layerssays null"],
        ["s32says s32", "block12says block12"],
        ["s16says s16", "block6says block6"],
        ["s8says s8", ""],
    ]
    shared = page.evaluate(script, [["s8", "s16"], ["s16", "s32"]])
    assert shared[1:] == [
        ["all layers", "says null", "says null"],
        ["s8", "says s8", ""],
        ["s16", "says s16", "says s16"],
        ["s32", "", "says s32"],
    ]


def test_words_have_a_map_on_every_layer_and_the_scale_recolours_them(visit: Visit) -> None:
    page = visit()
    page.locator("#queries").fill("a dog, a sea lion\na cow, a dog")
    page.locator("#queries").press("Enter")
    expect(page.locator("#maps canvas")).to_have_count(2 * 3 * (1 + len(LAYERS)), timeout=PATIENCE)
    assert page.locator("#maps table").first.locator("thead th").all_inner_texts() == ["a dog", "a sea lion", "a cow"]
    assert page.url.count("q=") == 3
    settled(page)
    first = page.locator("#maps canvas").first
    before = first.evaluate("canvas => canvas.toDataURL()")
    page.locator("#scale").select_option("5")
    assert page.locator("#maps canvas").first.evaluate("canvas => canvas.toDataURL()") != before
    assert "scale=5" in page.url


def test_a_map_is_drawn_as_the_overlays_of_the_report_are(visit: Visit, tmp_path: Path) -> None:
    """Against `saliency.overlays.draw`, written for files, by its own enlarging and colouring."""
    from devil_pipe.stages.saliency.overlays import draw

    page = visit()
    values = np.array([[-8.0, 0.0, 3.0], [5.0, 9.0, -2.0]])
    script = """async (values) => {
        const { draw, greyed } = await import("./static/maps.js");
        const shared = await (await fetch("api/about")).json();
        const source = Object.assign(new Image(), { src: document.getElementById("picture").src });
        await source.decode();
        const canvas = document.createElement("canvas");
        draw(canvas, greyed(source), values, 8, shared.colours);
        const drawn = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return [canvas.width, canvas.height, [...drawn.data], [...greyed(source).data]];
    }"""
    width, height, pixels, grey = page.evaluate(script, values.tolist())
    ours = np.array(pixels).reshape(height, width, 4)[..., :3]
    picture = Image.fromarray(np.array(grey, dtype=np.uint8).reshape(height, width, 4)[..., :3])
    draw(values, picture, 8.0, tmp_path / "overlay.png")
    theirs = np.asarray(Image.open(tmp_path / "overlay.png"), dtype=int)
    assert np.abs(ours - theirs).mean() < 2
    assert np.abs(ours - theirs).max() < 24


def test_a_link_restores_what_was_looked_at(visit: Visit) -> None:
    page = visit()
    page.locator(".thumb").nth(1).click()
    expect(page.locator(".thumb").nth(1)).to_have_attribute("aria-pressed", "true")
    click(page, 0.6, 0.4)
    page.locator("#queries").fill("a red circle")
    page.locator("#queries").press("Enter")
    page.locator("#layers label", has_text="s16").click()
    expect(page.locator("#maps canvas")).to_have_count(2 * len(LAYERS), timeout=PATIENCE)
    settled(page)
    link = page.url
    shown = page.locator("#descriptions").inner_text(), page.locator("#maps").inner_text()
    other = visit(urlsplit(link).query and "?" + urlsplit(link).query)
    expect(other.locator("#maps canvas")).to_have_count(2 * len(LAYERS), timeout=PATIENCE)
    settled(other)
    assert other.url == link
    assert (other.locator("#descriptions").inner_text(), other.locator("#maps").inner_text()) == shown
    assert other.locator("#queries").input_value() == "a red circle"
    assert other.locator("#title").inner_text() == page.locator("#title").inner_text()
    assert not other.locator("#layers input[value=s16]").is_checked()


def test_a_dropped_picture_is_described_and_its_link_says_when_it_is_gone(
    visit: Visit, server: Started, tmp_path: Path
) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 90, 3), np.uint8)).save(tmp_path / "mine.png")
    page = visit()
    page.locator("#file").set_input_files(tmp_path / "mine.png")
    expect(page.locator("#title")).to_have_text("mine.png", timeout=PATIENCE)
    click(page, 0.5, 0.5)
    words(page, "At 45, 15")
    settled(page)
    digest = re.search(r"picture=([0-9a-f]{32})", page.url)
    assert digest
    again = visit("?" + urlsplit(page.url).query)
    words(again, "At 45, 15")
    (kept,) = server.temporary.glob(f"devil-pipe-explore-*/{digest[1]}")
    kept.unlink()
    gone = visit_gone(visit, page.url)
    expect(gone.locator("#notice")).to_contain_text("no longer here", timeout=PATIENCE)


def visit_gone(visit: Visit, link: str) -> Page:
    """From a page that works to a link whose picture is gone."""
    page = visit()
    page.goto(link)
    return page


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("letter.png", b"Dear Sir or Madam", "letter.png: expected a picture"),
        ("huge.jpg", bytes(1_200_000), "huge.jpg has 1.2 MB; at most 1 MB"),
        ("cut.png", b"\x89PNG\r\n\x1a\n1234", "damaged"),
    ],
)
def test_a_bad_upload_has_a_message_and_leaves_the_page_as_it_was(
    visit: Visit, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    page = visit()
    before = page.locator("#title").inner_text()
    (tmp_path / name).write_bytes(content)
    page.locator("#file").set_input_files(tmp_path / name)
    expect(page.locator("#notice")).to_contain_text(message, timeout=PATIENCE)
    assert page.locator("#title").inner_text() == before
    click(page, 0.5, 0.5)
    expect(page.locator("#notice")).to_be_hidden()
    words(page, "At 32, 32")


def test_two_visitors_do_not_mix(visit: Visit) -> None:
    one, two = visit(), visit()
    one.locator(".thumb").nth(0).click()
    two.locator(".thumb").nth(2).click()
    expect(two.locator(".thumb").nth(2)).to_have_attribute("aria-pressed", "true")
    click(one, 0.1, 0.1)
    click(two, 0.9, 0.9)
    one.locator("#queries").fill("a dog")
    one.locator("#queries").press("Enter")
    expect(one.locator("#maps canvas")).to_have_count(2 * (1 + len(LAYERS)), timeout=PATIENCE)
    words(one, "At 6, 6")
    words(two, "At 4")
    settled(one)
    settled(two)
    assert one.locator("#title").inner_text() != two.locator("#title").inner_text()
    assert "q=" not in two.url
    assert two.locator("#maps canvas").count() == 0
    alone = visit("?" + urlsplit(two.url).query)  # what each was told is what it is told alone
    words(alone, "At 4")
    settled(alone)
    assert alone.locator("#descriptions").inner_text() == two.locator("#descriptions").inner_text()


def test_everything_can_be_done_with_the_keyboard(visit: Visit) -> None:
    page = visit()
    page.locator("h1").click()
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.value || ''"))
        if reached[-1] == "save-png":
            break
    assert {"stage", "file", "queries", "all", "s16", "s32", "save-json", "copy", "save-png"} <= set(reached)
    page.locator("#stage").focus()
    page.keyboard.press("ArrowRight")  # from the middle, by a location of the finest layer
    expect(page.locator("#ring")).to_be_visible()
    page.keyboard.press("Enter")
    words(page, "At 48, 32")
    outline = page.locator("#stage").evaluate("one => getComputedStyle(one).outlineStyle")
    assert outline != "none"


def test_nothing_is_cut_off_on_a_phone(visit: Visit) -> None:
    page = visit(size=PHONE)
    click(page, 0.5, 0.5)
    words(page, "At 32, 32")
    settled(page)
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]
    for one in ("#stage", "#descriptions", "#queries", "#save-png"):
        box = page.locator(one).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"] + 1


def test_what_is_shown_is_saved_as_json_and_as_a_picture(visit: Visit, tmp_path: Path) -> None:
    page = visit()
    click(page, 0.5, 0.5)
    page.locator("#queries").fill("a dog")
    page.locator("#queries").press("Enter")
    expect(page.locator("#maps canvas")).to_have_count(2 * (1 + len(LAYERS)), timeout=PATIENCE)
    words(page, "At 32, 32")
    settled(page)
    with page.expect_download() as saved:
        page.locator("#save-json").click()
    saved.value.save_as(tmp_path / "shown.json")
    kept = json.loads((tmp_path / "shown.json").read_text(encoding="utf-8"))
    (here,) = [part for part in kept["descriptions"] if part["at"] == [32, 32]]
    texts = {row["text"] for row in here["rows"]}
    assert texts == set(page.locator("table.said").first.locator(".text").all_inner_texts())
    assert {row["side"] for row in here["rows"]} == {RUN, OTHER}
    assert {(one["side"], one["layer"]) for one in kept["maps"]} == {
        (side, layer) for side in (RUN, OTHER) for layer in (None, *LAYERS)
    }
    assert kept["link"] == page.url
    assert [side["seed"] for side in kept["translators"]] == [0, 1]
    with page.expect_download() as saved:
        page.locator("#save-png").click()
    saved.value.save_as(tmp_path / "shown.png")
    picture = np.asarray(Image.open(tmp_path / "shown.png").convert("RGB"), dtype=int)
    assert picture.shape[1] == 1120
    pink = np.abs(picture - np.array([0xE0, 0x21, 0x8A])).sum(axis=2) < 30
    assert pink.sum() > 20  # the mark


def test_the_project_offers_its_test_pictures_at_random(visit: Visit) -> None:
    page = visit()
    assert f"1 of 1 pictures of {DATA} (test), at random" in page.locator("#samples").inner_text()
    expect(page.locator(".thumb")).to_have_count(5)
