"""The explained backbone, run on pictures now: as it was trained, or with parts of it drawn at random."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from devil_pipe.stages.audit.findings import Needs
from devil_pipe.stages.common.decoding import open_picture
from devil_pipe.stages.explain.opening import transform_of
from devil_pipe.stages.extract.backbones import load
from devil_pipe.stages.extract.layers import choose
from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.stages.extract.stored import load_stored
from devil_pipe.stages.extract.taps import Tap, Taps, trunk
from devil_pipe.store.errors import InputError
from devil_pipe.store.schema import Identity, LayerSpec


@dataclass(frozen=True)
class Stage:
    """A part of the backbone that is drawn at random together."""

    name: str
    modules: tuple[str, ...]
    """Paths of the modules whose own tensors are replaced."""


@dataclass(frozen=True)
class Explained:
    """A backbone with its weights, the modules that its layers are read at, and a twin that was never trained."""

    module: nn.Module
    taps: tuple[Tap, ...]
    layers: tuple[LayerSpec, ...]
    transform: Transform
    identity: Identity
    imagenet: bool
    """Whether it is a classifier of ImageNet's thousand classes."""

    def pixels(self, contents: Sequence[bytes]) -> Float[Tensor, "pictures 3 height width"]:
        """Encoded pictures in the backbone's scale."""
        return torch.stack([self.transform(open_picture(content)) for content in contents])

    def untrained(self, seed: int) -> nn.Module:
        """The same architecture as its library begins with it, drawn with this seed."""
        return load(self.identity.backbone, "random", seed).module

    def maps(
        self, pixels: Float[Tensor, "pictures 3 height width"], module: nn.Module | None = None
    ) -> dict[str, Float[Tensor, "pictures _ _ _"]]:
        """The feature map [pictures, height, width, channels] of each layer; of another module where one is given."""
        run = self.module if module is None else module
        device = next((value.device for value in run.parameters()), torch.device("cpu"))
        parts: list[Mapping[str, Tensor]] = []
        with torch.inference_mode(), Taps(run, self.taps) as taps:
            for part in torch.split(pixels, 16):
                found = taps(part.to(device))
                parts.append({name: value.float().cpu() for name, value in found.items()})
            grids = dict(taps.grids)
        return {
            layer.name: torch.cat([part[layer.name] for part in parts]).reshape(len(pixels), *grids[layer.name], -1)
            for layer in self.layers
        }

    def stages(self, least: int = 4) -> tuple[Stage, ...]:
        """The parts between the explained layers, the topmost first; large ones are halved until there are `least`.

        What comes after the last explained layer is no part of any: the explanation does not read it.
        """
        order, ends = _order(self.module, self.taps, self.transform)
        names = sorted(ends, key=lambda name: ends[name])
        owned = [name for name in order if _tensors(self.module, name)]
        groups: list[tuple[str, list[str]]] = []
        begin = -1
        for name in names:
            inside = [path for path in owned if begin <= order[path] < ends[name]]
            if inside:
                groups.append((name, inside))
            begin = ends[name]
        while groups and len(groups) < least and max(len(inside) for _, inside in groups) > 1:
            place = max(range(len(groups)), key=lambda number: len(groups[number][1]))
            name, inside = groups[place]
            half = len(inside) // 2
            groups[place : place + 1] = [(f"{name}, lower half", inside[:half]), (f"{name}, upper half", inside[half:])]
        return tuple(Stage(name, tuple(inside)) for name, inside in reversed(groups))


def randomised(module: nn.Module, untrained: nn.Module, stages: Sequence[Stage]) -> nn.Module:
    """A copy of a module in which the tensors of some stages are those of its untrained twin."""
    made = copy.deepcopy(module)
    with torch.no_grad():
        for path in (path for stage in stages for path in stage.modules):
            drawn = _tensors(untrained, path)
            for name, value in _tensors(made, path).items():
                value.copy_(drawn[name])
    return made


def open_backbone(identity: Identity, weights: str, device: torch.device) -> Explained:
    """The backbone of a store. Raises Needs where it cannot be had, or was never trained."""
    if identity.weights.startswith("random:"):
        raise Needs(f"a trained backbone: this store's features come from random weights ({identity.weights})")
    try:
        backbone, transform = load_stored(identity, weights), transform_of(identity)
    except InputError as error:
        raise Needs(f"the backbone {identity.backbone} with the store's weights: {error}") from None
    taps = choose(backbone.spec, [layer.name for layer in identity.layers])
    return Explained(
        backbone.module.to(device), taps, identity.layers, transform, identity, backbone.spec.test == "imagenet"
    )


def _tensors(module: nn.Module, path: str) -> dict[str, Tensor]:
    """A module's own parameters and buffers, those of its parts left out."""
    part = module.get_submodule(path)
    own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
    return {name: value for name, value in own if value.is_floating_point()}


def _order(module: nn.Module, taps: Sequence[Tap], transform: Transform) -> tuple[dict[str, int], dict[str, int]]:
    """When each module is first called in a forward pass, and when each layer is read; both count the same events.

    A part that its parent computes with and never calls, as attention's output projection, counts as its parent.
    """
    calls: dict[str, int] = {}
    ends: dict[str, int] = {}
    count = 0

    def began(path: str) -> Any:
        def note(*_given: Any) -> None:
            nonlocal count
            count += 1
            calls.setdefault(path, count)

        return note

    def read(tap: Tap) -> Any:
        def note(*_given: Any) -> None:
            nonlocal count
            count += 1
            ends[tap.name] = count

        return note

    handles = [part.register_forward_pre_hook(began(path)) for path, part in module.named_modules()]
    for tap in taps:
        part = module.get_submodule(tap.module)
        hook = part.register_forward_pre_hook if tap.before else part.register_forward_hook
        handles.append(hook(read(tap)))
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    height, width = transform.describe()["resize"]
    try:
        with torch.inference_mode():
            trunk(module)(torch.zeros(1, 3, height, width, device=device))
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, int] = {}
    for path, _ in module.named_modules():
        parts = path.split(".") if path else []
        parents = [".".join(parts[:length]) for length in range(len(parts), -1, -1)]
        called = next((parent for parent in parents if parent in calls), None)
        if called is not None:
            found[path] = calls[called]
    return found, ends
