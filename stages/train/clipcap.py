"""ClipCap's two mapping networks (Mokady et al. 2021, arXiv 2111.09734): an image's embedding in, prefix tokens out.

What learns is the mapper alone, as in the paper's variant with a frozen language model. Trainable parameters for GPT2
(width 768, 10 prefix tokens), everything counted that `parameters()` gives, biases, norms and constants included:

| mapper | from a 512-wide embedding (ViT-B/32) | from a 640-wide one (RN50x4) |
|---|---|---|
| Transformer | 41,745,408 | 42,728,448, published as 43 M |
| MLP | 31,468,800; with GPT2's own 124.4 M, published as 156 M | 31,960,320 |
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from devil_pipe.stages.train.config import ClipCapConfig, ClipCapMlpConfig, ClipCapTransformerConfig
from devil_pipe.store.errors import UsageError


class MlpMapper(nn.Module):
    """Linear, tanh, linear; the hidden layer is half as wide as all prefix tokens together."""

    def __init__(self, config: ClipCapMlpConfig, channels: int, out_width: int) -> None:
        super().__init__()
        self.queries = config.queries
        self.hidden = nn.Linear(channels, config.queries * out_width // 2)
        self.out = nn.Linear(self.hidden.out_features, config.queries * out_width)

    def forward(self, embedding: Float[Tensor, "batch channels"]) -> Float[Tensor, "batch queries width"]:
        """Prefix tokens of an image's embedding."""
        flat: Tensor = self.out(self.hidden(embedding).tanh())
        return flat.reshape(len(flat), self.queries, -1)


class TransformerMapper(nn.Module):
    """A pre-norm Transformer over [the embedding as some tokens; learned constants], read at the constants.

    As published: ReLU, queries, keys and values without biases, and neither norm nor projection after the last layer.
    """

    def __init__(self, config: ClipCapTransformerConfig, channels: int, out_width: int) -> None:
        """PyTorch's random initialisation. Raises UsageError if the heads do not divide `out_width`."""
        super().__init__()
        if out_width % config.heads:
            raise UsageError(
                f"translator.heads: expected a divisor of the language model's width, {out_width}, got {config.heads}"
            )
        self.clip_length = config.clip_length
        self.project = nn.Linear(channels, config.clip_length * out_width)
        self.constants = nn.Parameter(torch.randn(config.queries, out_width))
        block = nn.TransformerEncoderLayer(
            out_width,
            config.heads,
            int(config.mlp_ratio * out_width),
            dropout=0.0,
            activation="relu",
            batch_first=True,
            norm_first=True,
        )
        block.self_attn.register_parameter("in_proj_bias", None)
        self.encoder = nn.TransformerEncoder(block, config.layers, enable_nested_tensor=False)

    def forward(self, embedding: Float[Tensor, "batch channels"]) -> Float[Tensor, "batch queries width"]:
        """Prefix tokens of an image's embedding."""
        tokens = self.project(embedding).reshape(len(embedding), self.clip_length, -1)
        constants = self.constants.expand(len(tokens), -1, -1)
        hidden: Tensor = self.encoder(torch.cat([tokens, constants], dim=1))
        return hidden[:, self.clip_length :]


def mapper(config: ClipCapConfig, channels: int, out_width: int) -> MlpMapper | TransformerMapper:
    """The configured mapper from an embedding of `channels` to a language model of width `out_width`."""
    if isinstance(config, ClipCapMlpConfig):
        return MlpMapper(config, channels, out_width)
    return TransformerMapper(config, channels, out_width)
