"""The report in a real Chromium: columns that sort, themes, a phone's width, and nothing asked of a network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from devil_pipe.pipeline.report.run import run

from .run_fixture import CONDITIONS, build

NAMED = os.environ.get("DEVIL_PIPE_CHROMIUM", "")  # set in CI, where there must be one
CHROMIUM = NAMED or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium found (Debian: apt install chromium)"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = build(tmp_path_factory.mktemp("run"))
    run(config)
    return (config.run_dir / "report/index.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )  # a container's root has none
        yield opened
        opened.close()


def visit(browser: Any, address: str, **settings: Any) -> tuple[Any, list[str], list[str]]:
    """A page of its own, what it asked for, and what its console said."""
    page = browser.new_context(**settings).new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    return page, asked, said


def until(page: Any, condition: str) -> None:
    """Wait for a condition; Playwright's own wait needs an eval that the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never: {condition}")


def column(page: Any, place: int) -> list[str]:
    found: list[str] = page.locator(f"#scores tbody tr > :nth-child({place})").all_inner_texts()
    return [text.split("\n")[0] for text in found]


def test_a_click_puts_the_best_first_then_the_worst_then_the_table_s_own_order(browser: Any, address: str) -> None:
    page, _, said = visit(browser, address)
    own = column(page, 1)
    header = page.locator("#scores thead th", has_text="CIDEr")
    cider = [values[1] for values in CONDITIONS.values()]
    expected = [f"{value:.2f}" for value in sorted(cider, reverse=True)]
    place = page.locator("#scores thead th").all_inner_texts().index(header.inner_text()) + 1
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert column(page, place) == expected
    header.locator("button").press("Enter")  # the keyboard does the same
    assert header.get_attribute("aria-sort") == "ascending"
    assert column(page, place) == expected[::-1]
    header.locator("button").press("Space")
    assert header.get_attribute("aria-sort") is None
    assert column(page, 1) == own
    assert said == []


def test_less_loss_comes_first_and_an_empty_cell_last_whichever_the_order(browser: Any, address: str) -> None:
    page, _, _ = visit(browser, address)
    loss = page.locator("#scores thead th[data-lower]")
    loss.locator("button").click()
    assert loss.get_attribute("aria-sort") == "ascending"
    gap = page.locator("#descriptions thead th", has_text="gap")
    keys = page.locator("#descriptions tbody th")
    for direction in ("descending", "ascending"):
        gap.locator("button").click()
        assert gap.get_attribute("aria-sort") == direction
        assert keys.last.inner_text().startswith("000000003")  # of a novel object: no control ran
    first = page.locator("#descriptions thead th").first
    first.locator("button").click()
    assert gap.get_attribute("aria-sort") is None
    assert [text.split("\n")[0].split(" ")[0] for text in keys.all_inner_texts()] == sorted(
        ["000000001", "000000002", "000000003"]
    )


def test_without_scripts_the_tables_are_there_and_nothing_pretends_to_work(browser: Any, address: str) -> None:
    page, _, _ = visit(browser, address, java_script_enabled=False)
    assert len(column(page, 1)) == len(CONDITIONS)
    assert page.locator("#theme").is_hidden()
    assert page.locator("thead button").count() == 0


def test_the_theme_is_the_system_s_until_one_is_chosen_and_then_stays(browser: Any, address: str) -> None:
    page, _, _ = visit(browser, address, color_scheme="dark")

    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    dark, button = ground(), page.locator("#theme")
    button.click()
    light = ground()
    assert light != dark
    page.reload()
    assert (ground(), button.inner_text()) == (light, "Theme: light")
    button.click()
    assert ground() == dark
    page.emulate_media(color_scheme="light")
    assert ground() == dark
    page.emulate_media(media="print")
    assert ground() == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_only_tables_scroll_sideways(browser: Any, address: str, width: int) -> None:
    page, _, _ = visit(browser, address, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    table = page.locator("#scores .scroll")
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")
    assert table.get_attribute("tabindex") == "0"


def test_nothing_but_files_is_asked_for_and_every_picture_shows(browser: Any, address: str) -> None:
    page, asked, said = visit(browser, address)
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
    until(page, "[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    folder = address.rsplit("/", 1)[0]
    assert len(asked) > 3
    assert all(url.startswith(folder) for url in asked)
    assert said == []


def test_a_link_into_the_page_shows_its_picture(browser: Any, address: str) -> None:
    page, _, _ = visit(browser, f"{address}#picture-000000001")
    until(page, "document.querySelector(':target').getBoundingClientRect().top < innerHeight / 2")
    assert page.locator(":target h3").inner_text().startswith("1 a zebra in front of a lake")
    assert Path(page.url.split("#")[0]).name == "index.html"
