"""Where feature maps are read in a backbone, and how what is read becomes locations × channels."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from devil_pipe.store.errors import InputError

Kind = Literal["map", "map_last", "tokens", "tokens_first", "vector"]


@dataclass(frozen=True)
class Tap:
    """Where a layer's feature map is read: at which module, and how its locations lie there."""

    name: str
    module: str
    kind: Kind = "map"
    """map [B, C, H, W]; map_last [B, H, W, C]; tokens [B, N, C]; tokens_first [N, B, C]; vector [B, C] or [B, C, 1, 1],
    which is pooled from the whole picture and stored as a layer of one location."""

    prefix_tokens: int = 0
    """Tokens before the first patch: class token and registers."""

    suffix_tokens: int = 0
    alias: str = ""
    also: tuple[str, ...] = ()
    """Paths of other modules that put out the same tensor."""

    stride: tuple[float, float] | None = None
    """Pixels from one patch token to the next, down and across; None for square grids."""

    norm: Literal["", "pre-norm", "post-norm"] = ""
    """Of blocks that hold a LayerNorm: whether the output is the residual stream or comes out of a norm."""

    block: bool = True
    """False for stems and norms outside the blocks: they can be chosen by name, and no rule takes them."""

    register_tokens: int = 0
    """How many of the prefix tokens are registers, where the backbone says so."""

    before: bool = False
    """What goes into `module` is read, not what comes out: a pooled vector that no module of its own puts out."""


def trunk(module: nn.Module) -> nn.Module:
    """The part that takes pictures: CLIP's image tower, else the whole module."""
    visual = getattr(module, "visual", None)
    return visual if isinstance(visual, nn.Module) and hasattr(module, "encode_image") else module


def first_tensor(output: Any) -> Tensor | None:
    """A module's output, or the first tensor of several; None where there is none."""
    return next((item for item in tree_leaves(output) if isinstance(item, Tensor)), None)


class _Found(threading.local):
    """What the hooks saw in this thread's forward pass."""

    def __init__(self) -> None:
        self.maps: dict[str, Any] = {}


class Taps:
    """Reads the feature maps of several layers in one forward pass, through forward hooks; several threads may.

    A context manager: the hooks are gone afterwards. What comes out is [batch, H·W, C], in row-major order of the grid.
    """

    def __init__(self, module: nn.Module, taps: Sequence[Tap]) -> None:
        self.module, self.taps = module, tuple(taps)
        self._found = _Found()
        self.grids: dict[str, tuple[int, int]] = {}
        self._handles = [self._hook(tap) for tap in self.taps]

    def _hook(self, tap: Tap) -> torch.utils.hooks.RemovableHandle:
        def keep(_module: nn.Module, inputs: Any, output: Any = None) -> None:
            self._found.maps[tap.name] = inputs if tap.before else output

        module = self.module.get_submodule(tap.module)
        return module.register_forward_pre_hook(keep) if tap.before else module.register_forward_hook(keep)

    def __enter__(self) -> Taps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def __call__(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> dict[str, Float[Tensor, "batch locations channels"]]:
        """Run the backbone and return each tapped layer's map, locations before channels.

        Raises:
            InputError: a layer whose output is no map and no grid of patch tokens.
        """
        self._found.maps.clear()
        trunk(self.module)(pixels)  # CLIP's text tower has no part in this
        size = (pixels.shape[2], pixels.shape[3])
        return {tap.name: self._flatten(tap, self._found.maps.get(tap.name), size) for tap in self.taps}

    def _flatten(self, tap: Tap, output: Any, size: tuple[int, int]) -> Tensor:
        tensor = first_tensor(output)
        if tensor is None:
            raise InputError(f"layer {tap.name}: {tap.module} put out nothing when the backbone ran")
        found, grid = locations(tap, tensor, size)
        self.grids[tap.name] = grid
        return found


def locations(tap: Tap, output: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """A layer's output as [batch, H·W, C], and its grid; `size` is that of the pixels.

    Raises:
        InputError: an output of another kind than the tap's.
    """
    if tap.kind in ("map", "map_last"):
        if output.ndim != 4:
            order = "channels, height, width" if tap.kind == "map" else "height, width, channels"
            raise InputError(f"layer {tap.name}: expected [batch, {order}], got {list(output.shape)}")
        if tap.kind == "map":
            return output.flatten(2).transpose(1, 2), (output.shape[2], output.shape[3])
        return output.flatten(1, 2), (output.shape[1], output.shape[2])
    if tap.kind == "vector":
        if output.ndim < 2 or output.shape[2:].numel() != 1:
            raise InputError(f"layer {tap.name}: expected [batch, channels], got {list(output.shape)}")
        return output.flatten(1)[:, None], (1, 1)
    if output.ndim != 3:
        raise InputError(f"layer {tap.name}: expected [batch, tokens, channels], got {list(output.shape)}")
    tokens = output if tap.kind == "tokens" else output.transpose(0, 1)
    tokens = tokens[:, tap.prefix_tokens : tokens.shape[1] - tap.suffix_tokens]
    return tokens, _grid(tap, tokens.shape[1], size)


def _grid(tap: Tap, count: int, size: tuple[int, int]) -> tuple[int, int]:
    ratio = size[0] / size[1] if tap.stride is None else size[0] / tap.stride[0] / (size[1] / tap.stride[1])
    grid = grid_of(count, ratio)
    if grid is None:
        what = "square grid" if ratio == 1 else f"grid of {size[0]} × {size[1]} pixels"
        raise InputError(f"layer {tap.name}: {count} patch tokens are no {what}")
    return grid


def grid_of(count: int, ratio: float) -> tuple[int, int] | None:
    """Height and width of so many locations whose height is about `ratio` times their width; None for no such grid."""
    if count < 1:
        return None
    height = round((count * ratio) ** 0.5)
    near = sorted(range(max(1, height - 1), height + 2), key=lambda side: abs(side - (count * ratio) ** 0.5))
    for side in near:
        if count % side == 0 and abs(side - count // side * ratio) < max(1.0, ratio):
            return side, count // side
    return None
