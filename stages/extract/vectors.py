"""Vectors that a backbone pools from the whole picture: CLIP's embedding, and what a classifier of timm reads.

They are layers of one location. No rule and no default takes them: their names do.
"""

from __future__ import annotations

import torch
from torch import nn

from devil_pipe.stages.extract.taps import Tap, Taps, trunk
from devil_pipe.store.errors import InputError

EMBEDDING = Tap("embedding", "visual", "vector", block=False)
"""CLIP's image embedding as `encode_image` returns it: after its projection, before any normalisation."""


def pooled(classifier: str) -> Tap:
    """What goes into a classifier of that path: timm's `forward_head(..., pre_logits=True)`."""
    return Tap("pooled", classifier, "vector", block=False, before=True)


def vectors(module: nn.Module, size: tuple[int, int]) -> tuple[Tap, ...]:
    """The pooled vector of a backbone, if it has one that can be read.

    Args:
        module: in eval mode, on any device; the meta device computes nothing and needs no memory.
        size: height and width of the trial picture.
    """
    tap = _candidate(module)
    if tap is None:
        return ()
    device = next((item.device for item in module.parameters()), torch.device("cpu"))
    try:
        with Taps(module, [tap]) as read, torch.no_grad():
            read(torch.zeros(2, 3, *size, device=device))
    except InputError:  # the classifier is not called, or reads a map
        return ()
    return (tap,)


def _candidate(module: nn.Module) -> Tap | None:
    if trunk(module) is not module:
        return EMBEDDING
    if not (hasattr(module, "forward_head") and hasattr(module, "get_classifier")):
        return None
    classifier = module.get_classifier()  # type: ignore[operator] # a method of timm's models
    path = next((path for path, item in module.named_modules() if path and item is classifier), None)
    return None if path is None else pooled(path)
