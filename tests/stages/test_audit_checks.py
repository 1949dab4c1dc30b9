"""The audit of a translator that sees, and of one that was trained on other pictures' features."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from devil_pipe.pipeline.config import Run
from devil_pipe.stages.audit import random_features, synonyms
from devil_pipe.stages.audit.config import RandomRun
from devil_pipe.stages.audit.findings import Demand, Measured, Needs, Verdict
from devil_pipe.stages.audit.opened import Audited
from devil_pipe.stages.audit.run import CHECKS, Report, audit
from devil_pipe.stages.audit.run import run as work
from devil_pipe.stages.evaluate.bootstrap import Interval
from devil_pipe.stages.evaluate.conditions import CONTROLS
from devil_pipe.stages.evaluate.run import Trained, open_run
from devil_pipe.stages.train.checkpoint import load
from devil_pipe.store.errors import InputError, UsageError

from .audit_fixture import ASKED, COUNT, audit_config, trained_project


def opened(config: Run) -> Trained:
    return open_run(config.train.out, config.train.store, config.train.data_dir, "cpu", "float32")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_project(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def seeing(good: Run, tmp_path_factory: pytest.TempPathFactory) -> Audited:
    return Audited(audit_config(good, tmp_path_factory.mktemp("seeing")), opened(good))


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    made = trained_project(tmp_path_factory.mktemp("blind"), blind=True)
    return Audited(audit_config(made, tmp_path_factory.mktemp("blind-audit")), opened(made))


def reported(audited: Audited) -> Report:
    return audit(audited.config, audited.trained, [check for check in CHECKS if check.name in ASKED])


def test_who_sees_passes_every_check(seeing: Audited) -> None:
    report = reported(seeing)
    told = {item.check.name: item.measured.demands if item.measured else item.needs for item in report.findings}
    assert {item.check.name: item.verdict for item in report.findings} == dict.fromkeys(ASKED, Verdict.PASS), told


def test_who_was_trained_on_other_pictures_features_fails(blind: Audited) -> None:
    report = reported(blind)
    told = {item.check.name: item.measured.demands if item.measured else item.needs for item in report.findings}
    assert {"controls", "absent-words", "wrong-layer"} <= set(report.failed), told  # few pictures: others may pass
    first = report.findings[0]
    assert first.verdict is Verdict.FAIL, "what failed comes first"


def test_an_exactly_blind_translator_finds_pictures_by_chance(seeing: Audited) -> None:
    """With its projections at zero every picture gets one description, as likely after any other."""
    made = trained_copy(seeing)
    report = audit(
        made.config, made.trained, [check for check in CHECKS if check.name in ("round-trip", "wrong-layer")]
    )
    assert set(report.failed) == {"round-trip", "wrong-layer"}
    found = next(item for item in report.findings if item.check.name == "round-trip")
    assert found.measured is not None
    assert found.measured.demands[0].figure.value == pytest.approx(1 / COUNT)


def trained_copy(audited: Audited) -> Audited:
    """The same run with a translator that cannot see."""
    translator, _ = load(audited.config.run_dir / "checkpoint")
    with torch.no_grad():
        for name, value in translator.named_parameters():
            if name.startswith("project"):
                value.zero_()
    return Audited(audited.config, dataclasses.replace(audited.trained, translator=translator))


def test_losses_and_cider_are_read_from_evaluation_where_they_are_this_checkpoints(
    seeing: Audited, tmp_path: Path
) -> None:
    """Each control is given one more nat than the one before; its descriptions share no word with the captions."""
    rows = sorted(seeing.shuffled)
    own = seeing.losses(seeing.features(rows), seeing.captions(rows))
    entries = [
        {
            "row": row,
            "condition": name,
            "description": seeing.entry(row)["captions"][0] if name == "all" else "nothing",
            "references": seeing.entry(row)["captions"],
            "split": "test",
            "loss": float(loss) + nats,
        }
        for nats, name in enumerate(("all", *CONTROLS))
        for row, loss in zip(rows, own, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(entries), tmp_path / "predictions.parquet")
    config = seeing.config.model_copy(update={"run_dir": tmp_path})
    measured = CHECKS[0].measure(Audited(config, seeing.trained))
    figures = [demand.figure.value for demand in measured.demands]
    assert figures[:4] == pytest.approx([1, 2, 3, 4])
    assert figures[4:] == [figures[4]] * 4
    assert figures[4] > 5, "captions that are their own references have a CIDEr near 10"

    for entry in entries:
        entry["loss"] += 1.0
    pq.write_table(pa.Table.from_pylist(entries), tmp_path / "predictions.parquet")
    measured = CHECKS[0].measure(Audited(config, seeing.trained))
    assert len(measured.demands) == 4, "no CIDEr of another checkpoint's descriptions"
    assert "another checkpoint" in measured.notes[0]


def test_a_twin_on_random_features_must_be_worse(good: Run, seeing: Audited, blind: Audited) -> None:
    """The tiny store calls its weights random, so the run is its own twin: no better than itself."""
    config = seeing.config.model_copy(
        update={
            "random": RandomRun(run="twin", store=good.train.store, data_dir=good.train.data_dir, out=good.train.out)
        }
    )
    measured = random_features.measure(Audited(config, seeing.trained))
    assert measured.demands[0].figure == Interval(0, 0, 0)
    assert measured.verdict is Verdict.FAIL
    other = blind.config
    twin = RandomRun(run="other", store=other.store, data_dir=other.data_dir, out=other.run_dir)
    config = seeing.config.model_copy(update={"random": twin})
    with pytest.raises(InputError, match="--random-run other: expected the index of tiny, got"):
        random_features.measure(Audited(config, seeing.trained))


def test_what_cannot_run_says_what_it_needs_and_has_no_verdict(seeing: Audited) -> None:
    report = audit(seeing.config, seeing.trained, [check for check in CHECKS if check.name not in ASKED])
    needs = {item.check.name: item.needs for item in report.findings if item.verdict is Verdict.NOT_RUN}
    assert set(needs) == {"synonyms", "randomisation", "random-features", "deletion"}
    assert "random weights (random:0)" in needs["randomisation"]
    assert (
        "devil-pipe extract --backbone tiny --data tiny --weights random --layers fine,coarse"
        in needs["random-features"]
    )
    assert "three objects" in needs["synonyms"]
    assert report.failed == ()


def test_absent_words_name_nothing_of_the_picture(seeing: Audited) -> None:
    """A lion is not absent where a sea lion is: their names end in one word."""
    for row in seeing.shuffled:
        there = seeing.entry(row)["object"]
        absent = seeing.absent(row)
        assert there not in absent
        assert absent == seeing.absent(row)
        if there == "a sea lion":
            assert set(absent) == {"a dog", "a cow"}


def test_what_stands_beside_the_object_is_not_absent(seeing: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    """COCO's pictures show several categories; captions leave most of them out."""
    row = next(row for row in seeing.shuffled if seeing.entry(row)["object"] == "a sea lion")
    shown = {**seeing.entry(row), "scene": "a dog"}
    monkeypatch.setattr(seeing, "entry", lambda _row: shown)
    assert seeing.absent(row) == ["a cow"]


def test_synonyms_are_asked_where_one_of_them_is(seeing: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synonyms, "PAIRS", (("dog", "hound"), ("cow", "cattle"), ("lion", "big cat")))
    measured = synonyms.measure(seeing)
    assert measured.n.startswith("18 pictures, 3 pairs: cow / cattle, dog / hound, lion / big cat")


def test_files_are_whole_and_say_what_ran(good: Run, tmp_path: Path) -> None:
    report = work(audit_config(good, tmp_path, only=("pointing",), command="devil-pipe audit tiny"))
    found = json.loads((tmp_path / "audit.json").read_text())
    assert found == json.loads(json.dumps(report.as_json()))
    assert found["command"] == "devil-pipe audit tiny"
    (check,) = found["checks"]
    assert (check["verdict"], check["seed"]) == ("pass", 0)
    shown = [picture["file"] for case in check["cases"] for picture in case["pictures"]]
    assert shown
    assert all((tmp_path / file).is_file() for file in shown)


def test_a_verdict_is_the_rules() -> None:
    over, across = Interval(0.2, 0.1, 0.3), Interval(0.2, -0.1, 0.3)
    assert Measured("", (Demand("", over),)).verdict is Verdict.PASS
    assert Measured("", (Demand("", over), Demand("", across))).verdict is Verdict.FAIL
    assert Measured("").verdict is Verdict.SHOWN
    assert Demand("", over, 0.5, "below").met
    assert not Demand("", over, 0.25, "below").met


def test_mistakes_are_named(good: Run, seeing: Audited, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--only: expected some of controls, .*got 'contrls'"):
        work(audit_config(good, tmp_path, only=("contrls",)))
    with pytest.raises(InputError, match="needs 4 pictures in the split 'nowhere', got 0"):
        work(audit_config(good, tmp_path, split="nowhere"))
    few = Audited(seeing.config, seeing.trained)
    few.shuffled = few.shuffled[:3]
    with pytest.raises(Needs, match="four pictures whose object is named"):
        few.named(9)
