"""Backbones as a person might write them, for `devil_pipe`'s `package.module:function`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block that computes in place, as torchvision's do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(True), nn.Conv2d(width, width, 1)
        )
        self.act = nn.ReLU(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.body(x))  # type: ignore[no-any-return]


class Odd(nn.Module):
    """Strides of 3 × 2, then 2 × 3, without padding: grids that are not square for square pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 5, stride=(3, 2)), nn.BatchNorm2d(12), nn.ReLU(True))
        self.stage1 = nn.Sequential(Block(12), Block(12))
        self.down = nn.Conv2d(12, 20, 3, stride=(2, 3))
        self.stage2 = nn.Sequential(Block(20), Block(20))
        self.head = nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """A pre-norm transformer block of linear maps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = x + x.mean(self.axis, keepdim=True)
        return mixed + self.mlp(self.norm(mixed))  # type: ignore[no-any-return]

    axis = 1


class Transformer(nn.Module):
    """Patches of 8 × 16 pixels; extra tokens stand before and after the patches; tokens first where asked."""

    def __init__(self, before: int = 0, after: int = 0, *, tokens_first: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, (8, 16), stride=(8, 16))
        self.before = nn.Parameter(torch.randn(1, before, 24))
        self.after = nn.Parameter(torch.randn(1, after, 24))
        self.layers = nn.ModuleList(Layer(24) for _ in range(8))
        self.norm = nn.LayerNorm(24)
        self.tokens_first = tokens_first

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        extra = [part.expand(len(x), -1, -1) for part in (self.before, self.after)]
        tokens = torch.cat([extra[0], tokens, extra[1]], dim=1)
        if self.tokens_first:
            tokens = tokens.transpose(0, 1)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens)[0]  # type: ignore[no-any-return]


class Quiet(Odd):
    """Its forward pass keeps no gradients."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Looking(Odd):
    """Looks at the numbers of its input, which the meta device has none of."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum().item() < 1e9 else x / 2)


class Twice(nn.Module):
    """One activation called twice, in place; a gate; no containers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 16, 3, stride=2)
        self.act = nn.ReLU(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.act(self.first(x))))  # type: ignore[no-any-return]


class Two(nn.Module):
    """Two branches that meet in the last step alone: nothing is a layer of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, stride=4), nn.Conv2d(3, 4, 3, stride=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x).mean((2, 3)) + self.right(x).mean((2, 3))  # type: ignore[no-any-return]


class Blind(nn.Module):
    """Sees nothing of its picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, stride=8)
        nn.init.zeros_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


def odd() -> nn.Module:
    return Odd()


def wide() -> tuple[nn.Module, dict[str, Any]]:
    return Odd(), {"image_size": [96, 160], "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"}


def trained() -> nn.Module:
    """A module with values that no draw gives."""
    module = Odd()
    module.positions = nn.Parameter(torch.zeros(4, 4))  # of no submodule, so that none knows how to draw it
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.125)
    return module


def looking() -> nn.Module:
    return Looking()


def blind() -> nn.Module:
    return Blind()


def broken() -> nn.Module:
    module = Odd()
    nn.init.constant_(module.head.weight, torch.nan)
    nn.init.constant_(module.stage2[1].body[3].weight, torch.nan)  # type: ignore[index,arg-type]
    return module


def two() -> nn.Module:
    return Two()


def number() -> int:
    return 3


def raising() -> nn.Module:
    raise KeyError("no such checkpoint")


def misset() -> tuple[nn.Module, dict[str, Any]]:
    return Odd(), {"size": 3}


def unfit() -> nn.Module:
    return nn.Linear(4, 4)
