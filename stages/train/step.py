"""One step of training: the mean loss over the captions of all processes, and its gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from devil_pipe.stages.train.alignment import Alignment
from devil_pipe.stages.train.batches import Batch
from devil_pipe.stages.train.language_model import LanguageModel


@dataclass(frozen=True)
class Totals:
    """What a step's sums are divided by: counted over all processes and pieces."""

    tokens: Float[Tensor, ""]
    """Caption tokens, each caption's EOS included."""

    examples: Float[Tensor, ""]


class Step:
    """Adds up gradients, in as many pieces as memory asks for.

    Every token of the batch weighs the same, whichever process or piece it falls to: a mean of the processes' means
    would weigh the tokens of short captions more. So neither the number of processes nor that of pieces changes a
    loss beyond rounding.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        language_model: LanguageModel,
        alignment: Alignment | None,
        keep: float = 0.0,
        accumulate: int = 1,
    ) -> None:
        """Keep what a step works with.

        Args:
            accelerator: of all processes.
            model: the translator, prepared by it.
            language_model: frozen.
            alignment: of the warm-up, if there is one.
            keep: the alignment loss's weight beside the ordinary one.
            accumulate: pieces of a process's share of the batch.
        """
        self.accelerator, self.model = accelerator, model
        self.language_model, self.alignment, self.keep = language_model, alignment, keep
        self.accumulate = accumulate

    def gradient(self, phase: str, batch: Batch, done: float) -> Float[Tensor, ""]:
        """Add the gradient of a batch to the translator's, and return the loss over all processes.

        Args:
            phase: "alignment" or "language".
            batch: this process's share.
            done: share of the phase that is over.

        Returns:
            the alignment loss, or nats a token; on the device, so that nothing has to be waited for.
        """
        accelerator = self.accelerator
        totals = self._totals(batch)
        shown = torch.zeros((), device=accelerator.device)
        pieces = list(split(batch, self.accumulate))
        for number, piece in enumerate(pieces, start=1):
            together = nullcontext() if number == len(pieces) else accelerator.no_sync(self.model)
            with together:
                features = [item.to(accelerator.device) for item in piece.features]
                prefix = self.model(features, piece.keep.to(accelerator.device))
                loss, named = self._losses(phase, prefix, piece.captions, totals, done)
                # The processes' gradients are averaged, and the totals are over all of them already.
                accelerator.backward(loss * (accelerator.num_processes * piece.counts))
            shown += named.detach() * piece.counts
        summed: Tensor = accelerator.reduce(shown, "sum")
        return summed

    def _totals(self, batch: Batch) -> Totals:
        tokens = sum(len(caption) + 1 for caption in batch.captions)
        mine = torch.tensor([tokens, len(batch.captions)], dtype=torch.float32, device=self.accelerator.device)
        tokens_of_all, examples = self.accelerator.reduce(mine * batch.counts, "sum")
        return Totals(tokens_of_all, examples)

    def _losses(
        self, phase: str, prefix: Tensor, captions: Sequence[tuple[int, ...]], totals: Totals, done: float
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """A piece's part of the loss that is learned from, and of the one that is shown."""
        share = len(captions) / totals.examples
        if phase == "alignment":
            assert self.alignment is not None
            loss = self.alignment.loss(prefix, captions, done) * share
            return loss, loss
        summed, _ = self.language_model.token_losses(prefix, captions)
        loss = summed.sum() / totals.tokens
        if self.alignment is None or not self.keep:
            return loss, loss
        return loss + self.keep * (self.alignment.loss(prefix, captions) * share), loss


def split(batch: Batch, count: int) -> Iterator[Batch]:
    """The batch in at most `count` pieces of neighbours, whose captions are of like length."""
    size = -(-len(batch.captions) // count)
    for begin in range(0, len(batch.captions), size):
        rows = slice(begin, begin + size)
        features = [item[rows] for item in batch.features]
        yield replace(batch, features=features, keep=batch.keep[rows], captions=batch.captions[rows])
