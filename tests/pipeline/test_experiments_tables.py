"""Tables and plans of runs whose files are there: means, spreads, differences, what is done and what is not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from devil_pipe.pipeline import config
from devil_pipe.pipeline.cli import app
from devil_pipe.pipeline.experiments import experiment
from devil_pipe.pipeline.experiments import gather as gathering
from devil_pipe.pipeline.experiments.columns import COLUMNS
from devil_pipe.pipeline.experiments.gather import Gathered, gather
from devil_pipe.pipeline.experiments.planning import plan
from devil_pipe.pipeline.experiments.render import grid, number, render
from devil_pipe.stages.extract.backbones import spec
from devil_pipe.stages.extract.estimate import layer_sizes
from devil_pipe.stages.extract.layers import planned_layers

from .experiments_fixture import EXPERIMENT, extracted, finished, prepared, project, put, scores, write

CIDER = {1: 0.4, 2: 0.7, 3: 0.55}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project as the current folder, nothing run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEVIL_PIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    project()
    return tmp_path


def run_all(**metrics: Any) -> None:
    """Leave the files of every run; CIDEr depends on the seed."""
    for run in experiment.load("mine").all_runs():
        run.write()
        finished(config.Run(run.name), scores(CIDER[run.run.train.seed]), **metrics)


def cells(table: Gathered, key: str) -> dict[str, Any]:
    line = next(line for line in table.lines if line.key == key)
    return {cell.column.name: cell for cell in line.cells}


def test_a_figure_is_the_mean_over_seeds_with_its_spread(here: Path) -> None:
    prepared()
    run_all()
    cell = cells(gather("mine"), "both")["C"]
    values = 100 * np.array(list(CIDER.values()))
    assert cell.ours.value == pytest.approx(values.mean())
    assert cell.ours.spread == pytest.approx(values.std(ddof=1))
    assert (cell.ours.least, cell.ours.greatest, cell.ours.seeds) == (pytest.approx(40), pytest.approx(70), 3)
    assert (cell.ours.low, cell.ours.high) == (pytest.approx(30), pytest.approx(80)), "of 0.4 ± 0.1 to 0.7 ± 0.1"
    assert cell.null.value == pytest.approx(0)


def test_a_condition_takes_its_own_scores(here: Path) -> None:
    prepared()
    run_all()
    table = gather("mine")
    assert cells(table, "last")["C"].ours.value == pytest.approx(cells(table, "both")["C"].ours.value / 2)
    assert cells(table, "last")["loss"].ours.value == pytest.approx(1.5)
    assert cells(table, "both")["params"].ours.value == pytest.approx(2.5)
    assert cells(table, "both")["params"].null is None


def test_one_seed_has_no_spread_but_an_interval(here: Path) -> None:
    put("experiments/mine", {**EXPERIMENT, "seeds": [2]})
    prepared()
    run_all()
    cell = cells(gather("mine"), "both")["C"]
    assert cell.ours.spread is None
    assert grid(gather("mine")).rows[0].cells[0] == "70.00 [60.00, 80.00]"


PAPERS = {"table": "table1", "base": "base", "rows": {"devil-clip_rn50-opt": {}}}


@pytest.mark.parametrize(
    ("data", "note", "weights", "why"),
    [
        ("cc3m", "", "c" * 64, ""),
        ("cc3m", "", "random:0", "random weights, not comparable"),
        ("cc3m", "Demo composites: pasted", "c" * 64, "demo composites, not comparable"),
        ("shapes", "", "c" * 64, "pictures of shapes, not comparable"),
    ],
)
def test_a_difference_is_drawn_on_the_papers_data_alone(
    here: Path, data: str, note: str, weights: str, why: str
) -> None:
    project(data)
    put("experiments/mine", PAPERS)
    prepared(data, note)
    for run in experiment.load("mine").all_runs():
        finished(run.run, scores(0.5), weights=weights)
    cell = cells(gather("table1"), "devil-clip_rn50-opt")["C"]
    assert cell.paper == 78.41
    assert cell.difference == (None if why else pytest.approx(50 - 78.41))
    assert (why in render([gather("table1")], "markdown")) or not why


def test_a_small_version_is_never_compared(here: Path) -> None:
    project("cc3m")
    put("experiments/mine", {**EXPERIMENT, "mirrors": "table2"})
    prepared("cc3m")
    run_all()
    assert all(cell.difference is None for line in gather("mine").lines for cell in line.cells)


def test_a_score_that_did_not_run_says_why_and_leaves_the_others(here: Path) -> None:
    put("experiments/mine", {**EXPERIMENT, "columns": ["C", "S"], "seeds": [1]})
    prepared()
    for run in experiment.load("mine").all_runs():
        run.write()
        told = scores(0.5)
        for one in told.values():
            one["spice"] = {"not_run": "needs the Stanford jars"}
        finished(config.Run(run.name), told)
    found = cells(gather("mine"), "both")
    assert found["S"].ours is None
    assert found["C"].ours.value == pytest.approx(50)
    first = grid(gather("mine")).rows[0]
    assert first.cells[1] == "not run"
    assert "SPICE: needs the Stanford jars" in first.notes


def test_a_mean_of_rows_waits_for_all_of_them(here: Path) -> None:
    rows = {
        f"{name}/ours": {"label": [name], "run_name": f"base--{name}", "overrides": {"train": {"validate_every": step}}}
        for step, name in enumerate(("a", "b"), 2)
    }
    rows["mean"] = {"label": ["mean"], "mean_of": {"table": "mine", "method": "ours"}}
    put("experiments/mine", {**EXPERIMENT, "seeds": [1], "columns": ["C"], "rows": rows})
    prepared()
    runs = experiment.load("mine").all_runs()
    finished(runs[0].run, scores(0.2))
    line = gather("mine").lines[-1]
    assert line.not_run == "not run: needs all 2 rows of mine for ours; 1 are there"
    finished(runs[1].run, scores(0.6))
    cell = cells(gather("mine"), "mean")["C"]
    assert (cell.ours.value, cell.ours.low, cell.ours.least) == (pytest.approx(40), None, pytest.approx(20))


def spoil_config(run: config.Run) -> None:
    path = run.train.out / "train/summary.json"
    found = json.loads(path.read_text())
    found["config"]["phase"]["steps"] += 1
    write(path, found)


def spoil_scores(run: config.Run) -> None:
    path = run.train.out / "evaluate/metrics.json"
    write(path, {**json.loads(path.read_text()), "evaluate_settings": {"max_new_tokens": 3}})


def train_again(run: config.Run) -> None:
    later = (run.train.out / "evaluate/metrics.json").stat().st_mtime_ns + 10**9
    os.utime(run.train.out / "checkpoint/translator.safetensors", ns=(later, later))


def change_seed(_: config.Run) -> None:
    put("data/shapes", {"source": "folder", "seed": 4, "folder": {"pictures": "pictures"}})


def other_layers(_: config.Run) -> None:
    put("stores/lite", {"data": "shapes", "backbone": "effnet_lite0", "weights": "random", "layers": ["s32"]})


def other_pictures(_: config.Run) -> None:
    path = Path("data/shapes/summary.json")
    write(path, {**json.loads(path.read_text()), "index_digest": "cd" * 32})


STALE: dict[str, tuple[Callable[[config.Run], None], str]] = {
    "trained otherwise": (spoil_config, "train base: trained with other settings"),
    "evaluated otherwise": (spoil_scores, "evaluate base: evaluated with other settings"),
    "trained again": (train_again, "evaluate base: older than the training"),
    "prepared otherwise": (change_seed, "prepare shapes: prepared from another source or seed"),
    "another store": (other_layers, "extract lite: extracted"),
    "other pictures": (other_pictures, "extract lite: extracted from other pictures"),
    "predictions lost": (lambda run: (run.train.out / "predictions.parquet").unlink(), "evaluate base: not evaluated"),
    "cut short": (lambda run: write(run.train.out / "train/summary.json", []), "train base: not trained"),
}


@pytest.mark.parametrize(("spoil", "why"), STALE.values(), ids=STALE)
def test_what_is_stale_is_not_shown(here: Path, spoil: Callable[[config.Run], None], why: str) -> None:
    put("experiments/mine", {**EXPERIMENT, "seeds": [1]})
    prepared()
    run_all()
    assert gather("mine").lines[0].not_run == ""
    spoil(config.Run("base"))
    said = gather("mine").lines[0].not_run
    assert said.startswith("not run: needs ")
    assert why in said
    assert "devil-pipe experiment mine" in said


def test_speed_and_settings_that_came_later_make_nothing_stale(here: Path) -> None:
    put("experiments/mine", {**EXPERIMENT, "seeds": [1]})
    prepared()
    run_all()
    path = Path("runs/base/train/summary.json")
    found = json.loads(path.read_text())
    del found["config"]["prefix_repeats"]  # as if a run of before there was this key, whose default is what it did
    found["config"]["runtime"] = {"gone": True}
    write(path, found)
    assert gather("mine").lines[0].not_run == ""


def test_a_plan_says_what_is_left_and_what_a_finished_run_took(here: Path) -> None:
    prepared()
    finished(config.Run("base"), scores(0.5))
    found = plan("mine", experiment.of_table("mine"))
    left = {run.name: [state.stage for state in run.left] for run in found.runs}
    assert left["base"] == []
    assert left["base--seed2"] == ["train", "evaluate"]
    assert found.bytes_left == 0
    # two hours of training and six minutes of evaluation each: five runs like base, of other seeds and dropout
    assert found.hours_left == pytest.approx(5 * 2.1)
    assert "as base took" in found.text(False)


def test_without_a_rate_there_are_no_hours(here: Path) -> None:
    found = plan("mine", experiment.of_table("mine"))
    assert found.hours_left is None
    assert found.stores[0].bytes is None
    text = found.text(False)
    assert "hours: not known (no measured rate)" in text
    assert "needs the pictures of shapes: devil-pipe prepare shapes" in text
    assert "needs the language model gpt2" in text


def test_given_rates_give_hours_and_stand_beside_them(here: Path) -> None:
    prepared()
    rates = experiment.Rates(pictures_a_second=40 / 3600, seconds_a_step=3600, measured_on="a clock")
    found = plan("mine", experiment.of_table("mine"), rates)
    # 40 pictures once; six runs of five steps each; evaluation has no rate and is said to be left out
    assert found.hours_left == pytest.approx(1 + 6 * 5)
    text = found.text(False)
    assert "without evaluate (no measured rate)" in text
    assert "3600 s/step, measured on a clock" in text


def test_the_plans_disk_is_the_estimates(here: Path) -> None:
    prepared()
    (store,) = plan("mine", experiment.of_table("mine")).stores
    loaded = config.load_store("lite")
    layers = planned_layers(spec("effnet_lite0"), loaded.layers, 64)
    shard_rows = loaded.stored_as.shard_rows
    sizes = layer_sizes(layers, loaded.stored_as, 40, -(-40 // shard_rows), shard_rows, {})
    assert store.bytes == sum(one.bytes for one in sizes.values())
    assert store.bytes > 40 * 2 * (112 * 16 + 320 * 4), "float16 of 4 × 4 and 2 × 2 locations, and a little more"


def call(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def test_the_plan_of_table_1_says_disk_and_what_is_missing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float16, 224 × 224: three layers of a ResNet-50 are 512·28², 1024·14² and 2048·7² numbers a picture."""
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    if Path("data/cc3m/summary.json").exists():
        pytest.skip("CC3M lies here")
    found = json.loads(call("plan", "table1", "--json").stdout)
    sizes = {store["name"]: store["bytes"] for store in found["stores"]}
    numbers = 512 * 28**2 + 1024 * 14**2 + 2048 * 7**2
    assert sizes["cc3m-clip_rn50"] == pytest.approx(3_334_173 * 2 * numbers, rel=0.001)
    assert sizes["cc3m-clip_vit_b32"] == pytest.approx(3_334_173 * 2 * 4 * 768 * 49, rel=0.001)
    assert found["bytes_left"] == sum(sizes.values())
    assert found["hours_left"] is None
    assert any("devil-pipe prepare cc3m --tsv" in line for line in found["missing"])
    assert {row["row"]: row["what"] for row in found["rows"]}["lemon"] == "published figure only"


def test_the_formats_hold_the_same_words(here: Path) -> None:
    put("experiments/mine", {**EXPERIMENT, "rows": {"both": {"label": ["50 % & <b>|_x_"]}}})
    prepared()
    run_all()
    table = gather("mine")
    words = [cell for row in grid(table).rows for cell in (*row.label, *row.cells)]
    page = _Cells()
    page.feed(render([table], "html"))
    assert all(word in page.cells for word in words)
    assert "<b>" not in render([table], "html"), "escaped"
    lines = render([table], "markdown").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1, "every row has the same columns"
    latex = render([table], "latex")
    assert r"50 \% \& <b>|\_x\_" in latex
    assert r"$\pm$" in latex
    assert all(ord(letter) < 128 or letter == "…" for letter in latex), latex


class _Cells(HTMLParser):
    """The texts of a page's table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


@pytest.mark.parametrize(
    ("value", "digits", "signed", "text"),
    [(-0.004, 2, True, "+0.00"), (-1.5, 1, False, "−1.5"), (1234.5, 1, False, "1,234.5"), (2, 2, True, "+2.00")],
)
def test_numbers_have_a_true_minus_and_no_negative_zero(value: float, digits: int, signed: bool, text: str) -> None:
    assert number(value, digits, signed=signed) == text


def test_tables_are_written_in_every_format(here: Path) -> None:
    result = call("tables", "mine", "--out", "made")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("made").iterdir()) == ["mine.html", "mine.md", "mine.tex"]
    assert Path("made/mine.md").read_text(encoding="utf-8") == call("tables", "mine").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tables", "nope"], "the tables are mine"),
        (["tables", "--format", "word"], "markdown, latex, html, got 'word'"),
        (["plan", "mine", "--seconds-a-step", "3"], "--measured-on"),
        (["plan", "mine", "--seconds-a-step", "0", "--measured-on", "x"], "above 0"),
        (["experiment", "../mine"], "expected a table"),
    ],
)
def test_mistakes_are_named(here: Path, words: list[str], said: str) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_another_identity_is_another_store(here: Path) -> None:
    prepared()
    assert extracted().digest == extracted().digest
    finished(config.Run("base"), scores(0.5))
    path = Path("stores/lite/manifest.json")
    found = json.loads(path.read_text())
    found["identity"]["weights"] = "random:7"
    write(path, found)
    put("experiments/mine", {**EXPERIMENT, "seeds": [1], "rows": {"both": {"label": ["both"]}}})
    assert "trained on another store than the one that lies there" in gather("mine").lines[0].not_run


def test_figures_of_saliency_that_were_not_asked_for_say_what_to_set() -> None:
    column = COLUMNS["deletion"]
    assert "saliency.faithfulness.pictures" in gathering._of_saliency(None, column, "s32/devil")["not_run"]
    assert gathering._of_saliency({"n": 0, "not_run": "no class"}, column, "s32/devil") == {
        "not_run": "not run: no class"
    }


def test_a_method_s_area_and_a_crop_s_share_are_found_by_their_names() -> None:
    area = {"value": 0.3, "low": 0.2, "high": 0.4}
    scores = {"n": 5, "scores": {"s32": {"devil": {"deletion": area}}}}
    assert gathering._of_saliency(scores, COLUMNS["deletion"], "s32/devil") == area
    assert "'s32/grad_cam'" in gathering._of_saliency(scores, COLUMNS["deletion"], "s32/grad_cam")["not_run"]
    shares = {"n": 5, "share": {"all": {"64": 0.25}}}
    assert gathering._of_saliency(shares, COLUMNS["crop_64"], "all") == {"value": 0.25}
    assert "'s8'" in gathering._of_saliency(shares, COLUMNS["crop_64"], "s8")["not_run"]
