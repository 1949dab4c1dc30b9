"""Does the explained classifier depend on the pixels that a map calls important? Deletion and insertion (RISE)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from devil_pipe.stages.audit.backbone import Explained
from devil_pipe.stages.audit.findings import Case, Check, Measured, Needs, Row, Table
from devil_pipe.stages.common.decoding import open_picture
from devil_pipe.stages.common.progress import track
from devil_pipe.stages.prepare.index import read_picture
from devil_pipe.stages.saliency.faithfulness import Areas, Classifier, areas, order
from devil_pipe.stages.saliency.likelihood import averaged
from devil_pipe.stages.saliency.localisation import centre_prior, random_map
from devil_pipe.stages.train.batches import Features

if TYPE_CHECKING:
    from devil_pipe.stages.audit.opened import Audited

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
OURS, GRAD_CAM, CENTRE, RANDOM = "ours", "Grad-CAM", "centre prior", "random map"
NO_LAYER = "no layer"


@dataclass(frozen=True)
class _Picture:
    """A picture with what it is asked for; no query takes the description from all layers."""

    name: str
    image: Image.Image
    query: str
    number: int


def measure(audited: Audited) -> Measured:
    """Table 5's layout, on the run's own pictures and on scikit-image's photographs."""
    audited.needs_locations()
    backbone = audited.backbone
    classifier = _classifier(audited, backbone)
    rows = audited.rows(audited.config.few)
    own = [_own(audited, row) for row in rows]
    tables = [_table(audited, backbone, classifier, own, "the run’s pictures")[0]]
    cases: tuple[Case, ...] = ()
    counted = f"{len(own)} pictures"
    if backbone.imagenet:
        import skimage.data

        photographs = [
            _Picture(name, Image.fromarray(np.asarray(getattr(skimage.data, name)())).convert("RGB"), "", 1000 + place)
            for place, name in enumerate(PHOTOGRAPHS)
        ]
        table, cases = _table(audited, backbone, classifier, photographs, "scikit-image’s photographs")
        tables.append(table)
        counted += f" and {len(photographs)} photographs"
    return Measured(
        n=f"{counted}, {audited.config.steps} steps each",
        tables=tuple(tables),
        cases=cases,
        notes=(
            "The class is the classifier’s own first for each picture. The run’s pictures are asked for their "
            "object’s name, photographs for what all layers say of them, which may well be wrong: training never "
            "saw any.",
            "So few pictures decide nothing; the intervals say how little. There is no verdict.",
        ),
    )


def _own(audited: Audited, row: int) -> _Picture:
    entry = audited.entry(row)
    return _Picture(entry["key"], open_picture(read_picture(entry, audited.config.data_dir)), entry["object"], row)


def _classifier(audited: Audited, backbone: Explained) -> Classifier:
    """Raises Needs where the backbone gives no logits."""
    height, width = backbone.transform.describe()["resize"]
    device = audited.model.device
    with torch.inference_mode():
        logits = backbone.module(torch.zeros(1, 3, height, width, device=device))
    classes = getattr(backbone.module, "num_classes", 0)
    if not isinstance(logits, Tensor) or classes < 2 or logits.shape != (1, classes):
        raise Needs(f"a classifier; {backbone.identity.backbone} gives no classes whose probability could fall or rise")
    return Classifier(backbone.module, device)


def _table(
    audited: Audited, backbone: Explained, classifier: Classifier, pictures: Sequence[_Picture], what: str
) -> tuple[Table, tuple[Case, ...]]:
    found: dict[tuple[str, str], list[Areas]] = {}
    cases = []
    for one in track(pictures, f"deletion, {what}", unit="pictures"):
        pixels = backbone.transform(one.image)
        maps = {name: values[0] for name, values in backbone.maps(pixels[None]).items()}
        query = one.query or _said(audited, maps)
        number = int(classifier(pixels[None])[0].argmax())
        ways: dict[tuple[str, str], np.ndarray] = {}
        for layer, tap in zip(audited.layers, backbone.taps, strict=True):
            small = {layer.name: averaged(maps[layer.name], audited.config.grid)}
            ways[layer.name, OURS] = audited.scores(layer.name, small, [query])[0]
            ways[layer.name, GRAD_CAM] = classifier.grad_cam(pixels, tap, number)
        ways |= {(NO_LAYER, CENTRE): centre_prior(), (NO_LAYER, RANDOM): random_map(audited.config.seed, one.number)}
        for way, values in ways.items():
            ranked = order(values.astype(np.float64), tuple(pixels.shape[1:]), audited.config.seed + one.number)  # type: ignore[arg-type]
            found.setdefault(way, []).append(areas(classifier, pixels, number, ranked, audited.config.steps))
        cases.append(_case(audited, one, query, ways))
    return _laid_out(audited, found, what, len(pictures)), tuple(cases)


def _said(audited: Audited, maps: dict[str, Tensor]) -> str:
    """What all layers say of a picture; never empty, for it is asked for."""
    pooled = [maps[layer.name].mean(dim=(0, 1))[None] for layer in audited.layers]
    features = Features(pooled, torch.ones(1, len(pooled), dtype=torch.bool))
    return audited.model.decode(audited.written(audited.prefixes(features))[0]) or "a picture"


def _laid_out(audited: Audited, found: dict[tuple[str, str], list[Areas]], what: str, count: int) -> Table:
    """The deepest layer first, as in the paper's Table 5; then ours less Grad-CAM's and less the random map's."""
    deletion = {way: np.array([item.deletion for item in items]) for way, items in found.items()}
    insertion = {way: np.array([item.insertion for item in items]) for way, items in found.items()}
    lines = []
    for layer in reversed(audited.layers):
        for other in (GRAD_CAM, OURS):
            way = (layer.name, other)
            cells = (audited.mean(deletion[way]), audited.mean(insertion[way]))
            lines.append(Row(f"{layer.name}: {other}", cells, control=other != OURS))
        for kind, way in (("Grad-CAM", (layer.name, GRAD_CAM)), ("random", (NO_LAYER, RANDOM))):
            mine = (layer.name, OURS)
            apart = (audited.mean(deletion[mine] - deletion[way]), audited.mean(insertion[mine] - insertion[way]))
            lines.append(Row(f"{layer.name}: ours less {kind}", apart))
    for other in (CENTRE, RANDOM):
        way = (NO_LAYER, other)
        lines.append(Row(other, (audited.mean(deletion[way]), audited.mean(insertion[way])), control=True))
    caption = f"{what[0].upper()}{what[1:]}, n = {count}"
    return Table(
        caption, "layer: map", ("deletion (lower is better)", "insertion (higher is better)"), tuple(lines), digits=3
    )


def _case(audited: Audited, one: _Picture, query: str, ways: dict[tuple[str, str], np.ndarray]) -> Case:
    if one.query:
        return Case(one.name, query, (), ())
    small = one.image.copy()
    small.thumbnail((400, 400))
    values = ways[audited.deepest, OURS]
    pictures = audited.album.over(small, values, f"photograph-{one.name}", f"map at {audited.deepest}")
    return Case(one.name, one.name, (f"says: {query}",), pictures)


CHECK = Check(
    name="deletion",
    title="Deletion and insertion",
    tested="Pixels leave the picture, or come into a blurred one, in the order of the map; the area under the "
    "explained classifier’s probability of its class is measured, beside Grad-CAM’s map, a centre prior and a "
    "random map.",
    catches="A map of places that the classifier does not need is no better than a random one.",
    rule="None: so few pictures give no verdict. The table has the layout of the paper’s Table 5.",
    worst="",
    measure=measure,
)
