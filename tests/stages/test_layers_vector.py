"""Vectors pooled from the whole picture beside the libraries' own: CLIP's embedding, and what a classifier reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from devil_pipe.pipeline.cli import app
from devil_pipe.stages.extract.backbones import OPENAI, SPECS, BackboneSpec, load, spec
from devil_pipe.stages.extract.config import ExtractConfig, Runtime
from devil_pipe.stages.extract.layers import Taps, choose, layer_specs, planned_layers
from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.stages.extract.run import run
from devil_pipe.stages.extract.taps import Tap
from devil_pipe.stages.extract.units import mask_weights
from devil_pipe.stages.extract.vectors import vectors
from devil_pipe.store.errors import InputError
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.schema import LayerSpec

CLIP = {"clip_vit_b32": 512, "clip_rn50": 1024}
# The real architectures, the smallest of each kind of head, with random weights.
HEADS = {
    "resnet18": 64,
    "vit_tiny_patch16_224": 224,
    "convnext_atto": 64,
    "efficientnet_b0": 64,
    "mobilenetv3_small_050": 64,
    "swin_tiny_patch4_window7_224": 224,
}


@pytest.mark.parametrize("name", CLIP)
def test_the_embedding_is_what_encode_image_returns(name: str) -> None:
    """Before normalisation: the lengths are not one."""
    backbone = load(name, "random")
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    taps = choose(backbone.spec, ["embedding"])
    with torch.inference_mode(), Taps(backbone.module, taps) as read:
        found = read(pixels)["embedding"]
        expected = backbone.module.encode_image(pixels, normalize=False)  # type: ignore[operator]
    assert read.grids["embedding"] == (1, 1)
    assert torch.equal(found, expected[:, None])
    assert (found.norm(dim=2) - 1).abs().min() > 0.1
    layer = LayerSpec(name="embedding", channels=CLIP[name], height=1, width=1)
    assert layer_specs(backbone.module, taps, 224) == planned_layers(backbone.spec, ["embedding"]) == (layer,)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("classes", [1000, 0])
def test_pooled_is_timms_head_without_its_classifier(name: str, classes: int) -> None:
    """Without classes, as many of timm's self-supervised weights come, nothing is left away."""
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=classes).eval()
    size = HEADS[name]
    (tap,) = vectors(module, (size, size))
    assert tap.name == "pooled"
    pixels = torch.randn(2, 3, size, size)
    with torch.inference_mode(), Taps(module, [tap]) as read:
        found = read(pixels)["pooled"]
        expected = module.forward_head(module.forward_features(pixels), pre_logits=True)
    assert torch.equal(found, expected.reshape(2, 1, -1))
    assert found.std(dim=0).max() > 0, "the pictures differ, so the vectors do"


def test_a_preset_reads_the_vector_that_timms_head_gives() -> None:
    for name in ("effnet_lite0", "in_rn50", "in_rn101"):
        backbone = load(name, "random")
        module: Any = backbone.module
        pixels = torch.randn(1, 3, 64, 64)
        with torch.inference_mode(), Taps(module, choose(backbone.spec, ["pooled"])) as read:
            expected = module.forward_head(module.forward_features(pixels), pre_logits=True)
            assert torch.equal(read(pixels)["pooled"][:, 0], expected), name


class Unread(nn.Module):
    """Has timm's methods; its classifier is not called, or is called with a map."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.body, self.head, self.reads = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), reads

    def get_classifier(self) -> nn.Module:
        return nn.Identity() if self.reads == "no module of its own" else self.head

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)) if self.reads == "a map" else self.body(x)


@pytest.mark.parametrize("reads", ["a map", "nothing", "no module of its own"])
def test_what_is_no_vector_is_no_layer(reads: str) -> None:
    assert vectors(Unread(reads), (32, 32)) == ()
    assert vectors(nn.Conv2d(3, 4, 3), (32, 32)) == ()


def test_a_map_is_refused_as_a_vector() -> None:
    tap = Tap("maps", "0", "vector")
    with (
        Taps(nn.Sequential(nn.Conv2d(3, 4, 3)), [tap]) as read,
        pytest.raises(InputError, match=r"layer maps: expected"),
    ):
        read(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("name", [*SPECS, "timm/resnet18", "open_clip/ViT-B-32-quickgelu:openai"])
def test_no_rule_and_no_default_takes_a_vector(name: str) -> None:
    found: BackboneSpec = spec(name)
    held = {tap.name for tap in found.taps if tap.kind == "vector"}
    clip = "clip" in name
    assert held == (set() if "dinov2" in name else {"embedding" if clip else "pooled"})
    for rule in ("all", "last:1", "every:2", "last-of-every-stage"):
        assert not held & {tap.name for tap in choose(found, [rule])}
    assert not held & {tap.name for tap in choose(found, [])}


@pytest.mark.parametrize(("name", "shape"), [("clip_vit_b32", [512, 1, 1]), ("clip_rn50", [1024, 1, 1])])
def test_the_command_lists_it_as_no_block(name: str, shape: list[int]) -> None:
    told = json.loads(CliRunner().invoke(app, ["layers", name, "--json"]).stdout)
    (row,) = [row for row in told["layers"] if row["name"] == "embedding"]
    assert [row["channels"], *row["grid"]] == shape
    assert (row["default"], row["block"]) == (False, False)


@pytest.mark.parametrize("encoding", ["float16", "uint8", "partition:4", "pool:7"])
def test_a_store_of_embeddings_holds_what_encode_image_gives(tiny_data: Callable[..., Path], encoding: str) -> None:
    data = tiny_data(count=3)
    out = data.parents[1] / "store"
    config = ExtractConfig(
        name="store",
        data=data.name,
        backbone="clip_vit_b32",
        weights="random",
        layers=("embedding", "block12"),
        encoding=encoding,
        shard_rows=4,
        runtime=Runtime(batch_size=3, decoders=1, device="cpu"),
        data_dir=data,
        out=out,
    )
    run(config)
    store = FeatureStore(out)
    assert {(layer.name, layer.locations) for layer in store.layers} == {("embedding", 1), ("block12", 49)}
    module: Any = load("clip_vit_b32", "random").module
    pictures = sorted((data.parents[1] / "pictures").glob("*.png"))
    pixels = torch.stack([Transform(224, *OPENAI)(Image.open(path).convert("RGB")) for path in pictures])
    with torch.inference_mode():
        expected = module.encode_image(pixels).numpy()
    held = store["embedding"].stored(range(3), verify=True)
    values = held.values[:, 0].astype(np.float32) if held.bounds is None else held.bounds[:, 0].astype(np.float32)
    np.testing.assert_allclose(values, expected, rtol=2e-3, atol=2e-3)


def test_a_units_vector_is_the_mean_over_its_exemplars() -> None:
    """It has no locations that a mask could choose, so only an empty mask takes an exemplar away."""
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0] = True
    masks[1, 7, 0] = True  # nowhere near the middle, which resizing to one location would look at
    assert mask_weights(masks, 1, 1).tolist() == [[1.0], [1.0], [0.0]]
