"""What is read from a backbone is what its own library says the layer gives, location by location."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from devil_pipe.stages.extract.backbones import SPECS, Backbone, Tap, load, spec
from devil_pipe.stages.extract.layers import Taps, choose, layer_specs, planned_layers
from devil_pipe.store.errors import InputError, UsageError

# Channels, height and width at 224 pixels: ResNet-50's as the paper gives them (its layers' labels), the others from
# the architectures' own tables (strides 8, 16 and 32; 7 × 7 patches of 32 pixels).
SHAPES = {
    "effnet_lite0": {"s8": (40, 28, 28), "s16": (112, 14, 14), "s32": (320, 7, 7)},
    "in_rn101": {
        "layer1": (256, 56, 56),
        "layer2": (512, 28, 28),
        "layer3": (1024, 14, 14),
        "layer4": (2048, 7, 7),
    },
    "in_rn50": {"L21": (512, 28, 28), "L39": (1024, 14, 14), "L49": (2048, 7, 7)},
    "clip_rn50": {"L21": (512, 28, 28), "L39": (1024, 14, 14), "L49": (2048, 7, 7)},
    "clip_vit_b32": {f"block{number}": (768, 7, 7) for number in (3, 6, 9, 12)},
    "dinov2_s14_saliency": {f"block{number}": (384, 16, 16) for number in (3, 6, 9, 12)},
}


def timm_says(module: nn.Module, pixels: Tensor) -> list[Tensor]:
    return list(module.forward_intermediates(pixels, intermediates_only=True))  # type: ignore[operator]


def open_clip_says(module: nn.Module, pixels: Tensor) -> list[Tensor]:
    return list(module.visual.forward_intermediates(pixels)["image_intermediates"])  # type: ignore[operator, union-attr]


def transformers_says(module: nn.Module, pixels: Tensor) -> list[Tensor]:
    """Dinov2's own hidden states, the embeddings and the class token left away."""
    states = module(pixels, output_hidden_states=True).hidden_states[1:]
    return [state[:, 1:].transpose(1, 2).unflatten(2, (16, 16)) for state in states]


# Our layer names beside the place of each in the library's own list of intermediate maps (NCHW).
ORACLES: dict[str, tuple[Callable[[nn.Module, Tensor], list[Tensor]], dict[str, int]]] = {
    "effnet_lite0": (timm_says, {"s2": 0, "s4": 1, "s8": 2, "s16": 3, "s32": 4}),
    "in_rn50": (timm_says, {"L11": 1, "L21": 2, "L39": 3, "L49": 4}),
    "in_rn101": (timm_says, {f"layer{stage}": stage for stage in (1, 2, 3, 4)}),
    "dinov2_s14_saliency": (transformers_says, {f"block{number}": number - 1 for number in range(1, 13)}),
    "clip_rn50": (open_clip_says, {"L11": 1, "L21": 2, "L39": 3, "L49": 4}),
    "clip_vit_b32": (open_clip_says, {f"block{number}": number - 1 for number in range(1, 13)}),
}


@pytest.fixture(scope="module", params=SPECS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return load(request.param, "random")


def test_every_tap_is_what_the_library_gives(backbone: Backbone) -> None:
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    says, places = ORACLES[backbone.spec.name]
    assert set(places) == {tap.name for tap in backbone.spec.taps if tap.block}
    with torch.inference_mode():
        expected = says(backbone.module, pixels)
        with Taps(backbone.module, backbone.spec.taps) as read:
            found = read(pixels)
    for name, place in places.items():
        theirs = expected[place]
        height, width = theirs.shape[2:]
        assert read.grids[name] == (height, width)
        assert found[name].shape == (2, height * width, theirs.shape[1])
        scale = theirs.abs().max()
        for y in range(height):
            for x in range(width):
                error = (found[name][:, y * width + x] - theirs[:, :, y, x]).abs().max() / scale
                assert error < 1e-6, f"{name} at row {y}, column {x}"


def test_names_and_shapes_are_the_papers(backbone: Backbone) -> None:
    expected = SHAPES[backbone.spec.name]
    for layers in (
        layer_specs(backbone.module, choose(backbone.spec, ()), 224),
        planned_layers(backbone.spec, ()),
    ):
        assert {layer.name: (layer.channels, layer.height, layer.width) for layer in layers} == expected
        assert [layer.name for layer in layers] == list(expected)


@pytest.mark.parametrize(("name", "layer"), [("effnet_lite0", "s8"), ("clip_vit_b32", "block1")])
def test_a_location_explains_its_own_place_in_the_picture(name: str, layer: str) -> None:
    """A spot drawn at the lower left changes the map most at the lower left, and so at three other places."""
    backbone = load(name, "random")
    with torch.inference_mode(), Taps(backbone.module, choose(backbone.spec, [layer])) as read:
        plain = torch.zeros(1, 3, 224, 224)
        before = read(plain)[layer]
        height, width = read.grids[layer]
        for top, left in ((192, 0), (0, 192), (96, 32), (32, 160)):
            spot = plain.clone()
            spot[:, :, top : top + 32, left : left + 32] = 2
            place = int((read(spot)[layer] - before).abs().sum(-1).argmax())
            y, x = (place // width + 0.5) * 224 / height, (place % width + 0.5) * 224 / width
            # half a stride of slack at the edges: strided convolutions look a little to the side
            assert top - 8 <= y <= top + 40
            assert left - 8 <= x <= left + 40


def test_the_hooks_are_gone_afterwards_even_after_an_error() -> None:
    backbone = load("effnet_lite0", "random")

    def hooks() -> int:
        return sum(len(item._forward_hooks) + len(item._forward_pre_hooks) for item in backbone.module.modules())

    before = hooks()
    with Taps(backbone.module, backbone.spec.taps):
        assert hooks() == before + len(backbone.spec.taps)
    assert hooks() == before
    with pytest.raises(RuntimeError), Taps(backbone.module, backbone.spec.taps) as read:
        read(torch.zeros(1, 3, 0, 0))
    assert hooks() == before


def test_layers_come_in_the_backbones_order() -> None:
    assert [tap.name for tap in choose(spec("in_rn50"), ["L49", "L11"])] == ["L11", "L49"]
    assert [tap.name for tap in choose(spec("effnet_lite0"), [])] == ["s8", "s16", "s32"]


@pytest.mark.parametrize(
    ("backbone_name", "names", "expected"),
    [
        ("in_rn50", ["layer4"], ["L49"]),  # the module that puts it out
        ("clip_rn50", ["visual.layer3", "layer4"], ["L39", "L49"]),
        ("in_rn101", ["L100", "L10"], ["layer1", "layer4"]),  # the alias
        ("clip_vit_b32", ["L12"], ["block12"]),  # as the paper's figures call it
        ("clip_vit_b32", ["last:3"], ["block10", "block11", "block12"]),
        ("clip_vit_b32", ["every:3"], ["block3", "block6", "block9", "block12"]),
        ("clip_vit_b32", ["every:5", "block1"], ["block1", "block2", "block7", "block12"]),
        ("clip_vit_b32", ["last-of-every-stage"], ["block12"]),
        ("in_rn50", ["last-of-every-stage"], ["L11", "L21", "L39", "L49"]),
        ("in_rn50", ["all"], ["L11", "L21", "L39", "L49"]),
        ("in_rn50", ["last:1", "L11"], ["L11", "L49"]),
    ],
)
def test_layers_are_chosen_by_name_alias_module_or_rule(
    backbone_name: str, names: list[str], expected: list[str]
) -> None:
    assert [tap.name for tap in choose(spec(backbone_name), names)] == expected


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["L49", "L50"], "layers: in_rn50 has L11, L21, L39, L49, pooled, got 'L50'"),
        (["layer5"], "got 'layer5'.* see `devil-pipe layers in_rn50`"),
        (["L49", "L49"], "layers: 'L49' is named twice"),
        (["L49", "layer4"], r"layers: 'L49' is named twice \(it is 'layer4'\)"),
        (["last:5"], "layers: expected last:N with N from 1 to 4, the blocks of in_rn50, got 'last:5'"),
        (["every:0"], "expected every:N with N from 1 to 4.*got 'every:0'"),
        (["last:two"], "expected last:N with N from 1 to 4.*got 'last:two'"),
    ],
)
def test_wrong_layers_are_named(names: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        choose(spec("in_rn50"), names)


def test_an_unknown_backbone_names_the_known() -> None:
    with pytest.raises(UsageError, match=r"expected one of effnet_lite0, in_rn50, .*, or timm/NAME, .*, got 'vgg'"):
        load("vgg")


def test_what_is_no_map_is_refused() -> None:
    lite, vit = load("effnet_lite0", "random").module, spec("clip_vit_b32").build(False, "meta")
    with pytest.raises(InputError, match=r"layer pooled: expected \[batch, channels, height, width\], got \[1, 1280\]"):
        layer_specs(lite, [Tap("pooled", "global_pool")], 64)
    with pytest.raises(InputError, match="layer all: 50 patch tokens are no square grid"):
        layer_specs(vit, [Tap("all", "visual.transformer.resblocks.0", "tokens")], 224)


@pytest.mark.parametrize("name", ["clip_rn50", "clip_vit_b32"])
def test_clip_takes_one_size_of_pictures(name: str) -> None:
    with pytest.raises(InputError, match="image_size: the backbone takes no pictures of 160 pixels"):
        planned_layers(spec(name), (), 160)


@pytest.mark.parametrize(("size", "grids"), [(64, [8, 4, 2]), (72, [9, 5, 3]), (256, [32, 16, 8])])
def test_convolutions_take_any_size(size: int, grids: list[int]) -> None:
    layers = planned_layers(spec("effnet_lite0"), (), size)
    assert [(layer.height, layer.width) for layer in layers] == [(side, side) for side in grids]
