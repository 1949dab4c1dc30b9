"""How far a description can be trusted: what it gains by its features, and whether other locations say the same.

The margin is the log-likelihood of the description's tokens (its end is not counted) after the prefix of its features,
minus the same without them. Without them is the likelier of two blind readings: the language model alone, and the
translator given a mid-grey picture's features at the same layer and locations. The first knows which words are common,
the second also which captions the translator learned to write.

Its interval: half of the pooled locations are dropped, as in training, again and again; 2.5th and 97.5th percentile of
what the same description then gains. A single location is always kept, and averaged with a random half of its 3 × 3
neighbourhood. A grid of one location has nothing to drop, so its interval is a point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from devil_pipe.stages.explain.answers import Margin
from devil_pipe.stages.explain.places import around
from devil_pipe.stages.train.dropout import draw
from devil_pipe.stages.train.language_model import LanguageModel
from devil_pipe.store.schema import LayerSpec

RESAMPLES = 16
RATE = 0.5
SEED = 0
BATCH = 64
"""Prefixes that the language model reads together; more of them need more memory and are no faster."""


def resampled(
    there: Bool[Tensor, " locations"], layer: LayerSpec, count: int, generator: torch.Generator
) -> Bool[Tensor, "count locations"]:
    """Which locations stand in for `there`, `count` times: a random half of them; of one, itself and its neighbours."""
    single = int(there.sum()) == 1
    pool = around(there, layer) if single else there
    keep = torch.zeros(count, layer.locations, dtype=torch.bool)
    keep[:, pool] = draw(count, int(pool.sum()), RATE, generator)
    return keep | there if single else keep


def means(
    features: Float[Tensor, "height width channels"], keep: Bool[Tensor, "count locations"]
) -> Float[Tensor, "count channels"]:
    """The mean over the kept locations, for each of the masks."""
    weights = keep.to(features.dtype)
    return (weights @ features.flatten(0, 1)) / weights.sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class Read:
    """Texts as they are read on after prefixes."""

    nats: Float[Tensor, " rows"]
    """Log-likelihood of each text's tokens, its EOS not counted."""

    written: Bool[Tensor, " rows"]
    """Whether the prefix would be described in that very text."""


def read(
    model: LanguageModel, prefixes: Float[Tensor, "rows queries width"] | None, texts: Sequence[Sequence[int]]
) -> Read:
    """Read texts after prefixes, row by row; without prefixes the language model is alone."""
    nats, written = [torch.zeros(0)], [torch.zeros(0, dtype=torch.bool)]
    for begin in range(0, len(texts), BATCH):
        part = texts[begin : begin + BATCH]
        prefix = None if prefixes is None else prefixes[begin : begin + BATCH]
        found, likeliest = model.follow(prefix, part)
        lengths = torch.tensor([len(text) - (text[-1] == model.eos) for text in part])
        counted = torch.arange(found.shape[1]) < lengths[:, None]
        nats.append((found.cpu() * counted).sum(dim=1))
        written.append(likeliest.cpu().all(dim=1))
    return Read(torch.cat(nats), torch.cat(written))


def margin_of(nats: float, again: Float[Tensor, " resamples"], blind: float) -> Margin:
    """The margin over a blind reading, and its interval from the resampled readings; all log-likelihoods in nats."""
    low, high = torch.quantile(again - blind, torch.tensor([0.025, 0.975])).tolist()
    return Margin(nats - blind, low, high, len(again))
