"""`devil-pipe audit`: its page, its exit code, and what it says of mistakes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from devil_pipe.pipeline.audit_page.drawing import curve, interval, number_text
from devil_pipe.pipeline.audit_page.page import render
from devil_pipe.pipeline.cli import app
from devil_pipe.pipeline.config import Run
from devil_pipe.stages.audit.findings import (
    Case,
    Check,
    Curve,
    Demand,
    Finding,
    Measured,
    Row,
    Series,
    Shown,
    Table,
)
from devil_pipe.stages.audit.run import CHECKS, Report
from devil_pipe.stages.evaluate.bootstrap import Interval
from devil_pipe.stages.train import run as train_run

from .. import tiny

NASTY = '<script>alert("x")</script>'
FACTS = {
    "run": "tiny",
    "command": "devil-pipe audit tiny",
    "data": "squares",
    "data_note": "",
    "split": "test",
    "seed": 3,
    "training_seed": 1,
    "backbone": "own",
    "weights": "abc",
    "layers": ["low", "high"],
    "language_model": "lm",
    "store_identity": "def",
    "interval": "95 % intervals",
    "settings": {"grid": 7},
}


@pytest.fixture(scope="module")
def barely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose translator was trained for two steps: it cannot see."""
    root = tmp_path_factory.mktemp("barely")
    torch.set_num_threads(1)
    steps = {"steps": 2, "batch_size": 4, "lr": 1e-4, "min_lr": 1e-5, "warmup_steps": 1}
    tiny.project(root, {tiny.NAME: tiny.run_values(root, warmup={"kind": "none"}, phase=steps)})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        train_run.run(Run(tiny.NAME).train)
        yield root


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["audit", *words])


def finding(name: str, *demands: Demand, needs: str = "") -> Finding:
    check = Check(name, name.title(), "tested", "catches", "rule", "worst of all", lambda _: Measured(""))
    table = Table("figures", "of", ("score",), (Row(NASTY, (Interval(-0.5, -1, 0),)), Row("blind", (None,), True)))
    points = (Interval(1, 1, 1), Interval(-0.2, -0.4, 0.1))
    drawn = Curve("likeness", ("trained", NASTY), (Series(NASTY, points), Series("b", points)), "unit")
    case = Case("key", NASTY, ("says: so",), (Shown("pictures/a b.webp", NASTY),))
    measured = None if needs else Measured("4 pictures", demands, (table,), (drawn,), (case,), ("run `this`",))
    return Finding(check, 3, 1.0, measured, needs)


FAILS = finding("pointing", Demand("gap", Interval(0.2, -0.1, 0.3)))
PASSES = finding("controls", Demand("gap", Interval(0.2, 0.1, 0.3)))
NOT_RUN = finding("random", needs="a run: `devil-pipe train x`")


class Reader(HTMLParser):
    """Which elements a page has, and what they point to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        self.ids += [value or "" for name, value in attributes if name == "id"]


def test_failures_are_red_and_named_first() -> None:
    page = render(Report(FACTS, (FAILS, PASSES, NOT_RUN)))
    assert re.search(r'class="banner bad" role="alert"><b>1 of 2 checks failed:</b> <a href="#pointing">', page)
    assert page.index('id="pointing"') < page.index('id="controls"')
    assert '<section id="pointing" class="check fail">' in page
    assert "✗ not met" in page
    assert "Not run: needs a run: <code>devil-pipe train x</code>." in page
    good = render(Report(FACTS, (PASSES, NOT_RUN)))
    assert "banner bad" not in good.split("</style>")[1]
    assert "All 1 checks that give a verdict passed." in good


def test_the_rule_stands_before_the_figures() -> None:
    page = render(Report(FACTS, (PASSES,)))
    assert page.index("<dd>rule</dd>") < page.index('class="demands"') < page.index('class="scores"')


def test_a_page_asks_nothing_of_a_network_and_trusts_no_text() -> None:
    page = render(Report(FACTS, (FAILS, PASSES, NOT_RUN)))
    found = Reader(page)
    assert found.tags.count("script") == 1, "the report's own"
    assert NASTY not in page
    assert {item for item in found.addresses if not item.startswith("#")} == {"pictures/a%20b.webp", "audit.json"}
    assert {item[1:] for item in found.addresses if item.startswith("#")} <= set(found.ids)
    assert len(set(found.ids)) == len(found.ids)
    assert "://" not in page


def test_every_check_has_an_address_of_its_own() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(re.fullmatch("[a-z-]+", check.name) and check.rule and check.catches for check in CHECKS)


def test_drawings_keep_order_and_stay_inside() -> None:
    figure = interval(Demand("", Interval(0.2, 0.1, 0.4)))
    bound, low, middle, high = (
        float(re.search(pattern, figure)[1])  # type: ignore[index]
        for pattern in (r'bound" x1="([\d.]+)', r'span" x1="([\d.]+)', r'cx="([\d.]+)', r'span".*?x2="([\d.]+)')
    )
    assert 0 < bound < low < middle < high < 150
    assert 'x1="75.0"' in interval(Demand("", Interval(0, 0, 0))), "a point at its bound"
    lines = [Series(str(place), (Interval(0, 0, 0),) * 3) for place in range(5)]
    names = re.findall(r'class="name.*?y="([\d.]+)"', curve(Curve("", ("a", "b", "c"), tuple(lines), "")))
    heights = sorted(float(value) for value in names)
    assert len(heights) == 5
    assert min(after - before for before, after in pairwise(heights)) >= 14
    assert heights[-1] < 250


def test_numbers_have_a_minus_and_no_negative_zero() -> None:
    assert number_text(-0.126) == "−0.13"
    assert number_text(-0.001) == "0.00"


def test_a_run_that_cannot_see_fails_with_one_line(barely: Path) -> None:
    result = call("tiny", "--pictures", "4", "--only", "round-trip,random-features", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found == json.loads((barely / "runs/tiny/audit/audit.json").read_text())
    assert found["failed"] == ["round-trip"]
    assert found["command"] == "devil-pipe audit tiny --pictures 4 --seed 0 --only round-trip,random-features"
    assert [check["verdict"] for check in found["checks"]] == ["fail", "not run"]
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: audit of tiny: failed: round-trip; ")
    page = (barely / "runs/tiny/audit/index.html").read_text()
    assert "banner bad" in page
    shown = [item for item in Reader(page).addresses if item.endswith(".webp")]
    assert shown
    assert all((barely / "runs/tiny/audit" / item).is_file() for item in shown)


def test_nothing_failed_is_exit_code_0(barely: Path, tmp_path: Path) -> None:
    result = call("tiny", "--only", "random-features", "--out", str(tmp_path / "page"))
    assert result.exit_code == 0, result.output
    assert "No verdict." in (tmp_path / "page/index.html").read_text()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--only", "nonsense"), 2, "--only: expected some of controls, round-trip"),
        (("tiny", "--pictures", "3"), 2, "greater than or equal to 4"),
        (("nobody",), 2, "configs/runs/nobody.yaml: no such file"),
        (("tiny", "--random-run", "nobody"), 2, "configs/runs/nobody.yaml: no such file"),
    ],
)
def test_mistakes_are_one_line(barely: Path, words: tuple[str, ...], code: int, said: str) -> None:
    result = call(*words)
    assert result.exit_code == code
    assert said in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output
