"""The frozen language model: how likely a caption is after a prefix, and which one it would write."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devil_pipe.stages.common.assets import asset
from devil_pipe.store.errors import InputError


@dataclass(frozen=True)
class Known:
    """A language model by short name: where it comes from, and its embedding width (for planning without weights)."""

    source: str
    width: int
    from_assets: bool = False


KNOWN = {
    "opt-125m": Known("facebook/opt-125m", 768),
    "gpt2": Known("openai-community/gpt2", 768),
    "smollm2-135m": Known("smollm2-135m", 576, from_assets=True),
}


def embedding_width(name: str) -> int:
    """Width of a language model's token embeddings, from the table or its configuration file; no weights are read.

    Raises:
        InputError: neither known by name, nor a folder, nor to be had from the hub.
    """
    if name in KNOWN:
        return KNOWN[name].width
    config = _from_pretrained("AutoConfig", name)
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


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
            name: a key of `KNOWN`, a folder, or a name on the hub.
            device: where it runs.
            dtype: its number type.
            repeats: how often the prefix is read.
            dropout: leave the model's own dropout switched on while training (the released code's behaviour).

        Raises:
            InputError: it cannot be had or read.
        """
        self.name, self.device, self.repeats = name, device, repeats
        self.tokenizer: Any = _from_pretrained("AutoTokenizer", name)
        self.model: Any = _from_pretrained("AutoModelForCausalLM", name, dtype=dtype)
        self.model.to(device).requires_grad_(False)
        self.model.train(dropout)
        self.embedding = self.model.get_input_embeddings()
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise InputError(f"language model {name}: expected a tokenizer with an end-of-text token, found none")
        self.eos: int = int(eos)
        self.bos: int = int(self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else eos)
        self.pad: int = int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else eos)

    @property
    def width(self) -> int:
        """Width of the token embeddings."""
        return int(self.embedding.weight.shape[1])

    def mean_norm(self) -> float:
        """Mean length of the embedding matrix's rows."""
        return float(self.embedding.weight.float().norm(dim=1).mean())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
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
        hidden = self._hidden(torch.cat([before, self.embedding(ids[:, :-1])], dim=1))[:, before.shape[1] - 1 :]
        logits = self.model.get_output_embeddings()(hidden[real]).float()
        losses = torch.nn.functional.cross_entropy(logits, ids[real], reduction="none")
        owner = real.nonzero()[:, 0]
        summed = torch.zeros(len(captions), device=self.device).index_add(0, owner, losses)
        return summed, real.sum(dim=1)

    @torch.inference_mode()
    def query_scores(
        self, prefix: Float[Tensor, "batch queries width"] | None, texts: Sequence[Sequence[int]]
    ) -> Float[Tensor, "batch texts"]:
        """Log-likelihood (nats, summed over its tokens) of each query text right after the prefix.

        The prefix is read once; its keys and values are shared by all texts. Without a prefix: the prior, batch 1.
        """
        before = self.context(prefix, 1 if prefix is None else len(prefix))
        head, base = self.model.get_output_embeddings(), self._base()
        out = base(inputs_embeds=before, attention_mask=self._ones(*before.shape[:2]), use_cache=True)
        first = head(out.last_hidden_state[:, -1:]).float().log_softmax(dim=-1)
        scores = []
        for text in texts:
            ids = torch.tensor(text, device=self.device)
            logs = first
            if len(text) > 1:
                fed = self.embedding(ids[:-1]).expand(len(before), -1, -1)
                seen = self._ones(len(before), before.shape[1] + len(text) - 1)
                more = base(inputs_embeds=fed, attention_mask=seen, past_key_values=out.past_key_values, use_cache=True)
                out.past_key_values.crop(1 - len(text))  # negative: how many to take away again
                logs = torch.cat([first, head(more.last_hidden_state).float().log_softmax(dim=-1)], dim=1)
            scores.append(logs.gather(2, ids.expand(len(before), -1)[..., None]).sum(dim=(1, 2)))
        return torch.stack(scores, dim=1)

    def _ones(self, batch: int, length: int) -> Tensor:
        return torch.ones(batch, length, dtype=torch.long, device=self.device)

    def _base(self) -> Any:
        """The model without its output layer."""
        return self.model.get_decoder() if hasattr(self.model, "get_decoder") else self.model.base_model

    def _hidden(self, embeddings: Tensor) -> Any:
        """Last hidden states; padding stands behind every caption, so the causal mask alone hides it."""
        attention = self._ones(*embeddings.shape[:2])
        return self._base()(inputs_embeds=embeddings, attention_mask=attention, use_cache=False).last_hidden_state

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[*row, *[self.pad] * (longest - len(row))] for row in rows], device=self.device)
        real = torch.tensor([[place < len(row) for place in range(longest)] for row in rows], device=self.device)
        return ids, real

    @torch.inference_mode()
    def write(
        self, prefix: Float[Tensor, "batch queries width"] | None, max_new_tokens: int, batch: int = 1
    ) -> list[str]:
        """Greedy descriptions, one for each prefix (without a prefix, `batch` times the same)."""
        before = self.context(prefix, batch if prefix is None else len(prefix))
        out = self.model.generate(
            inputs_embeds=before,
            attention_mask=self._ones(*before.shape[:2]),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            bos_token_id=self.bos,
            eos_token_id=self.eos,
            pad_token_id=self.pad,
        )
        return [self.decode(row) for row in out.tolist()]


def _from_pretrained(kind: str, name: str, **options: Any) -> Any:
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    known = KNOWN.get(name, Known(name, 0))
    source = str(asset(known.source)) if known.from_assets else known.source
    try:
        return getattr(transformers, kind).from_pretrained(source, **options)
    except Exception as error:
        # Hub clients and file parsers fail in many ways; the remedies are the same.
        where = "the folder" if Path(source).is_dir() else "the model hub"
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise InputError(
            f"language model {name!r}: cannot be loaded from {where} ({reason}); "
            f"expected one of {', '.join(KNOWN)}, a folder of a Hugging Face model, or a network"
        ) from error
