"""Reading feature maps out of a backbone, and finding their shapes by a trial forward."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from devil_pipe.stages.extract.backbones import BackboneSpec, Tap
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.schema import LayerSpec


def choose(spec: BackboneSpec, names: Sequence[str]) -> tuple[Tap, ...]:
    """The taps of the named layers, in the backbone's order; no names take its usual layers.

    Raises:
        UsageError: an unknown layer, or one named twice.
    """
    wanted = tuple(names) or spec.default
    known = [tap.name for tap in spec.taps]
    for name in wanted:
        if name not in known:
            raise UsageError(f"layers: {spec.name} has {', '.join(known)}, got {name!r}")
        if wanted.count(name) > 1:
            raise UsageError(f"layers: {name!r} is named twice")
    return tuple(tap for tap in spec.taps if tap.name in wanted)


class _Found(threading.local):
    """What the hooks saw in this thread's forward pass."""

    def __init__(self) -> None:
        self.maps: dict[str, Tensor] = {}


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
        def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._found.maps[tap.name] = output

        return self.module.get_submodule(tap.module).register_forward_hook(keep)

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
            InputError: a layer whose output is no map and no square of patch tokens.
        """
        self._found.maps.clear()
        visual = getattr(self.module, "visual", self.module)  # CLIP's text tower has no part in this
        visual(pixels)
        return {tap.name: self._flatten(tap, self._found.maps[tap.name]) for tap in self.taps}

    def _flatten(self, tap: Tap, output: Tensor) -> Tensor:
        if tap.kind == "map":
            if output.ndim != 4:
                raise InputError(
                    f"layer {tap.name}: expected [batch, channels, height, width], got {list(output.shape)}"
                )
            self.grids[tap.name] = (output.shape[2], output.shape[3])
            return output.flatten(2).transpose(1, 2)
        tokens = output[:, tap.prefix_tokens :]
        side = math.isqrt(tokens.shape[1])
        if side * side != tokens.shape[1]:
            raise InputError(f"layer {tap.name}: {tokens.shape[1]} patch tokens are no square grid")
        self.grids[tap.name] = (side, side)
        return tokens


def layer_specs(module: nn.Module, taps: Sequence[Tap], image_size: int) -> tuple[LayerSpec, ...]:
    """Channels and grid of each layer, from a trial forward of one black picture.

    Raises:
        InputError: the backbone takes no pictures of that size.
    """
    place = next(module.parameters()).device
    with Taps(module, taps) as read, torch.no_grad():
        try:
            maps = read(torch.zeros(1, 3, image_size, image_size, device=place))
        except (RuntimeError, AssertionError) as error:  # CLIP's position embeddings fit one size alone
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"image_size: the backbone takes no pictures of {image_size} pixels: {reason}") from error
        return tuple(
            LayerSpec(
                name=tap.name,
                channels=maps[tap.name].shape[2],
                height=read.grids[tap.name][0],
                width=read.grids[tap.name][1],
            )
            for tap in taps
        )


def planned_layers(spec: BackboneSpec, names: Sequence[str], image_size: int = 224) -> tuple[LayerSpec, ...]:
    """The layers' shapes without any weights: the trial forward runs on PyTorch's meta device."""
    module = spec.build(False, "meta").eval()
    return layer_specs(module, choose(spec, names), image_size)
