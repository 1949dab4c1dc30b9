"""The backbones that can be named, and how each gets its weights.

A `BackboneSpec` says how a module is built, which layers it has and which are explained by default, and how pixels are
scaled. Weights come from the library's hub, from a file, from the asset cache, or at random (then named so everywhere).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import nn

from devil_pipe.stages.common.assets import asset
from devil_pipe.stages.extract import dinov2, sources
from devil_pipe.stages.extract.config import Size
from devil_pipe.stages.extract.finding import find
from devil_pipe.stages.extract.pictures import Transform, sides
from devil_pipe.stages.extract.sources import IMAGENET, OPENAI, Found, open_clip_build, timm_build
from devil_pipe.stages.extract.taps import Tap
from devil_pipe.stages.extract.vectors import EMBEDDING, pooled, vectors
from devil_pipe.stages.extract.weights import load_file, randomise, state_digest
from devil_pipe.store.errors import InputError, UsageError

__all__ = ["IMAGENET", "LITE", "OPENAI", "SPECS", "Backbone", "BackboneSpec", "Tap", "load", "spec", "state_digest"]

LITE = ((127 / 255,) * 3, (128 / 255,) * 3)
Result = TypeVar("Result")
Known = Literal["imagenet", "clip", "none"]


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone by name: how it is built, its taps, its pixel scaling, its self-test."""

    name: str
    build: Callable[[bool, str], nn.Module]
    """(pretrained, device) → the module; device "meta" builds shapes without numbers."""

    taps: tuple[Tap, ...]
    default: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test: Known
    """What is known of its answers: ImageNet's classes, captions of pictures, or nothing."""

    asset_weights: str | None = None
    """The asset whose one checkpoint `auto` takes, its tensors in the module's order."""

    size: Size = 224
    """The pictures that it was trained on, in pixels."""

    interpolation: str = "bicubic"
    origin: Literal["preset", "timm", "open_clip", "function"] = "preset"
    pretrained: str = "preset"
    """The library's tag of the weights that `auto` takes; "" where none are published."""

    tokenizer: str = ""
    """open_clip's name of the text tower's tokenizer; "" for OpenAI's."""

    quick_gelu: bool = True
    """Of CLIP: whether its weights were trained with QuickGELU."""

    def transform(self, size: Size | None = None) -> Transform:
        """How pictures become this backbone's pixels; no size takes its own."""
        return Transform(self.size if size is None else size, self.mean, self.std, self.interpolation)


@dataclass(frozen=True)
class Backbone:
    """A built backbone with its weights: ready to be read, and named so that its features can be trusted."""

    spec: BackboneSpec
    module: nn.Module
    weights: str
    """SHA-256 over names and values of the weights, or `random:SEED`."""


# The paper counts convolutional and linear layers: the last block of a ResNet-50's four stages ends in 10, 22, 40, 49;
# its own labels for them are L11 (once), L21, L39 and L49. For a ResNet-101, which it does not label, the count stands.
_RN50 = ("L11", "L21", "L39", "L49")
_RN101 = ("L10", "L22", "L91", "L100")
_RESNET = (*(Tap(name, f"layer{stage}") for stage, name in enumerate(_RN50, 1)), pooled("fc"))
_RESNET101 = (
    *(Tap(f"layer{stage}", f"layer{stage}", alias=name) for stage, name in enumerate(_RN101, 1)),
    pooled("fc"),
)
_CLIP_RESNET = (*(Tap(name, f"visual.layer{stage}") for stage, name in enumerate(_RN50, 1)), EMBEDDING)
_LITE = (
    *(Tap(f"s{stride}", f"blocks.{block}") for stride, block in ((2, 0), (4, 1), (8, 2), (16, 4), (32, 6))),
    pooled("classifier"),
)


def _blocks(path: str) -> tuple[Tap, ...]:
    return tuple(
        Tap(f"block{number}", f"{path}.{number - 1}", "tokens", 1, alias=f"L{number}", norm="pre-norm")
        for number in range(1, 13)
    )


_QUARTERS = ("block3", "block6", "block9", "block12")

SPECS = {
    spec.name: spec
    for spec in (
        BackboneSpec(
            "effnet_lite0",
            timm_build("tf_efficientnet_lite0"),
            _LITE,
            ("s8", "s16", "s32"),
            *LITE,
            test="imagenet",
            asset_weights="efficientnet-lite0",
        ),
        BackboneSpec("in_rn50", timm_build("resnet50.tv_in1k"), _RESNET, _RN50[1:], *IMAGENET, test="imagenet"),
        BackboneSpec(
            "in_rn101",
            timm_build("resnet101.tv_in1k"),
            _RESNET101,
            tuple(tap.name for tap in _RESNET101 if tap.block),
            *IMAGENET,
            test="imagenet",
            interpolation="bilinear",
        ),
        BackboneSpec("clip_rn50", open_clip_build("RN50-quickgelu"), _CLIP_RESNET, _RN50[1:], *OPENAI, test="clip"),
        BackboneSpec(
            "clip_vit_b32",
            open_clip_build("ViT-B-32-quickgelu"),
            (*_blocks("visual.transformer.resblocks"), EMBEDDING),
            _QUARTERS,
            *OPENAI,
            test="clip",
        ),
        BackboneSpec("dinov2_s14_saliency", dinov2.build, _blocks("encoder.layer"), _QUARTERS, *IMAGENET, test="none"),
    )
}


def spec(name: str) -> BackboneSpec:
    """The backbone of that name: a preset, `timm/NAME`, `open_clip/NAME:TAG`, or `package.module:function`.

    Raises:
        UsageError: nobody knows it; says which names are near.
        InputError: a function that does not work, or a backbone without layers that can be read.
    """
    if name in SPECS:
        return SPECS[name]
    origin, _, rest = name.partition("/")
    if origin in ("timm", "open_clip") and rest:
        return _from_library(name)
    if ":" in name and name.partition(":")[0].replace(".", "").isidentifier():
        return _with_layers(name, sources.from_function(name), "function")
    near = sources.suggestions(name)
    raise UsageError(
        f"backbone: expected one of {', '.join(SPECS)}, or timm/NAME, open_clip/NAME:TAG, package.module:function, "
        f"got {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")
    )


@lru_cache(maxsize=16)
def _from_library(name: str) -> BackboneSpec:
    origin, _, rest = name.partition("/")
    if origin == "timm":
        return _with_layers(name, sources.from_timm(rest), "timm")
    return _with_layers(name, sources.from_open_clip(rest), "open_clip")


def _with_layers(name: str, found: Found, origin: Literal["timm", "open_clip", "function"]) -> BackboneSpec:
    """Look for the layers by a trial forward, on the meta device where that works."""
    known: Known = "clip" if origin == "open_clip" else "imagenet" if found.classes == 1000 else "none"
    built = BackboneSpec(
        name,
        found.build,
        taps=(),
        default=(),
        mean=found.pixels.mean,
        std=found.pixels.std,
        test=known,
        size=found.pixels.image_size,
        interpolation=found.pixels.interpolation,
        origin=origin,
        pretrained=found.pretrained,
        tokenizer=found.tokenizer,
        quick_gelu=found.quick_gelu,
    )
    size = sides(built.size)
    try:
        taps = without_weights(built, lambda module: (*find(module, size), *vectors(module, size)))
    except InputError as error:
        raise InputError(f"backbone {name}: {error}") from error
    return replace(built, taps=taps, default=usual(taps))


def usual(taps: tuple[Tap, ...]) -> tuple[str, ...]:
    """The last block of every stage; where the grid never changes, the blocks at the quarters."""
    stages = tuple(tap.name for tap in taps if tap.alias.startswith("stage"))
    blocks = [tap.name for tap in taps if tap.block]
    quarters = {round(len(blocks) * part / 4) for part in range(1, 5)} - {0}
    return stages or tuple(blocks[number - 1] for number in sorted(quarters))


def without_weights(found: BackboneSpec, work: Callable[[nn.Module], Result]) -> Result:
    """Do something with a module of the right shapes: without numbers where it can be, else with random ones.

    Raises:
        InputError: it works with neither; says what was raised. What `work` says itself is passed on.
    """
    try:
        with sources.silently():
            module = found.build(False, "meta").eval()
    except Exception:  # the CPU says whether it is the meta device's fault or the module's
        module = None
    if module is not None:
        try:
            return work(module)
        except InputError:
            raise
        except Exception:  # idem
            module = None
    try:
        return work(_seeded(found, False, 0).eval())
    except InputError:
        raise
    except Exception as error:
        height, width = sides(found.size)
        told = sources.told(error)
        raise InputError(f"a picture of {height} × {width} pixels does not go through it: {told}") from error


def _seeded(found: BackboneSpec, pretrained: bool, seed: int) -> nn.Module:
    """A module on the CPU; what it draws at random follows the seed, and the caller's random numbers go on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return found.build(pretrained, "cpu")


def load(name: str, weights: str = "auto", seed: int = 0) -> Backbone:
    """Build a backbone with its weights, frozen and in eval mode.

    Args:
        name: as in `spec`.
        weights: "auto" (the asset cache, the hub, or the function's own), "random", or a path to a safetensors or
            weights-only file.
        seed: of random weights.

    Raises:
        UsageError: unknown backbone.
        InputError: weights that cannot be had, read or fitted.
    """
    found = spec(name)
    if weights == "random":
        module = _seeded(found, False, seed)
        if found.origin == "function":  # which may have loaded weights
            randomise(module, seed)
        digest = f"random:{seed}"
    elif weights == "auto" and found.asset_weights is None:
        module = _published(found, seed)
        digest = state_digest(module)
    else:
        module = found.build(False, "cpu")
        path = Path(weights)
        if weights == "auto":
            assert found.asset_weights is not None
            path = next(asset(found.asset_weights).rglob("*.pth"))
        elif found.origin == "timm":  # a thousand classes of one's own may be others than ImageNet's
            found = replace(found, test="none")
        load_file(module, path, by_order=found.asset_weights is not None)
        digest = state_digest(module)
    module.eval().requires_grad_(False)
    return Backbone(found, module, digest)


def _published(found: BackboneSpec, seed: int) -> nn.Module:
    if not found.pretrained:
        raise InputError(
            f"weights of {found.name}: none are published under this name; add a tag, or pass a local file with "
            "--weights FILE, or --weights random to try the pipeline"
        )
    try:
        return _seeded(found, True, seed)
    except InputError:
        raise
    except Exception as error:
        # Hub clients fail in many ways without a network (HTTP, DNS, offline flag); the remedy is one and the same.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"weights of {found.name}: cannot be fetched from the model hub ({reason[:120]}); "
            "pass a local file with --weights FILE, or --weights random to try the pipeline"
        ) from error
