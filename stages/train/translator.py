"""The translator: the only part that learns. Features of some layers in, prefix tokens out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from devil_pipe.stages.train.config import TranslatorConfig


class Translator(nn.Module):
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
            prefix_norm: with the alignment warm-up, the length every prefix token is scaled to; None leaves them be.
        """
        super().__init__()
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
        self.prefix_norm = prefix_norm

    def forward(
        self, features: Sequence[Float[Tensor, "batch _"]], keep: Bool[Tensor, "batch layers"]
    ) -> Float[Tensor, "batch queries width"]:
        """Prefix tokens for pooled features (training) or for single locations (inference).

        Args:
            features: for each layer one vector a sample, [batch, C].
            keep: which layers the sample may look at, at least one; the others are masked out of attention.
        """
        tokens = torch.stack([project(item) for project, item in zip(self.project, features, strict=True)], dim=1)
        tokens = tokens + self.layer_embedding
        queries = self.queries.expand(len(tokens), -1, -1)
        seen = torch.cat([keep, keep.new_ones(len(tokens), len(self.queries))], dim=1)
        hidden = self.encoder(torch.cat([tokens, queries], dim=1), src_key_padding_mask=~seen)
        prefix: Tensor = self.out(self.norm(hidden[:, -len(self.queries) :]))
        if self.prefix_norm is not None:
            prefix = nn.functional.normalize(prefix.float(), dim=-1) * self.prefix_norm
        return prefix


def trainable_parameters(module: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(value.numel() for value in module.parameters() if value.requires_grad)


def planned_parameters(config: TranslatorConfig, channels: Sequence[int], out_width: int) -> int:
    """The same from the configuration alone: nothing is allocated or downloaded."""
    with torch.device("meta"):
        return trainable_parameters(Translator(config, channels, out_width))
