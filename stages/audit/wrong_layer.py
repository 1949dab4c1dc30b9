"""Does it matter which channel a number stands in, and which layer it comes from?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from devil_pipe.stages.audit.findings import Case, Check, Demand, Measured, Row, Table
from devil_pipe.stages.evaluate.conditions import ALL
from devil_pipe.stages.train.batches import Features
from devil_pipe.stages.train.loop import derangement

if TYPE_CHECKING:
    from devil_pipe.stages.audit.opened import Audited


def measure(audited: Audited) -> Measured:
    """The caption's loss after features with shuffled channels, with another layer's, and with shuffled locations."""
    rows = audited.rows(audited.config.captioned)
    features, captions = audited.features(rows), audited.captions(rows)
    exchanged = Features(shuffled(features.layers, audited.config.seed), features.there)
    lines, rises = [], {}
    for name in audited.names:
        own, other = audited.losses(features, captions, name), audited.losses(exchanged, captions, name)
        rises[name] = other - own
        cells = (audited.mean(own), audited.mean(other), audited.mean(rises[name]))
        lines.append(Row("all layers" if name == ALL else name, cells))
    tables = [
        Table(
            f"Channels shuffled, {len(rows)} pictures: the caption’s loss, nats a token",
            "seen by",
            ("its own features", "channels shuffled", "rise, paired"),
            tuple(lines),
            note="One fixed permutation for each layer that leaves no channel where it was; values, grids and their "
            "mean over the channels stay.",
        )
    ]
    moved = moved_layers(features.layers)
    demands = [Demand("all layers: rise of the loss with shuffled channels, nats a token", audited.mean(rises[ALL]))]
    notes = []
    if moved is None:
        notes.append(
            "Another layer’s features in a layer’s place: not defined here, for no two layers have as many channels."
        )
    else:
        own, other = audited.losses(features, captions), audited.losses(Features(moved, features.there), captions)
        demands.append(
            Demand(
                "all layers: rise of the loss with each layer’s features in another’s place", audited.mean(other - own)
            )
        )
        cells = (audited.mean(own), audited.mean(other), audited.mean(other - own))
        columns = ("its own features", "another layer’s, rescaled", "rise, paired")
        row = Row("all layers", cells)
        tables.append(Table(f"Layers exchanged, {len(rows)} pictures", "seen by", columns, (row,), note=EXCHANGED))
    notes.append(_locations(audited))
    order = np.argsort(rises[ALL], kind="stable")[:4]
    return Measured(
        n=f"{len(rows)} pictures",
        demands=tuple(demands),
        tables=tuple(tables),
        cases=tuple(_case(audited, rows[place], rises[ALL][place]) for place in order),
        notes=tuple(notes),
    )


EXCHANGED = (
    "Among layers of as many channels, each takes the next one’s place, with the mean and spread of the channels there."
)


def shuffled(layers: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Each layer's features [rows, C] with its channels in one fixed order in which none is at its place."""
    return [
        item[:, torch.from_numpy(derangement(item.shape[1], seed + place))] if item.shape[1] > 1 else item
        for place, item in enumerate(layers)
    ]


def moved_layers(layers: Sequence[Tensor]) -> list[Tensor] | None:
    """Each layer's features in the next one's place, among those of as many channels; None where no two agree.

    Every channel gets the mean and spread of the channel whose place it takes.
    """
    sizes = [item.shape[1] for item in layers]
    found = list(layers)
    for size in {size for size in sizes if sizes.count(size) > 1}:
        places = [place for place, own in enumerate(sizes) if own == size]
        for place, other in zip(places, places[1:] + places[:1], strict=True):
            came, here = layers[other], layers[place]
            spread = came.std(dim=0).clamp(min=1e-6)
            found[place] = (came - came.mean(dim=0)) / spread * here.std(dim=0) + here.mean(dim=0)
    return found if len(set(sizes)) < len(sizes) else None


def _locations(audited: Audited) -> str:
    """What shuffling the locations does to the whole picture's loss: nothing, for it sees their mean."""
    if audited.trained.store.identity.stored_as.reduce in ("units", "partition"):
        return "Locations shuffled: the store holds none."
    rows = audited.rows(audited.config.few)
    pooled = []
    for place, layer in enumerate(audited.layers):
        maps = torch.from_numpy(audited.trained.store[layer.name][rows].astype(np.float32))
        flat = maps.reshape(len(rows), -1, layer.channels)
        order = torch.from_numpy(np.random.default_rng([audited.config.seed, 6, place]).permutation(flat.shape[1]))
        pooled.append(flat[:, order].mean(dim=1))
    features, captions = audited.features(rows), audited.captions(rows)
    apart = np.abs(
        audited.losses(Features(pooled, features.there), captions) - audited.losses(features, captions)
    ).max()
    return (
        f"Locations shuffled, {len(rows)} pictures: the loss moves by {apart:.3f} nats a token at most. That is as it "
        "must be: a whole picture is described from the mean over its locations, so its words say nothing of where. "
        "Maps ask each location by itself and move with it."
    )


def _case(audited: Audited, row: int, rise: float) -> Case:
    entry = audited.entry(row)
    lines = (f"says: {audited.described(row) or '(nothing)'}", f"caption: {entry['captions'][0]}")
    return Case(entry["key"], f"loses {rise:+.2f} nats a token", lines, audited.album.picture(row, "the picture"))


CHECK = Check(
    name="wrong-layer",
    title="Wrong channels, wrong layer",
    tested="The same numbers in other places: channels in another order; where layers have as many channels, each "
    "layer’s features in another’s place.",
    catches="A translator that only notices how strong the features are, or that they are there, does not mind.",
    rule="All layers together: the paired 95 % interval of the caption’s rise in loss with shuffled channels lies "
    "above 0; so does that with exchanged layers, where that is defined.",
    worst="those that lose least by shuffled channels",
    measure=measure,
)
