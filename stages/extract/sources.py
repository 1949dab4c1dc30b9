"""Where backbones come from: timm, open_clip, and a function of one's own that returns a module."""

from __future__ import annotations

import importlib
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import nn

from devil_pipe.stages.extract.config import Size
from devil_pipe.stages.extract.pictures import INTERPOLATIONS
from devil_pipe.store.errors import InputError, UsageError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

Build = Callable[[bool, str], nn.Module]
"""(pretrained, device) → the module; device "meta" builds shapes without numbers."""


class Pixels(BaseModel):
    """What a backbone expects of its pictures; a function of one's own may return these beside its module."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]
    image_size: Size = Field(224, description="pixels, or height and width")
    interpolation: str = "bicubic"

    @field_validator("interpolation")
    @classmethod
    def _known(cls, text: str) -> str:
        if text not in INTERPOLATIONS:
            raise ValueError(f"expected one of {', '.join(INTERPOLATIONS)}, got {text!r}")
        return text


@contextmanager
def without_remarks() -> Iterator[None]:
    """open_clip warns whenever it builds without weights, and logs what it raises; both are said by us."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def timm_build(architecture: str, *, any_size: bool = False) -> Build:
    """A timm model; with `any_size`, transformers that can do so take pictures of other sizes than their own."""

    def build(pretrained: bool, device: str) -> nn.Module:
        import timm

        def create(**options: bool) -> nn.Module:
            with torch.device(device):
                return timm.create_model(architecture, pretrained=pretrained, **options)  # type: ignore[no-any-return]

        if any_size:
            try:
                return create(dynamic_img_size=True)
            except TypeError:  # a keyword that this architecture does not have
                pass
        return create()

    return build


def open_clip_build(architecture: str, tag: str | None = "openai", *, quick_gelu: bool = False) -> Build:
    """An open_clip model, both towers."""

    def build(pretrained: bool, device: str) -> nn.Module:
        import open_clip

        with torch.device(device), without_remarks():
            return open_clip.create_model(  # type: ignore[no-any-return]
                architecture,
                pretrained=tag if pretrained else None,
                device=device,
                force_quick_gelu=quick_gelu,
                pretrained_text=False,  # a text tower's own weights are of no use without the image tower's
            )

    return build


@dataclass(frozen=True)
class Found:
    """A backbone that a library or a function knows, before its layers are looked for."""

    build: Build
    pixels: Pixels
    pretrained: str
    """Which weights `auto` takes; "" for none that are published."""

    classes: int = 0
    tokenizer: str = ""
    quick_gelu: bool = False


def from_timm(name: str) -> Found:
    """A timm model, `NAME` or `NAME.TAG`. Raises UsageError with names that are near."""
    import timm
    from timm.data import resolve_data_config

    base, _, tag = name.partition(".")
    if not timm.is_model(name):
        raise UsageError(f"backbone: timm has no model {base!r}{_near(base, timm.list_models(), 'timm/')}")
    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = [full.removeprefix(f"{base}.") for full in timm.list_pretrained(f"{base}.*")]
        raise UsageError(
            f"backbone: timm's {base} has no pretrained tag {tag!r}; "
            f"it has {', '.join(tags) or 'none: leave the tag away, with --weights FILE or random'}"
        ) from None
    given = found.to_dict() if found is not None else {}
    said = resolve_data_config({}, pretrained_cfg=given)
    height, width = said["input_size"][1:]
    way = said["interpolation"] if said["interpolation"] in INTERPOLATIONS else "bilinear"
    pixels = Pixels(mean=said["mean"], std=said["std"], image_size=_short(height, width), interpolation=way)
    published = timm.is_model_pretrained(name)
    classes = int(given.get("num_classes") or 0)
    return Found(timm_build(name, any_size=True), pixels, (found.tag or "timm") if published else "", classes)


def from_open_clip(name: str) -> Found:
    """An open_clip model, `NAME:TAG`, or `NAME` for weights of one's own. Raises UsageError with what there is."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    architecture, _, tag = name.partition(":")
    known = [item for item in open_clip.list_models() if ":" not in item]
    if architecture not in known:
        raise UsageError(f"backbone: open_clip has no model {architecture!r}{_near(architecture, known, 'open_clip/')}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag and tag not in tags:
        near = get_close_matches(tag, tags, 3)
        raise UsageError(
            f"backbone: open_clip's {architecture} has no pretrained tag {tag!r}"
            + (f"; did you mean {' or '.join(near)}? It has " if near else "; it has ")
            + (", ".join(tags) or "none: leave the tag away, with --weights FILE or random")
        )
    said = (get_pretrained_cfg(architecture, tag) if tag else None) or {}
    config = open_clip.get_model_config(architecture) or {}
    quick = bool(said.get("quick_gelu") or config.get("quick_gelu"))
    size = config["vision_cfg"].get("image_size", 224)
    pixels = Pixels(
        mean=said.get("mean", OPENAI[0]),
        std=said.get("std", OPENAI[1]),
        image_size=size if isinstance(size, int) else _short(*size),
        interpolation=said.get("interpolation", "bicubic"),
    )
    build = open_clip_build(architecture, tag or None, quick_gelu=quick)
    return Found(build, pixels, tag, tokenizer=architecture, quick_gelu=quick)


def from_function(name: str) -> Found:
    """One's own module: `package.module:function`, called without arguments.

    The function returns an `nn.Module`, or a pair of one and a mapping with any of the keys of `Pixels`.

    Raises:
        UsageError: no such module or function.
        InputError: the function raises, or returns something else.
    """
    function = _function(name)

    def call(device: str) -> tuple[nn.Module, Pixels]:
        try:
            with torch.device(device):
                returned = function()
        except Exception as error:
            raise InputError(f"backbone {name}: the function raised {told(error)}") from error
        return _checked(name, returned)

    def build(pretrained: bool, device: str) -> nn.Module:  # noqa: ARG001 - it knows one way alone
        return call(device)[0]

    try:
        with silently():
            _, pixels = call("meta")
    except InputError:  # it may need numbers, which the meta device has none of
        _, pixels = call("cpu")
    return Found(build, pixels, "the function's own")


@contextmanager
def silently() -> Iterator[None]:
    """Without warnings: on the meta device every copied weight is a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _function(name: str) -> Callable[[], Any]:
    path, _, attribute = name.partition(":")
    if not path or not attribute.isidentifier():
        raise UsageError(f"backbone: expected package.module:function, got {name!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and (path == error.name or path.startswith(f"{error.name}.")):
            raise UsageError(
                f"backbone {name}: no module {error.name!r}, neither in {here} nor installed; "
                "expected package.module:function"
            ) from None
        raise InputError(f"backbone {name}: importing {path} raised {told(error)}") from error
    except Exception as error:
        raise InputError(f"backbone {name}: importing {path} raised {told(error)}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"backbone {name}: {path} has no function {attribute!r}{_near(attribute, own, f'{path}:')}")
    return function  # type: ignore[no-any-return]


def _checked(name: str, returned: Any) -> tuple[nn.Module, Pixels]:
    module, settings = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, {})
    if not isinstance(module, nn.Module):
        raise InputError(
            f"backbone {name}: expected the function to return a torch.nn.Module, or one and a dictionary of settings; "
            f"got {type(returned).__name__}"
        )
    try:
        return module, Pixels.model_validate(settings)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'all'}: {item['msg']}" for item in error.errors())
        raise InputError(
            f"backbone {name}: expected settings with the keys {', '.join(Pixels.model_fields)}: {wrong}"
        ) from None


def told(error: Exception) -> str:
    """An error of somebody else's code: its kind, its first line, and where it was raised."""
    lines = str(error).strip().splitlines()
    places = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'without a message'}{where}"


def _near(name: str, known: list[str], prefix: str) -> str:
    lower = {item.lower(): item for item in known}
    near = [lower[item] for item in get_close_matches(name.lower(), lower, 4, 0.5)]
    near = [item for item in near if item != name]
    return f"; did you mean {' or '.join(prefix + item for item in near)}?" if near else ""


def suggestions(name: str) -> list[str]:
    """Backbones of the libraries whose names are near to one that nobody knows."""
    import open_clip
    import timm

    base, _, tag = name.partition(":")
    pairs = open_clip.list_pretrained()
    clip = [f"{model}:{given}" for model, given in pairs if model.lower() == base.lower() and tag in ("", given)]
    own = timm.is_model(name) and [name]
    found = [f"timm/{item}" for item in own or get_close_matches(name, timm.list_models(), 2, 0.7)]
    return (found + [f"open_clip/{item}" for item in clip])[:4]


def _short(height: int, width: int) -> Size:
    return height if height == width else (height, width)
