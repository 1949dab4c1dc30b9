"""Describe every test row under every condition, score it, and save what was written."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from devil_pipe.stages.common.assets import asset
from devil_pipe.stages.common.files import replacing, write_json
from devil_pipe.stages.common.memory import keep_freed_memory
from devil_pipe.stages.common.progress import log, warn
from devil_pipe.stages.evaluate.bertscore import bertscore_conditions
from devil_pipe.stages.evaluate.bootstrap import bootstrap_mean, bootstrap_statistic
from devil_pipe.stages.evaluate.conditions import ALL, CONTROLS, Conditions, Outcome
from devil_pipe.stages.evaluate.config import EvaluateConfig
from devil_pipe.stages.evaluate.metrics import NotRun, Score, score_conditions
from devil_pipe.stages.evaluate.naming import Namer
from devil_pipe.stages.extract.worker import pick_device
from devil_pipe.stages.prepare.index import read_index
from devil_pipe.stages.train.batches import whole_features
from devil_pipe.stages.train.checkpoint import Card, load
from devil_pipe.stages.train.language_model import LanguageModel, pick_precision
from devil_pipe.stages.train.translator import Translator
from devil_pipe.store.errors import InputError
from devil_pipe.store.place import Root, place
from devil_pipe.store.reader import FeatureStore


@dataclass(frozen=True)
class Trained:
    """A trained run, opened: what evaluation, saliency and explanations all begin with."""

    store: FeatureStore
    translator: Translator
    card: Card
    language_model: LanguageModel
    index: list[dict[str, Any]]

    def rows(self, split: str) -> list[int]:
        """Rows of a split that have features."""
        valid = self.store.valid()
        return [row for row, entry in enumerate(self.index) if entry["split"] == split and valid[row]]


def open_run(out: Path, store_root: Root, data_dir: Path, device_name: str, precision: str) -> Trained:
    """Open store, checkpoint, language model and index of a run.

    Raises:
        InputError: one of them is missing, damaged, or belongs to another.
    """
    keep_freed_memory()
    store = FeatureStore(store_root)
    translator, card = load(out / "checkpoint", store.identity)
    device = pick_device(device_name)
    language_model = LanguageModel(
        card.language_model, device=device, dtype=pick_precision(precision, device), repeats=card.prefix_repeats
    )
    index = read_index(data_dir / "index.parquet").to_pylist()
    if len(index) != store.rows:
        raise InputError(f"{data_dir}: expected the {store.rows} rows of {store_root}, got {len(index)}")
    return Trained(store, translator.to(device), card, language_model, index)


def run(config: EvaluateConfig) -> None:
    """Write predictions.parquet and evaluate/metrics.json under `config.out`.

    Raises:
        InputError: nothing trained, or no row to score.
    """
    begun = time.monotonic()
    trained = open_run(config.out, config.store, config.data_dir, config.runtime.device, config.runtime.precision)
    conditions = Conditions(
        trained.store,
        trained.translator,
        trained.language_model,
        training_rows=trained.rows("train"),
        seed=config.seed,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.runtime.batch_size,
    )
    rows = trained.rows(config.split)
    if len(rows) < 2:
        raise InputError(
            f"{config.data_dir}: expected at least two pictures in the split {config.split!r}, got {len(rows)}"
        )
    namer = Namer(entry["object"] for entry in trained.index)
    outcomes = _outcomes(trained, conditions, rows)
    scores, settings = _scores(config, trained, namer, rows, outcomes)
    tables = [_table(trained, namer, rows, name, outcome) for name, outcome in outcomes.items()]
    metrics = _metrics(config, trained, scores, outcomes, len(rows)) | {"bertscore_settings": settings}
    novel = trained.rows(config.novel_split)
    if len(novel) > 1:
        apart = _outcomes(trained, conditions, novel, conditions.names[: -len(CONTROLS)])
        found, _ = _scores(config, trained, namer, novel, apart)
        metrics["novel_objects"] = {"n": len(novel), "scores": {name: _json(item) for name, item in found.items()}}
        tables += [_table(trained, namer, novel, name, outcome) for name, outcome in apart.items()]
    with replacing(config.out / "predictions.parquet") as partial:
        pq.write_table(pa.concat_tables(tables), partial)
    write_json(config.out / "evaluate" / "metrics.json", metrics)
    seconds = _earlier_seconds(config) | {"evaluate": round(time.monotonic() - begun, 1)}
    write_json(config.out / "evaluate" / "seconds.json", seconds)
    _report(metrics)


def _outcomes(
    trained: Trained, conditions: Conditions, rows: Sequence[int], names: Sequence[str] | None = None
) -> dict[str, Outcome]:
    features = whole_features(trained.store, rows)
    captions = trained.language_model.encode([trained.index[row]["captions"][0] for row in rows])
    chosen = names or conditions.names
    return conditions.outcomes(chosen, features, captions)


def _scores(
    config: EvaluateConfig, trained: Trained, namer: Namer, rows: Sequence[int], outcomes: Mapping[str, Outcome]
) -> tuple[dict[str, dict[str, Score]], str]:
    references = [list(trained.index[row]["captions"]) for row in rows]
    written = {name: outcome.descriptions for name, outcome in outcomes.items()}
    assert all(len(item) == len(rows) for item in written.values()), "every row is scored"
    scores = score_conditions(written, references, seed=config.seed, resamples=config.resamples)
    found, settings = _bertscore(config, written, references)
    objects = [trained.index[row]["object"] for row in rows]
    for name, outcome in outcomes.items():
        scores[name]["bertscore"] = found[name]
        scores[name]["loss"] = _loss(outcome, config)
        scores[name]["object_accuracy"] = _accuracy(outcome.descriptions, objects, namer, config)
    return scores, settings


def _bertscore(
    config: EvaluateConfig, written: Mapping[str, list[str]], references: list[list[str]]
) -> tuple[dict[str, Score], str]:
    chosen = config.bertscore
    try:
        model: Path | str = chosen.model
        if chosen.model == "minilm-l6":
            model = asset("minilm-l6")
        found, settings = bertscore_conditions(
            written,
            references,
            model=model,
            num_layers=chosen.num_layers,
            idf=chosen.idf,
            rescale_with_baseline=chosen.rescale_with_baseline,
            lower_case=chosen.lower_case,
            seed=config.seed,
            resamples=config.resamples,
            name=chosen.model,
        )
    except InputError as error:  # a model that cannot be had here must not cost the other scores
        warn(f"BERTScore: {error}")
        return {name: NotRun(str(error)) for name in written}, "not run"
    return dict(found), settings


def _loss(outcome: Outcome, config: EvaluateConfig) -> Score:
    nats, tokens = outcome.nats.numpy(), outcome.tokens.numpy()
    return bootstrap_statistic(
        lambda chosen: nats[chosen].sum(axis=-1) / tokens[chosen].sum(axis=-1),
        len(nats),
        seed=config.seed,
        resamples=config.resamples,
    )


def _accuracy(descriptions: Sequence[str], objects: Sequence[str], namer: Namer, config: EvaluateConfig) -> Score:
    known = [namer.right(text, name) for text, name in zip(descriptions, objects, strict=True) if name]
    if not known:
        return NotRun("the index names no objects")
    return bootstrap_mean(np.array(known, dtype=float), seed=config.seed, resamples=config.resamples)


def _table(trained: Trained, namer: Namer, rows: Sequence[int], condition: str, outcome: Outcome) -> pa.Table:
    entries = [trained.index[row] for row in rows]
    named = [
        namer.right(text, entry["object"]) if entry["object"] else None
        for text, entry in zip(outcome.descriptions, entries, strict=True)
    ]
    return pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "key": pa.array([entry["key"] for entry in entries], pa.string()),
            "split": pa.array([entry["split"] for entry in entries], pa.string()),
            "condition": pa.array([condition] * len(rows), pa.string()),
            "description": pa.array(outcome.descriptions, pa.string()),
            "references": pa.array([entry["captions"] for entry in entries], pa.list_(pa.string())),
            "object": pa.array([entry["object"] for entry in entries], pa.string()),
            "named": pa.array(named, pa.bool_()),
            "loss": pa.array((outcome.nats / outcome.tokens).tolist(), pa.float64()),
        }
    )


def _metrics(
    config: EvaluateConfig,
    trained: Trained,
    scores: Mapping[str, Mapping[str, Score]],
    outcomes: Mapping[str, Outcome],
    count: int,
) -> dict[str, Any]:
    expected = sum(entry["split"] == config.split for entry in trained.index)
    broken = expected - count
    if broken:
        warn(f"{broken} pictures of the split {config.split!r} have no features and are not scored")
    layers = [layer.name for layer in trained.store.layers]
    return {
        "run": config.run,
        "data": config.data_dir.name,
        "data_note": trained.card.data_note,
        "seed": trained.card.seed,
        "n_index": expected,
        "n_scored": count,
        "n_broken": broken,
        "scores": {name: _json(scores[name]) for name in (ALL, *layers)},
        "controls": {name: _json(scores[name]) for name in CONTROLS},
        "distinct": {name: {"value": distinct(outcome.descriptions)} for name, outcome in outcomes.items()},
        "layers": layers,
        "weights": trained.card.store.weights,
        "backbone": trained.card.store.backbone,
        "language_model": trained.card.language_model,
        "warmup": trained.card.warmup,
        "store_identity": trained.card.store.digest,
        "interval": f"95 % percentile bootstrap over pictures, {config.resamples} resamples, seed {config.seed}",
        "evaluate_settings": config.model_dump(mode="json", exclude={"run", "runtime", "store", "data_dir", "out"}),
    }


def _earlier_seconds(config: EvaluateConfig) -> dict[str, float]:
    """What the stages before a run took, where they said so; the report sums the chain up."""
    found: dict[str, float] = {}
    for folder in (place(config.data_dir), place(config.store)):
        with suppress(FileNotFoundError, ValueError, TypeError):  # the scores are worth more than these seconds
            found |= json.loads(folder.read(["seconds.json"])[0])
    return found


def distinct(descriptions: Sequence[str]) -> float:
    """Share of different descriptions; near 0 the translator says the same of everything."""
    return round(len(set(descriptions)) / len(descriptions), 4)


def _json(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {name: score.as_json() for name, score in scores.items()}


def _report(metrics: Mapping[str, Any]) -> None:
    own, null = metrics["scores"][ALL], metrics["controls"]["shuffled"]
    for name in ("cider", "loss", "object_accuracy"):
        if "value" in own[name]:
            one, other = own[name], null[name]
            log(
                f"{name}: {one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}], "
                f"shuffled features {other['value']:.3f}, n = {metrics['n_scored']}"
            )
    if metrics["distinct"][ALL]["value"] < 0.1:
        warn(f"only {metrics['distinct'][ALL]['value']:.0%} of the descriptions differ: caption collapse")
