"""Does the map of an object's name lie on the object?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from devil_pipe.stages.audit.findings import Case, Check, Demand, Measured, Row, Table
from devil_pipe.stages.audit.statistics import average_precision
from devil_pipe.stages.common.progress import track
from devil_pipe.stages.evaluate.conditions import ALL
from devil_pipe.stages.saliency.localisation import centre_prior, overlap, points_at, random_map

if TYPE_CHECKING:
    from devil_pipe.stages.audit.opened import Audited

CENTRE, RANDOM, OTHER = "centre prior", "random map", "word for what is not there"
SCORES = ("pointing game", "IoU", "average precision")


def measure(audited: Audited) -> Measured:
    """Pointing game, IoU and average precision of each layer's map, beside maps that know nothing."""
    audited.needs_locations()
    rows = audited.named(audited.config.pictures, masked=True)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in track(rows, "pointing", unit="pictures"):
        mask = audited.mask(row)
        maps = {name: values[0] for name, values in audited.maps(row).items()}
        maps |= {CENTRE: centre_prior(), RANDOM: random_map(audited.config.seed, row)}
        if len(audited.maps(row)[audited.deepest]) > 1:
            maps[OTHER] = audited.maps(row)[audited.deepest][1]
        for name, values in maps.items():
            one = (float(points_at(values, mask)), overlap(values, mask), average_precision(values, mask))
            found.setdefault(name, []).append(one)
    scores = {name: np.array(values) for name, values in found.items()}
    ours = scores[audited.deepest][:, 2]
    controls = [name for name in (OTHER, CENTRE, RANDOM) if len(found.get(name, ())) == len(rows)]
    lines = [(name, "all layers" if name == ALL else name) for name in audited.names] + [
        (name, name) for name in controls
    ]
    table = Table(
        f"Maps of the object’s name against its mask, {len(rows)} pictures",
        "map of",
        SCORES,
        tuple(
            Row(label, tuple(audited.mean(scores[name][:, place]) for place in range(3)), control=name in controls)
            for name, label in lines
        ),
        note=f"The {OTHER} is asked at {audited.deepest}. A flat map’s average precision is the mask’s share of the "
        "picture.",
    )
    worst = np.argsort(ours, kind="stable")[:4]
    return Measured(
        n=f"{len(rows)} pictures with a named object and its mask",
        demands=tuple(
            Demand(
                f"{audited.deepest}: average precision, less that of the {name}",
                audited.mean(ours - scores[name][:, 2]),
            )
            for name in controls
        ),
        tables=(table,),
        cases=tuple(_case(audited, rows[place], ours[place]) for place in worst),
    )


def _case(audited: Audited, row: int, score: float) -> Case:
    words = [audited.query(row), *audited.absent(row)[:1]]
    pictures = audited.album.picture(row, "the picture")
    for word, values in zip(words, audited.maps(row)[audited.deepest], strict=False):
        pictures += audited.album.overlay(row, values, word, f"{word}, {audited.deepest}")
    return Case(audited.entry(row)["key"], f"{words[0]}: average precision {score:.2f}", (), pictures)


CHECK = Check(
    name="pointing",
    title="Pointing at the object",
    tested="The map of the object’s name, against the object’s exact mask: does its highest point hit (pointing "
    "game), do its highest pixels cover (IoU), does it rank the object’s pixels first (average precision).",
    catches="A map that shows what stands out, or the middle, for whatever word, scores as a word for something "
    "else does, or as the centre prior.",
    rule="At the deepest layer, average precision less that of a word for what is not there, less that of the "
    "centre prior, and less that of a random map: each paired 95 % interval lies above 0.",
    worst="the lowest average precision at the deepest layer",
    measure=measure,
)
