"""The alignment warm-up: prefix token i learns to be the embedding of the caption's token i. Ours, not the paper's.

Learning through a frozen language model starts slowly: first the captions' template, much later what is in the picture.
Here the translator is trained alone, with the language model's input embeddings E as a code book.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from devil_pipe.stages.train.config import WarmupConfig


class Alignment:
    """Cross-entropy of scale · cos(prefix_i, E_v) over the tokens v that occur in the training captions."""

    def __init__(
        self,
        config: WarmupConfig,
        embeddings: Float[Tensor, "vocabulary width"],
        captions: Sequence[Sequence[int]],
        eos: int,
        queries: int,
    ) -> None:
        """`captions` are the training captions; together with EOS they make the code book."""
        self.config, self.eos, self.queries = config, eos, queries
        used = sorted({token for caption in captions for token in caption} | {eos})
        self.tokens = torch.tensor(used, device=embeddings.device)
        self._place = {token: place for place, token in enumerate(used)}
        self.codes = nn.functional.normalize(embeddings[self.tokens].float(), dim=1)

    def targets(self, captions: Sequence[Sequence[int]]) -> Int[Tensor, "batch queries"]:
        """Place in the code book for each query: captions are cut at the number of queries, or filled with EOS.

        A token that no training caption holds counts as EOS (it can occur in validation alone).
        """
        end = self._place[self.eos]
        rows = [[self._place.get(token, end) for token in caption[: self.queries]] for caption in captions]
        filled = [row + [end] * (self.queries - len(row)) for row in rows]
        return torch.tensor(filled, device=self.codes.device)

    def loss(
        self, prefix: Float[Tensor, "batch queries width"], captions: Sequence[Sequence[int]], done: float = 1.0
    ) -> Float[Tensor, ""]:
        """Cross-entropy, plus `pull` · (1 − cosine to the right code) once the share `done` of the phase is over.

        The cross-entropy is content with the right code being the nearest; the language model reads the prefix itself,
        and only a prefix that lies close to the code is read as that token. `pull_from` lets the
        translator first learn which code is right (tried on one seed only, not in isolation).
        """
        targets = self.targets(captions)
        unit = nn.functional.normalize(prefix.float(), dim=-1)
        cosines = unit @ self.codes.T
        loss = nn.functional.cross_entropy((self.config.scale * cosines).flatten(0, 1), targets.flatten())
        if self.config.pull and done >= self.config.pull_from:
            loss = loss + self.config.pull * (1 - cosines.gather(2, targets[..., None])).mean()
        return loss

    def read(self, prefix: Float[Tensor, "batch queries width"]) -> list[list[int]]:
        """The nearest code of each prefix token, up to the first EOS: a caption read without a language model."""
        nearest = self.tokens[(nn.functional.normalize(prefix.float(), dim=-1) @ self.codes.T).argmax(dim=-1)]
        rows: list[list[int]] = nearest.tolist()
        return [row[: row.index(self.eos)] if self.eos in row else row for row in rows]
