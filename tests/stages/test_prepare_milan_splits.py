"""The thirteen experiments, their held-out and validation units, and split files that others published."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from devil_pipe.stages.prepare.config import PrepareConfig
from devil_pipe.stages.prepare.index import read_index
from devil_pipe.stages.prepare.milan.config import MilanConfig
from devil_pipe.stages.prepare.milan.experiments import EXPERIMENTS, SETS
from devil_pipe.stages.prepare.milan.splits import draw, read_splits
from devil_pipe.stages.prepare.run import run
from devil_pipe.store.errors import InputError

from . import milan_fixture as fixture

A, R, B = "alexnet/", "resnet152/", "biggan/"
I, P = "imagenet", "places365"  # noqa: E741 - the paper's rows stay readable
TABLE_6: list[tuple[str, set[str], set[str]]] = [
    ("within network", {A + I}, {A + I}),
    ("within network", {A + P}, {A + P}),
    ("within network", {R + I}, {R + I}),
    ("within network", {R + P}, {R + P}),
    ("within network", {B + I}, {B + I}),
    ("within network", {B + P}, {B + P}),
    ("across arch.", {A + I, A + P}, {R + I, R + P}),
    ("across arch.", {R + I, R + P}, {A + I, A + P}),
    ("across arch.", {A + I, A + P, R + I, R + P, B + I, B + P}, {"dino_vits8/imagenet"}),
    ("across datasets", {A + I, R + I, B + I}, {A + P, R + P, B + P}),
    ("across datasets", {A + P, R + P, B + P}, {A + I, R + I, B + I}),
    ("across tasks", {A + I, A + P, R + I, R + P}, {B + I, B + P}),
    ("across tasks", {B + I, B + P}, {A + I, A + P, R + I, R + P}),
]
"""The table's rows as the paper prints them, spelled out."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All seven sets, 2 × 20 units each, and their HDF5 files once they were made."""
    folder = tmp_path_factory.mktemp("milan")
    fixture.write_sets(folder, units=20, exemplars=2, side=8)
    return folder


def splits(published: Path, experiment: str, out: Path, seed: int = 0, **settings: Any) -> dict[str, str]:
    """Key → split as the stage writes them."""
    places = {"zips": published / "zips", "units": published / "units", "imagenet": published / "imagenet/val"}
    section = MilanConfig(experiment=experiment, **places, **settings)
    run(PrepareConfig(name="m", out=out, source="milan", seed=seed, milan=section, workers=1))
    return {row["key"]: row["split"] for row in read_index(out / "index.parquet").to_pylist()}


def of(name: str) -> str:
    return name.replace("/", "-") + "-"


def test_the_experiments_are_table_6() -> None:
    assert [(one.kind, set(one.train), set(one.test)) for one in EXPERIMENTS.values()] == TABLE_6
    assert set(SETS) == set(fixture.SETS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_tests_on_its_own_sets_and_chooses_by_training_units(
    name: str, published: Path, tmp_path: Path
) -> None:
    kind, train, test = TABLE_6[list(EXPERIMENTS).index(name)]
    found = splits(published, name, tmp_path)
    assert len(found) == 40 * len(train | test)
    for one in train | test:
        counts = Counter(split for key, split in found.items() if key.startswith(of(one)))
        if kind == "within network":
            assert counts == {"test": 4, "val": 3, "train": 33}  # a tenth of 40, a tenth of the 36 that are left
        else:
            assert counts == ({"val": 4, "train": 36} if one in train else {"test": 40})


def test_the_seed_decides_and_the_validation_share_leaves_the_test_units_alone(published: Path, tmp_path: Path) -> None:
    name = "within-biggan-imagenet"
    first = splits(published, name, tmp_path)
    assert splits(published, name, tmp_path) == first
    other = splits(published, name, tmp_path, seed=1)
    held = [{key for key, split in one.items() if split == "test"} for one in (first, other)]
    assert held[0] != held[1]
    larger = splits(published, name, tmp_path, validation=0.5)
    assert {key for key, split in larger.items() if split == "test"} == held[0]
    assert Counter(larger.values()) == {"test": 4, "val": 18, "train": 18}
    assert Counter(splits(published, name, tmp_path, held_out=0.25).values())["test"] == 10


def test_units_to_train_on_are_left_or_asked_for(tmp_path: Path) -> None:
    lines = [["layer", "unit", "summary"], *(["layer1", unit, "x"] for unit in (0, 1) for _ in range(3))]
    content = fixture.members("biggan/imagenet") | {"annotations.csv": fixture.csv_bytes(lines)}
    fixture.write_zip(tmp_path / "zips/biggan-imagenet.zip", content)
    with pytest.raises(InputError, match="expected units to train on beside 1 for test and 1 for val, got 2 in all"):
        splits(tmp_path, "within-biggan-imagenet", tmp_path / "data")


@given(st.sets(st.text(min_size=1, max_size=5), min_size=1), st.floats(0.01, 0.99), st.integers(0, 99))
def test_a_draw_has_its_size_and_no_order(keys: set[str], share: float, seed: int) -> None:
    drawn = draw(sorted(keys), share, seed, "test")
    assert drawn <= keys
    assert len(drawn) == max(1, int(share * len(keys)))
    assert draw(sorted(keys, reverse=True), share, seed, "test") == drawn


def test_two_draws_are_independent() -> None:
    keys = [f"biggan-imagenet-layer1-{unit}" for unit in range(4000)]
    test, val, other = draw(keys, 0.5, 0, "test"), draw(keys, 0.5, 0, "val"), draw(keys, 0.5, 1, "test")
    for pair in ((test, val), (test, other)):
        # Hypergeometric: 1,000 in common, standard deviation 15.8; five of them.
        assert len(pair[0] & pair[1]) == pytest.approx(1000, abs=80)


@pytest.mark.parametrize("kind", ["pth", "tensors", "legacy", "json", "npy", "txt"])
def test_a_published_split_counts_units_in_the_order_of_annotations_csv(
    kind: str, published: Path, tmp_path: Path
) -> None:
    test = [39, 0, 17]
    train = [unit for unit in range(40) if unit not in test]
    path = tmp_path / f"biggan_imagenet-splits.{'pth' if kind in ('tensors', 'legacy') else kind}"
    if kind in ("pth", "legacy"):  # as MILAN's experiments/generalization.py saves torch's random_split
        torch.save({"train": train, "test": test}, path, _use_new_zipfile_serialization=kind == "pth")
    elif kind == "tensors":
        torch.save({"train": torch.tensor(train), "test": torch.tensor(test)}, path)
    elif kind == "json":
        path.write_text(json.dumps({"train": train, "test": test}))
    elif kind == "npy":
        np.save(path, np.array(test))
    else:
        path.write_text("39\n0\n17\n")
    found = splits(published, "within-biggan-imagenet", tmp_path / "data", splits=path)
    # The fixture's annotations.csv goes through layer1, then layer2, 20 units each.
    held = {f"biggan-imagenet-layer{unit // 20 + 1}-{unit % 20}" for unit in test}
    assert {key for key, split in found.items() if split == "test"} == held
    assert Counter(found.values()) == {"test": 3, "val": 3, "train": 34}
    assert json.loads((tmp_path / "data/summary.json").read_text())["held_out_by"] == path.name


class _Harm:
    """Unpickling it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["pth", "pickle", "npy"])
def test_a_split_file_with_code_in_it_is_refused_and_none_is_run(kind: str, tmp_path: Path) -> None:
    path, mark = tmp_path / f"splits.{'npy' if kind == 'npy' else 'pth'}", tmp_path / "ran"
    if kind == "pth":
        torch.save({"test": _Harm(mark)}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"test": _Harm(mark)}, protocol=2))
    else:
        np.save(path, np.array([_Harm(mark)], dtype=object), allow_pickle=True)
    message = "Object arrays cannot be loaded" if kind == "npy" else "which is not done: save them as JSON"
    with pytest.raises(InputError, match=message):
        read_splits(path, 10)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": [0]}', r"splits\.json: expected a key 'test', got train"),
        ('{"test": [1, 10]}', r"'test': expected numbers from 0 to 9, got 10: is it the file of this set\?"),
        ('{"test": [-1]}', r"'test': expected numbers from 0 to 9, got -1"),
        ('{"test": [1, 1]}', r"'test': expected each number once, got 1 twice"),
        ('{"test": [1.5]}', r"'test': expected whole numbers, got 1\.5"),
        ('{"test": [true]}', r"'test': expected whole numbers, got True"),
        ('{"test": [NaN]}', r"'test': expected whole numbers, got nan"),
        ('{"test": "1, 2"}', r"'test': expected a list of numbers, got str"),
        ('{"test": [1], "train": [0, 2]}', r"expected each of 10 units in 'train' or in 'test', once, got 2 and 1"),
        ('{"test": [1], "train": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}', r"expected each of 10 units .* got 10 and 1"),
        ("[]", r"expected 1 to 9 held-out units of 10, got 0"),
        ("[0,1,2,3,4,5,6,7,8,9]", r"expected 1 to 9 held-out units of 10, got 10"),
        ("[0, 1", r"splits\.json: cannot be read as \.json"),
    ],
)
def test_a_split_file_that_does_not_fit_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_splits(path, 10)


def test_a_split_file_of_no_known_kind_or_none_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"milan\.splits: expected a split file at .*a\.pth, found none"):
        read_splits(tmp_path / "a.pth", 10)
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(InputError, match=r"a\.csv: expected a name ending in \.pth"):
        read_splits(tmp_path / "a.csv", 10)
    for name in ("a.pth", "a.npy", "a.txt"):
        for content in (b"", b"no numbers", b"\x80\x02}q\x00h\x07.", b"PK\x03\x04", b"\x93NUMPY\x01\x00"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(InputError, match=name):
                read_splits(tmp_path / name, 10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"experiment": "within-vgg-imagenet"},
            "experiment: expected one of within-alexnet-imagenet, .*got 'within-vgg",
        ),
        ({"experiment": "across-arch-cnns-vit", "splits": "x.pth"}, "splits: expected none for across-arch-cnns-vit"),
        ({"experiment": "within-biggan-imagenet", "validation": 0}, "validation"),
        ({"experiment": "within-biggan-imagenet", "held_out": 1}, "held_out"),
        ({"experiment": "within-biggan-imagenet", "fits": "crop"}, "fits"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MilanConfig.model_validate({"zips": "zips", **values})


@pytest.mark.tree
def test_a_configuration_lies_there_for_each_experiment() -> None:
    from devil_pipe.pipeline.config import CONFIGS

    folder = Path(__file__).resolve().parents[2] / CONFIGS / "data"
    found = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("milan-*.yaml")}
    assert found.keys() == {f"milan-{name}" for name in EXPERIMENTS}
    for name, values in found.items():
        config = PrepareConfig.model_validate({**values, "name": name})
        assert config.milan is not None
        assert f"milan-{config.milan.experiment}" == name
