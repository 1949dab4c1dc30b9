"""Make the README's pictures: four photographs of scikit-image, asked with the translator that comes with the package.

None is chosen: every photograph is asked the same, and shown as it came out. `python docs/pictures/photographs.py`
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import skimage
from PIL import Image

from devil_pipe.pipeline.live_maps import GREY
from devil_pipe.stages.explain.explainer import Explainer
from devil_pipe.stages.explain.figure import draw
from devil_pipe.stages.explain.telling import Questions, note, tell
from devil_pipe.stages.saliency.overlays import Scale, overlay

HERE = Path(__file__).parent
NAMES = {"astronaut": "an astronaut", "cat": "a cat", "coffee": "a cup of coffee", "rocket": "a rocket"}
"""Of scikit-image's functions, with the words that are asked for in every picture."""
SCALE = Scale(10.0, zero="a grey picture")


def words(explainer: Explainer, pictures: dict[str, Image.Image]) -> None:
    """explain.jpg: what the whole picture and each layer say."""
    layers = tuple(layer.name for layer in explainer.layers)
    how = {"max_new_tokens": 20, "margin": True, "resamples": 16}
    told = [tell(explainer, name, picture, Questions(layers, (), ()), **how) for name, picture in pictures.items()]
    draw(told, note(explainer), HERE / "explain.png")
    _small("explain")


def maps(explainer: Explainer, pictures: dict[str, Image.Image]) -> None:
    """saliency.jpg: every word in every picture, on the deepest layer."""
    layer, queries = explainer.layers[-1].name, list(NAMES.values())
    grey = [float(found.values[0, 0]) for found in explainer.saliency(GREY, queries, layer=layer, grid=1)]
    figure, axes = plt.subplots(len(pictures), len(NAMES) + 1, figsize=(11, 8.6), layout="constrained")
    for line, picture in zip(axes, pictures.values(), strict=True):
        line[0].imshow(np.asarray(picture))
        for cell, found, zero in zip(line[1:], explainer.saliency(picture, queries, layer=layer), grey, strict=True):
            values = found.values - zero
            cell.imshow(np.asarray(overlay(values, picture, SCALE)))
            cell.set_xlabel(f"highest {values.max():+.1f}, lowest {values.min():+.1f}", fontsize=8, color="#6b6b6b")
    for cell, query in zip(axes[0, 1:], NAMES.values(), strict=True):
        cell.set_title(query, fontsize=11)
    for cell in axes.flat:
        cell.set(xticks=[], yticks=[])
        cell.spines[:].set_visible(False)
    scale = f"red up to +{SCALE.nats:g}, blue down to −{SCALE.nats:g}"
    figure.supxlabel(f"layer {layer}, nats above the same words for {SCALE.zero}: {scale}", fontsize=9, color="#6b6b6b")
    figure.savefig(HERE / "saliency.png", dpi=100)
    _small("saliency")


def _small(name: str) -> None:
    """A JPEG of 1,100 pixels across in the place of a PNG."""
    with Image.open(HERE / f"{name}.png") as drawn:
        drawn.thumbnail((1100, 4000))
        drawn.convert("RGB").save(HERE / f"{name}.jpg", quality=88, optimize=True)
    (HERE / f"{name}.png").unlink()


if __name__ == "__main__":
    opened = {name: Image.fromarray(getattr(skimage.data, name)()) for name in NAMES}
    starter = Explainer.from_pretrained()
    words(starter, opened)
    maps(starter, opened)
