"""The alignment warm-up: prefix tokens learn to be the embeddings of the caption's tokens. Ours, not the paper's.

Learning through a frozen language model starts slowly: first the captions' template, much later what is in the picture.
Here the translator is trained alone, with the language model's input embeddings E as a code book. Prefix token i is to
be the caption's token i; or, with `targets: bag`, the prefix is to hold the caption's tokens in whichever order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
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
        unit = nn.functional.normalize(prefix.float(), dim=-1)
        cosines = unit @ self.codes.T
        logits = self.config.scale * cosines
        targets = self.targets(captions)
        if self.config.targets == "bag":
            targets = _cheapest_order(logits.detach().log_softmax(dim=-1), targets)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        if self.config.pull and done >= self.config.pull_from:
            loss = loss + self.config.pull * (1 - cosines.gather(2, targets[..., None])).mean()
        return loss

    def read(self, prefix: Float[Tensor, "batch queries width"]) -> list[list[int]]:
        """The nearest code of each prefix token: a caption read without a language model.

        It ends at the first EOS; of a bag, whose EOS may stand anywhere, it is all that is no EOS.
        """
        nearest = self.tokens[(nn.functional.normalize(prefix.float(), dim=-1) @ self.codes.T).argmax(dim=-1)]
        rows: list[list[int]] = nearest.tolist()
        if self.config.targets == "bag":
            return [[token for token in row if token != self.eos] for row in rows]
        return [row[: row.index(self.eos)] if self.eos in row else row for row in rows]

    def agreement(self, read: Sequence[int], caption: Sequence[int]) -> tuple[int, int]:
        """(tokens read rightly, tokens of the caption as far as the queries reach): by position, or as a bag."""
        wanted = caption[: self.queries]
        if self.config.targets == "bag":
            return (Counter(read) & Counter(wanted)).total(), len(wanted)
        return sum(one == other for one, other in zip(read, wanted, strict=False)), len(wanted)


def _cheapest_order(
    logs: Float[Tensor, "batch queries codes"], targets: Int[Tensor, "batch queries"]
) -> Int[Tensor, "batch queries"]:
    """Each row's targets in the order of least cross-entropy: which prefix token holds which is the translator's."""
    costs = -logs.gather(2, targets[:, None].expand(-1, targets.shape[1], -1)).cpu().numpy()
    orders = torch.tensor([linear_sum_assignment(cost)[1].tolist() for cost in costs], device=targets.device)
    return targets.gather(1, orders)
