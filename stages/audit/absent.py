"""Does a word for what is not in the picture stay low?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from devil_pipe.stages.audit.findings import Case, Check, Demand, Measured, Needs, Row, Table
from devil_pipe.stages.audit.statistics import auroc
from devil_pipe.stages.common.progress import track
from devil_pipe.stages.evaluate.bootstrap import Interval, bootstrap_statistic
from devil_pipe.stages.evaluate.conditions import ALL

if TYPE_CHECKING:
    from devil_pipe.stages.audit.opened import Audited


def measure(audited: Audited) -> Measured:
    """AUROC of the map's maximum, of what is in a picture against what is not; and where it lies beside the prior."""
    audited.needs_locations()
    rows = [row for row in audited.named(audited.config.pictures) if audited.absent(row)]
    count = min((len(audited.absent(row)) for row in rows), default=0)
    if not count:
        raise Needs("a second object in the index, whose word could be asked for where it is not")
    peaks = {name: [] for name in audited.names}  # type: dict[str, list[np.ndarray]]
    for row in track(rows, "absent words", unit="pictures"):
        for name, values in audited.maps(row).items():
            peaks[name].append(values[: count + 1].max(axis=(1, 2)))
    found = {name: np.array(values, dtype=np.float64) for name, values in peaks.items()}
    areas = {name: _area(audited, values) for name, values in found.items()}
    deepest = found[audited.deepest]
    table = Table(
        f"The map’s maximum, {len(rows)} pictures with {count} absent words each",
        "map of",
        ("AUROC", "present word above the prior", "absent words below the prior", "present, nats", "absent, nats"),
        tuple(
            Row(
                "all layers" if name == ALL else name,
                (
                    areas[name],
                    audited.mean((values[:, 0] > 0).astype(float)),
                    audited.mean((values[:, 1:] < 0).mean(axis=1)),
                    audited.mean(values[:, 0]),
                    audited.mean(values[:, 1:].mean(axis=1)),
                ),
            )
            for name, values in found.items()
        ),
        note="0.5 is chance for AUROC. Nats are counted from the language model’s prior. A translator that learned "
        "captions of one form makes every word of that form likelier, absent ones too: their sign alone says "
        "little, their order does.",
    )
    order = np.argsort(-(deepest[:, 1:].max(axis=1) - deepest[:, 0]), kind="stable")[:4]
    return Measured(
        n=f"{len(rows)} pictures, {count * len(rows)} absent words",
        demands=(
            Demand(f"{audited.deepest}: AUROC of the map’s maximum (0.5 by chance)", areas[audited.deepest], bound=0.5),
        ),
        tables=(table,),
        cases=tuple(_case(audited, rows[place], deepest[place]) for place in order),
        notes=(_answer(audited, deepest),),
    )


def _area(audited: Audited, peaks: np.ndarray) -> Interval:
    """AUROC over all words, with an interval over pictures."""
    return bootstrap_statistic(
        lambda drawn: np.array([auroc(peaks[one, 0], peaks[one, 1:].ravel()) for one in drawn]),
        len(peaks),
        seed=audited.config.seed,
        resamples=audited.config.resamples,
    )


def _answer(audited: Audited, peaks: np.ndarray) -> str:
    share = float((peaks[:, 1:] < 0).mean())
    said = "mostly yes" if share > 0.5 else "mostly no"
    asked = f"Does a word for what is not there score below the prior, at {audited.deepest}?"
    return f"{asked} {said.capitalize()}: {share:.0%} of them do."


def _case(audited: Audited, row: int, peaks: np.ndarray) -> Case:
    words = [audited.query(row), *audited.absent(row)]
    high = 1 + int(peaks[1:].argmax())
    maps = audited.maps(row)[audited.deepest]
    pictures = audited.album.picture(row, "the picture")
    for place in (0, high):
        pictures += audited.album.overlay(
            row, maps[place], words[place], f"{words[place]} ({'not ' if place else ''}there): {peaks[place]:+.1f} nats"
        )
    return Case(audited.entry(row)["key"], f"{words[high]}, which is not there", (), pictures)


CHECK = Check(
    name="absent-words",
    title="Words for what is not there",
    tested="The maximum over the map of a word, in nats above the language model’s prior: of the object in the "
    "picture, and of objects that are not in it.",
    catches="Maps of a language model that finds some words likely anyway light up whether or not the thing is there.",
    rule="At the deepest layer: the AUROC of the map’s maximum, present against absent words, has a 95 % interval "
    "above 0.5.",
    worst="absent words that rise highest above the present one",
    measure=measure,
)
