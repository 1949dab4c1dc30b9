"""Does the explanation die with the backbone's weights? Adebayo et al. 2018, "Sanity checks for saliency maps"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from devil_pipe.stages.audit.backbone import randomised
from devil_pipe.stages.audit.findings import Case, Check, Curve, Demand, Measured, Needs, Row, Series, Table
from devil_pipe.stages.audit.statistics import agreement
from devil_pipe.stages.common.progress import track
from devil_pipe.stages.evaluate.bootstrap import Interval
from devil_pipe.stages.prepare.index import read_picture
from devil_pipe.stages.saliency.likelihood import averaged
from devil_pipe.stages.train.batches import Features

if TYPE_CHECKING:
    from devil_pipe.stages.audit.opened import Audited

SURVIVES = 0.5
"""Rank correlation, and share of descriptions, from which on an explanation counts as surviving."""

ALIKE = 0.99
"""Cosine that the features of this moment must have with the store's."""

TRAINED, RESCALED = "as trained", "all random, rescaled"


@dataclass(frozen=True)
class _State:
    """What the translator says of some pictures while the backbone is in one state."""

    maps: dict[str, list[np.ndarray]]
    texts: list[str]
    losses: np.ndarray


def measure(audited: Audited) -> Measured:
    """Maps, descriptions and the true caption's loss, while the backbone is drawn at random from the top down."""
    audited.needs_locations()
    backbone = audited.backbone
    rows = audited.rows(audited.config.few)
    pixels = backbone.pixels([read_picture(audited.entry(row), audited.config.data_dir) for row in rows])
    trained = _averaged(audited, backbone.maps(pixels))
    _check_against_store(audited, rows, trained)
    untrained, stages = backbone.untrained(audited.config.seed), backbone.stages()
    features = {TRAINED: trained}
    for count in range(1, len(stages) + 1):
        made: nn.Module = randomised(backbone.module, untrained, stages[:count])
        features[_name(stages[count - 1].name, count, len(stages))] = _averaged(audited, backbone.maps(pixels, made))
    whole = list(features)[-1]
    features[RESCALED] = {name: rescaled(features[whole][name], trained[name]) for name in trained}
    states: dict[str, _State] = {}
    for name, maps in track(list(features.items()), "randomisation", unit="states"):
        states[name] = _state(audited, rows, maps, features[TRAINED], states.get(TRAINED))
    return _measured(audited, rows, states, whole)


def _name(stage: str, count: int, stages: int) -> str:
    return "all random" if count == stages else f"random from {stage} up"


def _averaged(audited: Audited, maps: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.stack([averaged(one, audited.config.grid) for one in values]) for name, values in maps.items()}


def _check_against_store(audited: Audited, rows: list[int], maps: dict[str, Tensor]) -> None:
    """Raise Needs unless the backbone gives the store's features once more: else another one would be audited."""
    for place, row in enumerate(rows):
        for name, stored in audited.locations(row).items():
            here = maps[name][place]
            if here.shape == stored.shape:
                cosine = torch.nn.functional.cosine_similarity(here.flatten(), stored.flatten(), dim=0)
                if float(cosine) < ALIKE:
                    raise Needs(
                        f"the backbone whose features are stored; here layer {name} of {audited.entry(row)['key']} "
                        f"has a cosine of {float(cosine):.3f} with the store's"
                    )


def rescaled(random: Tensor, trained: Tensor) -> Tensor:
    """Random features [pictures, height, width, channels] with each channel's mean and spread of the trained ones.

    So that a strange scale alone cannot be what kills the explanation.
    """
    over = (0, 1, 2)
    spread = random.std(over).clamp(min=1e-6)
    return (random - random.mean(over)) / spread * trained.std(over) + trained.mean(over)


@torch.inference_mode()
def _state(
    audited: Audited, rows: list[int], maps: dict[str, Tensor], trained: dict[str, Tensor], before: _State | None
) -> _State:
    """Ask everything once; a layer whose features are as they were keeps its maps."""
    layers = [layer.name for layer in audited.layers]
    found: dict[str, list[np.ndarray]] = {}
    for name in layers:
        if before is not None and torch.equal(maps[name], trained[name]):
            found[name] = before.maps[name]
            continue
        found[name] = [
            audited.scores(name, {name: maps[name][place]}, [audited.query(row)])[0] for place, row in enumerate(rows)
        ]
    pooled = Features(
        [maps[name].mean(dim=(1, 2)) for name in layers], torch.ones(len(rows), len(layers), dtype=torch.bool)
    )
    texts = [audited.model.decode(ids) for ids in audited.written(audited.prefixes(pooled))]
    return _State(found, texts, audited.losses(pooled, audited.captions(rows)))


def _measured(audited: Audited, rows: list[int], states: dict[str, _State], whole: str) -> Measured:
    trained, layers = states[TRAINED], [layer.name for layer in audited.layers]
    similar = {
        (name, layer): [
            agreement(one, other) for one, other in zip(state.maps[layer], trained.maps[layer], strict=True)
        ]
        for name, state in states.items()
        for layer in layers
    }
    same = {
        name: [float(one == other) for one, other in zip(state.texts, trained.texts, strict=True)]
        for name, state in states.items()
    }
    lines = []
    for name, state in states.items():
        cells: list[Interval] = [audited.mean(similar[name, layer]) for layer in layers]
        cells += [audited.mean(same[name]), audited.mean(state.losses)]
        lines.append(Row(name, tuple(cells), control=name != TRAINED))
    columns = (*(f"map at {layer}, rank correlation" for layer in layers), "descriptions that stay", "caption’s loss")
    cascade = [name for name in states if name != RESCALED]
    series = [Series(layer, tuple(audited.mean(similar[name, layer]) for name in cascade)) for layer in layers]
    series.append(Series("descriptions that stay", tuple(audited.mean(same[name]) for name in cascade)))
    demands = []
    for name in (whole, RESCALED):
        rise = audited.mean(states[name].losses - trained.losses)
        alike = audited.mean(similar[name, audited.deepest])
        demands += [
            Demand(f"{name}: the true caption’s loss, less that as trained, nats a token", rise),
            Demand(
                f"{name}: rank correlation of the maps at {audited.deepest} with those as trained",
                alike,
                SURVIVES,
                "below",
            ),
            Demand(f"{name}: share of descriptions that stay the same", audited.mean(same[name]), SURVIVES, "below"),
        ]
    order = np.argsort(-np.array(similar[whole, audited.deepest]), kind="stable")[:3].tolist()
    return Measured(
        n=f"{len(rows)} pictures in {len(states)} states of the backbone",
        demands=tuple(demands),
        tables=(Table(f"From the top down, {len(rows)} pictures", "backbone", columns, tuple(lines)),),
        curves=(Curve("Likeness to the explanation as trained", _places(cascade), tuple(series), "1 is the same"),),
        cases=tuple(_case(audited, rows[place], place, states, whole) for place in order),
        notes=(
            "Random weights are those that the architecture begins with, one draw. What follows the last explained "
            "layer is left alone: the explanation does not read it.",
        ),
    )


def _places(names: Sequence[str]) -> tuple[str, ...]:
    """The states' names, short enough to stand under a curve."""
    return tuple(name.removeprefix("random ").removesuffix(" up") for name in names)


def _case(audited: Audited, row: int, place: int, states: dict[str, _State], whole: str) -> Case:
    layer, word = audited.deepest, audited.query(row)
    pictures = audited.album.picture(row, "the picture")
    for name in (TRAINED, whole, RESCALED):
        pictures += audited.album.overlay(row, states[name].maps[layer][place], f"state-{name}", f"{word}, {name}")
    lines = tuple(f"{name}: {states[name].texts[place] or '(nothing)'}" for name in (TRAINED, whole, RESCALED))
    return Case(audited.entry(row)["key"], word, lines, pictures)


CHECK = Check(
    name="randomisation",
    title="Randomised backbone",
    tested="The same translator on the backbone whose weights are drawn at random, from the top layer down to all "
    "of it, and once more with each channel’s mean and spread set back to what they were.",
    catches="An explanation that does not depend on what the network learned survives when that is destroyed.",
    rule="With everything random, rescaled or not: the paired interval of the true caption’s rise in loss lies "
    "above 0; at the deepest layer the interval of the maps’ rank correlation with those as trained lies below "
    f"{SURVIVES}; and so does that of the share of descriptions that stay the same. What survives is a failure of "
    "ours.",
    worst="maps that stay most alike when all is random",
    measure=measure,
)
