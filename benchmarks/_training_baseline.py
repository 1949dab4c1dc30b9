"""The loop that one writes first: decode, run the backbone, pool picture by picture, train. No store, nothing batched.

It trains the same translator through a language model of the same size, with the same two dropouts.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn


@dataclass
class Plain:
    """The parts of the loop, each as its library gives it."""

    pictures: Sequence[Path]
    captions: Sequence[tuple[int, ...]]
    """Token ids of each picture's caption."""

    backbone: nn.Module
    taps: Sequence[str]
    """Modules whose outputs are the explained maps [batch, C, H, W]."""

    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]
    translator: Callable[..., torch.Tensor]
    language_model: Any
    optimizer: torch.optim.Optimizer
    bos: int
    eos: int
    device: torch.device
    rate: float = 0.5

    def decode(self, path: Path) -> torch.Tensor:
        picture = (
            Image.open(io.BytesIO(path.read_bytes())).convert("RGB").resize(self.size[::-1], Image.Resampling.BICUBIC)
        )
        pixels = torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1) / 255
        return (pixels - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]

    def maps(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        hooks = [
            self.backbone.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, output, name=name: found.update({name: output})
            )
            for name in self.taps
        ]
        with torch.no_grad():
            getattr(self.backbone, "visual", self.backbone)(pixels)
        for hook in hooks:
            hook.remove()
        return [found[name] for name in self.taps]

    def kept(self, count: int) -> torch.Tensor:
        while not (keep := torch.rand(count) >= self.rate).any():
            pass
        return keep

    def pooled(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        return [
            torch.stack([one.flatten(1)[:, self.kept(one[0].numel()).to(one.device)].mean(dim=1) for one in layer])
            for layer in maps
        ]

    def step(self, rows: Sequence[int]) -> float:
        pixels = torch.stack([self.decode(self.pictures[row]) for row in rows]).to(self.device)
        features = self.pooled(self.maps(pixels))
        keep = torch.stack([self.kept(len(features)) for _ in rows]).to(self.device)
        loss = self.loss(self.translator(features, keep), [self.captions[row] for row in rows])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def loss(self, prefix: torch.Tensor, captions: Sequence[tuple[int, ...]]) -> torch.Tensor:
        longest = max(map(len, captions)) + 1
        rows = [[*caption, self.eos] for caption in captions]
        ids = torch.tensor([row + [self.eos] * (longest - len(row)) for row in rows], device=self.device)
        labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows], device=self.device)
        embed = self.language_model.get_input_embeddings()
        bos = embed(torch.full((len(rows), 1), self.bos, device=self.device))
        given = torch.cat([bos, prefix.to(bos.dtype), embed(ids)], dim=1)
        unseen = torch.full((len(rows), 1 + prefix.shape[1]), -100, device=self.device)
        loss: torch.Tensor = self.language_model(inputs_embeds=given, labels=torch.cat([unseen, labels], dim=1)).loss
        return loss

    def endless(self, batch: int, seed: int = 0) -> Iterator[list[int]]:
        """Rows of one step after another."""
        random = np.random.default_rng(seed)
        while True:
            order = random.permutation(len(self.pictures))
            for begin in range(0, len(order) - batch + 1, batch):
                yield order[begin : begin + batch].tolist()
