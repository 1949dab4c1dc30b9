"""Choosing layers of a backbone by name or by rule, and finding their shapes by a trial forward."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

import torch
from torch import nn

from devil_pipe.stages.extract.backbones import BackboneSpec, without_weights
from devil_pipe.stages.extract.config import Size
from devil_pipe.stages.extract.pictures import sides
from devil_pipe.stages.extract.taps import Tap, Taps
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.schema import LayerSpec

__all__ = ["RULES", "Tap", "Taps", "choose", "layer_specs", "planned_layers"]

RULES = ("last-of-every-stage", "all", "last:N", "every:N")
_COUNTED = re.compile(r"(last|every):(.*)")


def choose(spec: BackboneSpec, names: Sequence[str]) -> tuple[Tap, ...]:
    """The taps of the chosen layers, in the backbone's order; no names take its usual layers.

    Each name is that of a layer, its alias, the path of the module that puts it out, or a rule: `last-of-every-stage`,
    `all` (every block), `last:N` (the last N blocks), `every:N` (every N-th block, the last one among them).

    Raises:
        UsageError: an unknown layer, one named twice, or a rule that chooses none.
    """
    chosen: list[str] = []
    for name in tuple(names) or spec.default:
        for found in _meant(spec, name):
            if found in chosen and _rule(spec, name) is None:
                again = "" if found == name else f" (it is {name!r})"
                raise UsageError(f"layers: {found!r} is named twice{again}")
            chosen.append(found)
    return tuple(tap for tap in spec.taps if tap.name in chosen)


def _meant(spec: BackboneSpec, name: str) -> list[str]:
    """The names of the layers that a name or rule stands for."""
    by_rule = _rule(spec, name)
    if by_rule is not None:
        return by_rule
    paths = [(path, tap) for tap in spec.taps if not tap.before for path in (*tap.also, tap.module)]
    for keys in (
        {tap.name: tap for tap in spec.taps},
        {tap.alias: tap for tap in spec.taps if tap.alias},
        dict(paths),
        {path.removeprefix("visual."): tap for path, tap in paths},
    ):
        if name in keys:
            return [keys[name].name]
    known = [tap.name for tap in spec.taps]
    near = get_close_matches(name, known + [tap.alias for tap in spec.taps], 3)
    listed = ", ".join(known) if len(known) <= 16 else f"{', '.join(known[:3])} … {', '.join(known[-3:])}"
    raise UsageError(
        f"layers: {spec.name} has {listed}, got {name!r}"
        + (f" (did you mean {' or '.join(near)}?)" if near else "")
        + f"; see `devil-pipe layers {spec.name}`; rules are {', '.join(RULES)}"
    )


def _rule(spec: BackboneSpec, name: str) -> list[str] | None:
    """The layers that a rule chooses; None for what is no rule."""
    blocks = [tap.name for tap in spec.taps if tap.block]
    if name == "all":
        return blocks
    if name == "last-of-every-stage":
        return [tap.name for tap in spec.taps if tap.alias.startswith("stage")] or _stages_of_preset(spec)
    counted = _COUNTED.fullmatch(name)
    if counted is None:
        return None
    if not counted[2].isdecimal() or not 1 <= int(counted[2]) <= len(blocks):
        raise UsageError(
            f"layers: expected {counted[1]}:N with N from 1 to {len(blocks)}, the blocks of {spec.name}, got {name!r}"
        )
    number = int(counted[2])
    return blocks[-number:] if counted[1] == "last" else blocks[::-1][::number][::-1]


def _stages_of_preset(spec: BackboneSpec) -> list[str]:
    """Presets of pyramids name the last block of each stage alone; in a transformer all blocks are one stage."""
    blocks = [tap.name for tap in spec.taps if tap.block]
    tokens = spec.taps[0].kind.startswith("tokens") or spec.taps[0].alias.startswith("block")
    return blocks[-1:] if tokens else blocks


def layer_specs(module: nn.Module, taps: Sequence[Tap], size: Size) -> tuple[LayerSpec, ...]:
    """Channels and grid of each layer, from a trial forward of one black picture.

    Raises:
        InputError: the backbone takes no pictures of that size.
    """
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    with Taps(module, taps) as read, torch.no_grad():
        try:
            maps = read(torch.zeros(1, 3, *sides(size), device=device))
        except (RuntimeError, AssertionError, ValueError) as error:  # position embeddings may fit one size alone
            lines = str(error).strip().splitlines() or [type(error).__name__]
            if isinstance(error, InputError) or (device.type == "meta" and _is_metas_fault(error)):
                raise
            told = f"{size}" if isinstance(size, int) else f"{size[0]} × {size[1]}"
            raise InputError(f"image_size: the backbone takes no pictures of {told} pixels: {lines[0]}") from error
        return tuple(
            LayerSpec(
                name=tap.name,
                channels=maps[tap.name].shape[2],
                height=read.grids[tap.name][0],
                width=read.grids[tap.name][1],
            )
            for tap in taps
        )


def _is_metas_fault(error: Exception) -> bool:
    return isinstance(error, NotImplementedError) or "meta" in str(error).lower()


def planned_layers(spec: BackboneSpec, names: Sequence[str], image_size: Size | None = None) -> tuple[LayerSpec, ...]:
    """The layers' shapes without any weights: the trial forward runs on PyTorch's meta device where it can.

    Args:
        spec: the backbone.
        names: as in `choose`.
        image_size: pixels of the pictures; None takes the backbone's own.
    """
    taps = choose(spec, names)
    return without_weights(spec, lambda module: layer_specs(module, taps, image_size or spec.size))
