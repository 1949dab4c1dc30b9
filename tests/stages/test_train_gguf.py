"""A language model in a GGUF file, written here tensor by tensor, reads like the same model in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from devil_pipe.stages.train.language_model import LanguageModel, embedding_width
from devil_pipe.store.errors import InputError

from . import language_models

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
CAPTIONS = ["a dog in front of a lake", "a sea lion"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_models.save(tmp_path_factory.mktemp("llama"), language_models.FAMILIES["llama"])


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    config = json.loads((folder / "config.json").read_text())
    heads = {"self_attn.q_proj": config["num_attention_heads"], "self_attn.k_proj": config["num_key_value_heads"]}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, folder)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        writer.add_tensor(*_as_gguf(name, tensor, heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    known = json.loads((folder / "tokenizer.json").read_text())
    tokens = sorted(known["model"]["vocab"], key=known["model"]["vocab"].__getitem__)
    special = {item["content"] for item in known["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in known["model"]["merges"]])


def _as_gguf(name: str, tensor: torch.Tensor, heads: dict[str, int]) -> tuple[str, np.ndarray]:
    """GGUF's name and layout: the halves of each head's rotary dimensions lie interleaved."""
    parts = name.removesuffix(".weight").split(".")
    if parts[:2] != ["model", "layers"]:
        ends = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
        return f"{ends['.'.join(parts)]}.weight", tensor.numpy()
    part = ".".join(parts[3:])
    if part in heads:
        shape = tensor.shape
        tensor = tensor.reshape(heads[part], 2, -1, shape[1]).swapaxes(1, 2).reshape(shape)
    return f"blk.{parts[2]}.{NAMES[part]}.weight", tensor.contiguous().numpy()


def load(name: Path) -> LanguageModel:
    return LanguageModel(str(name), device=torch.device("cpu"), dtype=torch.float32)


def test_a_gguf_file_and_its_folder_read_like_the_model(folder: Path, file: Path) -> None:
    expected = load(folder)
    ids = expected.encode(CAPTIONS)
    prefix = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    losses, _ = expected.token_losses(prefix, ids)
    for name in (file, file.parent):
        found = load(name)
        assert (found.bos, found.eos, found.width) == (expected.bos, expected.eos, 16)
        assert embedding_width(str(name)) == 16
        assert found.encode(CAPTIONS) == ids
        assert torch.allclose(found.token_losses(prefix, ids)[0], losses, rtol=1e-4)
        assert found.write(prefix, 6) == expected.write(prefix, 6)


def test_what_is_no_gguf_is_said_in_a_line(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.gguf': expected a GGUF file there, found none"):
        load(tmp_path / "none.gguf")
    (tmp_path / "a.gguf").write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match=r"cannot be loaded from the file a.gguf") as caught:
        load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(InputError, match=r"expected one GGUF file in the folder, got a.gguf, b.gguf"):
        load(tmp_path)
