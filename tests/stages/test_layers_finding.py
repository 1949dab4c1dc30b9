"""The layers that a trial forward finds, and their maps, beside the test's own hooks and the libraries' read-outs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn

from devil_pipe.stages.extract.backbones import BackboneSpec, spec, usual
from devil_pipe.stages.extract.finding import find
from devil_pipe.stages.extract.layers import Taps, choose, layer_specs, planned_layers
from devil_pipe.stages.extract.taps import Tap, grid_of
from devil_pipe.store.errors import InputError

from . import own_backbones as own

SIZE = 64
# The real architectures, the smallest of each family, at a small size where they take any.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (lambda: timm.create_model("resnet18"), SIZE),
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224"), 224),
    "vit with registers": (lambda: timm.create_model("vit_small_patch14_reg4_dinov2", img_size=98, depth=4), 98),
    "swin": (lambda: timm.create_model("swin_tiny_patch4_window7_224"), 224),
    "convnext": (lambda: timm.create_model("convnext_atto"), SIZE),
    "efficientnet": (lambda: timm.create_model("efficientnet_b0"), SIZE),
    "maxvit": (lambda: timm.create_model("maxvit_nano_rw_256"), 256),
}
# How timm's own list of intermediate maps follows from ours: the name of the layer → its place there.
THEIRS = {
    "resnet": {"act1": 0, "layer1.1": 1, "layer2.1": 2, "layer3.1": 3, "layer4.1": 4},
    "vit": {f"blocks.{place}": place for place in range(12)},
    "vit with registers": {f"blocks.{place}": place for place in range(4)},
    "swin": {"layers.0.blocks.1": 0, "layers.1.blocks.1": 1, "layers.2.blocks.5": 2, "layers.3.blocks.1": 3},
    "convnext": {"stages.0.blocks.1": 0, "stages.1.blocks.1": 1, "stages.2.blocks.5": 2, "stages.3.blocks.1": 3},
    "efficientnet": {"blocks.0.0": 0, "blocks.1.1": 1, "blocks.2.1": 2, "blocks.4.2": 3, "blocks.6.0": 4},
    "maxvit": {f"stages.{stage}.blocks.{last}": stage + 1 for stage, last in enumerate((0, 1, 2, 0))},
}


def frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


def hooked(module: nn.Module, run: nn.Module, paths: list[str], pixels: Tensor) -> dict[str, Tensor]:
    """Each module's output, copied the moment it is put out."""
    seen: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: seen.__setitem__(path, output.clone())

    handles = [module.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    with torch.inference_mode():
        run(pixels)
    for handle in handles:
        handle.remove()
    return seen


def at(tap: Tap, output: Tensor, grid: tuple[int, int], y: int, x: int) -> Tensor:
    """One location of a raw output, [batch, channels], written out for each way a map may lie."""
    token = tap.prefix_tokens + y * grid[1] + x
    if tap.kind == "map":
        return output[:, :, y, x]
    if tap.kind == "map_last":
        return output[:, y, x]
    return output[:, token] if tap.kind == "tokens" else output[token]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_map_is_what_a_plain_hook_sees_and_what_timm_gives(family: str) -> None:
    make, size = FAMILIES[family]
    torch.manual_seed(0)
    module = frozen(make())
    taps = find(module, (size, size))
    pixels = torch.randn(2, 3, size, size)
    with torch.inference_mode(), Taps(module, taps) as read:
        maps = read(pixels)
    raw = hooked(module, module, [tap.module for tap in taps], pixels)
    for tap in taps:
        grid = read.grids[tap.name]
        assert maps[tap.name].shape[1] == math.prod(grid)
        for y in range(grid[0]):
            for x in range(grid[1]):
                assert torch.equal(maps[tap.name][:, y * grid[1] + x], at(tap, raw[tap.module], grid, y, x)), tap.name
    with torch.inference_mode():
        theirs: list[Tensor] = module.forward_intermediates(pixels, intermediates_only=True, norm=False)  # type: ignore[operator]
    for name, place in THEIRS[family].items():
        expected = theirs[place].flatten(2).transpose(1, 2)
        assert expected.shape == maps[name].shape
        assert (maps[name] - expected).abs().max() <= 1e-5 * expected.abs().max(), name
        assert read.grids[name] == tuple(theirs[place].shape[2:])
    assert set(usual(taps)) <= set(THEIRS[family])


@pytest.mark.parametrize(
    ("name", "tokens_first"), [("RN50-quickgelu", False), ("ViT-B-32-quickgelu", False), ("ViT-B-32-quickgelu", True)]
)
def test_clips_maps_are_those_that_open_clip_gives(name: str, tokens_first: bool) -> None:
    torch.manual_seed(0)
    with torch.random.fork_rng():
        module = frozen(open_clip.create_model(name, device="cpu", pretrained_text=False))
    turn(module.visual, tokens_first)  # type: ignore[arg-type]
    taps = find(module, (224, 224))
    assert all(tap.module.startswith("visual.") for tap in taps)
    pixels = torch.randn(2, 3, 224, 224)
    with torch.inference_mode(), Taps(module, taps) as read:
        maps = read(pixels)
    assert not tokens_first or {tap.kind for tap in taps if tap.block} == {"tokens_first"}
    around = {"ln_pre", "ln_post"} if "ViT" in name else {"act1", "act2", "act3"}
    assert {tap.name for tap in taps if not tap.block} == around
    turn(module.visual, False)  # type: ignore[arg-type]
    with torch.inference_mode():
        theirs = module.visual.forward_intermediates(pixels)["image_intermediates"]  # type: ignore[operator,union-attr]
    blocks = [tap.name for tap in taps if tap.block]
    stages = ["layer1.2", "layer2.3", "layer3.5", "layer4.2"]
    for tap_name, expected in (
        zip(blocks, theirs, strict=True) if len(blocks) == 12 else zip(stages, theirs[1:], strict=True)
    ):
        found = maps[tap_name].transpose(1, 2).unflatten(2, read.grids[tap_name])
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), tap_name


def turn(visual: Any, tokens_first: bool) -> None:
    """Let open_clip's transformer compute on [tokens, batch, channels], as it did before and still can."""
    for part in visual.modules():
        if hasattr(part, "batch_first"):
            part.batch_first = not tokens_first


def test_strides_that_differ_and_are_odd_give_grids_that_are_not_square() -> None:
    module = frozen(own.Odd())
    taps = find(module, (SIZE, SIZE))
    assert [(tap.name, tap.alias, tap.block) for tap in taps] == [
        ("stem.2", "", False),
        ("stage1.0", "", True),
        ("stage1.1", "stage1", True),
        ("stage2.0", "", True),
        ("stage2.1", "stage2", True),
    ]
    found = {layer.name: (layer.channels, layer.height, layer.width) for layer in layer_specs(module, taps, (50, 90))}
    high, wide = (50 - 5) // 3 + 1, (90 - 5) // 2 + 1  # what a convolution without padding gives
    assert found["stage1.1"] == (12, high, wide)
    assert found["stage2.1"] == (20, (high - 3) // 2 + 1, (wide - 3) // 3 + 1)


@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("tokens_first", [False, True])
def test_a_transformers_grid_and_extra_tokens_are_found(before: int, after: int, tokens_first: bool) -> None:
    """Patches of 8 × 16 pixels: the picture decides which token is whose, the shapes say where the others stand."""
    torch.manual_seed(0)
    module = frozen(own.Transformer(before, after, tokens_first=tokens_first))
    own.Layer.axis = 0 if tokens_first else 1
    try:
        taps = [tap for tap in find(module, (64, 96)) if tap.block]
        assert [(tap.prefix_tokens, tap.suffix_tokens) for tap in taps] == [(before, after)] * 8
        assert {tap.norm for tap in taps} == {"pre-norm"}
        with Taps(module, taps) as read, torch.inference_mode():
            plain = torch.zeros(1, 3, 64, 96)
            spot = plain.clone()
            spot[:, :, 24:32, 64:80] = 3  # the patch in row 3, column 4
            changed = (read(spot)["layers.0"] - read(plain)["layers.0"]).abs().sum(-1)[0]
            assert read.grids["layers.0"] == (8, 6)
    finally:
        own.Layer.axis = 1
    assert int(changed.argmax()) == 3 * 6 + 4
    assert usual(tuple(taps)) == ("layers.1", "layers.3", "layers.5", "layers.7")


def test_a_module_that_keeps_no_gradients_is_read_as_well() -> None:
    assert find(frozen(own.Quiet()), (SIZE, SIZE)) == find(frozen(own.Odd()), (SIZE, SIZE))


def test_what_a_reader_would_find_overwritten_is_no_layer() -> None:
    """The convolutions' outputs are changed in place, and of the activation a hook sees the second call alone."""
    module = frozen(own.Twice())
    (tap,) = find(module, (SIZE, SIZE))
    pixels = torch.randn(1, 3, SIZE, SIZE)
    with Taps(module, [tap]) as read, torch.inference_mode():
        found = read(pixels)[tap.name]
        assert torch.equal(found, module(pixels).flatten(2).transpose(1, 2))


def test_a_backbone_without_a_layer_of_the_whole_says_so() -> None:
    for module in (own.Two(), nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 2))):
        with pytest.raises(InputError, match="found no layer with a grid of locations"):
            find(frozen(module), (SIZE, SIZE))


def test_tokens_in_the_order_of_windows_are_refused() -> None:
    with torch.device("meta"):
        module = timm.create_model("hiera_tiny_224")
    with pytest.raises(InputError, match="Hiera: its tokens do not lie in the order of the picture"):
        find(module.eval(), (224, 224))


@pytest.mark.parametrize(
    ("name", "norms"), [("vit_tiny_patch16_224", ("pre-norm", "post-norm")), ("resnet18", ("", ""))]
)
def test_the_stream_before_the_final_norm_is_told_from_what_comes_after(name: str, norms: tuple[str, str]) -> None:
    """By its numbers: over the channels a LayerNorm's output has mean 0 and variance 1, its fresh weights being 1."""
    torch.manual_seed(0)
    module = frozen(timm.create_model(name))
    taps = [tap for tap in find(module, (224, 224)) if tap.name in ("blocks.5", "norm", "layer1.0", "layer4.1")]
    assert tuple(tap.norm for tap in taps) == norms
    with Taps(module, taps) as read, torch.inference_mode():
        maps = read(torch.randn(1, 3, 224, 224))
    for tap in taps:
        normed = bool(((maps[tap.name].var(-1, correction=0) - 1).abs() < 1e-2).all())
        assert normed == (tap.norm == "post-norm")


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("timm/resnet50.a1_in1k", {"layer1.2": 56, "layer2.3": 28, "layer3.5": 14, "layer4.2": 7}),
        ("timm/vit_base_patch16_224", {"blocks.2": 14, "blocks.5": 14, "blocks.8": 14, "blocks.11": 14}),
        ("timm/vit_small_patch14_reg4_dinov2", {"blocks.2": 37, "blocks.5": 37, "blocks.8": 37, "blocks.11": 37}),
        ("open_clip/ViT-B-16-SigLIP:webli", {f"trunk.blocks.{number}": 14 for number in (2, 5, 8, 11)}),
        ("timm/regnety_002", {"s1.b1": 56, "s2.b1": 28, "s3.b4": 14, "s4.b7": 7}),
        ("timm/densenet121", {f"features.denseblock{n}": 56 // 2 ** (n - 1) for n in (1, 2, 3, 4)}),
        ("timm/vgg11", {f"features.{n}": 224 // 2**place for place, n in enumerate((1, 4, 9, 14, 19))}),
    ],
)
def test_the_usual_layers_of_libraries_backbones(name: str, layers: dict[str, int]) -> None:
    """The last block of each stage, or the quarters; grids follow from the strides that the papers give."""
    found = planned_layers(spec(name), ())
    assert {layer.name: (layer.height, layer.width) for layer in found} == {key: (n, n) for key, n in layers.items()}


def test_rules_count_blocks_alone() -> None:
    found: BackboneSpec = spec("timm/convnext_atto")
    assert found.taps[0].name == "stem.1"
    blocks = [tap.name for tap in choose(found, ["all"])]
    assert len(blocks) == 2 + 2 + 6 + 2
    assert [tap.name for tap in choose(found, ["last:2"])] == ["stages.3.blocks.0", "stages.3.blocks.1"]
    stages = ["stages.0.blocks.1", "stages.1.blocks.1", "stages.2.blocks.5", "stages.3.blocks.1"]
    for names in (
        ["last-of-every-stage"],
        ["stage1", "stage2", "stage3", "stage4"],
        ["stages.0", "stages.1", "stages.2", "stages.3"],
    ):
        assert [tap.name for tap in choose(found, names)] == stages


def test_a_grid_is_of_the_pictures_proportions() -> None:
    assert (grid_of(49, 1), grid_of(50, 1), grid_of(12, 1), grid_of(0, 1)) == ((7, 7), None, None, None)
    for high in range(1, 30):
        for wide in range(1, 30):
            assert grid_of(high * wide, high / wide) == (high, wide)
