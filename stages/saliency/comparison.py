"""Our maps beside Grad-CAM's, noise and a centre prior, by deletion and insertion on the backbone's own classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from devil_pipe.stages.common.decoding import open_picture
from devil_pipe.stages.common.progress import track
from devil_pipe.stages.evaluate.bootstrap import bootstrap_mean
from devil_pipe.stages.evaluate.run import Trained
from devil_pipe.stages.extract.backbones import Backbone
from devil_pipe.stages.extract.layers import choose
from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.stages.extract.stored import load_stored
from devil_pipe.stages.prepare.index import read_picture
from devil_pipe.stages.saliency.config import SaliencyConfig
from devil_pipe.stages.saliency.faithfulness import Areas, Classifier, areas, order
from devil_pipe.stages.saliency.likelihood import LikelihoodMaps
from devil_pipe.stages.saliency.localisation import centre_prior, random_map
from devil_pipe.stages.train.batches import whole_features
from devil_pipe.stages.train.loop import translate
from devil_pipe.store.errors import InputError

OURS, GRAD_CAM, CENTRE, RANDOM = "devil", "grad_cam", "centre_prior", "random"


def compare(config: SaliencyConfig, trained: Trained, maps: LikelihoodMaps, rows: Sequence[int]) -> dict[str, Any]:
    """Deletion and insertion of every layer's map, as `saliency/metrics.json` holds them under `faithfulness`.

    The class is the classifier's own first for the picture, whatever the picture shows; the query is the name of what
    the picture shows, where the index knows it, else the description from all layers.

    Args:
        config: settings of the stage.
        trained: the run.
        maps: of the same run.
        rows: of the pictures; none: a reason in place of scores.
    """
    chosen = config.faithfulness
    try:
        backbone, transform = _classifier(config, trained)
    except InputError as error:
        return {"n": 0, "not_run": str(error)}
    if not rows:
        return {"n": 0, "not_run": f"no picture of the split {config.split!r} has features"}
    classifier = Classifier(backbone.module, trained.language_model.device)
    taps = choose(backbone.spec, [layer.name for layer in trained.store.layers])
    found: dict[str, dict[str, list[Areas]]] = {}
    classes: list[float] = []
    for row in track(rows, "deletion and insertion", unit="pictures"):
        entry = trained.index[row]
        pixels = transform(open_picture(read_picture(entry, config.data_dir)))
        probabilities = classifier(pixels[None])[0]
        number = int(probabilities.argmax())
        classes.append(float(probabilities[number]))
        query = entry["object"] or whole_description(config, trained, row)
        ways: dict[str, dict[str, np.ndarray]] = {
            layer.name: {
                OURS: maps.maps(layer, row, [query])[0].numpy(),
                GRAD_CAM: classifier.grad_cam(pixels, tap, number),
            }
            for layer, tap in zip(trained.store.layers, taps, strict=True)
        }
        ways["no layer"] = {CENTRE: centre_prior(), RANDOM: random_map(config.seed, row)}
        for part, named in ways.items():
            for way, values in named.items():
                one = _areas(classifier, pixels, number, values, config.seed + row, chosen.steps)
                found.setdefault(part, {}).setdefault(way, []).append(one)
    return {
        "n": len(rows),
        "steps": chosen.steps,
        "seed": config.seed,
        "class": "the classifier's own first for each picture",
        "class_probability": round(float(np.mean(classes)), 4),
        "query": "the object's name, else the description from all layers",
        "classifier": trained.card.store.backbone,
        "scores": {
            part: {way: _scores(config, items) for way, items in named.items()} for part, named in found.items()
        },
        "against_grad_cam": {part: _apart(config, named) for part, named in found.items() if GRAD_CAM in named},
    }


def whole_description(config: SaliencyConfig, trained: Trained, row: int) -> str:
    """What all layers together say of the whole picture; never empty, for it is asked for."""
    device = trained.language_model.device
    prefix = translate(trained.translator, whole_features(trained.store, [row]), device=device)
    return trained.language_model.write(prefix, config.max_new_tokens)[0] or "a picture"


def _areas(classifier: Classifier, pixels: Tensor, number: int, values: np.ndarray, seed: int, steps: int) -> Areas:
    ranked = order(values.astype(np.float64), (pixels.shape[1], pixels.shape[2]), seed)
    return areas(classifier, pixels, number, ranked, steps)


def _classifier(config: SaliencyConfig, trained: Trained) -> tuple[Backbone, Transform]:
    """The backbone with the store's weights and its head. Raises InputError where it has none, or has other weights."""
    identity = trained.card.store
    backbone = load_stored(identity, config.faithfulness.weights, "saliency.faithfulness.weights")
    height, width = identity.transform["resize"]
    transform = backbone.spec.transform((height, width))
    if transform.describe() != identity.transform:
        raise InputError(f"{identity.backbone}: the store's pictures were prepared otherwise than they would be now")
    with torch.inference_mode():
        logits = backbone.module(torch.zeros(1, 3, height, width))
    classes = getattr(backbone.module, "num_classes", 0)  # timm's models say so; one of one's own may
    if not isinstance(logits, Tensor) or classes < 2 or logits.shape != (1, classes):
        raise InputError(f"{identity.backbone}: is no classifier, so no class's probability can fall or rise")
    return backbone, transform


def _scores(config: SaliencyConfig, items: Sequence[Areas]) -> dict[str, Any]:
    values = {"deletion": [item.deletion for item in items], "insertion": [item.insertion for item in items]}
    return {name: _mean(config, given) for name, given in values.items()}


def _apart(config: SaliencyConfig, named: Mapping[str, Sequence[Areas]]) -> dict[str, Any]:
    """Ours minus Grad-CAM's, picture by picture."""
    pairs = list(zip(named[OURS], named[GRAD_CAM], strict=True))
    return {
        "deletion": _mean(config, [ours.deletion - theirs.deletion for ours, theirs in pairs]),
        "insertion": _mean(config, [ours.insertion - theirs.insertion for ours, theirs in pairs]),
    }


def _mean(config: SaliencyConfig, values: Sequence[float]) -> dict[str, Any]:
    return bootstrap_mean(np.array(values), seed=config.seed, resamples=config.resamples).as_json()
