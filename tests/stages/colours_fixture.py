"""A module of one's own that sees colours, and a translator that was taught its features: no store, no run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from devil_pipe.stages.extract.layers import layer_specs
from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.stages.extract.taps import Tap
from devil_pipe.stages.extract.weights import state_digest
from devil_pipe.stages.train.checkpoint import Card
from devil_pipe.stages.train.config import TranslatorConfig
from devil_pipe.stages.train.language_model import LanguageModel
from devil_pipe.stages.train.translator import Translator, build
from devil_pipe.store.schema import Identity

from .. import tiny

CPU = torch.device("cpu")
NAMES = {"a dog": (230, 20, 20), "a cow": (20, 200, 40), "a lion": (30, 40, 220)}
TRANSFORM = Transform((32, 64), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear")
TAPS = (Tap("fine", "fine"), Tap("coarse", "coarse"))


class Colours(nn.Module):
    """Two layers that hold mean colours: 4 × 8 locations of 8 × 8 pixels, and 2 × 3 of 16 × 21."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), nn.Dropout(0.5))
        self.coarse = nn.Sequential(nn.AdaptiveAvgPool2d((2, 3)), nn.Conv2d(6, 5, 1), nn.Dropout(0.5))
        with torch.no_grad():
            self.fine[0].weight.copy_(torch.randn(6, 3, 1, 1).expand(6, 3, 8, 8) / 64)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.coarse(self.fine(pixels))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Own:
    """All that `Explainer.from_module` takes."""

    translator: Translator
    card: Card
    module: Colours
    language_model: LanguageModel


def halves(left: str, right: str, size: tuple[int, int] = (200, 100)) -> Image.Image:
    """A picture of two colours side by side."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[:, : size[0] // 2], pixels[:, size[0] // 2 :] = NAMES[left], NAMES[right]
    return Image.fromarray(pixels)


def own(folder: Path, kind: str = "llama", steps: int = 0) -> Own:
    """The parts, with a language model of one of tiny's families; the translator is taught so many steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Colours().eval()
        tiny.language_model(folder, kind, texts=list(NAMES), taught=steps > 0)
        model = LanguageModel(str(folder), device=CPU, dtype=torch.float32, repeats=2)
        config = TranslatorConfig(layers=1, width=16, heads=2, feedforward=32, queries=3)
        store = Identity(
            backbone="colours",
            weights=state_digest(module),
            layers=layer_specs(module, TAPS, TRANSFORM.size),
            transform=TRANSFORM.describe(),
            index="none",
            rows=1,
        )
        norm = model.mean_norm()
        translator = build(config, store.layers, model.width, norm)
        _teach(translator, module, model, steps)
    card = Card(config, norm, 2, str(folder), store, "none", 0, "Two colours.")
    return Own(translator.eval().requires_grad_(False), card, module, model)


def _teach(translator: Translator, module: Colours, model: LanguageModel, steps: int) -> None:
    """A picture of one colour is called by the colour's name, whichever layer is looked at."""
    optimizer = torch.optim.AdamW(translator.parameters(), lr=1e-2)
    captions = model.encode(list(NAMES)) * 2
    pictures = torch.stack([TRANSFORM(Image.new("RGB", (64, 32), colour)) for colour in NAMES.values()])
    with torch.no_grad():
        fine = module.fine(pictures)
        maps = [fine, module.coarse(fine)]
    features = [item.mean(dim=(2, 3)).repeat(2, 1) for item in maps]
    keep = torch.tensor([[True, False]] * len(NAMES) + [[False, True]] * len(NAMES))
    for _ in range(steps):
        noisy = [item + 0.05 * torch.randn_like(item) for item in features]
        model.token_losses(translator(noisy, keep), captions)[0].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
