"""Can a picture be found again by its description?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from devil_pipe.stages.audit.findings import Case, Check, Demand, Measured, Row, Table
from devil_pipe.stages.audit.statistics import calibrated, chance_of_rank
from devil_pipe.stages.common.progress import track
from devil_pipe.stages.evaluate.bootstrap import Interval
from devil_pipe.stages.evaluate.conditions import ALL

if TYPE_CHECKING:
    from devil_pipe.stages.audit.opened import Audited

RANKS = (1, 5, 10)
DIGITS = 4
"""Log-likelihoods are ranked to so many decimal places of a nat, so that rounding alone breaks no tie."""


def measure(audited: Audited) -> Measured:
    """Recall of each description's own picture among the others, by the description's likelihood after each."""
    rows = audited.rows(audited.config.distractors + 1)
    asked = min(audited.config.pictures, len(rows))
    features = audited.features(rows)
    table: list[Row] = []
    plain: list[Row] = []
    cases: tuple[Case, ...] = ()
    for name in audited.names:
        prefixes = audited.prefixes(features, name)
        own = np.arange(asked if name == ALL else max(asked // 2, min(asked, 4)))  # a layer alone costs as much as all
        texts = audited.written(prefixes[: len(own)])
        scores = likelihoods(audited, prefixes, texts, f"round trip, {name}")
        ours = calibrated(scores).round(DIGITS)
        label = f"{'all layers' if name == ALL else name}, n = {len(own)}"
        table.append(Row(label, _recalls(audited, ours, own)))
        plain.append(Row(label, _recalls(audited, scores.round(DIGITS), own)))
        if name == ALL:
            cases = _worst(audited, rows, ours, [audited.model.decode(text) for text in texts])
    first = table[0].cells[0]
    assert isinstance(first, Interval)
    chance = Row("chance", tuple(f"{min(1, rank / len(rows)):.2f}" for rank in RANKS), control=True)
    columns = tuple(f"recall@{rank}" for rank in RANKS)
    count = f"{asked} descriptions, each among {len(rows)} pictures"
    short = (
        ()
        if len(rows) > audited.config.distractors
        else (f"The split has {len(rows)} pictures, so fewer stand around.",)
    )
    return Measured(
        n=count,
        demands=(Demand(f"all layers: recall@1 ({1 / len(rows):.2f} by chance)", first, bound=1 / len(rows)),),
        tables=(
            Table(
                f"Recall, calibrated: {count}",
                "described and found by",
                columns,
                (*table, chance),
                note="Calibrated: a description’s log-likelihood after a picture’s features, less the mean of what "
                "those features give all the descriptions. Features that make every text likelier win no ranking "
                "by that.",
            ),
            Table(f"The plain ranking: {count}", "described and found by", columns, (*plain, chance)),
        ),
        cases=cases,
        notes=(*short, "The others may show the same object: nothing was taken out to make it easier."),
    )


@torch.inference_mode()
def likelihoods(audited: Audited, prefixes: Tensor, texts: Sequence[Sequence[int]], told: str) -> np.ndarray:
    """Log-likelihood [texts, pictures] of each text after each picture's prefix; the same of all for an empty text."""
    found = np.zeros((len(texts), len(prefixes)))
    spoken = [place for place, text in enumerate(texts) if text]
    if spoken:
        ids = [texts[place] for place in spoken]
        parts = [
            audited.model.query_scores(part, ids).cpu()
            for part in track(torch.split(prefixes, audited.config.runtime.batch_size), told, unit="batches")
        ]
        found[spoken] = torch.cat(parts).T.double().numpy()
    return found


def _recalls(audited: Audited, scores: np.ndarray, own: np.ndarray) -> tuple[Interval, ...]:
    return tuple(audited.mean(chance_of_rank(scores, own, rank)) for rank in RANKS)


def _worst(audited: Audited, rows: Sequence[int], scores: np.ndarray, texts: Sequence[str]) -> tuple[Case, ...]:
    mine = scores.diagonal()
    ranks = (scores > mine[:, None]).sum(axis=1) + 1
    cases = []
    for place in np.argsort(-ranks, kind="stable")[:4]:
        first = rows[int(scores[place].argmax())]
        pictures = audited.album.picture(rows[place], "described")
        if ranks[place] > 1:
            pictures += audited.album.picture(first, "found in its place")
        heading = f"rank {ranks[place]} of {len(rows)}"
        cases.append(
            Case(audited.entry(rows[place])["key"], heading, (f"says: {texts[place] or '(nothing)'}",), pictures)
        )
    return tuple(cases)


CHECK = Check(
    name="round-trip",
    title="Round trip",
    tested="A picture is described from its features; then the description is read after the features of many "
    "pictures, its own among them, and the picture that makes it likeliest is taken.",
    catches="Fluent words that do not come from the features find no picture: the description of a blind translator "
    "is as likely after any other.",
    rule="All layers together: the 95 % interval of recall@1 lies above chance. Each layer alone is shown; shallow "
    "ones may say too little to be found by.",
    worst="the lowest ranks, from all layers",
    measure=measure,
)
