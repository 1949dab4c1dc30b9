"""Tiny random language models of many families, each with the special tokens of its published ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from .. import tiny


@dataclass(frozen=True)
class Family:
    """A configuration class, what it is given, and which special tokens tokenizer and configuration name."""

    config: type[transformers.PreTrainedConfig]
    sizes: dict[str, Any]
    bos: str | None
    eos: str
    pad: str | None
    config_bos: str | None = None
    """What the configuration calls BOS where the tokenizer has none."""

    begins: str = ""
    """The token that a text begins with here."""


DEEP = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64, "hidden_size": 16}
GATED = {**DEEP, "intermediate_size": 32, "initializer_range": 0.3, "num_key_value_heads": 1}
END = "<|endoftext|>"

FAMILIES = {
    "opt": Family(
        transformers.OPTConfig,
        {**DEEP, "ffn_dim": 32, "word_embed_proj_dim": 8, "init_std": 0.3, "do_layer_norm_before": False},
        bos="</s>",
        eos="</s>",
        pad="<pad>",
        begins="</s>",
    ),
    "gpt2": Family(
        transformers.GPT2Config,
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3},
        bos=END,
        eos=END,
        pad=None,
        begins=END,
    ),
    "llama": Family(transformers.LlamaConfig, GATED, bos="<s>", eos="</s>", pad=None, begins="<s>"),
    "llama_without_bos": Family(transformers.LlamaConfig, GATED, bos=None, eos="</s>", pad="<pad>", begins="</s>"),
    "neox": Family(
        transformers.GPTNeoXConfig,
        {**DEEP, "intermediate_size": 32, "initializer_range": 0.3},
        bos=END,
        eos=END,
        pad=None,
        begins=END,
    ),
    "qwen2": Family(
        transformers.Qwen2Config,
        GATED,
        bos=None,
        eos="<|im_end|>",
        pad=END,
        config_bos=END,
        begins=END,
    ),
    # Its logits are capped after the output layer, and its embedding module scales.
    "gemma2": Family(
        transformers.Gemma2Config,
        {**GATED, "head_dim": 8, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, "sliding_window": 64},
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        begins="<bos>",
    ),
    # A recurrent state in place of keys and values.
    "mamba": Family(
        transformers.MambaConfig,
        {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.3},
        bos=END,
        eos=END,
        pad=None,
        begins=END,
    ),
}


def save(folder: Path, family: Family, seed: int = 0) -> Path:
    """Write a model and its tokenizer."""
    special = tiny.Special(family.bos or family.eos, family.eos, family.pad)
    tokenizer = tiny._tokenizer(special, tiny.CAPTIONS)
    if family.bos is None:
        tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    ids = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    if family.config_bos:
        ids["bos_token_id"] = tokenizer.convert_tokens_to_ids(family.config_bos)
    elif family.bos is None:
        ids["bos_token_id"] = 7  # a class's default, which in this vocabulary is a letter
    config = family.config(vocab_size=len(tokenizer), **ids, **family.sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return folder
