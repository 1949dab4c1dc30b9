"""What an explainer is put together from: the backbone of a card, its pixels, the translator that comes along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from devil_pipe.stages.common.progress import warn
from devil_pipe.stages.extract.backbones import SPECS, Backbone, spec, state_digest
from devil_pipe.stages.extract.finding import find
from devil_pipe.stages.extract.layers import layer_specs
from devil_pipe.stages.extract.pictures import INTERPOLATIONS, Transform, sides
from devil_pipe.stages.extract.stored import check_weights, load_stored
from devil_pipe.stages.extract.taps import Tap
from devil_pipe.stages.extract.vectors import vectors
from devil_pipe.stages.extract.worker import pick_device
from devil_pipe.stages.train.checkpoint import Card
from devil_pipe.stages.train.language_model import LanguageModel, pick_precision
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.schema import Identity

DEMO = Path(__file__).parent / "demo"
"""The translator that comes with the package."""


def demo_folder() -> Path:
    """The folder of the translator that comes with the package. Raises InputError where it is not there."""
    if not (DEMO / "config.json").is_file():
        raise InputError(
            "no translator is named, and the one for a start did not come with this installation "
            "(stages/explain/demo/): name one with --translator (an exported folder, or owner/name on the hub) or "
            "--run (of this project); `make demo` trains one"
        )
    return DEMO


def open_backbone(store: Identity, weights: str, trusted: str) -> Backbone:
    """The backbone whose features a translator reads.

    Args:
        store: of the translator's card.
        weights: "auto", "random" or a file; "auto" draws random weights anew where the translator was trained on such.
        trusted: a function of one's own that may be called; a translator from elsewhere calls none by itself.

    Raises:
        UsageError: unknown backbone, or one that is a function nobody named here.
        InputError: weights that cannot be had, or others than the translator was trained on.
    """
    function = "/" not in store.backbone.partition(":")[0] and ":" in store.backbone
    if function and trusted != store.backbone:
        raise UsageError(
            f"the translator's backbone is the function {store.backbone}, which would be imported and called here; "
            f"if you trust it, say so with --backbone {store.backbone}"
        )
    backbone = load_stored(store, weights)
    if backbone.weights.startswith("random:"):
        warn(f"{store.backbone} has random weights: its features mean nothing, and neither do their descriptions")
    return backbone


def check_live(module: nn.Module, store: Identity) -> None:
    """Check that a live module has the weights that a translator was trained on. Raises InputError naming both."""
    if store.weights.startswith("random:"):
        warn("the translator was trained on random weights, of which no digest is kept: they are taken as they are")
        return
    check_weights(store, state_digest(module), "load them into the module first")


def taps_of(module: nn.Module, store: Identity) -> tuple[Tap, ...]:
    """Where a card's layers are read in a module that is at hand, in the card's order.

    Raises:
        InputError: a layer that the module does not have.
    """
    size = transform_of(store).size
    known = spec(store.backbone).taps if store.backbone in SPECS else None
    with resting(module):
        found = known or (*find(module, sides(size)), *vectors(module, sides(size)))
    return chosen_taps(found, store)


def chosen_taps(taps: Sequence[Tap], store: Identity) -> tuple[Tap, ...]:
    """The taps of a card's layers, in its order. Raises InputError for a layer without one."""
    named = {tap.name: tap for tap in taps}
    if missing := [layer.name for layer in store.layers if layer.name not in named]:
        raise InputError(
            f"expected a module with the layers that the translator reads, found none called {missing[0]!r}; "
            f"it has {', '.join(named)}; name where they are read with taps=[Tap(NAME, MODULE), …]"
        )
    return tuple(named[layer.name] for layer in store.layers)


def check_layers(module: nn.Module, taps: Sequence[Tap], store: Identity) -> None:
    """Run a black picture through a module. Raises InputError where its layers have other shapes than the card's."""
    with resting(module):
        found = layer_specs(module, taps, transform_of(store).size)
    if found != store.layers:
        differ = [(old, new) for old, new in zip(store.layers, found, strict=True) if old != new]
        told = "; ".join(
            f"{old.name} of {old.channels} × {old.height} × {old.width}, "
            f"got {new.channels} × {new.height} × {new.width}"
            for old, new in differ
        )
        raise InputError(f"backbone {store.backbone}: expected layers of the translator's shapes: {told}")


@contextmanager
def resting(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, and every part of it back into its own afterwards: it may be in training."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def transform_of(store: Identity) -> Transform:
    """How pictures became the pixels that a store's features were made from. Raises InputError for an unknown way."""
    said = dict(store.transform)
    try:
        height, width = said.pop("resize")
        made = Transform(
            (int(height), int(width)), tuple(said.pop("mean")), tuple(said.pop("std")), said.pop("interpolation")
        )
        known = {"orientation": "exif", "transparency": "white"}
        strange = {key: value for key, value in said.items() if known.get(key) != value}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the translator's features: expected how their pictures were resized and scaled, got {store.transform}"
        ) from error
    if strange or made.interpolation not in INTERPOLATIONS:
        raise InputError(f"the translator's features: this version does not know how to make {store.transform}")
    return made


def language_model_of(card: Card, given: str | LanguageModel | None, device: str, precision: str) -> LanguageModel:
    """The language model that a card names, or another one that is named or given in its place.

    Raises:
        InputError: it cannot be had, or is given and reads prefixes otherwise than the translator was trained.
        UsageError: unknown precision.
    """
    if isinstance(given, LanguageModel):
        if given.repeats != card.prefix_repeats:
            raise InputError(
                f"language model {given.name}: expected one that reads the prefix {card.prefix_repeats} times, as the "
                f"translator was trained, got repeats={given.repeats}"
            )
        return given
    if precision not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"precision: expected auto, float32 or bfloat16, got {precision!r}")
    where = pick_device(device)
    dtype = pick_precision(precision, where)
    return LanguageModel(given or card.language_model, device=where, dtype=dtype, repeats=card.prefix_repeats)
