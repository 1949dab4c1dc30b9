"""What `dvc repro` runs again, and what it does not, with the real DVC and the real stages on a tiny project."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..stages.webdataset_fixture import sample, write_shard
from .tiny_project import COUNT, OTHER, RUN, RUN_VALUES, SPLITS, STAGES, STORE, STORE_VALUES, command, list_runs, make
from .tiny_project import write as write_config

pytestmark = pytest.mark.slow

PREPARE, EXTRACT = "prepare@squares", f"extract@{STORE}"
OF_THE_RUN = [f"{stage}@{RUN}" for stage in STAGES]


def repro(folder: Path, *targets: str) -> list[str]:
    """`dvc repro`; the stages that ran, in order."""
    done = command(folder, "dvc", "repro", *targets)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"Running stage '(.+?)'", done.stdout)


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where Python may keep no compiled modules, every stage of every `dvc repro` would compile PyTorch anew."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.dont_write_bytecode:
            patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
            patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A project after its first `dvc repro`, and the stages that ran."""
    folder = make(tmp_path_factory.mktemp("dvc") / "project")
    return folder, repro(folder)


@pytest.fixture
def project(finished: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A copy of the finished project that a test may change."""
    return Path(shutil.copytree(finished[0], tmp_path / "project", symlinks=True))


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file that a stage makes: when it was changed, and its size."""
    files = [path for top in ("data", "stores", "runs") for path in (folder / top).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def changed(values: dict[str, Any], *keys: str, to: Any) -> dict[str, Any]:
    """A copy of `values` in which the key at the end of `keys` is `to`."""
    new = copy.deepcopy(values)
    inner = new
    for key in keys[:-1]:
        inner = inner.setdefault(key, {})
    inner[keys[-1]] = to
    return new


def assert_score(score: dict[str, Any]) -> None:
    if "not_run" in score:
        assert score["not_run"]
        assert "value" not in score
    else:
        assert score["low"] <= score["value"] <= score["high"]


def test_one_command_makes_everything(finished: tuple[Path, list[str]]) -> None:
    folder, ran = finished
    assert ran[:3] == [PREPARE, EXTRACT, OF_THE_RUN[0]]
    assert sorted(ran) == sorted([PREPARE, EXTRACT, *OF_THE_RUN])
    metrics = json.loads((folder / f"runs/{RUN}/metrics.json").read_text(encoding="utf-8"))
    layers = set(STORE_VALUES["layers"])
    assert (metrics["run"], metrics["data"], metrics["seed"]) == (RUN, "squares", 0)
    assert metrics["n_index"] == metrics["n_scored"] == COUNT * SPLITS.count("test") // len(SPLITS)
    assert set(metrics["scores"]) == {"all"} | layers
    assert set(metrics["controls"]) == {"shuffled", "mean", "zero", "lm_alone"}
    for scores in (*metrics["scores"].values(), *metrics["controls"].values()):
        assert {"bleu_1", "bleu_4", "meteor", "rouge_l", "cider", "loss", "object_accuracy"} <= set(scores)
        for score in scores.values():
            assert_score(score)
    assert set(metrics["seconds"]) >= {"prepare", "extract", "train", "evaluate", "saliency"}
    faithfulness = metrics["faithfulness"]
    assert (faithfulness["n"], faithfulness["steps"]) == (2, 2)
    assert set(faithfulness["scores"]) == {"s16", "s32", "no layer"}
    assert set(faithfulness["scores"]["s16"]) == {"devil", "grad_cam"}
    assert set(faithfulness["scores"]["no layer"]) == {"centre_prior", "random"}
    for ways in faithfulness["scores"].values():
        for scores in ways.values():
            assert all(0 <= score["value"] <= 1 for score in scores.values())
    assert metrics["weights"] == "random:0", "random weights are named wherever results are"
    assert "random" in (folder / f"runs/{RUN}/report/index.html").read_text(encoding="utf-8")


def test_nothing_runs_twice(project: Path) -> None:
    before = written(project)
    assert repro(project) == []
    assert written(project) == before


def test_speed_reruns_nothing(project: Path) -> None:
    write_config(project, f"stores/{STORE}", changed(STORE_VALUES, "runtime", to={"batch_size": 3, "device": "auto"}))
    write_config(project, f"runs/{RUN}", changed(RUN_VALUES, "runtime", "evaluate", "batch_size", to=7))
    before = written(project)
    assert repro(project) == []
    assert written(project) == before


def test_learning_rate_reruns_train_and_what_follows(project: Path) -> None:
    before = written(project)
    write_config(project, f"runs/{RUN}", changed(RUN_VALUES, "train", "phase", "lr", to=0.002))
    assert sorted(repro(project)) == sorted(OF_THE_RUN)
    after = written(project)
    kept = {name for name in before if name.split("/")[0] != "runs"}
    assert {name for name in after if after[name] == before.get(name)} >= kept
    lines = (project / f"runs/{RUN}/train/log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 3], "trained from its first step, not gone on with"


def test_a_layer_reruns_from_extract(project: Path) -> None:
    write_config(project, f"stores/{STORE}", changed(STORE_VALUES, "layers", to=["s8", "s32"]))
    assert repro(project, f"train@{RUN}") == [EXTRACT, OF_THE_RUN[0]]
    manifest = json.loads((project / f"stores/{STORE}/manifest.json").read_text(encoding="utf-8"))
    assert [layer["name"] for layer in manifest["identity"]["layers"]] == ["s8", "s32"]


def test_two_runs_share_a_store(project: Path) -> None:
    before = {name: stamp for name, stamp in written(project).items() if name.startswith("stores/")}
    list_runs(project, RUN, OTHER)
    write_config(project, f"runs/{OTHER}", changed(RUN_VALUES, "seed", to=1))
    assert repro(project, f"train@{OTHER}") == [f"train@{OTHER}"]
    after = {name: stamp for name, stamp in written(project).items() if name.startswith("stores/")}
    assert after == before
    weights = [(project / f"runs/{run}/checkpoint/translator.safetensors").read_bytes() for run in (RUN, OTHER)]
    assert weights[0] != weights[1]


def test_downloaded_shards_are_never_removed(tmp_path: Path) -> None:
    folder = make(tmp_path / "project")
    shard = write_shard(folder / "data/squares/shards/00000.tar", [sample(f"{number:09d}") for number in range(3)])
    before = shard.read_bytes()
    source = {"source": "webdataset", "webdataset": {"shards": "data/squares/shards"}}
    for seed in (0, 1):  # DVC removes a stage's outputs before it runs it again
        write_config(folder, "data/squares", {**source, "seed": seed})
        assert repro(folder, PREPARE) == [PREPARE]
        assert shard.read_bytes() == before


def test_batch_jobs_get_json_lines_alone(project: Path) -> None:
    done = command(project, "devil_pipe.pipeline.cli", "--log-json", "evaluate", RUN)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines
    assert all(isinstance(line["message"], str) and isinstance(line["time"], float) for line in lines)
