"""Greedy decoding of many prefixes at once, with a cache of keys and values that finished rows leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""(embeddings [batch, new, width], cache or None) → (float32 logits [batch, vocabulary] of what follows, cache)."""


def greedy(
    step: Step,
    embed: Callable[[Tensor], Tensor],
    before: Float[Tensor, "batch context width"],
    max_new_tokens: int,
    eos: int,
) -> Int[Tensor, "batch {max_new_tokens}"]:
    """The likeliest next token, again and again, until EOS or `max_new_tokens`; what follows an EOS is EOS.

    Each row gets the tokens that it would get alone (up to rounding, which decides between equally likely tokens
    alone): all contexts have one length, so nothing is padded, and a row that has ended is taken out of the inputs and
    of the cache, so that it costs nothing while the others go on.

    Args:
        step: the language model; a cache of None in its answer means that it has none, and is shown everything again.
        embed: token ids → embeddings.
        before: what stands before the text, of one length for all.
        max_new_tokens: at most so many tokens, EOS included.
        eos: the token that ends a text.
    """
    texts = torch.full((len(before), max_new_tokens), eos, device=before.device)
    rows = torch.arange(len(before), device=before.device)  # of the batch, those that go on
    fed, cache = before, None
    for place in range(max_new_tokens):
        logits, cache = step(fed, cache)
        tokens = logits.argmax(dim=-1)
        texts[rows, place] = tokens
        left = (tokens != eos).nonzero()[:, 0]
        if len(left) == 0 or place + 1 == max_new_tokens:
            break
        if len(left) < len(rows):
            rows, tokens, fed = rows[left], tokens[left], fed[left]
            if cache is not None:
                cache.reorder_cache(left)  # beam search's: it takes any rows, so fewer of them too
        added = embed(tokens[:, None])
        fed = added if cache is not None else torch.cat([fed, added], dim=1)
    return texts
