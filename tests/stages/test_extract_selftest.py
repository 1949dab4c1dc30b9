"""The look at known pictures lets sound weights pass and stops wrong scaling, wrong weights and the wrong GELU."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn

from devil_pipe.stages.extract import selftest
from devil_pipe.stages.extract.backbones import IMAGENET, LITE, OPENAI, Backbone, load, spec, usual
from devil_pipe.stages.extract.finding import find
from devil_pipe.stages.extract.layers import choose
from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.store.errors import InputError

from . import own_backbones


@pytest.mark.assets
@pytest.mark.parametrize("size", [224, 64])
def test_real_weights_pass_whatever_size_is_extracted(asset_or_skip: Callable[[str], Path], size: int) -> None:
    asset_or_skip("efficientnet-lite0")
    said = selftest.check(load("effnet_lite0"), Transform(size, *LITE))
    assert said.startswith("self-test passed: coffee → ")
    assert "cat" in said.split("chelsea → ")[1]


@pytest.mark.assets
@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.0,) * 3, (1 / 255,) * 3),  # pixels left at 0 to 255
        ((-0.5,) * 3, (0.5,) * 3),  # far too bright
        (LITE[0], (10.0,) * 3),  # hardly any contrast
    ],
)
def test_wrong_scaling_is_stopped(
    asset_or_skip: Callable[[str], Path], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    asset_or_skip("efficientnet-lite0")
    with pytest.raises(InputError, match="self-test of effnet_lite0: expected coffee in one of the classes"):
        selftest.check(load("effnet_lite0"), Transform(224, mean, std))


@pytest.mark.parametrize(("name", "scale"), [("effnet_lite0", LITE), ("in_rn50", IMAGENET)])
def test_weights_that_claim_to_be_real_and_are_not_are_stopped(name: str, scale: tuple[tuple[float, ...], ...]) -> None:
    random = load(name, "random")
    claimed = Backbone(random.spec, random.module, "f" * 64)
    with pytest.raises(InputError, match=f"self-test of {name}"):
        selftest.check(claimed, Transform(224, *scale))
    assert selftest.check(random, Transform(224, *scale)) == "self-test skipped: random weights"


@pytest.mark.parametrize(("name", "plain"), [("clip_rn50", "RN50"), ("clip_vit_b32", "ViT-B-32")])
def test_plain_gelu_is_stopped_before_anything_is_computed(name: str, plain: str) -> None:
    wrong = open_clip.create_model(plain, device="meta")
    with pytest.raises(InputError, match=f"self-test of {name}: expected QuickGELU throughout, found GELU at .*gelu"):
        selftest.check(Backbone(spec(name), wrong, "f" * 64), Transform(224, *OPENAI))


@pytest.mark.parametrize("name", ["clip_rn50", "clip_vit_b32"])
def test_our_clip_has_openais_activation_throughout(name: str) -> None:
    module = spec(name).build(False, "meta")
    activations = [part for path, part in module.named_modules() if path.endswith(".gelu")]
    assert len(activations) == (12 if name == "clip_rn50" else 24)  # the text tower's blocks, and the ViT's own
    assert not [part for part in module.modules() if isinstance(part, nn.GELU)]
    values = torch.linspace(-5, 5, 101)
    for activation in activations:
        torch.testing.assert_close(activation(values), values / (1 + torch.exp(-1.702 * values)))


def test_clip_whose_pictures_and_captions_do_not_meet_is_stopped() -> None:
    random = load("clip_vit_b32", "random")
    with pytest.raises(InputError, match=r"self-test of clip_vit_b32: expected each of .* nearest to its own caption"):
        selftest.check(Backbone(random.spec, random.module, "f" * 64), Transform(224, *OPENAI))


def test_a_shorter_number_type_is_measured_against_float32() -> None:
    backbone = load("in_rn50", "random")
    transform = Transform(64, backbone.spec.mean, backbone.spec.std)
    said = selftest.precision(backbone, transform, choose(backbone.spec, ("L21", "L49")), "bfloat16")
    assert re.search(r"L21 0\.\d+%, L49 0\.\d+% apart", said)
    with torch.no_grad():
        backbone.module.layer2[0].bn1.weight.fill_(torch.nan)  # type: ignore[union-attr,index]
    with pytest.raises(InputError, match="nan%"):
        selftest.precision(backbone, transform, choose(backbone.spec, ("L49",)), "bfloat16")


@pytest.mark.assets
def test_features_too_far_from_float32_are_refused(asset_or_skip: Callable[[str], Path]) -> None:
    asset_or_skip("efficientnet-lite0")  # its activations have few bits to spare: bfloat16 is 5 % off, float16 0.7 %
    backbone = load("effnet_lite0")
    transform, taps = Transform(224, *LITE), choose(backbone.spec, ())
    selftest.precision(backbone, transform, taps, "float16")
    with pytest.raises(InputError, match=r"compute: bfloat16 changes the features of effnet_lite0 by more than 2%"):
        selftest.precision(backbone, transform, taps, "bfloat16")


def own(module: nn.Module, name: str = "mine:net") -> Backbone:
    """A module of a person's own with its own weights."""
    module = module.eval().requires_grad_(False)
    taps = find(module, (64, 64))
    own_spec = replace(spec("in_rn50"), name=name, taps=taps, default=usual(taps), size=64, test="none")
    return Backbone(own_spec, module, "f" * 64)


def test_of_ones_own_module_finite_maps_that_differ_are_asked_for() -> None:
    backbone = own(own_backbones.Odd())
    said = selftest.check(backbone, backbone.spec.transform())
    assert said == (
        "no known answer for mine:net; "
        "checked that the maps of stage1.1, stage2.1 are finite and differ between pictures"
    )
    broken = own(own_backbones.broken())
    with pytest.raises(InputError, match=r"self-test of mine:net: layer stage2.1 has values that are NaN or infinite"):
        selftest.check(broken, broken.spec.transform())
    blind = own(own_backbones.Blind())
    with pytest.raises(InputError, match=r"self-test of mine:net: layer conv is the same for different pictures"):
        selftest.check(blind, blind.spec.transform())


@pytest.mark.parametrize("name", ["timm/test_resnet.r160_in1k", "timm/test_vit.r160_in1k"])
def test_timms_classifiers_of_imagenet_are_asked_for_its_classes(name: str) -> None:
    random = load(name, "random")
    assert random.spec.test == "imagenet"
    with pytest.raises(InputError, match=f"self-test of {name}: expected coffee in one of the classes"):
        selftest.check(Backbone(random.spec, random.module, "f" * 64), random.spec.transform())


@pytest.mark.parametrize(("tag", "stopped"), [("openai", True), ("laion2b_e16", False)])
def test_quick_gelu_is_asked_for_where_the_tag_was_trained_with_it(tag: str, stopped: bool) -> None:
    plain = open_clip.create_model("ViT-B-32", device="meta")
    backbone = Backbone(spec(f"open_clip/ViT-B-32:{tag}"), plain, "f" * 64)
    with pytest.raises((InputError, NotImplementedError, RuntimeError)) as caught:  # meta tensors have no numbers
        selftest.check(backbone, backbone.spec.transform())
    assert ("expected QuickGELU throughout" in str(caught.value)) == stopped
