"""Configurations: any valid one survives YAML; any wrong key or type in any place is named, and no more is raised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from devil_pipe.pipeline import config
from devil_pipe.store.errors import UsageError

from .profiles import cases

FLOAT = st.floats(1e-6, 1e6)
SHARES = st.integers(1, 99).map(lambda part: {"train": part / 100, "val": 1 - part / 100})
SOURCES = st.one_of(
    st.fixed_dictionaries(
        {"source": st.just("demo")},
        optional={
            "demo": st.fixed_dictionaries(
                {},
                optional={
                    "train": st.integers(1, 9999),
                    "longest_side": st.just([0.25, 0.5]),
                    "renders": st.booleans(),
                    "empty_scenes": st.floats(0, 0.5),
                    "quality": st.integers(1, 95),
                },
            ),
        },
    ),
    st.fixed_dictionaries(
        {
            "source": st.just("folder"),
            "folder": st.fixed_dictionaries({"pictures": st.sampled_from(["p", "ä b/c"])}, optional={"shares": SHARES}),
        }
    ),
    st.fixed_dictionaries(
        {
            "source": st.just("coco"),
            "coco": st.fixed_dictionaries({"pictures": st.just("p"), "annotations": st.just(["a.json", "b.json"])}),
        }
    ),
)
DATA = st.builds(
    lambda source, more: source | more, SOURCES, st.fixed_dictionaries({}, optional={"seed": st.integers(0, 2**31)})
)
STORE = st.fixed_dictionaries(
    {"data": st.just("d"), "backbone": st.sampled_from(["effnet_lite0", "timm/resnet50", "mine:build"])},
    optional={
        "layers": st.lists(st.sampled_from(["s8", "L21", "layer1.0"]), unique=True),
        "image_size": st.one_of(
            st.none(), st.integers(32, 999), st.lists(st.integers(32, 999), min_size=2, max_size=2)
        ),
        "encoding": st.sampled_from(["float16", "uint8+zstd", "partition:16", "pool:7", "units"]),
        "compute": st.sampled_from(["float32", "bfloat16", "float16"]),
        "shard_rows": st.one_of(st.none(), st.integers(1, 9999)),
        "runtime": st.fixed_dictionaries({}, optional={"batch_size": st.integers(1, 99), "device": st.just("cpu")}),
    },
)
PHASE = st.fixed_dictionaries(
    {"steps": st.integers(0, 10**6)},
    optional={"lr": FLOAT, "min_lr": st.floats(0, 1), "batch_size": st.integers(1, 999), "clip_norm": st.floats(0, 9)},
)
TRANSLATOR = st.one_of(
    st.builds(
        lambda heads, each, more: {"heads": heads, "width": heads * each, **more},
        st.integers(1, 9),
        st.integers(1, 9),
        st.fixed_dictionaries({}, optional={"layers": st.integers(1, 12), "queries": st.integers(1, 20)}),
    ),
    st.fixed_dictionaries({"kind": st.just("clipcap-mlp")}, optional={"queries": st.integers(1, 20)}),
    st.fixed_dictionaries({"kind": st.just("clipcap-transformer")}, optional={"mlp_ratio": st.floats(0.5, 8)}),
)
WARMUP = st.one_of(
    st.just({"kind": "none"}),
    st.fixed_dictionaries({"kind": st.just("alignment"), "phase": PHASE.filter(lambda phase: phase["steps"])}),
)
RUN = st.fixed_dictionaries(
    {"store": st.just("s")},
    optional={
        "seed": st.integers(0, 2**32 - 1),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "phase": PHASE,
                "translator": TRANSLATOR,
                "warmup": WARMUP,
                "dropout": st.fixed_dictionaries(
                    {}, optional={"spatial": st.floats(0, 0.99), "layer": st.floats(0, 0.99)}
                ),
                "take": st.sampled_from(["last", "best"]),
            },
        ),
        "evaluate": st.fixed_dictionaries({}, optional={"resamples": st.integers(10, 999), "split": st.just("val")}),
        "saliency": st.fixed_dictionaries(
            {}, optional={"off_centre": st.floats(0.01, 0.49), "pictures": st.integers(1, 9)}
        ),
        "runtime": st.fixed_dictionaries({}, optional={"train": st.just({"device": "cpu", "processes": 2})}),
    },
)
FILES = st.one_of(
    *(st.tuples(st.just(name), kind) for name, kind in {"data/d": DATA, "stores/s": STORE, "runs/r": RUN}.items())
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "stores", "runs"):
        (tmp_path / "configs" / folder).mkdir(parents=True)
    put("stores/s", {"data": "d", "backbone": "effnet_lite0"})


def put(name: str, values: Any) -> None:
    Path("configs", f"{name}.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    """A file's configuration as plain values, what follows from its name left out."""
    if name == "data/d":
        return config.load_data("d").model_dump(mode="json", exclude={"name", "out"})
    if name == "stores/s":
        return config.load_store("s").model_dump(mode="json", exclude={"name", "out", "data_dir"})
    run = config.Run("r")
    common = {"run", "seed", "out", "store", "data_dir", "runtime"}
    stages = {
        stage: getattr(run, stage).model_dump(mode="json", exclude=common)
        for stage in ("train", "evaluate", "saliency")
    }
    return run.file.model_dump(mode="json") | stages


def agrees(given_values: Any, found: Any) -> bool:
    """Whether all that was given is found again, in plain values."""
    if isinstance(given_values, dict):
        return isinstance(found, dict) and all(agrees(value, found.get(key)) for key, value in given_values.items())
    return bool(given_values == found)


@pytest.mark.usefixtures("project")
@cases
@given(FILES)
def test_a_valid_configuration_survives_yaml(file: tuple[str, dict[str, Any]]) -> None:
    name, values = file
    try:
        put(name, values)
        first = load(name)
        assert agrees(values, first)
        put(name, first)  # every default written out
        assert load(name) == first
    finally:
        put("stores/s", {"data": "d", "backbone": "effnet_lite0"})


def places(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key; a split's name is a key that anybody may choose."""
    for key, value in values.items() if isinstance(values, dict) and path[-1:] != ("shares",) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


def inside(values: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for key in path:
        values = values[key]
    return values


@pytest.mark.usefixtures("project")
@cases
@given(FILES, st.data())
def test_a_wrong_key_or_type_is_named(file: tuple[str, dict[str, Any]], data: st.DataObject) -> None:
    """Wherever it stands in a file with every key; what no key takes is a list of an empty section."""
    name, values = file
    try:
        put(name, values)
        whole = load(name)
        path = data.draw(st.sampled_from(sorted(places(whole))), label="place")
        section = inside(whole, path[:-1])
        if data.draw(st.booleans(), label="an unknown key"):
            section["colour of it"] = section.pop(path[-1])
            said = ".".join((*path[:-1], "colour of it"))
        else:
            section[path[-1]] = [{}]
            said = ".".join(path)
        put(name, whole)
        with pytest.raises(UsageError) as refused:
            load(name)
        text = str(refused.value)
        assert text.startswith(f"configs/{name}.yaml: ")
        assert said in text or said.rpartition(".")[0] in text, (said, text)
        assert "\n" not in text
    finally:
        put("stores/s", {"data": "d", "backbone": "effnet_lite0"})
