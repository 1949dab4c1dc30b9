"""Configurations: each mistake is named by file and key; the shipped ones load, and the presets are the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devil_pipe.pipeline import config
from devil_pipe.pipeline.experiments import experiment
from devil_pipe.store.errors import UsageError

SOURCE = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path.relative_to(SOURCE / "configs") for path in (SOURCE / "configs").rglob("*.yaml"))
GOOD = {
    "pipeline": {"data": ["d"], "stores": {"s": {"data": "d"}}, "runs": {"r": {"store": "s"}}},
    "data/d": {"source": "folder", "folder": {"pictures": "pictures"}},
    "stores/s": {"data": "d", "backbone": "effnet_lite0"},
    "runs/r": {"store": "s", "seed": 3, "train": {"phase": {"steps": 5}}},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small configurations that load, as the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, values in GOOD.items():
        put(name, yaml.safe_dump(values))
    return tmp_path


def put(name: str, text: str | bytes) -> None:
    path = Path("configs") / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def load(name: str) -> Any:
    """The configuration of one file of configs/ by its path without the ending."""
    kind, _, rest = name.partition("/")
    loaders = {
        "data": config.load_data,
        "stores": config.load_store,
        "runs": config.Run,
        "experiments": experiment.load,
    }
    return loaders[kind](rest) if rest else config.read_pipeline()


def refusal(name: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(name)
    return str(caught.value)


RUN = "store: s\ntrain: {phase: {steps: 5}"
MISTAKES = {
    "unknown key at the top": ("runs/r", "store: s\ntrian: {}", ["trian: unknown key", "known here: store, seed, tra"]),
    "unknown key of a stage": ("runs/r", RUN + ", lrr: 1}", ["train.lrr: unknown key", "language_model, prefix_rep"]),
    "unknown key deep inside": ("runs/r", RUN + ", dropout: {layre: 0}}", ["train.dropout.layre", "spatial, layer"]),
    "unknown key of speed": ("runs/r", "store: s\nruntime: {train: {devise: cpu}}", ["runtime.train.devise", "device"]),
    "a stage's key at the top": ("runs/r", RUN + ", seed: 1}", ["train.seed", "top of the file"]),
    "unknown key of a store": ("stores/s", "data: d\nbackbone: b\nlayer: x", ["layer: unknown", "layers", "runtime"]),
    "unknown key of a source": (
        "data/d",
        "source: folder\nfolder: {picture: x}",
        ["folder.picture: unknown", "capt"],
    ),
    "unknown key of the pipeline": ("pipeline", "data: []\nstore: {}", ["store: unknown", "data, stores, runs"]),
    "a name inside the file": ("data/d", "name: e\nsource: demo", ["name: unknown key", "file's name"]),
    "a path inside the file": ("stores/s", "data: d\nbackbone: b\nout: x", ["out: unknown key"]),
    "missing keys": ("stores/s", "image_size: 64", ["data: missing", "backbone: missing"]),
    "no section for the source": ("data/d", "source: webdataset", ["webdataset needs a section"]),
    "unknown source": ("data/d", "source: internet", ["source", "'demo', 'folder', 'webdataset'", "'internet'"]),
    "negative spatial dropout": ("runs/r", RUN + ", dropout: {spatial: -0.1}}", ["train.dropout.spatial", "-0.1"]),
    "everything dropped": ("runs/r", RUN + ", dropout: {layer: 1}}", ["train.dropout.layer", "less than 1", "got 1"]),
    "an unknown kind of translator": (
        "runs/r",
        RUN + ", translator: {kind: clipcap}}",
        ["train.translator: kind: expected devil, clipcap-transformer, clipcap-mlp, got 'clipcap'"],
    ),
    "a key of another kind": (
        "runs/r",
        RUN + ", translator: {kind: clipcap-mlp, heads: 8}}",
        ["train.translator.heads: unknown key; known here: kind, queries"],
    ),
    "a translator that is no section": ("runs/r", RUN + ", translator: big}", ["train.translator", "got 'big'"]),
    "heads do not divide": ("runs/r", RUN + ", translator: {width: 16, heads: 5}}", ["train.translator", "heads (5)"]),
    "no learning rate": ("runs/r", "store: s\ntrain: {phase: {steps: 1, lr: 0}}", ["train.phase.lr", "got 0"]),
    "endless learning rate": ("runs/r", "store: s\ntrain: {phase: {steps: 1, lr: .inf}}", ["train.phase.lr", "inf"]),
    "warm-up without steps": ("runs/r", RUN + ", warmup: {kind: alignment}}", ["train.warmup", "more than 0"]),
    "unknown warm-up": ("runs/r", RUN + ", warmup: {kind: slow}}", ["train.warmup.kind", "'none' or 'alignment'"]),
    "text for a number": ("stores/s", "data: d\nbackbone: b\nimage_size: big", ["image_size", "'big'"]),
    "pictures too small": ("stores/s", "data: d\nbackbone: b\nimage_size: 31", ["image_size", "32", "got 31"]),
    "no rows a shard": ("stores/s", "data: d\nbackbone: b\nshard_rows: 0", ["shard_rows", "got 0"]),
    "another encoding": ("stores/s", "data: d\nbackbone: b\nencoding: int4", ["encoding", "uint8", "'int4'"]),
    "a section that is a list": ("runs/r", "store: s\ntrain: [1]", ["train", "dictionary", "[1]"]),
    "an empty section": ("runs/r", "store: s\ntrain:\nevaluate:", ["train", "evaluate", "got None"]),
    "shares beyond one": ("data/d", "source: folder\nfolder: {pictures: x, shares: {train: 0.5}}", ["shares", "0.5"]),
    "a store by its path": ("runs/r", "store: ../s", ["store: expected the name of a file in configs/stores/", "../s"]),
    "pictures by their path": (
        "stores/s",
        "data: a/b\nbackbone: b",
        ["data: expected the name", "configs/data/"],
    ),
    "another store than listed": ("runs/r", "store: t", ["store: 't'", "pipeline.yaml says runs.r.store: 's'"]),
    "other pictures than listed": ("stores/s", "data: e\nbackbone: b", ["data: 'e'", "stores.s.data: 'd'"]),
    "a key twice": ("data/d", "source: demo\nsource: folder", ["'source' stands twice", "line 2"]),
    "a key twice inside": ("runs/r", "store: s\ntrain:\n  seed: 1\n  seed: 2", ["'seed' stands twice", "line 4"]),
    "not UTF-8": ("data/d", b"source: \xff\xfe", ["expected YAML", "utf-8"]),
    "no YAML": ("data/d", "source: [demo", ["expected YAML", "line 1"]),
    "a tag that builds an object": ("data/d", "source: !!python/object/apply:os.getcwd []", ["expected YAML"]),
    "empty": ("data/d", "", ["expected keys and values, got nothing"]),
    "a comment alone": ("data/d", "# source: demo", ["expected keys and values, got nothing"]),
    "a list": ("data/d", "- source: demo", ["expected keys and values, got a list"]),
    "a word": ("data/d", "demo", ["expected keys and values, got 'demo'"]),
    "a key that is no word": ("data/d", "1: demo", ["expected keys and values"]),
    "a key that is a list": ("data/d", "? [a, b]\n: demo", ["expected YAML", "line 1"]),
    "a day that is none": ("data/d", "source: 2024-99-99", ["expected YAML", "month"]),
}


@pytest.mark.parametrize(("name", "text", "fragments"), MISTAKES.values(), ids=MISTAKES)
def test_each_mistake_is_named(project: Path, name: str, text: str | bytes, fragments: list[str]) -> None:
    put(name, text)
    said = refusal(name)
    assert said.startswith(f"configs/{name}.yaml: ")
    assert all(fragment in said for fragment in fragments), said
    assert "\n" not in said


def test_every_wrong_key_is_named_at_once(project: Path) -> None:
    put("stores/s", "backbone: 3\nimage_size: 1\ncolour: red")
    said = refusal("stores/s")
    assert all(f"{key}: " in said for key in ("data", "backbone", "image_size", "colour"))


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/a", "../s", "a/"])
@pytest.mark.parametrize("kind", ["data", "stores", "runs"])
def test_a_name_is_no_path(project: Path, kind: str, name: str) -> None:
    with pytest.raises(UsageError, match=rf"expected the name of a file in configs/{kind}/"):
        {"data": config.load_data, "stores": config.load_store, "runs": config.Run}[kind](name)


@pytest.mark.parametrize("name", ["data/x", "stores/x", "runs/x"])
def test_a_missing_file_names_those_there(project: Path, name: str) -> None:
    said = refusal(name)
    assert said.startswith(f"configs/{name}.yaml: no such file")
    assert said.endswith(f"has: {name[0]}")


def test_a_pipeline_without_names_asks_for_one(project: Path) -> None:
    put("pipeline", "data: []\nstores: {}\nruns: {}")
    for kind in ("data", "stores", "runs"):
        with pytest.raises(UsageError, match=f"pipeline.yaml: {kind}: lists none"):
            config.first(kind)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=40), st.text("{}[]:,-?!&*#|>'\"\\ \n\t01aé<=~%@.", max_size=40).map(str.encode)))
def test_any_bytes_are_a_mapping_or_a_named_mistake(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    try:
        found = config.read_yaml(path)
    except UsageError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert found == yaml.safe_load(content)


def test_a_kept_configuration_is_not_overwritten(project: Path) -> None:
    values = {"source": "folder", "folder": {"pictures": "mine"}}
    path = config.write_config("data", "new", values)
    assert path is not None
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == values
    assert config.write_config("data", "new", values) is None
    with pytest.raises(UsageError, match=r"configs/data/new\.yaml: lies there with other values"):
        config.write_config("data", "new", {**values, "seed": 1})


def test_a_run_hands_its_store_and_seed_to_every_stage(project: Path) -> None:
    run = config.Run("r")
    for stage in (run.train, run.evaluate, run.saliency):
        assert (stage.run, stage.seed) == ("r", 3)
        assert (stage.store, stage.data_dir, stage.out) == ("stores/s", Path("data/d"), Path("runs/r"))


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_shipped_configurations_load(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SOURCE)
    load(path.with_suffix("").as_posix())


def test_what_the_pipeline_lists_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SOURCE)
    listed = config.read_pipeline()
    for run in listed.runs:
        assert config.Run(run).file.store in listed.stores
    for store in listed.stores:
        assert config.load_store(store).data in listed.data


def tracked_by_dvc(stage: str) -> set[str]:
    """Keys of a configuration that dvc.yaml names for a stage; DVC refuses a file that lacks one."""
    chain = yaml.safe_load((SOURCE / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    (params,) = chain[stage]["do"]["params"]
    return set(next(iter(params.values())))


@pytest.mark.parametrize(("kind", "stages"), [("stores", ["extract"]), ("runs", ["train", "evaluate", "saliency"])])
def test_shipped_files_have_every_key_that_dvc_tracks(kind: str, stages: list[str]) -> None:
    tracked = set().union(*(tracked_by_dvc(stage) for stage in stages))
    for path in (SOURCE / "configs" / kind).glob("*.yaml"):
        assert tracked <= set(yaml.safe_load(path.read_text(encoding="utf-8"))), path.name
    assert "runtime" not in tracked


def test_a_store_from_the_command_line_has_every_key_that_dvc_tracks(project: Path) -> None:
    values = config.store_values(data="d", backbone="effnet_lite0")
    assert set(values) == tracked_by_dvc("extract")
    config.write_config("stores", "new", values)
    assert config.load_store("new").backbone == "effnet_lite0"


OPT = {"kind": "devil", "layers": 12, "width": 768, "heads": 12, "feedforward": 3072, "queries": 10}
GPT2 = {"kind": "devil", "layers": 8, "width": 768, "heads": 8, "feedforward": 1532, "queries": 10}
CLIPCAP = {
    "clipcap-transformer": {"layers": 8, "heads": 8, "mlp_ratio": 2.0, "clip_length": 10, "queries": 10},
    "clipcap-mlp": {"queries": 10},
}


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.match("runs/cc3m-*-clipcap*.yaml")], ids=str)
def test_clipcaps_presets_have_its_papers_numbers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mokady et al. 2021, section 4: ten epochs of 3 M in batches of 40, 2e-5, 5000 steps of warm-up."""
    monkeypatch.chdir(SOURCE)
    train = config.Run(path.stem).train
    sizes = train.translator.model_dump()
    assert sizes == {"kind": sizes["kind"], **CLIPCAP[sizes["kind"]]}
    assert train.language_model == "gpt2"
    phase = train.phase
    assert (phase.lr, phase.min_lr, phase.batch_size, phase.warmup_steps) == (2e-5, 0, 40, 5000)
    assert phase.steps * phase.batch_size == 10 * 3_000_000
    assert (train.warmup.kind, train.prefix_repeats, train.language_model_dropout) == ("none", 1, False)


DEVIL = [path for path in SHIPPED if path.match("runs/cc3m-*.yaml") and "clipcap" not in path.stem]


@pytest.mark.parametrize("path", DEVIL, ids=str)
def test_presets_have_the_papers_numbers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Supplementary, appendix A, and section 4 for the two language models."""
    monkeypatch.chdir(SOURCE)
    run = config.Run(path.stem)
    model = path.stem.rsplit("-", 1)[1]
    assert run.train.language_model == {"opt": "opt-125m", "gpt2": "gpt2"}[model]
    assert run.train.translator.model_dump() == {"opt": OPT, "gpt2": GPT2}[model]
    phase = run.train.phase
    assert (phase.lr, phase.min_lr, phase.weight_decay) == (1e-4, 1e-6, 1e-6)
    assert (phase.batch_size, phase.warmup_steps, phase.clip_norm) == (64, 5000, 0)
    assert (run.train.dropout.spatial, run.train.dropout.layer) == (0.5, 0.5)
    assert (run.train.warmup.kind, run.train.warmup.phase.steps) == ("none", 0)
    assert (run.train.prefix_repeats, run.train.language_model_dropout) == (1, False)
    assert run.evaluate.max_new_tokens == 50
    assert run.store.image_size == 224


def test_the_papers_numbers_are_the_defaults(project: Path) -> None:
    train = config.Run("r").train
    assert train.translator.model_dump() == OPT
    assert (train.phase.lr, train.phase.batch_size, train.dropout.spatial, train.warmup.kind) == (1e-4, 64, 0.5, "none")
