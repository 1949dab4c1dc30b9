"""A backbone drawn at random from the top down: which tensors go in which stage, and what each stage changes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from devil_pipe.stages.audit.backbone import Explained, open_backbone, randomised
from devil_pipe.stages.audit.findings import Needs
from devil_pipe.stages.audit.randomisation import rescaled
from devil_pipe.stages.audit.wrong_layer import moved_layers, shuffled
from devil_pipe.stages.extract.layers import layer_specs
from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.stages.extract.taps import Tap
from devil_pipe.store.schema import Identity

from .own_backbones import Odd

TRANSFORM = Transform((32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear")
TAPS = (Tap("low", "stage1"), Tap("high", "stage2"))


class Attending(nn.Module):
    """Patches, a learned token of the module itself, attention that uses its output projection without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 8)

    def forward(self, pixels: Tensor) -> Tensor:
        seen = torch.cat([self.token.expand(len(pixels), -1, -1), self.patches(pixels).flatten(2).transpose(1, 2)], 1)
        return self.last(self.attention(seen, seen, seen)[0])  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Own(Explained):
    """A module that is at hand."""

    def untrained(self, seed: int) -> nn.Module:
        torch.manual_seed(seed + 1)
        return type(self.module)().eval()


def own(module: nn.Module, taps: tuple[Tap, ...]) -> Own:
    module = module.eval().requires_grad_(False)
    layers = layer_specs(module, taps, (32, 32))
    store = Identity(backbone="own", weights="0", layers=layers, transform=TRANSFORM.describe(), index="none", rows=1)
    return Own(module, taps, layers, TRANSFORM, store, imagenet=False)


def test_stages_go_down_from_the_top_and_leave_the_head_alone() -> None:
    torch.manual_seed(0)
    stages = own(Odd(), TAPS).stages(least=2)
    assert [stage.name for stage in stages] == ["high", "low"]
    assert {path.split(".")[0] for path in stages[0].modules} == {"down", "stage2"}
    assert {path.split(".")[0] for path in stages[1].modules} == {"stem", "stage1"}


def test_halving_keeps_every_module_once_and_in_order() -> None:
    torch.manual_seed(0)
    backbone = own(Odd(), TAPS)
    few, many = backbone.stages(least=2), backbone.stages(least=5)
    assert len(many) == 5
    upward = [[path for stage in reversed(stages) for path in stage.modules] for stages in (few, many)]
    assert upward[0] == upward[1]
    assert len(set(upward[0])) == len(upward[0])


def test_each_stage_changes_its_own_layer_and_those_above_alone() -> None:
    torch.manual_seed(0)
    backbone = own(Odd(), TAPS)
    before = copy.deepcopy(backbone.module.state_dict())
    twin, stages = backbone.untrained(0), backbone.stages(least=2)
    pixels = torch.randn(2, 3, 32, 32)
    trained = backbone.maps(pixels)
    upper = backbone.maps(pixels, randomised(backbone.module, twin, stages[:1]))
    whole = backbone.maps(pixels, randomised(backbone.module, twin, stages))
    assert torch.equal(upper["low"], trained["low"])
    assert not torch.allclose(upper["high"], trained["high"])
    assert not torch.allclose(whole["low"], trained["low"])
    twins = backbone.maps(pixels, twin)
    for name in twins:  # with every stage drawn nothing of the training is left
        torch.testing.assert_close(whole[name], twins[name])
    assert all(torch.equal(value, before[name]) for name, value in backbone.module.state_dict().items())


def test_parts_that_no_forward_calls_go_with_their_parent() -> None:
    torch.manual_seed(0)
    backbone = own(Attending(), (Tap("all", "last", "tokens", prefix_tokens=1),))
    (stage,) = backbone.stages(least=1)
    assert set(stage.modules) == {"", "patches", "attention", "attention.out_proj", "last"}
    twin, pixels = backbone.untrained(0), torch.randn(1, 3, 32, 32)
    made = randomised(backbone.module, twin, (stage,))
    torch.testing.assert_close(backbone.maps(pixels, made)["all"], backbone.maps(pixels, twin)["all"])


def test_rescaled_features_have_the_trained_ones_moments_and_keep_their_order() -> None:
    torch.manual_seed(0)
    random, trained = 100 * torch.randn(3, 4, 5, 6) + 7, torch.randn(3, 4, 5, 6) - 1
    found = rescaled(random, trained)
    torch.testing.assert_close(found.mean((0, 1, 2)), trained.mean((0, 1, 2)))
    torch.testing.assert_close(found.std((0, 1, 2)), trained.std((0, 1, 2)))
    assert torch.equal(found[..., 2].flatten().argsort(), random[..., 2].flatten().argsort())


def test_random_weights_have_nothing_to_lose() -> None:
    torch.manual_seed(0)
    store = own(Odd(), TAPS).identity.model_copy(update={"weights": "random:3"})
    with pytest.raises(Needs, match="random:3"):
        open_backbone(store, "auto", torch.device("cpu"))


def test_a_backbone_that_nobody_knows_is_said_to_be_needed() -> None:
    torch.manual_seed(0)
    with pytest.raises(Needs, match="the backbone own"):
        open_backbone(own(Odd(), TAPS).identity, "auto", torch.device("cpu"))


def test_shuffled_channels_are_the_same_numbers_and_none_at_its_place() -> None:
    layers = [torch.arange(12.0).expand(3, 12), torch.arange(5.0).expand(3, 5)]
    for before, after in zip(layers, shuffled(layers, 0), strict=True):
        assert torch.equal(after.sort(dim=1).values, before)
        assert not (after == before).any()
        assert torch.equal(after[0], after[1]), "one permutation for every picture"


def test_layers_change_places_among_those_as_wide() -> None:
    torch.manual_seed(0)
    layers = [torch.randn(8, 4), 3 * torch.randn(8, 6) + 1, torch.randn(8, 4) - 5]
    moved = moved_layers(layers)
    assert moved is not None
    torch.testing.assert_close(moved[0].mean(0), layers[0].mean(0))
    torch.testing.assert_close(moved[0].std(0), layers[0].std(0))
    assert torch.equal(moved[0].argsort(0), layers[2].argsort(0))
    assert torch.equal(moved[2].argsort(0), layers[0].argsort(0))
    assert torch.equal(moved[1], layers[1])
    assert moved_layers(layers[:2]) is None
