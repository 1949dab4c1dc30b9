"""The backbones that can be named, and how each gets its weights.

A `BackboneSpec` says which library builds the module, which layers are explained by default, and how pixels are scaled.
Weights come from the library's hub, from a file, from the asset cache, or at random (then named so everywhere).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from devil_pipe.stages.common.assets import asset
from devil_pipe.store.errors import InputError, UsageError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
LITE = ((127 / 255,) * 3, (128 / 255,) * 3)


@dataclass(frozen=True)
class Tap:
    """Where a layer's feature map is read: the output of `module`, as a map or as a row of patch tokens."""

    name: str
    module: str
    kind: Literal["map", "tokens"] = "map"
    prefix_tokens: int = 0


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
    test: Literal["imagenet", "clip"]
    asset_weights: str | None = None


@dataclass(frozen=True)
class Backbone:
    """A built backbone with its weights: ready to be read, and named so that its features can be trusted."""

    spec: BackboneSpec
    module: nn.Module
    weights: str
    """SHA-256 over names and values of the weights, or `random:SEED`."""


@contextmanager
def _without_remarks() -> Iterator[None]:
    """open_clip warns whenever it builds without weights, and logs what it raises; both are said by us."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _timm(architecture: str) -> Callable[[bool, str], nn.Module]:
    def build(pretrained: bool, device: str) -> nn.Module:
        import timm

        with torch.device(device):
            return timm.create_model(architecture, pretrained=pretrained)  # type: ignore[no-any-return]

    return build


def _open_clip(architecture: str) -> Callable[[bool, str], nn.Module]:
    def build(pretrained: bool, device: str) -> nn.Module:
        import open_clip

        tag = "openai" if pretrained else None
        with torch.device(device), _without_remarks():
            return open_clip.create_model(architecture, pretrained=tag, device=device)  # type: ignore[no-any-return]

    return build


# The paper counts convolutional and linear layers: the last block of a ResNet-50's four stages ends in 10, 22, 40, 49;
# its own labels for them are L11 (once), L21, L39 and L49.
_RN50 = ("L11", "L21", "L39", "L49")
_RESNET = tuple(Tap(name, f"layer{stage}") for stage, name in enumerate(_RN50, 1))
_CLIP_RESNET = tuple(Tap(name, f"visual.layer{stage}") for stage, name in enumerate(_RN50, 1))
_CLIP_VIT = tuple(
    Tap(f"block{number}", f"visual.transformer.resblocks.{number - 1}", "tokens", 1) for number in range(1, 13)
)
_LITE = tuple(Tap(f"s{stride}", f"blocks.{block}") for stride, block in ((2, 0), (4, 1), (8, 2), (16, 4), (32, 6)))

SPECS = {
    spec.name: spec
    for spec in (
        BackboneSpec(
            "effnet_lite0",
            _timm("tf_efficientnet_lite0"),
            _LITE,
            ("s8", "s16", "s32"),
            *LITE,
            test="imagenet",
            asset_weights="efficientnet-lite0",
        ),
        BackboneSpec("in_rn50", _timm("resnet50.tv_in1k"), _RESNET, _RN50[1:], *IMAGENET, test="imagenet"),
        BackboneSpec("clip_rn50", _open_clip("RN50-quickgelu"), _CLIP_RESNET, _RN50[1:], *OPENAI, test="clip"),
        BackboneSpec(
            "clip_vit_b32",
            _open_clip("ViT-B-32-quickgelu"),
            _CLIP_VIT,
            ("block3", "block6", "block9", "block12"),
            *OPENAI,
            test="clip",
        ),
    )
}


def spec(name: str) -> BackboneSpec:
    """The backbone of that name. Raises UsageError with the names there are."""
    if name not in SPECS:
        raise UsageError(f"backbone: expected one of {', '.join(SPECS)}, got {name!r}")
    return SPECS[name]


def load(name: str, weights: str = "auto", seed: int = 0) -> Backbone:
    """Build a backbone with its weights, frozen and in eval mode.

    Args:
        name: one of `SPECS`.
        weights: "auto" (the asset cache or the hub), "random", or a path to a safetensors or weights-only file.
        seed: of random weights.

    Raises:
        UsageError: unknown backbone.
        InputError: weights that cannot be had, read or fitted.
    """
    found = spec(name)
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = found.build(False, "cpu")
        digest = f"random:{seed}"
    elif weights == "auto" and found.asset_weights is None:
        module = _from_hub(found)
        digest = state_digest(module)
    else:
        module = found.build(False, "cpu")
        path = Path(weights)
        if weights == "auto":
            assert found.asset_weights is not None
            path = next(asset(found.asset_weights).rglob("*.pth"))
        _load_file(module, path, by_order=found.asset_weights is not None)
        digest = state_digest(module)
    module.eval().requires_grad_(False)
    return Backbone(found, module, digest)


def _from_hub(found: BackboneSpec) -> nn.Module:
    try:
        return found.build(True, "cpu")
    except Exception as error:
        # Hub clients fail in many ways without a network (HTTP, DNS, offline flag); the remedy is one and the same.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"weights of {found.name}: cannot be fetched from the model hub ({reason[:120]}); "
            "pass a local file with --weights FILE, or --weights random to try the pipeline"
        ) from error


def _load_file(module: nn.Module, path: Path, *, by_order: bool) -> None:
    """Load a state dict, by name; where a published file names the same tensors otherwise, by order and shape."""
    state = _read_state(path)
    own = module.state_dict()
    if set(state) != set(own) and by_order:
        shapes = [tuple(value.shape) for value in state.values()]
        if shapes == [tuple(value.shape) for value in own.values()]:
            state = dict(zip(own, state.values(), strict=True))
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or extra:
        raise InputError(
            f"{path}: expected the {len(own)} tensors of this backbone; "
            f"missing {len(missing)} (such as {missing[:2]}), unknown {len(extra)} (such as {extra[:2]})"
        )
    wrong = [name for name in own if state[name].shape != own[name].shape]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{path}: tensor {name}: expected shape {tuple(own[name].shape)}, got {tuple(state[name].shape)}"
        )
    module.load_state_dict(state, strict=True)


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: expected a file of weights, found none; `auto` and `random` are also possible")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged or foreign file fails anywhere in the parser; the user needs the file's name and what would do.
        raise InputError(f"{path}: expected safetensors or a weights-only checkpoint: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: expected a mapping from names to tensors, got {type(state).__name__}")
    return state


def state_digest(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a module's tensors; the container they came in does not matter."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name}|{array.dtype}|{tuple(array.shape)}|".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
