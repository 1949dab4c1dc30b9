"""`devil-pipe units`: the page and its files, what it prints, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image
from playwright.sync_api import sync_playwright
from typer.testing import CliRunner, Result

from devil_pipe.pipeline.cli import app
from devil_pipe.pipeline.report.images import Shown
from devil_pipe.pipeline.units_page.page import banners, render, worst_fits, worst_names
from devil_pipe.stages.evaluate.bootstrap import Interval
from devil_pipe.stages.evaluate.metrics import Score
from devil_pipe.stages.units.describe import Said
from devil_pipe.stages.units.findings import Findings, Part, Unit
from devil_pipe.stages.units.score import Fit, Tie, figures

from ..stages import units_fixture

CHROMIUM = os.environ.get("DEVIL_PIPE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ASKED = ["--layer", "coarse", "--units", "0,1,5", "--exemplars", "4", "--device", "cpu", "--precision", "float32"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return units_fixture.project(tmp_path_factory.mktemp("project"))


@pytest.fixture(autouse=True)
def _inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def units(*words: str) -> Result:
    return CliRunner().invoke(app, ["--quiet", "units", *words])


@pytest.fixture(scope="module")
def said(project: Path) -> dict[str, Any]:
    """What --json says; the page lies in runs/tiny/units."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        result = units("tiny", *ASKED, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_page_tables_and_json_tell_the_same(project: Path, said: dict[str, Any]) -> None:
    folder = project / "runs" / "tiny" / "units"
    assert said["page"] == "runs/tiny/units/index.html"
    assert [(unit["layer"], unit["unit"]) for unit in said["units"]] == [("coarse", 0), ("coarse", 1), ("coarse", 5)]
    kept = json.loads((folder / "units.json").read_text(encoding="utf-8"))
    assert kept == {key: value for key, value in said.items() if key not in ("page", "units")}
    beside = json.loads((folder / "tables" / "units.json").read_text(encoding="utf-8"))
    assert beside["rows"] == said["units"]
    assert beside["about"]["command"] == "devil-pipe units tiny --layer coarse --units 0,1,5 --exemplars 4"
    with (folder / "tables" / "units.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["description"] for row in rows] == [unit["description"] for unit in said["units"]]
    html = (folder / "index.html").read_text(encoding="utf-8")
    assert all(f'id="coarse-{unit}"' in html for unit in (0, 1, 5))


def test_page_needs_nothing_but_its_folder(project: Path, said: dict[str, Any]) -> None:
    folder = project / "runs" / "tiny" / "units"
    html = (folder / "index.html").read_text(encoding="utf-8")
    assert "http" not in html.replace("http-equiv", "")
    for address in re.findall(r'(?:href|src)="([^"]+)"', html):
        if address.startswith("#"):
            assert f'id="{address[1:]}"' in html
        else:
            assert (folder / unquote(address)).is_file(), address
    with Image.open(folder / "exemplars" / "coarse-0.webp") as picture:
        assert picture.width > picture.height
    assert "index.html" in {path.name for path in folder.iterdir()}
    assert not list(folder.parent.glob(".*partial"))


def test_without_json_a_few_lines_say_the_figures(project: Path) -> None:
    result = units("tiny", *ASKED, "--out", "elsewhere")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("coarse: 3 units, 3 described\n")
    assert "object named" in result.stdout
    assert (project / "elsewhere" / "index.html").is_file()
    again = units("tiny", *ASKED, "--out", "elsewhere", "--seed", "3")  # a page gives way to a page
    assert again.exit_code == 0, again.output
    assert json.loads((project / "elsewhere" / "units.json").read_text())["seed"] == 3


def test_a_folder_with_other_things_is_left_alone(project: Path) -> None:
    (project / "mine").mkdir()
    (project / "mine" / "thesis.tex").write_text("years of work")
    result = units("tiny", *ASKED, "--out", "mine")
    assert result.exit_code == 2
    assert "mine: expected no folder, an empty one or a page of units" in result.output
    assert (project / "mine" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["tiny", "--units", "0", "--sample", "3"], 2, "expected --units or --sample, got both"),
        (["tiny", "--units", "0,x"], 2, "--units: expected whole numbers from 0, such as 0,5,9, got '0,x'"),
        (["tiny", "--units", "99"], 2, "--units: expected units of layer fine, 0 to 11, got 99"),
        (["tiny", "--layer", "top"], 2, "layer 'top': expected one of fine, coarse"),
        (["tiny", "--layer", ","], 2, "--layer: expected names of layers"),
        (["tiny", "--quantile", "1"], 2, "--quantile: expected a number between 0 and 1, got 1"),
        (["tiny", "--tied", "0.4"], 2, "--tied: expected a number between 0.5 and 1, got 0.4"),
        (["tiny", "--split", "test"], 2, "--score-split: expected another split than 'test'"),
        (["tiny", "--precision", "half"], 2, "--precision: expected auto, float32 or bfloat16, got 'half'"),
        (["tiny", "--exemplars", "200"], 1, "expected at least 200 pictures with features in the split 'train'"),
        (["nobody"], 2, "configs/runs/nobody.yaml: no such file"),
    ],
)
def test_mistakes_are_one_line(project: Path, words: list[str], code: int, message: str) -> None:
    result = units(*words)
    assert (result.exit_code, result.output.count("\n")) == (code, 1), result.output
    assert message in result.output
    assert not list((project / "runs" / "tiny").glob(".*partial"))


def unit(number: int, text: str = "a dog", fit: Fit | None = None, tie: Tie | None = None, layer: str = "s16") -> Unit:
    return Unit(layer, number, ["k"], [1.0], 0.5, 1, Said(text, 1.5), fit or Fit(), tie or Tie())


def findings(listed: list[Unit], scores: Mapping[str, Score] | None = None, **about: Any) -> Findings:
    found = dict(scores or figures([one.fit for one in listed], [one.tie for one in listed], seed=0, resamples=20))
    known = {"run": "r", "data": "d", "data_note": "", "backbone": "b", "weights": "w", "language_model": "l"}
    known |= {"warmup": "none", "training_seed": 0, "seed": 0, "command": "devil-pipe units r", "split": "train"}
    known |= {"scanned": 9, "tied_by": 9, "tied_level": 0.9, "score_split": "test", "scored_on": 5, "nouns": "n"}
    known |= {"exemplars": 15, "quantile": 0.99, "interval": "", "store_identity": ""}
    part = Part("s16", listed, found, "a <u>mean</u>")
    return Findings(known | about, [part], Part("all", listed, found), frozenset(("s16", one.unit) for one in listed))


def test_descriptions_are_no_markup() -> None:
    listed = [unit(0, "<script>alert(1)</script>", tie=Tie("a <b>cow</b>", 0.95, True, False, 0.0))]
    html = render(findings(listed, data_note="<i>note</i>"), {("s16", 0): Shown("x.webp", "x.webp", "", 5, 3)}, [])
    assert "&lt;script&gt;alert(1)" in html
    for markup in ("<script>alert", "<b>cow", "<i>note", "<u>mean"):
        assert markup not in html


def test_the_worst_are_chosen_by_their_rule() -> None:
    gaps = [0.3, -0.2, 0.1, 0.4, -0.4, 0.0, 0.2, None]
    fitted = [Fit("x", 1, 0.5 + gap, 0.5) if gap is not None else Fit(not_scored="no") for gap in gaps]
    listed = [unit(number, fit=fit) for number, fit in enumerate(fitted)]
    assert [one.unit for one in worst_fits(listed)] == [4, 1, 5, 2, 6, 0]
    tied = [Tie("a cow", 0.91, True, False), Tie("a cow", 0.99, True, True), Tie("a cow", 0.97, True, False), Tie("a")]
    assert [one.unit for one in worst_names([unit(n, tie=tie) for n, tie in enumerate(tied)])] == [2, 0]


def test_a_gap_that_reaches_zero_and_random_weights_are_said_above_all_figures() -> None:
    scores = figures(
        [Fit("x", 1, 0.9, 0.5, 0.1, 0.0, 0.9, 0.5)], [Tie("a", 1.0, True, True, 0.0)], seed=0, resamples=10
    )
    listed = [unit(0)]
    assert banners(findings(listed, scores)) == []
    unclear = {**scores, "auc_of_all_gap": Interval(0.1, -0.01, 0.2)}
    ((level, text),) = banners(findings(listed, unclear))
    assert level == "warn"
    assert text.startswith("s16: own descriptions fit units not measurably better")
    assert banners(findings(listed, scores, weights="random:0"))[0][0] == "bad"
    assert "not scored" in banners(findings([unit(0, fit=Fit(not_scored="no tagger"))]))[0][1]


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium found (Debian: apt install chromium)")
def test_in_a_browser_a_header_sorts_and_a_phone_scrolls_one_way(project: Path, said: dict[str, Any]) -> None:
    address = (project / "runs" / "tiny" / "units" / "index.html").as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 360, "height": 700}).new_page()
        asked: list[str] = []
        told: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: told.append(message.text))
        page.goto(address)
        page.locator(".units thead button", has_text="margin").click()
        margins = [float(item.get_attribute("value")) for item in page.locator(".units td[data-at=margin] data").all()]
        assert margins == sorted(margins, reverse=True)
        assert len(margins) == 3
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert all(url.startswith("file:") for url in asked)
        assert told == []
        browser.close()
