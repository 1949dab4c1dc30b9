"""Where language models come from (the hub, a folder, a GGUF file), and which of their tokens begin, end and fill."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devil_pipe.stages.common.assets import asset
from devil_pipe.stages.common.dequantise import hushed
from devil_pipe.stages.common.files import expanded
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
        InputError: neither known by name, nor a folder or GGUF file, nor to be had from the hub.
    """
    if name in KNOWN:
        return KNOWN[name].width
    config = read("AutoConfig", name).get_text_config()
    # OPT-350m's embeddings are narrower than its hidden states.
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def read(kind: str, name: str, **options: Any) -> Any:
    """Have transformers' class `kind` read a model by name, folder or GGUF file.

    A quantised GGUF file is dequantised at every load, in seconds to a minute.

    Raises:
        InputError: it cannot be had or read.
    """
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    source, gguf = _source(name)
    try:
        if not gguf:
            return getattr(transformers, kind).from_pretrained(source, **options)
        with hushed():
            return getattr(transformers, kind).from_pretrained(source, gguf_file=gguf, **options)
    except Exception as error:
        # Hub clients and file parsers fail in many ways; the remedies are the same.
        where = f"the file {gguf}" if gguf else "the folder" if Path(source).is_dir() else "the model hub"
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise InputError(
            f"language model {name!r}: cannot be loaded from {where} ({reason}); "
            f"expected one of {', '.join(KNOWN)}, a folder of a Hugging Face model, a GGUF file, or a network"
        ) from error


def _source(name: str) -> tuple[str, str]:
    """A folder or the hub's name, and the GGUF file in it ("" for a model in Hugging Face's own files)."""
    if name in KNOWN:
        known = KNOWN[name]
        return (str(asset(known.source)) if known.from_assets else known.source), ""
    path = expanded(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"language model {name!r}: expected a GGUF file there, found none")
        return str(path.parent), path.name
    if path.is_dir() and not (path / "config.json").exists():
        files = sorted(item.name for item in path.glob("*.gguf"))
        if len(files) > 1:
            raise InputError(f"language model {name!r}: expected one GGUF file in the folder, got {', '.join(files)}")
        if files:
            return str(path), files[0]
    return (str(path) if path.is_dir() else name), ""


@dataclass(frozen=True)
class Special:
    """The tokens that begin a text, end it, and fill the rows of a batch."""

    bos: int
    eos: int
    pad: int


def special_tokens(name: str, tokenizer: Any, config: Any, rows: int) -> Special:
    """The special tokens of a language model with `rows` token embeddings.

    Families differ. GPT2, GPT-NeoX and OPT begin a text with the token that ends it; Qwen2's tokenizer has no BOS, but
    its configuration names the token that stood between training texts; a Llama may lack both, and then begins with
    its EOS, which is what it saw before a text. A missing pad changes no number: padding stands behind the texts.

    Raises:
        InputError: no end-of-text token, or one that the model has no embedding for.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise InputError(f"language model {name}: expected a tokenizer with an end-of-text token, found none")
    bos = tokenizer.bos_token_id
    if bos is None:
        named = getattr(config, "bos_token_id", None)  # often a class's default, of another vocabulary
        bos = named if named in tokenizer.all_special_ids else eos
    for what, token in (("end-of-text", eos), ("begin-of-text", bos)):
        if token >= rows:
            raise InputError(
                f"language model {name}: expected its {what} token among its {rows} embeddings, got token {token}; "
                "the tokenizer is another model's"
            )
    pad = tokenizer.pad_token_id
    return Special(int(bos), int(eos), int(eos if pad is None or pad >= rows else pad))
