"""The frozen language model: how likely a caption is after a prefix, and which one it would write."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devil_pipe.stages.train.generation import greedy
from devil_pipe.stages.train.pretrained import KNOWN, embedding_width, read, special_tokens
from devil_pipe.store.errors import InputError

ROWS = 128
"""From so many rows on, a product of matrices keeps a processor busy (measured on two cores); logits need no more."""

__all__ = ["KNOWN", "LanguageModel", "cpu_has_bfloat16", "embedding_width", "pick_precision"]


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; without it bfloat16 is slower than float32."""
    return any(
        bool(getattr(torch.cpu, name, bool)()) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The language model's number type; "auto" takes bfloat16 where the hardware has it."""
    if name == "auto":
        fast = cpu_has_bfloat16() if device.type == "cpu" else device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


class LanguageModel:
    """A Hugging Face causal language model, frozen, that reads [BOS, prefix, caption, EOS].

    With `repeats` = r > 1 it reads ([BOS, prefix] × r, BOS, caption, EOS): a text that stands twice in a row invites
    a third time, so a prefix that spells the caption is copied from the first step of training on.
    """

    def __init__(
        self, name: str, *, device: torch.device, dtype: torch.dtype, repeats: int = 1, dropout: bool = False
    ) -> None:
        """Load it.

        Args:
            name: a key of `KNOWN`, a folder, a GGUF file or a folder with one, or a name on the hub.
            device: where it runs.
            dtype: its number type.
            repeats: how often the prefix is read.
            dropout: leave the model's own dropout switched on while training (the released code's behaviour).

        Raises:
            InputError: it cannot be had or read, or takes no embeddings.
        """
        self.name, self.device, self.repeats = name, device, repeats
        self.tokenizer: Any = read("AutoTokenizer", name)
        self.model: Any = read("AutoModelForCausalLM", name, dtype=dtype)
        self.model.to(device).requires_grad_(False).eval()
        self.embedding = self.model.get_input_embeddings()
        special = special_tokens(name, self.tokenizer, self.model.config, len(self.embedding.weight))
        self.bos, self.eos, self.pad = special.bos, special.eos, special.pad
        self._plain_head = self._head_gives_the_logits()
        self.model.train(dropout)

    @property
    def width(self) -> int:
        """Width of the token embeddings."""
        return int(self.embedding.weight.shape[1])

    def mean_norm(self) -> float:
        """Mean length of the tokens' embeddings as the model reads them (Gemma's module scales its matrix)."""
        with torch.no_grad():
            every = self.embedding(torch.arange(len(self.embedding.weight), device=self.device))
        return float(every.float().norm(dim=1).mean())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens. Raises InputError for one that the model does not embed."""
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        count = len(self.embedding.weight)
        if strange := next((token for row in ids for token in row if token >= count), None):
            raise InputError(
                f"language model {self.name}: expected tokens below {count}, the number of its embeddings, got "
                f"{self.tokenizer.decode([strange])!r} as token {strange}; the tokenizer is another model's"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first EOS, on one line."""
        kept = list(ids[: ids.index(self.eos)]) if self.eos in ids else list(ids)
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True)
        return " ".join(text.split())

    def context(
        self, prefix: Float[Tensor, "batch queries width"] | None, batch: int
    ) -> Float[Tensor, "batch context width"]:
        """Embeddings of what stands before the caption; no prefix is the language model alone, [BOS]."""
        bos = self.embedding(torch.full((batch, 1), self.bos, device=self.device))
        if prefix is None:
            return bos  # type: ignore[no-any-return]
        once = torch.cat([bos, prefix.to(bos.dtype)], dim=1)
        return torch.cat([once] * self.repeats + ([bos] if self.repeats > 1 else []), dim=1)

    def token_losses(
        self, prefix: Float[Tensor, "batch queries width"] | None, captions: Sequence[Sequence[int]]
    ) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
        """Summed negative log-likelihood (nats) of each caption and its EOS, and how many tokens that is.

        Logits are computed where a loss is taken, nowhere else: the vocabulary's matrix is the largest of all.
        """
        ids, real = self._padded([[*caption, self.eos] for caption in captions])
        before = self.context(prefix, len(captions))
        # Padding stands behind every caption, so the causal mask alone hides it.
        seen = self._read(torch.cat([before, self.embedding(ids[:, :-1])], dim=1))[0][:, before.shape[1] - 1 :]
        logits = self._logits(seen[real])
        losses = torch.nn.functional.cross_entropy(logits, ids[real], reduction="none")
        owner = real.nonzero()[:, 0]
        summed = torch.zeros(len(captions), device=self.device).index_add(0, owner, losses)
        return summed, real.sum(dim=1)

    @torch.inference_mode()
    def query_scores(
        self, prefix: Float[Tensor, "batch queries width"] | None, texts: Sequence[Sequence[int]]
    ) -> Float[Tensor, "batch texts"]:
        """Log-likelihood (nats, summed over its tokens) of each query text right after the prefix.

        The prefix is read once; its keys and values are shared by all texts, and so are the texts' common beginnings:
        "a dog" needs nothing that "a dog barks" has not read. Logits are computed where a token is scored, nowhere
        else. Without a prefix: the prior, batch 1.
        """
        before = self.context(prefix, 1 if prefix is None else len(prefix))
        seen, cache = self._read(before, keep=True)
        ids = [tuple(text) for text in texts]
        scores = self._nats(seen[:, -1:], [[text[0] for text in ids]])[:, 0]
        reads = _beginnings(ids)
        together = max(1, ROWS // len(before))  # few rows leave a processor idle, many need no company
        for group in (reads[begin : begin + together] for begin in range(0, len(reads), together)):
            for read_on, places in zip(group, self._read_on(before, cache, group), strict=True):
                mine = [number for number, text in enumerate(ids) if _home(text, reads) == read_on]
                # Behind a shorter text any token will do: what is found there is not added.
                wanted = [[(*ids[number][1:], *read_on)[place] for number in mine] for place in range(len(read_on))]
                nats = self._nats(places, wanted)
                for column, number in enumerate(mine):
                    scores[:, number] += nats[:, : len(ids[number]) - 1, column].sum(dim=1)
        return scores

    def _read_on(self, before: Tensor, cache: Any, group: Sequence[Sequence[int]]) -> list[Tensor]:
        """What `_logits` takes, [batch, tokens, _], for each of some texts read on from `before`, all in one batch.

        The cache is left as it was.
        """
        batch, count = len(before), len(group)
        ids, real = self._padded(group)  # padding stands behind, where the causal mask hides it
        fed = self.embedding(ids).repeat(batch, 1, 1)
        rows = torch.arange(batch, device=self.device).repeat_interleave(count)
        if cache is None:
            seen = self._read(torch.cat([before[rows], fed], dim=1))[0][:, before.shape[1] :]
        else:
            if count > 1:
                cache.reorder_cache(rows)  # beam search's: it takes any rows, so more of them too
            seen = self._read(fed, cache, keep=True)[0]
            cache.crop(-ids.shape[1])  # negative: how many to take away again
            if count > 1:
                cache.reorder_cache(torch.arange(0, len(rows), count, device=self.device))
        several = seen.reshape(batch, count, *seen.shape[1:])
        return [several[:, place, : int(real[place].sum())] for place in range(count)]

    def _nats(
        self, seen: Float[Tensor, "batch places _"], tokens: Sequence[Sequence[int]]
    ) -> Float[Tensor, "batch places texts"]:
        """Log-likelihood of several tokens (so many at each place) as the next one."""
        ids = torch.tensor(tokens, device=self.device)
        parts = [
            self._logits(some).log_softmax(dim=-1).gather(1, wanted)
            for some, wanted in zip(
                torch.split(seen.flatten(0, 1), ROWS), torch.split(ids.repeat(len(seen), 1), ROWS), strict=True
            )
        ]
        return torch.cat(parts).reshape(len(seen), *ids.shape)

    @torch.inference_mode()
    def write(
        self, prefix: Float[Tensor, "batch queries width"] | None, max_new_tokens: int, batch: int = 1
    ) -> list[str]:
        """Greedy descriptions, one for each prefix (without a prefix, `batch` times the same).

        A model's own generation settings (sampling, repetition penalties) play no part.
        """
        return [self.decode(row) for row in self.write_tokens(prefix, max_new_tokens, batch)]

    @torch.inference_mode()
    def write_tokens(
        self, prefix: Float[Tensor, "batch queries width"] | None, max_new_tokens: int, batch: int = 1
    ) -> list[list[int]]:
        """The token ids of `write`'s descriptions; one that ended by itself ends in an EOS, and in one alone."""
        before = self.context(prefix, batch if prefix is None else len(prefix))

        def step(fed: Tensor, cache: Any) -> tuple[Tensor, Any]:
            seen, cache = self._read(fed, cache, keep=True)
            return self._logits(seen[:, -1]), cache

        rows = greedy(step, self.embedding, before, max_new_tokens, self.eos).tolist()
        return [row[: row.index(self.eos) + 1] if self.eos in row else row for row in rows]

    @torch.inference_mode()
    def follow(
        self, prefix: Float[Tensor, "batch queries width"] | None, texts: Sequence[Sequence[int]]
    ) -> tuple[Float[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
        """Each prefix read on through a text of its own: each token's log-likelihood (nats), and if it is likeliest.

        Where all tokens of a text are the likeliest, it is what `write_tokens` writes. Behind a shorter text than the
        longest stand 0 nats and True. No prefix is the language model alone.
        """
        ids, real = self._padded(texts)
        before = self.context(prefix, len(texts))
        seen = self._read(torch.cat([before, self.embedding(ids[:, :-1])], dim=1))[0][:, before.shape[1] - 1 :]
        nats, likeliest = torch.zeros(ids.shape, device=self.device), ~real
        parts = []
        for some, wanted in zip(torch.split(seen[real], ROWS), torch.split(ids[real], ROWS), strict=True):
            logits = self._logits(some)
            losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
            parts.append((-losses, logits.argmax(dim=-1) == wanted))
        nats[real] = torch.cat([part[0] for part in parts])
        likeliest[real] = torch.cat([part[1] for part in parts])
        return nats, likeliest

    def _read(self, embeddings: Tensor, cache: Any = None, *, keep: bool = False) -> tuple[Tensor, Any]:
        """What `_logits` takes, for each place; and with `keep` the cache, where the model has one that can be cut.

        That is the hidden states before the output layer, so that logits are computed where they are wanted alone; or,
        of a model that does more than apply that layer (soft capping, scaling), its logits.
        """
        length = embeddings.shape[1] + (cache.get_seq_length() if cache is not None else 0)
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest is not None and length > longest:
            raise InputError(
                f"language model {self.name}: expected at most {longest} places for prefix and text, got {length}; "
                "fewer prefix_repeats, queries or new tokens would help"
            )
        out = (self._base() if self._plain_head else self.model)(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(len(embeddings), length, dtype=torch.long, device=self.device),
            use_cache=keep,
            **({} if cache is None else {"past_key_values": cache}),
        )
        kept = getattr(out, "past_key_values", None) if keep else None
        return (out.last_hidden_state if self._plain_head else out.logits), kept if _can_be_cut(kept) else None

    def _logits(self, seen: Tensor) -> Tensor:
        return (self.model.get_output_embeddings()(seen) if self._plain_head else seen).float()

    def _base(self) -> Any:
        """The model without its output layer."""
        return self.model.get_decoder() if hasattr(self.model, "get_decoder") else self.model.base_model

    @torch.no_grad()
    def _head_gives_the_logits(self) -> bool:
        """Whether the model's logits are its output layer's output on its last hidden states, and nothing else."""
        head = self.model.get_output_embeddings()
        seen: list[tuple[Tensor, Tensor]] = []
        hook = head.register_forward_hook(lambda _module, given, out: seen.append((given[0], out))) if head else None
        fed = self.embedding(torch.tensor([[self.bos, self.eos, self.bos]], device=self.device))
        try:
            whole = self.model(inputs_embeds=fed, use_cache=False).logits
            hidden = self._base()(inputs_embeds=fed, use_cache=False).last_hidden_state
        except (TypeError, ValueError) as error:
            raise InputError(f"language model {self.name}: expected one that reads embeddings: {error}") from error
        finally:
            if hook:
                hook.remove()
        # The very tensor: a soft cap changes small logits by less than a comparison of numbers could tell.
        return len(seen) == 1 and whole.data_ptr() == seen[0][1].data_ptr() and torch.equal(seen[0][0], hidden)

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[*row, *[self.pad] * (longest - len(row))] for row in rows], device=self.device)
        real = torch.tensor([[place < len(row) for place in range(longest)] for row in rows], device=self.device)
        return ids, real


def _beginnings(texts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """What has to be read of some texts: each without its last token, unless another one begins with that."""
    found = sorted({text[:-1] for text in texts if len(text) > 1})  # each right before what begins with it
    kept = [one for one, after in zip_longest(found, found[1:], fillvalue=()) if after[: len(one)] != one]
    return sorted(kept, key=len)  # alike lengths are padded least


def _home(text: tuple[int, ...], reads: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """Where a text's second and later tokens are scored; None for a text of one token."""
    return next((read for read in reads if len(text) > 1 and read[: len(text) - 1] == text[:-1]), None)


def _can_be_cut(cache: Any) -> bool:
    """Whether rows and tokens can be taken out of a model's cache: of keys and values, not of a recurrent state."""
    from transformers.cache_utils import DynamicLayer

    layers = getattr(cache, "layers", None) or [None]
    return all(isinstance(layer, DynamicLayer) and not hasattr(layer, "conv_states") for layer in layers)
