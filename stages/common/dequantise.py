"""One-time conversion of a quantised GGUF language model into a bfloat16 Hugging Face folder."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

from devil_pipe.stages.common.progress import log


def dequantise(gguf: Path, target: Path) -> None:
    """Write a Llama-like GGUF model as config.json, model.safetensors (bfloat16) and tokenizer files.

    transformers dequantises a GGUF file at every load, about 14 s; the copy loads in 2 s.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    log(f"dequantising {gguf.name} once")
    with hushed():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        # A fresh model forgets that its weights came from a quantised file; saving `loaded` is refused.
        fresh = LlamaForCausalLM(config).to(torch.bfloat16)
        fresh.load_state_dict(loaded.state_dict(), strict=True)
        fresh.save_pretrained(target)
        tokenizer.save_pretrained(target)
    for file in target.iterdir():
        file.chmod(0o644)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep transformers' bars and advice off the screen; its exceptions come through."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
