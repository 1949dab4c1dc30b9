"""The wheel's ONNX file read into transformers, beside what ONNX Runtime computes from that very file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from devil_pipe.stages.extract import dinov2, selftest
from devil_pipe.stages.extract.backbones import load, spec
from devil_pipe.stages.extract.layers import Taps
from devil_pipe.store.errors import InputError

NAME = "dinov2_s14_saliency"


@pytest.mark.assets
def test_every_blocks_map_is_what_onnx_runtime_computes(asset_or_skip: Callable[[str], Path]) -> None:
    folder = asset_or_skip(NAME)
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")
    model = onnx.load(str(folder / "vit_s_focus.onnx"))
    # A block's last step is its second sum.
    ends = [f"/backbone/encoder/layer.{number}/Add_1_output_0" for number in range(12)]
    for end in ends:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(end))
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    theirs = session.run(ends, {"input_image": pixels.numpy()})
    backbone = load(NAME)
    with Taps(backbone.module, backbone.spec.taps) as read, torch.inference_mode():
        found = read(pixels)
    for number, expected in enumerate(theirs, 1):
        maps = found[f"block{number}"].numpy()
        assert read.grids[f"block{number}"] == (16, 16)
        assert np.abs(maps - expected[:, 1:]).max() <= 3e-5 * np.abs(expected).max()


@pytest.mark.assets
def test_its_self_test_promises_no_more_than_it_looks_at(asset_or_skip: Callable[[str], Path]) -> None:
    asset_or_skip(NAME)
    backbone = load(NAME)
    said = selftest.check(backbone, backbone.spec.transform())
    assert said.startswith(f"no known answer for {NAME}; checked that the maps of block3, block6, block9, block12 are")


def test_what_was_not_fetched_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVIL_PIPE_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=rf"{NAME}.*run `devil-pipe assets {NAME}` to fetch it"):
        load(NAME)


def test_a_file_that_is_no_onnx_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.onnx"
    path.write_bytes(b"\xff\xff not protobuf")
    with pytest.raises(InputError, match=r"some\.onnx: expected an ONNX file"):
        dinov2.read(path, spec(NAME).build(False, "meta"))
