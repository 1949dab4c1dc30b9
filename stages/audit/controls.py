"""What the features are worth: the caption's loss, and CIDEr, beside controls that cannot see the picture."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from devil_pipe.stages.audit.findings import Case, Check, Demand, Measured, Row, Table
from devil_pipe.stages.evaluate.bootstrap import Interval
from devil_pipe.stages.evaluate.conditions import ALL, CONTROLS, Conditions
from devil_pipe.store.errors import InputError

if TYPE_CHECKING:
    from devil_pipe.stages.audit.opened import Audited

LABELS = {
    "shuffled": "another picture’s features",
    "mean": "the mean feature",
    "zero": "zeros",
    "lm_alone": "the language model alone",
}
SAME = 0.1
"""Nats a token by which stored losses may differ from what the checkpoint gives now: rounding in bfloat16 is below."""

TRAINING = 1000  # rows whose mean is the mean feature, where evaluation did not compute it over all
COLUMNS = ("row", "condition", "description", "references", "split", "loss")


def measure(audited: Audited) -> Measured:
    """Paired gaps between the run and each control, from evaluation's results where they are this checkpoint's."""
    stored, note = _stored(audited)
    if stored is None:
        rows = audited.rows(audited.config.captioned)
        losses, cider = _computed(audited, rows), None
    else:
        rows = list(stored[ALL])
        losses = {name: np.array([found["loss"] for found in items.values()]) for name, items in stored.items()}
        cider, why = _cider(stored)
        note += why
    gaps = {name: losses[name] - losses[ALL] for name in CONTROLS}
    intervals = {name: audited.mean(gap) for name, gap in gaps.items()}
    demands = [
        Demand(f"loss after {LABELS[name]}, less after its own, nats a token", intervals[name]) for name in CONTROLS
    ]
    tables = [_table(audited, "Loss of the caption, nats a token (lower is better)", losses, intervals)]
    if cider is not None:
        better = {name: audited.mean(cider[ALL] - cider[name]) for name in CONTROLS}
        demands += [
            Demand(f"CIDEr of its own features, less that of {LABELS[name]}", better[name]) for name in CONTROLS
        ]
        tables.append(_table(audited, "CIDEr (higher is better)", cider, better))
    order = np.argsort(gaps["shuffled"], kind="stable")[:4]
    return Measured(
        n=f"{len(rows)} pictures",
        demands=tuple(demands),
        tables=tuple(tables),
        cases=tuple(_case(audited, rows[place], gaps["shuffled"][place]) for place in order),
        notes=(note,),
    )


def _stored(audited: Audited) -> tuple[dict[str, dict[int, dict[str, Any]]] | None, str]:
    """Evaluation's rows by condition and row, and where they come from; None where they are not this checkpoint's."""
    run, path = audited.config.run, audited.config.run_dir / "predictions.parquet"
    absent = f"The loss is computed here. CIDEr: not run: needs `devil-pipe evaluate {run}`."
    if not path.is_file():
        return None, absent
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for entry in _read(path):
        if entry["split"] == audited.config.split:
            found[entry["condition"]][entry["row"]] = entry
    wanted = {ALL, *CONTROLS}
    if not wanted <= found.keys() or len({frozenset(found[name]) for name in wanted}) != 1:
        return None, absent
    probe = [row for row in audited.rows(8) if row in found[ALL]]
    now = audited.losses(audited.features(probe), audited.captions(probe)) if probe else np.zeros(0)
    then = np.array([found[ALL][row]["loss"] for row in probe], dtype=np.float64)
    if not probe or np.abs(now - then).mean() > SAME:
        return None, f"{path.name} was written by another checkpoint. {absent}"
    kept = {name: dict(sorted(found[name].items())) for name in (ALL, *CONTROLS)}
    return kept, (
        f"Read from evaluation’s predictions.parquet; the checkpoint gives the losses of {len(probe)} of these "
        f"pictures again, {np.abs(now - then).mean():.3f} nats a token apart. Each picture counts once; evaluation’s "
        "headline loss weighs them by their tokens."
    )


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = pq.read_table(path, columns=list(COLUMNS)).to_pylist()
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise InputError(f"{path}: expected evaluation's table: {error}; run `devil-pipe evaluate` again") from None
    return found


def _computed(audited: Audited, rows: list[int]) -> dict[str, np.ndarray]:
    """The loss under each condition; nothing is written, so there is no CIDEr."""
    training = audited.trained.rows("train") or audited.shuffled
    seed = audited.config.seed
    some = np.random.default_rng([seed, 5]).permutation(len(training))[:TRAINING]
    conditions = Conditions(
        audited.trained.store,
        audited.trained.translator,
        audited.model,
        training_rows=sorted(training[place] for place in some),
        seed=seed,
        max_new_tokens=1,
        batch_size=audited.config.runtime.batch_size,
    )
    features, captions = audited.features(rows), audited.captions(rows)
    unsaid = [""] * len(rows)
    outcomes = {name: conditions.outcome(name, features, captions, unsaid) for name in (ALL, *CONTROLS)}
    return {name: (item.nats / item.tokens).numpy().astype(np.float64) for name, item in outcomes.items()}


def _cider(stored: dict[str, dict[int, dict[str, Any]]]) -> tuple[dict[str, np.ndarray] | None, str]:
    """CIDEr of each sentence under each condition, as evaluation scores it; None, and why, where there is no Java."""
    from pycocoevalcap.cider.cider import Cider

    from devil_pipe.stages.evaluate.java import JavaFailure, ptb_tokenize

    references = [list(entry["references"]) for entry in stored[ALL].values()]
    texts = [str(entry["description"]) for items in stored.values() for entry in items.values()]
    try:
        tokens = iter(ptb_tokenize([*texts, *(text for several in references for text in several)]))
    except (InputError, JavaFailure) as error:
        return None, f" CIDEr: not run: {error}."
    given = {name: {place: [next(tokens)] for place in range(len(items))} for name, items in stored.items()}
    wanted = {place: [next(tokens) for _ in several] for place, several in enumerate(references)}
    if not any(text for several in wanted.values() for text in several):
        return None, " CIDEr: not run: the references hold no words."
    return {name: np.asarray(Cider().compute_score(wanted, items)[1]) for name, items in given.items()}, ""


def _table(audited: Audited, caption: str, scores: dict[str, np.ndarray], apart: dict[str, Interval]) -> Table:
    rows = [Row("its own features", (audited.mean(scores[ALL]), None))]
    rows += [Row(LABELS[name], (audited.mean(scores[name]), apart[name]), control=True) for name in CONTROLS]
    return Table(
        caption,
        "translator given",
        ("mean over pictures", "what its own features gain, paired"),
        tuple(rows),
    )


def _case(audited: Audited, row: int, gap: float) -> Case:
    entry = audited.entry(row)
    lines = (f"says: {audited.described(row) or '(nothing)'}", f"caption: {entry['captions'][0]}")
    heading = f"gains {gap:+.2f} nats a token over another picture’s features"
    return Case(entry["key"], heading, lines, audited.album.picture(row, "the picture"))


CHECK = Check(
    name="controls",
    title="Null controls",
    tested="The same caption’s loss after the picture’s own features, another picture’s, the mean feature, zeros, "
    "and with the language model alone; CIDEr of what is written, likewise.",
    catches="A translator that has learned how captions sound, and never looks, loses nothing when its features are "
    "exchanged.",
    rule="Against every one of the four controls, the paired 95 % interval of what the picture’s own features gain "
    "lies above 0: in loss, and in CIDEr where evaluation ran.",
    worst="those that gain least over another picture’s features",
    measure=measure,
)
