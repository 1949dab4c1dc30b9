"""The documentation's site: it builds, asks nothing of a network, leads nowhere that is not there, and fits a phone."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import markdown
import nbformat
import pytest
from playwright.sync_api import Request, sync_playwright

SOURCE = Path(__file__).resolve().parents[1]
FETCHED = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}
CHROMIUM = os.environ.get("DEVIL_PIPE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.tree  # there is no docs/ beside an installed wheel


class Page(HTMLParser):
    """What a built page fetches, where it leads, and what can be led to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.text: list[str] = []
        self.inside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag in FETCHED and FETCHED[tag] in given:
            self.fetched.append(given[FETCHED[tag]])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("pre", "code", "script", "p"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.inside:
            self.inside.remove(tag)

    def handle_data(self, data: str) -> None:
        if self.inside == ["p"]:
            self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site as `make docs` builds it, elsewhere."""
    built = tmp_path_factory.mktemp("docs") / "site"
    environment = os.environ | {
        "NO_MKDOCS_2_WARNING": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    links = subprocess.run(["make", "-s", "types-links"], cwd=SOURCE, capture_output=True, text=True, check=False)
    assert links.returncode == 0, links.stderr
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(built)]
    done = subprocess.run(words, cwd=SOURCE, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return built


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """All of it but the page for a wrong address, which knows no place of its own."""
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    found = importlib.util.spec_from_file_location("docs_hooks", SOURCE / "docs/hooks.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_every_page_of_docs_is_on_the_site(pages: dict[Path, Page], site: Path) -> None:
    wanted = {path.relative_to(SOURCE / "docs").with_suffix(".html") for path in (SOURCE / "docs").rglob("*.md")}
    wanted |= {path.relative_to(SOURCE / "docs").with_suffix(".html") for path in (SOURCE / "docs").rglob("*.ipynb")}
    assert wanted <= {path.relative_to(site) for path in pages}


def test_the_site_asks_nothing_of_a_network(pages: dict[Path, Page], site: Path) -> None:
    fetched = [(path.name, address) for path, page in pages.items() for address in page.fetched]
    assert fetched
    assert not [(name, address) for name, address in fetched if re.match(r"(https?:)?//", address)]
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_every_link_leads_somewhere_within_the_site(pages: dict[Path, Page], site: Path) -> None:
    dead = []
    for path, page in pages.items():
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto", "data"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = target.is_file() and target.is_relative_to(site.resolve())
            anchors = pages[target].anchors if target in pages else {unquote(parts.fragment)}
            if not there or (parts.fragment and unquote(parts.fragment) not in anchors):
                dead.append((path.name, link))
    assert not dead


def test_no_list_or_table_came_out_as_text(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        broken = [text for text in page.text if re.search(r"(^|\n)(\s*[-*] |\|.*\|\s*$)", text)]
        assert not broken, (path.name, broken)


def test_the_reference_shows_what_it_promises(pages: dict[Path, Page], site: Path) -> None:
    wanted = re.findall(r"^::: (\S+)$", (SOURCE / "docs/api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(wanted) > 20
    assert set(wanted) <= pages[site / "api.html"].anchors
    members = {f"devil_pipe.stages.explain.explainer.Explainer.{name}" for name in ("from_run", "describe", "saliency")}
    assert members <= pages[site / "api.html"].anchors


# In a browser


def _is_missing(request: Request) -> bool:
    """Not the icon of a page that was left before it came."""
    return "ERR_ABORTED" not in (request.failure or "")


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium found (Debian: apt install chromium)")
def test_pages_open_from_the_disk_on_a_phone_and_can_be_searched(pages: dict[Path, Page], site: Path) -> None:
    asked: list[str] = []
    failed: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )  # a container's root has none
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("request", lambda request: asked.append(request.url))
        page.on("requestfailed", lambda request: failed.append(request.url) if _is_missing(request) else None)
        page.on("pageerror", lambda error: failed.append(str(error)))
        wide = []
        for path in pages:
            page.goto(path.as_uri())
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                wide.append(path.name)
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto((site / "notebooks/own_model.html").as_uri())  # not beside the search index
        page.click("input.md-search__input")
        page.keyboard.type("pointing game")
        page.wait_for_selector(".md-search-result__item", timeout=60_000)
        first = str(page.locator(".md-search-result__link").first.get_attribute("href"))
        browser.close()
    assert not wide
    assert not failed
    assert not [address for address in asked if not address.startswith(("file:", "data:", "about:"))]
    assert Path(unquote(urlsplit(first).path)) in pages


# What the hook makes of a page


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("A paragraph:\n- one\n- two\n", "<li>one</li>"),
        ("A paragraph:\n1. one\n2. two\n", "<li>one</li>"),
        ("A paragraph:\n| a | b |\n|---|---|\n| 1 | 2 |\n", "<td>1</td>"),
        ("| a |\n|---|\n| `x\\|y` |\n", "<code>x|y</code>"),
    ],
)
def test_markdown_reads_as_on_the_code_host(text: str, tag: str, hooks: ModuleType) -> None:
    plain = markdown.markdown(text, extensions=["tables"])
    ours = markdown.markdown("\n".join(hooks._parted(text.splitlines())), extensions=["tables"])
    assert tag not in plain
    assert tag in ours


def test_fenced_blocks_are_left_as_they_are(hooks: ModuleType) -> None:
    text = "```\na\n- b\n| `c\\|d` |\n```\n\n~~~\nx\n- y\n~~~"
    assert "\n".join(hooks._parted(text.splitlines())) == text


def test_a_notebook_becomes_a_page_with_what_it_printed_and_drew(hooks: ModuleType, tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("print('said')")
    drawn = {"data": {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}, "metadata": {}}
    cell.outputs = [
        nbformat.v4.new_output("stream", text="said\n```\n"),
        nbformat.from_dict({"output_type": "display_data", **drawn}),
    ]
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Head\n\nBelow"), cell]), tmp_path / "n.ipynb"
    )
    text, pictures = hooks.notebook(tmp_path / "n.ipynb")
    assert pictures == {"n-1.png": b"\x89PNG\r\n\x1a\n"}
    assert text.startswith("# Head\n")
    html = markdown.markdown(text, extensions=["pymdownx.superfences"])
    assert "print('said')" in re.sub(r"<[^>]+>", "", html).replace("&#39;", "'")
    assert 'src="n-1.png"' in html
    assert "said\n```" in re.sub(r"<[^>]+>", "", html), "the output's own fence does not end it"
