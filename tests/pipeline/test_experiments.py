"""Experiments: every row of the paper has one, each mistake is named, and a row becomes the runs that it says."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from devil_pipe.pipeline import config
from devil_pipe.pipeline.experiments import experiment
from devil_pipe.pipeline.experiments.columns import COLUMNS
from devil_pipe.pipeline.experiments.paper import paper_tables
from devil_pipe.stages.prepare.milan.experiments import EXPERIMENTS
from devil_pipe.store.errors import UsageError

from .experiments_fixture import BASE, EXPERIMENT, STORE, project, put

SOURCE = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project of its own as the current folder."""
    monkeypatch.chdir(tmp_path)
    project()
    return tmp_path


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SOURCE)


def test_every_row_of_the_paper_has_one_experiment(shipped: None) -> None:
    found = Counter(
        (item.file.table, key)
        for item in map(experiment.load, experiment.names())
        for key in item.file.rows
        if not item.mirrored
    )
    assert set(found) == {(name, key) for name, table in paper_tables().items() for key in table.rows}
    assert set(found.values()) == {1}


def test_the_papers_tables_have_their_rows_and_known_columns() -> None:
    counts = {name: len(table.rows) for name, table in paper_tables().items()}
    # Table 6: thirteen experiments and their mean, for four methods each; Figure 7: three layers, all, and the captions
    sizes = {"table1": 7, "table2": 6, "table3": 3, "table4": 6, "table5": 6, "table6": 56, "figure7": 5}
    assert counts == sizes
    for table in paper_tables().values():
        assert set(table.columns) <= set(COLUMNS)
        assert all(len(row.label) == len(table.head) for row in table.rows.values())
        assert all(set(row.figures) <= set(table.columns) for row in table.rows.values())


def test_the_papers_means_are_the_means_of_its_rows() -> None:
    """Table 6's last row and Table 3's BERTScores follow from Table 6's thirteen, to the rounding of two digits."""
    table6 = paper_tables()["table6"].rows
    for method in ("milan", "clipcap", "devil-in_rn101", "devil-clip_rn50"):
        values = [table6[f"{name}/{method}"].figures["BS"] for name in EXPERIMENTS]
        assert len(values) == 13
        assert fmean(values) == pytest.approx(table6[f"mean/{method}"].figures["BS"], abs=0.005)
    table3 = paper_tables()["table3"].rows
    for method, name in (("milan", "milan"), ("clipcap", "clipcap"), ("devil", "devil-clip_rn50")):
        assert table3[method].figures["BS"] == table6[f"mean/{name}"].figures["BS"]


def test_table_2_trains_three_times_and_changes_nothing_but_dropout(shipped: None) -> None:
    runs = experiment.distinct([run for item in experiment.of_table("table2") for run in item.all_runs()])
    rates = {(run.run.train.dropout.spatial, run.run.train.dropout.layer) for run in runs}
    assert rates == {(0.0, 0.0), (0.0, 0.5), (0.5, 0.5)}
    rest = [run.run.train.model_dump(exclude={"dropout", "run", "out"}) for run in runs]
    assert len(runs) == 3
    assert rest[0] == rest[1] == rest[2]


def test_table_6_has_the_papers_settings_on_each_of_its_data_sets(shipped: None) -> None:
    runs = [run.run for item in experiment.of_table("table6") for run in item.all_runs()]
    assert Counter(run.store.data for run in runs) == {f"milan-{name}": 2 for name in EXPERIMENTS}
    assert {run.store.backbone for run in runs} == {"clip_rn50", "in_rn101"}
    assert {len(run.store.layers) for run in runs} == {4}, "after each of the four residual stages"
    assert {run.store.encoding for run in runs} == {"units"}
    assert {run.evaluate.max_new_tokens for run in runs} == {20}
    bertscore = {(run.evaluate.bertscore.idf, run.evaluate.bertscore.rescale_with_baseline) for run in runs}
    assert bertscore == {(True, True)}


def test_the_demos_table_2_has_three_seeds_of_each_condition(shipped: None) -> None:
    (item,) = experiment.of_table("demo-table2")
    seeds = Counter((run.run.train.dropout.layer, run.run.train.dropout.spatial) for run in item.all_runs())
    assert seeds == {(0.0, 0.0): 3, (0.5, 0.0): 3, (0.5, 0.5): 3}
    for condition in ("neither", "layer", "both"):
        names = [[run.name for run in item.runs(f"{way}-{condition}")] for way in ("single", "s16", "s8", "all")]
        assert all(one == names[0] for one in names), "one training serves every evaluation"


def test_a_row_becomes_a_run_for_each_seed(here: Path) -> None:
    (item,) = experiment.of_table("mine")
    assert [run.name for run in item.runs("both")] == ["base", "base--seed2", "base--seed3"]
    runs = item.runs("last")
    assert [run.name for run in runs] == ["base--none--seed1", "base--none--seed2", "base--none--seed3"]
    for seed, run in enumerate(runs, 1):
        assert run.run.train.dropout.layer == 0.0
        assert run.run.train.dropout.spatial == config.Run(BASE).train.dropout.spatial, "the rest is the base's"
        assert (run.run.train.seed, run.run.evaluate.seed, run.run.train.phase.steps) == (seed, seed, 5)


def test_what_is_written_is_what_was_planned(here: Path) -> None:
    for run in experiment.load("mine").all_runs():
        run.write()
        again = config.Run(run.name)
        assert (again.train, again.evaluate, again.store) == (run.run.train, run.run.evaluate, run.run.store)
    written = sorted(path.name for path in Path("configs/runs").glob("*--*.yaml"))
    assert len(written) == 5
    assert not list(Path("configs/stores").glob("*--*.yaml")), "the store is the base's own"


def test_a_new_store_is_named_by_what_is_new(here: Path) -> None:
    values = change(rows={"pooled": row({"store": {"encoding": "pool:7", "runtime": {"batch_size": 4}}})})
    put("experiments/mine", values)
    run = experiment.load("mine").runs("pooled")[0]
    assert run.run.file.store == "shapes--effnet_lite0--encoding-pool-7"
    run.write()
    written = config.load_store(run.run.file.store)
    assert (written.encoding, written.runtime.batch_size) == ("pool:7", 4)
    assert config.load_store(STORE).encoding == "float16"


def test_a_section_of_another_kind_is_replaced_whole(here: Path) -> None:
    devil = {"kind": "devil", "layers": 2, "width": 24, "heads": 2}
    put(f"runs/{BASE}", {"store": STORE, "train": {"phase": {"steps": 5}, "translator": devil}})
    narrow = row({"train": {"translator": {"layers": 3}}})
    mapper = row({"train": {"translator": {"kind": "clipcap-mlp", "queries": 4}}}, run_name="base--mlp")
    put("experiments/mine", change(rows={"narrow": narrow, "mapper": mapper}))
    item = experiment.load("mine")
    (one, *_), (other, *_) = item.runs("narrow"), item.runs("mapper")
    assert one.values is not None
    assert other.values is not None
    assert one.values["train"]["translator"] == {**devil, "layers": 3}
    assert other.values["train"]["translator"] == {"kind": "clipcap-mlp", "queries": 4}


def test_a_file_of_a_person_is_never_overwritten(here: Path) -> None:
    run = experiment.load("mine").runs("last")[0]
    put(f"runs/{run.name}", {"store": STORE, "seed": 9})
    with pytest.raises(UsageError, match=r"configs/runs/base--none--seed1\.yaml: lies there with other values"):
        run.write()
    (Path("configs/runs") / f"{run.name}.yaml").write_text(experiment.MADE + "store: lite\n", encoding="utf-8")
    run.write()  # an experiment wrote it, and has changed since
    assert config.Run(run.name).train.dropout.layer == 0.0


def row(overrides: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"label": ["x"], "run_name": "base--new", "overrides": overrides, **more}


def change(**more: Any) -> dict[str, Any]:
    return {**copy.deepcopy(EXPERIMENT), **more}


ROW = {"label": ["x"]}
MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key of a row": (change(rows={"a": {**ROW, "sedes": [1]}}), ["rows.a.sedes: unknown key", "seeds"]),
    "unknown key at the top": (change(tabel="x"), ["tabel: unknown key", "table"]),
    "overrides without a name": (
        change(rows={"a": {**ROW, "overrides": {"train": {"seed": 3}}}}),
        ["rows.a", "run_name"],
    ),
    "a name without overrides": (change(rows={"a": {**ROW, "run_name": "n"}}), ["rows.a", "run_name", "got 'n'"]),
    "unknown column": (change(columns=["C", "D"]), ["columns", "['D']"]),
    "no columns": (change(columns=[]), ["columns", "got none"]),
    "unknown table to mirror": (change(mirrors="table9"), ["mirrors", "table1", "'table9'"]),
    "unknown base": (change(base="nope"), ["rows.both", "configs/runs/nope.yaml: no such file"]),
    "a wrong value in the overrides": (
        change(rows={"a": row({"train": {"dropout": {"layer": 2}}})}),
        ["rows.a", "train.dropout.layer", "less than 1"],
    ),
    "an unknown key in the overrides": (
        change(rows={"a": row({"train": {"dropuot": {}}})}),
        ["rows.a", "train.dropuot: unknown key"],
    ),
    "a word for a section": (
        change(rows={"a": row({"train": {"dropout": "no kind"}})}),
        ["rows.a", "train.dropout", "'no kind'"],
    ),
    "one name for two runs": (
        change(
            rows={"a": row({"train": {"dropout": {"layer": 0.1}}}), "b": row({"train": {"dropout": {"layer": 0.2}}})}
        ),
        ["base--new--seed1", "different values"],
    ),
    "no label": (change(rows={"a": {}}), ["rows.a.label: missing"]),
    "nothing to run": (change(base=None, rows={"a": ROW}), ["rows.a: expected a base"]),
    "two reasons not to run": (
        change(rows={"a": {**ROW, "needs": "time", "published_only": True}}),
        ["rows.a", "one of published_only, mean_of and needs"],
    ),
    "a row that the paper does not have": (
        change(mirrors="table2", rows={"a": {**ROW, "paper": "b"}}),
        ["rows.a", "single-"],
    ),
}


@pytest.mark.parametrize(("values", "fragments"), MISTAKES.values(), ids=MISTAKES)
def test_each_mistake_is_named(here: Path, values: dict[str, Any], fragments: list[str]) -> None:
    put("experiments/mine", values)
    with pytest.raises(UsageError) as caught:
        experiment.load("mine")
    said = str(caught.value)
    assert all(fragment in said for fragment in fragments), said
    assert said.startswith("configs/experiments/mine.yaml: ")
    assert "\n" not in said


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", ".hidden"])
def test_a_name_is_no_path(here: Path, name: str) -> None:
    with pytest.raises(UsageError, match="expected the name of a file in configs/experiments/"):
        experiment.load(name)


def test_an_unknown_table_names_those_there(here: Path) -> None:
    with pytest.raises(UsageError, match=r"got 'nope'; the tables are mine"):
        experiment.of_table("nope")


def test_the_shipped_demo_runs_say_that_they_warm_up_and_the_papers_that_they_do_not(shipped: None) -> None:
    for item in map(experiment.load, experiment.names()):
        for run in item.all_runs():
            assert (run.run.train.warmup.kind == "alignment") == item.mirrored, run.name


@pytest.mark.tree
def test_every_generated_file_is_ignored_by_git() -> None:
    """Their names hold two dashes in a row; no file that a person keeps does."""
    assert "/configs/*/*--*.yaml" in (SOURCE / ".gitignore").read_text(encoding="utf-8").splitlines()
    for path in (SOURCE / "configs").glob("*/*--*.yaml"):
        assert path.read_text(encoding="utf-8").startswith(experiment.MADE)
    assert yaml.safe_load(experiment.MADE) is None, "a comment alone"
