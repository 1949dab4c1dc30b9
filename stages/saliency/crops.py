"""How large a part of the picture does a location's description fit best? Figure 7: 32, 64, 128 or all 224 pixels.

The location is the one in the middle; centre crops of each size are compared with its description by a scorer that has
nothing to do with the translator. The paper's is CLIP. Where CLIP's weights cannot be had, the backbone's own
classifier stands in: how alike the description is to the names of the classes that it sees in the crop, by a sentence
encoder. A scorer may like some size whatever the text says; another picture's description shows how much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from devil_pipe.stages.common.assets import asset
from devil_pipe.stages.common.decoding import as_rgb, open_picture
from devil_pipe.stages.common.progress import track
from devil_pipe.stages.evaluate.run import Trained
from devil_pipe.stages.extract.backbones import Backbone, load
from devil_pipe.stages.extract.stored import load_stored
from devil_pipe.stages.prepare.index import read_picture
from devil_pipe.stages.saliency.comparison import whole_description
from devil_pipe.stages.saliency.config import SaliencyConfig
from devil_pipe.stages.saliency.faithfulness import Classifier
from devil_pipe.stages.saliency.likelihood import LikelihoodMaps
from devil_pipe.stages.train.loop import derangement
from devil_pipe.store.errors import InputError

SIZES = (32, 64, 128, 224)
SIDE = 224
REFERENCE, WHOLE, SHUFFLED = "references", "all", "shuffled"


@runtime_checkable  # for checks of types while tests run
class Scorer(Protocol):
    """Similarities of pictures and texts."""

    name: str

    def __call__(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Float[Tensor, "pictures texts"]:
        """The higher the more alike; pictures of one and the same text are compared with each other alone."""


def centre_crops(picture: Image.Image) -> list[Image.Image]:
    """Centre crops of `SIZES` pixels of the picture as the backbone sees it, resized straight to 224 × 224."""
    whole = as_rgb(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    starts = [(SIDE - size) // 2 for size in SIZES]
    return [whole.crop((at, at, at + size, at + size)) for at, size in zip(starts, SIZES, strict=True)]


def best_sizes(config: SaliencyConfig, trained: Trained, maps: LikelihoodMaps, rows: Sequence[int]) -> dict[str, Any]:
    """How often each crop fits best: to each layer's words of the middle, to all layers', the reference, and a control.

    Args:
        config: settings of the stage.
        trained: the run.
        maps: of the same run.
        rows: of the pictures; none: a reason in place of shares.
    """
    if not rows:
        return {"n": 0, "not_run": f"no picture of the split {config.split!r} has features"}
    try:
        score = _scorer(config, trained)
    except InputError as error:
        return {"n": 0, "not_run": str(error)}
    said = [_texts(config, trained, maps, row) for row in track(rows, "describe", unit="pictures")]
    chosen: dict[str, list[int]] = {}
    for row, texts, other in zip(rows, said, derangement(max(len(rows), 2), config.seed).tolist(), strict=False):
        crops = centre_crops(open_picture(read_picture(trained.index[row], config.data_dir)))
        if len(rows) > 1:
            texts[SHUFFLED] = said[other][WHOLE]
        for name, place in zip(texts, score(crops, list(texts.values())).argmax(dim=0).tolist(), strict=True):
            chosen.setdefault(name, []).append(place)
    return {
        "n": len(rows),
        "seed": config.seed,
        "scorer": score.name,
        "sizes": list(SIZES),
        "share": {name: _shares(places) for name, places in chosen.items()},
        "mean_size": {name: round(float(np.mean(np.array(SIZES)[places])), 1) for name, places in chosen.items()},
    }


def _shares(places: Sequence[int]) -> dict[str, float]:
    counts = np.bincount(places, minlength=len(SIZES))
    return {str(size): round(float(count / len(places)), 4) for size, count in zip(SIZES, counts, strict=True)}


def _texts(config: SaliencyConfig, trained: Trained, maps: LikelihoodMaps, row: int) -> dict[str, str]:
    """What the location nearest to the middle says, layer by layer; all layers of the whole picture; the reference."""
    said = {}
    for layer in trained.store.layers:
        grid = torch.from_numpy(trained.store[layer.name].on_grid([row])[0]).float()
        middle = grid[grid.shape[0] // 2, grid.shape[1] // 2][None]
        said[layer.name] = trained.language_model.write(maps.prefixes(layer.name, [middle]), config.max_new_tokens)[0]
    reference = trained.index[row]["captions"][0]
    return said | {WHOLE: whole_description(config, trained, row), REFERENCE: reference}


def _scorer(config: SaliencyConfig, trained: Trained) -> Scorer:
    if config.crops.scorer == "clip":
        return ClipScorer(load("clip_rn50", config.crops.weights), trained.language_model.device)
    explained = load_stored(trained.card.store, config.faithfulness.weights, "saliency.faithfulness.weights")
    return ClassScorer(explained, trained.language_model.device)


class ClipScorer:
    """Cosine of CLIP's embeddings, each crop resized to CLIP's own size (the paper's, with its ResNet-50)."""

    def __init__(self, backbone: Backbone, device: torch.device) -> None:
        """`backbone` is one of open_clip's, its text tower included."""
        self.name = f"cosine in {backbone.spec.name} ({backbone.weights[:12]})"
        self.module, self.transform, self.device = backbone.module.to(device), backbone.spec.transform(), device

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Float[Tensor, "pictures texts"]:
        """Cosines."""
        import open_clip

        pixels = torch.stack([self.transform(picture) for picture in pictures]).to(self.device)
        images = self.module.encode_image(pixels, normalize=True)  # type: ignore[operator]
        words = self.module.encode_text(open_clip.tokenize(list(texts)).to(self.device), normalize=True)  # type: ignore[operator]
        similar: Tensor = images @ words.T
        return similar.cpu()


class ClassScorer:
    """How alike a text is to the names of the ImageNet classes that a classifier sees, by a sentence encoder."""

    def __init__(self, backbone: Backbone, device: torch.device) -> None:
        """Raises InputError where the backbone is no classifier of ImageNet's 1000 classes."""
        if getattr(backbone.module, "num_classes", 0) != 1000:
            name = backbone.spec.name
            raise InputError(f"{name}: is no classifier of ImageNet's classes; take saliency.crops.scorer: clip")
        self.name = f"names of the classes that {backbone.spec.name} sees, compared by minilm-l6; not CLIP"
        self.classify, self.transform = Classifier(backbone.module, device), backbone.spec.transform()
        self.encode = SentenceEncoder(device)
        self.names = self.encode(_class_names())

    def __call__(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Float[Tensor, "pictures texts"]:
        """Mean cosine to the class names, weighted by the classes' probabilities."""
        seen = self.classify(torch.stack([self.transform(picture) for picture in pictures]))
        return seen @ (self.names @ self.encode(texts).T)


class SentenceEncoder:
    """Unit vectors of sentences: the mean of all-MiniLM-L6's last hidden states (the asset minilm-l6)."""

    def __init__(self, device: torch.device) -> None:
        """Raises InputError where the asset is not there."""
        import transformers

        place = asset("minilm-l6")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        self.model = transformers.AutoModel.from_pretrained(place).to(device).eval()
        self.device = device

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        """One vector a text, on the CPU."""
        fed = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        hidden = self.model(**fed).last_hidden_state
        real = fed["attention_mask"][..., None].to(hidden.dtype)
        mean = (hidden * real).sum(dim=1) / real.sum(dim=1)
        return torch.nn.functional.normalize(mean, dim=1).cpu()


def _class_names() -> list[str]:
    """ImageNet's classes in words, in the classifier's order."""
    from timm.data import ImageNetInfo

    known = ImageNetInfo("imagenet-1k")
    return [known.index_to_description(number).split(",")[0] for number in range(1000)]


def told(found: Mapping[str, Any]) -> str:
    """One line for a person."""
    if "not_run" in found:
        return f"crops: not run: {found['not_run']}"
    sizes = ", ".join(f"{name} {size:.0f}" for name, size in found["mean_size"].items())
    return f"crops: mean size that fits best, in pixels: {sizes}; n = {found['n']}"
