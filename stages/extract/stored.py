"""The backbone that a store's features were made with, once more."""

from __future__ import annotations

from devil_pipe.stages.extract.backbones import Backbone, load
from devil_pipe.store.errors import InputError
from devil_pipe.store.schema import Identity


def load_stored(identity: Identity, weights: str = "auto", option: str = "--weights") -> Backbone:
    """Build a store's backbone and check that its weights are the store's, by their digest.

    Random weights are drawn anew with the store's own seed.

    Args:
        identity: of the store, or of the store that a translator was trained on.
        weights: as in `load`, without a seed: "auto", "random" or a file.
        option: what the user names a file of weights with.

    Raises:
        UsageError: unknown backbone.
        InputError: weights that cannot be had, or others than the store's (both are named).
    """
    kind, _, seed = identity.weights.partition(":")
    if kind == "random" and weights in ("auto", "random"):
        return load(identity.backbone, "random", int(seed))
    backbone = load(identity.backbone, weights)
    check_weights(identity, backbone.weights, f"name their file with {option}")
    return backbone


def check_weights(identity: Identity, found: str, remedy: str) -> None:
    """Raise InputError, which names both, unless the weights are those that the features were made with."""
    if found != identity.weights:
        raise InputError(
            f"backbone {identity.backbone}: expected the weights that the features were made with, "
            f"{identity.weights}, got {found}; {remedy}"
        )
