"""The translator: the only part that learns. Features of some layers in, prefix tokens out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from devil_pipe.stages.train import clipcap
from devil_pipe.stages.train.config import (
    ClipCapConfig,
    ClipCapTransformerConfig,
    TranslatorConfig,
)
from devil_pipe.store.errors import UsageError
from devil_pipe.store.schema import LayerSpec


class Translator(nn.Module):
    """What all kinds have in common: `Devil` is the paper's, `ClipCap` the baseline; `build` makes either."""

    def __init__(self, prefix_norm: float | None = None) -> None:
        """`prefix_norm`: with the alignment warm-up, the length of every prefix token; None leaves them be."""
        super().__init__()
        self.prefix_norm = prefix_norm

    def forward(
        self, features: Sequence[Float[Tensor, "batch _"]], keep: Bool[Tensor, "batch layers"]
    ) -> Float[Tensor, "batch queries width"]:
        """Prefix tokens for pooled features (training) or for single locations (inference).

        Args:
            features: for each layer one vector a sample, [batch, C].
            keep: which layers the sample may look at, at least one; the others are masked out of attention.
        """
        prefix = self.prefix(features, keep)
        if self.prefix_norm is not None:
            prefix = nn.functional.normalize(prefix.float(), dim=-1) * self.prefix_norm
        return prefix

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> Translator:
        """An exported translator of either kind, from a folder or the hub (see `sharing.from_pretrained`)."""
        from devil_pipe.stages.train.sharing import from_pretrained  # which imports this module

        found: tuple[Any, Any] = from_pretrained(source, revision)
        translator: Translator = found[0]
        return translator

    @abstractmethod
    def prefix(
        self, features: Sequence[Float[Tensor, "batch _"]], keep: Bool[Tensor, "batch layers"]
    ) -> Float[Tensor, "batch queries width"]:
        """Prefix tokens of whatever length."""


class Devil(Translator):
    """A pre-norm Transformer encoder over [one token for each layer; learned queries] (section 3.1, appendix A).

    Its outputs at the queries are layer-normed and projected to the language model's embedding width.
    """

    def __init__(
        self, config: TranslatorConfig, channels: Sequence[int], out_width: int, prefix_norm: float | None = None
    ) -> None:
        """Build it with PyTorch's random initialisation.

        Args:
            config: its size.
            channels: C of each explained layer, in the store's order.
            out_width: the language model's embedding width.
            prefix_norm: as in `Translator`.
        """
        super().__init__(prefix_norm)
        self.project = nn.ModuleList(nn.Linear(count, config.width) for count in channels)
        self.layer_embedding = nn.Parameter(torch.randn(len(channels), config.width) * 0.02)
        self.queries = nn.Parameter(torch.randn(config.queries, config.width) * 0.02)
        block = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            config.feedforward,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(block, config.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, out_width)

    def prefix(
        self, features: Sequence[Float[Tensor, "batch _"]], keep: Bool[Tensor, "batch layers"]
    ) -> Float[Tensor, "batch queries width"]:
        """See `Translator.forward`."""
        tokens = torch.stack([project(item) for project, item in zip(self.project, features, strict=True)], dim=1)
        tokens = tokens + self.layer_embedding
        queries = self.queries.expand(len(tokens), -1, -1)
        seen = torch.cat([keep, keep.new_ones(len(tokens), len(self.queries))], dim=1)
        hidden = self.encoder(torch.cat([tokens, queries], dim=1), src_key_padding_mask=~seen)
        prefix: Tensor = self.out(self.norm(hidden[:, -len(self.queries) :]))
        return prefix


class ClipCap(Translator):
    """ClipCap's mapping network in the place of the translator (Mokady et al. 2021, section 3.2).

    It sees one vector of the whole picture. `keep` decides nothing: a sample keeps one layer at least, here the only
    one. So neither spatial nor layer dropout has any effect, at whatever rate.
    """

    def __init__(self, config: ClipCapConfig, channels: int, out_width: int, prefix_norm: float | None = None) -> None:
        """As `Devil`, for one layer of so many channels. Raises UsageError if heads do not divide the width."""
        super().__init__(prefix_norm)
        self.mapper = clipcap.mapper(config, channels, out_width)

    def prefix(
        self,
        features: Sequence[Float[Tensor, "batch _"]],
        keep: Bool[Tensor, "batch layers"],  # noqa: ARG002 - see the class
    ) -> Float[Tensor, "batch queries width"]:
        """See `Translator.forward`."""
        (embedding,) = features
        prefix: Tensor = self.mapper(embedding)
        return prefix


def build(
    config: TranslatorConfig | ClipCapConfig,
    layers: Sequence[LayerSpec],
    out_width: int,
    prefix_norm: float | None = None,
) -> Translator:
    """A translator of the configured kind, with random weights.

    Args:
        config: its kind and size.
        layers: the explained ones, in the store's order.
        out_width: the language model's embedding width.
        prefix_norm: as in `Translator`.

    Raises:
        UsageError: the kind does not take these layers.
    """
    if isinstance(config, TranslatorConfig):
        return Devil(config, [layer.channels for layer in layers], out_width, prefix_norm)
    if [layer.locations for layer in layers] == [1]:
        return ClipCap(config, layers[0].channels, out_width, prefix_norm)
    found = ", ".join(f"{layer.name} ({layer.height}×{layer.width})" for layer in layers)
    raise UsageError(
        f"translator: {config.kind} takes one layer of one location, the picture's embedding, got {found}; store one: "
        "`devil-pipe extract --backbone clip_vit_b32 --layers embedding --data DATA`"
    )


def width_of(config: TranslatorConfig | ClipCapConfig, tensors: Mapping[str, Tensor]) -> int:
    """The language model's embedding width, as a translator's saved weights have it. Raises KeyError."""
    if isinstance(config, TranslatorConfig):
        return tensors["out.weight"].shape[0]
    if isinstance(config, ClipCapTransformerConfig):
        return tensors["mapper.constants"].shape[1]
    return tensors["mapper.out.weight"].shape[0] // config.queries


def trainable_parameters(module: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(value.numel() for value in module.parameters() if value.requires_grad)


def planned_parameters(config: TranslatorConfig | ClipCapConfig, layers: Sequence[LayerSpec], out_width: int) -> int:
    """The same from the configuration alone: nothing is allocated or downloaded. Raises UsageError as `build`."""
    with torch.device("meta"):
        return trainable_parameters(build(config, layers, out_width))
