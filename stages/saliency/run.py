"""Likelihood maps of test pictures, scored against their masks, and a random gallery."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from devil_pipe.stages.common.files import write_json
from devil_pipe.stages.common.progress import log, track, warn
from devil_pipe.stages.evaluate.bootstrap import bootstrap_mean
from devil_pipe.stages.evaluate.run import Trained, open_run
from devil_pipe.stages.prepare.index import read_mask
from devil_pipe.stages.saliency import failures, gallery
from devil_pipe.stages.saliency.comparison import compare
from devil_pipe.stages.saliency.config import SaliencyConfig
from devil_pipe.stages.saliency.crops import best_sizes, told
from devil_pipe.stages.saliency.likelihood import LikelihoodMaps
from devil_pipe.stages.saliency.localisation import (
    centre_prior,
    distance_from_centre,
    overlap,
    points_at,
    random_map,
    read_mask_image,
)

CENTRE, RANDOM = "centre_prior", "random"


def run(config: SaliencyConfig) -> None:
    """Write saliency/metrics.json, gallery.json, maps.npz and overlays under `config.out`.

    Raises:
        InputError: nothing trained, or files that do not belong together.
    """
    begun = time.monotonic()
    trained = open_run(config.out, config.store, config.data_dir, config.runtime.device, config.runtime.precision)
    maps = LikelihoodMaps(trained, config.grid, config.runtime.batch_size)
    rows = trained.rows(config.split)
    order = np.random.default_rng([config.seed, 2]).permutation(len(rows))
    why = _no_maps(trained)
    chosen = [] if why else [rows[place] for place in order]
    if why:
        warn(f"no maps and no gallery: {why}")
    worst = failures.build(config, trained, chosen[: config.pictures])
    gallery.build(config, trained, maps, chosen[: config.gallery], worst)
    masked = [row for row in chosen if trained.index[row]["mask_size"] and trained.index[row]["object"]]
    metrics = _localisation(config, trained, maps, masked[: config.pictures], why)
    if config.faithfulness.pictures:
        metrics["faithfulness"] = compare(config, trained, maps, chosen[: config.faithfulness.pictures])
    if config.crops.pictures:
        metrics["crops"] = best_sizes(config, trained, maps, chosen[: config.crops.pictures])
        log(told(metrics["crops"]))
    excluded = {"run", "runtime", "store", "data_dir", "out"}
    metrics |= {
        "saliency_settings": config.model_dump(mode="json", exclude=excluded),
        "store_identity": trained.card.store.digest,
    }
    write_json(config.out / "saliency" / "metrics.json", metrics)
    write_json(config.out / "saliency" / "seconds.json", {"saliency": round(time.monotonic() - begun, 1)})


def _no_maps(trained: Trained) -> str:
    """Why the store cannot serve heat maps; "" where it can."""
    encoding = trained.store.identity.encoding
    what = {"units": "means over units' exemplars", "partition": "random partitions"}
    held = what.get(trained.store.identity.stored_as.reduce)
    return f"the store holds {held} ({encoding}), which have no locations" if held else ""


def _localisation(
    config: SaliencyConfig, trained: Trained, maps: LikelihoodMaps, rows: Sequence[int], why: str
) -> dict[str, Any]:
    """Pointing and overlap of every layer's map for the object's name, beside maps that know nothing."""
    if not rows:
        return {"saliency": {}, "n": 0, "not_run": why or "no test picture has a mask and a named object"}
    names = [*(layer.name for layer in trained.store.layers), CENTRE, RANDOM]
    points: dict[str, list[float]] = {name: [] for name in names}
    overlaps: dict[str, list[float]] = {name: [] for name in names}
    distances = []
    for row in track(rows, "saliency", unit="pictures"):
        entry = trained.index[row]
        content = read_mask(entry, config.data_dir)
        assert content is not None, "rows were chosen by their masks"
        mask = read_mask_image(content)
        distances.append(distance_from_centre(mask))
        found = {layer.name: maps.maps(layer, row, [entry["object"]])[0].numpy() for layer in trained.store.layers}
        found |= {CENTRE: centre_prior(), RANDOM: random_map(config.seed, row)}
        for name, values in found.items():
            points[name].append(float(points_at(values, mask)))
            overlaps[name].append(overlap(values, mask))
    off = np.array(distances) > config.off_centre
    scores = {name: _scores(config, points[name], overlaps[name], off) for name in names}
    _tell(scores, len(rows), int(off.sum()))
    return {
        "saliency": scores,
        "n": len(rows),
        "n_off_centre": int(off.sum()),
        "off_centre": config.off_centre,
        "grid": config.grid,
        "seed": config.seed,
        "query": "the object's name with its article",
    }


def _scores(
    config: SaliencyConfig, points: Sequence[float], overlaps: Sequence[float], off: np.ndarray
) -> dict[str, dict[str, float]]:
    values = {"pointing": np.array(points), "iou": np.array(overlaps)}
    if off.any():
        values["pointing_off_centre"] = values["pointing"][off]
    return {
        name: bootstrap_mean(item, seed=config.seed, resamples=config.resamples).as_json()
        for name, item in values.items()
    }


def _tell(scores: Mapping[str, Mapping[str, Mapping[str, float]]], count: int, off: int) -> None:
    for name, found in scores.items():
        aside = found.get("pointing_off_centre", {}).get("value", float("nan"))
        point, both = found["pointing"]["value"], found["iou"]["value"]
        log(f"{name}: pointing {point:.2f} (off centre {aside:.2f}), iou {both:.2f}")
    log(f"on {count} pictures, {off} of them with the object off centre")
