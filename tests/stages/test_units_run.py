"""Units of a store in which channel c of a layer is active where object c is: found, described and scored."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from devil_pipe.stages.evaluate.metrics import NotRun
from devil_pipe.stages.evaluate.run import Trained, open_run
from devil_pipe.stages.prepare.milan.units import Exemplars
from devil_pipe.stages.units.config import UnitsConfig
from devil_pipe.stages.units.export import PARTS
from devil_pipe.stages.units.findings import Findings, Unit
from devil_pipe.stages.units.run import command, run
from devil_pipe.store.errors import InputError, UsageError

from .. import tiny
from .units_fixture import PLANTED, TRANSFORM, project

SIZE = tuple(TRANSFORM["resize"])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("project"))


def settings(root: Path, **values: Any) -> UnitsConfig:
    given = {"run": tiny.NAME, "exemplars": 5, "quantile": 0.9, "max_new_tokens": 8, "resamples": 50, "tied_rows": 2}
    given |= {"store": str(root / "stores" / tiny.NAME), "data_dir": root / "data" / tiny.NAME}
    given |= {"out": root / "runs" / tiny.NAME, "runtime": {"device": "cpu", "precision": "float32", "batch_size": 3}}
    return UnitsConfig.model_validate(given | values)


@pytest.fixture(scope="module")
def shown() -> dict[tuple[str, int], Exemplars]:
    return {}


@pytest.fixture(scope="module")
def found(root: Path, shown: dict[tuple[str, int], Exemplars]) -> Findings:
    def show(layer: str, unit: int, exemplars: Exemplars) -> None:
        shown[layer, unit] = exemplars

    return run(settings(root, sample=0, shown=6), show)


@pytest.fixture(scope="module")
def trained(root: Path) -> Trained:
    config = settings(root)
    return open_run(config.out, config.store, config.data_dir, "cpu", "float32")


def coarse(found: Findings) -> list[Unit]:
    return list(found.parts[1].units)


def test_planted_units_are_tied_to_their_object_and_show_it(found: Findings, trained: Trained) -> None:
    object_of = {entry["key"]: entry["object"] for entry in trained.index}
    for unit, name in zip(coarse(found)[:PLANTED], tiny.OBJECTS, strict=True):
        assert (unit.tie.object, unit.tie.auc, unit.tie.tied) == (name, 1.0, True)
        assert {object_of[key] for key in unit.exemplars} == {name}
        assert unit.masked == 5
    assert found.about["scanned"] == tiny.SPLITS["train"]
    assert found.about["scored_on"] == tiny.SPLITS["test"] - 1  # one is broken


def test_thresholds_are_quantiles_over_all_locations_of_the_split(found: Findings, trained: Trained) -> None:
    rows = trained.rows("train")
    maps = trained.store["coarse"][rows].astype(np.float64)
    for unit in coarse(found):
        assert unit.threshold == pytest.approx(np.quantile(maps[..., unit.unit], 0.9), rel=1e-5)


def test_masks_lie_where_the_planted_object_is(
    found: Findings, trained: Trained, shown: dict[tuple[str, int], Exemplars]
) -> None:
    planted = [unit for unit in coarse(found)[:PLANTED] if ("coarse", unit.unit) in shown]
    assert planted
    rows = {entry["key"]: number for number, entry in enumerate(trained.index)}
    plan = [tiny.composite(split, number) for split, count in tiny.SPLITS.items() for number in range(count)]
    for unit in planted:
        exemplars = shown["coarse", unit.unit]
        assert exemplars.images.shape == (5, 3, *SIZE)
        for key, mask in zip(unit.exemplars, exemplars.masks, strict=True):
            down, right = plan[rows[key]].box
            quarters = mask.reshape(2, SIZE[0] // 2, 2, SIZE[1] // 2).mean(axis=(1, 3))
            assert np.unravel_index(quarters.argmax(), (2, 2)) == (down, right)


def test_only_a_sample_of_each_layer_is_shown(found: Findings, shown: dict[tuple[str, int], Exemplars]) -> None:
    assert found.shown == set(shown)
    assert [sum(layer == name for layer, _ in shown) for name in ("fine", "coarse")] == [6, 6]
    assert len(list(found.units)) == 12 + 16


def by_hand(trained: Trained, unit: Unit) -> tuple[str, float]:
    """A unit's description and margin: the feature by plain loops, the likelihoods from the model's own logits."""
    index = {entry["key"]: row for row, entry in enumerate(trained.index)}
    size = SIZE
    means = []
    for key in unit.exemplars:
        maps = torch.from_numpy(trained.store[unit.layer].on_grid([index[key]])[0]).float()
        large = nn.functional.interpolate(maps[None, None, :, :, unit.unit], size, mode="bilinear", align_corners=False)
        mask = (large > unit.threshold).float()
        weight = nn.functional.interpolate(mask, maps.shape[:2], mode="bilinear", align_corners=False)[0, 0]
        if weight.sum() > 0:
            means.append((maps * weight[..., None]).sum(dim=(0, 1)) / weight.sum())
    assert len(means) == unit.masked
    feature = torch.stack(means).mean(dim=0)
    everything = torch.from_numpy(trained.store[unit.layer][trained.rows("train")].astype(np.float32))
    model = trained.language_model
    place = [layer.name for layer in trained.store.layers].index(unit.layer)
    keep = torch.tensor([[number == place for number in range(len(trained.store.layers))]])

    def prefix(vector: torch.Tensor) -> torch.Tensor:
        given = [torch.full((1, layer.channels), 7.0) for layer in trained.store.layers]  # nobody looks at the others
        given[place] = vector[None]
        return trained.translator(given, keep)  # type: ignore[no-any-return]

    with torch.inference_mode():
        own = prefix(feature)
        (tokens,) = model.write_tokens(own, 8)
        text = [token for token in tokens if token != model.eos]

        def nats(before: torch.Tensor) -> float:
            ids = torch.tensor([text])
            fed = torch.cat([model.context(before, 1), model.embedding(ids)], dim=1)
            logits = model.model(inputs_embeds=fed).logits[0].log_softmax(dim=-1)
            first = fed.shape[1] - len(text) - 1
            return sum(float(logits[first + step, token]) for step, token in enumerate(text))

        return model.decode(tokens), nats(own) - nats(prefix(everything.mean(dim=(0, 1))))


def test_descriptions_and_margins_are_those_found_by_hand(found: Findings, trained: Trained) -> None:
    for unit in [*found.parts[0].units[:3], *coarse(found)[:3]]:
        text, margin = by_hand(trained, unit)
        assert unit.said is not None
        assert unit.said.text == text
        assert unit.said.margin == pytest.approx(margin, abs=2e-3)


def test_one_scan_serves_whichever_units_are_asked(root: Path, found: Findings) -> None:
    some = run(settings(root, layers=["coarse"], units=[3, 0]), lambda *_: None)
    assert [unit.unit for unit in some.units] == [0, 3]
    whole = {unit.unit: unit for unit in coarse(found)}
    for unit in some.units:
        assert unit.exemplars == whole[unit.unit].exemplars
        assert unit.threshold == whole[unit.unit].threshold
        assert unit.text == whole[unit.unit].text
    assert some.about["command"] == (
        "devil-pipe units tiny --layer coarse --units 0,3 --exemplars 5 --quantile 0.9"
    ).replace("0,3", "3,0")


def test_samples_are_the_same_for_a_seed_and_no_two_layers_alike(root: Path) -> None:
    config = settings(root, sample=8)
    fine, deep = tiny.LAYERS
    assert config.chosen(fine) == config.chosen(fine)
    assert len(config.chosen(fine)) == 8
    other = fine.model_copy(update={"name": "other"})
    assert config.chosen(fine) != config.chosen(other)
    assert settings(root, sample=99).chosen(deep) == list(range(16))
    assert "--seed 4" in command(settings(root, seed=4))


def test_an_export_holds_every_unit_in_its_frame(root: Path, found: Findings, tmp_path: Path) -> None:
    made = run(settings(root, layers=["coarse"], units=[1, 2], export=tmp_path), lambda *_: None)
    folder = tmp_path / "effnet_lite0" / tiny.NAME
    images = np.load(folder / "coarse" / "images.npy")
    masks = np.load(folder / "coarse" / "masks.npy")
    assert images.shape == (2, 5, 3, *SIZE)
    for place, unit in enumerate(made.units):
        again: list[Exemplars] = []
        run(settings(root, layers=["coarse"], units=[unit.unit]), lambda *given, to=again: to.append(given[2]))
        assert np.array_equal(images[place], again[0].images)
        assert np.array_equal(masks[place, :, 0].astype(bool), again[0].masks)
    with (folder / "annotations.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["layer"], int(line["unit"])) for line in lines] == [("coarse", unit) for unit in (1, 1, 1, 2, 2, 2)]
    assert [line["summary"] for line in lines[::3]] == [unit.text for unit in made.units]
    assert [line["annotator"] for line in lines[:3]] == [f"devil-pipe, run tiny, {what}" for what, _ in PARTS]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"score_split": "train"}, UsageError, "--score-split: expected another split than 'train'"),
        ({"layers": ["coarze"]}, UsageError, "layer 'coarze': expected one of fine, coarse; did you mean 'coarse'"),
        ({"units": [14]}, UsageError, "--units: expected units of layer fine, 0 to 11, got 14"),
        ({"exemplars": 49}, InputError, "expected at least 49 pictures with features in the split 'train', got 48"),
        ({"split": "nowhere"}, InputError, "in the split 'nowhere', got 0"),
    ],
)
def test_mistakes_are_named(root: Path, values: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(settings(root, **values), lambda *_: None)


def test_without_pictures_to_score_on_there_is_a_reason_and_no_figure(root: Path) -> None:
    found = run(settings(root, layers=["coarse"], units=[0, 1], score_split="nowhere"), lambda *_: None)
    assert all(unit.fit.not_scored == "the split 'nowhere' has 0 pictures with features" for unit in found.units)
    assert isinstance(found.whole.figures["auc"], NotRun)
    assert all(unit.tie.tied for unit in found.units)  # that is measured on the scanned split
