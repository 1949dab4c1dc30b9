"""Deletion and insertion: against a loop that empties a picture step by step, and Grad-CAM against its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from devil_pipe.stages.extract.backbones import load
from devil_pipe.stages.extract.layers import choose
from devil_pipe.stages.extract.taps import Tap
from devil_pipe.stages.saliency.faithfulness import BLUR, SIGMA, Classifier, areas, order

CPU = torch.device("cpu")


class Bright(nn.Module):
    """Two classes; the first is the likelier the brighter the upper left quarter is."""

    def forward(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        light = pixels[:, :, : height // 2, : width // 2].mean(dim=(1, 2, 3))
        return torch.stack([4 * light, torch.zeros_like(light)], dim=1)


def corner(side: int) -> np.ndarray:
    values = np.zeros((side, side))
    values[: side // 2, : side // 2] = 1
    return values


def test_every_pixel_stands_once_in_the_order_and_ties_are_broken_at_random() -> None:
    values = np.array([[1.0, 3.0], [3.0, 2.0]])
    ranked = order(values, (2, 2), seed=0)
    assert sorted(ranked.tolist()) == [0, 1, 2, 3]
    assert set(ranked[:2].tolist()) == {1, 2}
    assert ranked[2:].tolist() == [3, 0]
    flat = [order(np.zeros((1, 1)), (6, 6), seed=seed).tolist() for seed in range(3)]
    assert flat[0] != flat[1] != flat[2]
    assert flat[0] == order(np.zeros((1, 1)), (6, 6), seed=0).tolist()


def test_a_coarse_map_is_upsampled_before_pixels_are_ranked() -> None:
    ranked = order(corner(2), (8, 8), seed=0)
    assert set(ranked[:4].tolist()) <= {row * 8 + column for row in range(4) for column in range(4)}


@pytest.mark.parametrize("steps", [2, 5, 36])
def test_the_areas_are_those_of_a_loop_over_steps(steps: int) -> None:
    pixels = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(1))
    ranked = order(np.random.default_rng(0).random((12, 12)), (12, 12), seed=0)
    classifier = Classifier(Bright().eval(), CPU)
    found = areas(classifier, pixels, 0, ranked, steps)
    blurred = gaussian_blur(pixels, [BLUR, BLUR], [SIGMA, SIGMA])
    ends = [round(step * 144 / steps) for step in range(steps + 1)]
    for kind, start, target in (("deletion", pixels, torch.zeros_like(pixels)), ("insertion", blurred, pixels)):
        curve = []
        for end in ends:
            picture = start.clone()
            for pixel in ranked[:end]:
                picture[:, pixel // 12, pixel % 12] = target[:, pixel // 12, pixel % 12]
            curve.append(float(classifier(picture[None])[0, 0]))
        pairs = zip(ends, ends[1:], curve, curve[1:], strict=False)
        expected = sum((right - left) * (one + two) / 2 for left, right, one, two in pairs) / 144
        assert getattr(found, kind) == pytest.approx(expected, abs=1e-6)


def test_a_map_of_what_decides_beats_its_opposite_in_both() -> None:
    pixels = torch.ones(3, 16, 16)
    classifier = Classifier(Bright().eval(), CPU)
    right, wrong = (
        areas(classifier, pixels, 0, order(values, (16, 16), seed=0), 16) for values in (corner(16), 1 - corner(16))
    )
    assert right.deletion < wrong.deletion
    textured = pixels * torch.linspace(0, 2, 16)[None, :, None].round()
    right, wrong = (
        areas(classifier, textured, 1, order(values, (16, 16), seed=0), 16) for values in (corner(16), 1 - corner(16))
    )
    assert 0 < right.insertion < 1


def test_a_constant_class_has_its_probability_as_area() -> None:
    class Even(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return torch.zeros(len(pixels), 4)

    found = areas(Classifier(Even().eval(), CPU), torch.rand(3, 12, 12), 2, order(np.zeros((2, 2)), (12, 12), 0), 7)
    assert (found.deletion, found.insertion) == (pytest.approx(0.25), pytest.approx(0.25))


@pytest.mark.parametrize("layer", ["s8", "s32"])
def test_grad_cam_is_the_gradient_weighted_sum_of_the_map(layer: str) -> None:
    """ReLU of the channels weighted by their gradients' means (Selvaraju et al. 2017, eq. 1 and 2), scaled to 0 … 1."""
    backbone = load("effnet_lite0", "random")
    (tap,) = choose(backbone.spec, [layer])
    pixels = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(2))
    found = Classifier(backbone.module, CPU).grad_cam(pixels, tap, 17)
    kept: list[Tensor] = []
    handle = backbone.module.get_submodule(tap.module).register_forward_hook(lambda *given: kept.append(given[2]))
    with torch.enable_grad():
        logits = backbone.module(pixels[None].requires_grad_())
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, 17], kept[0])
    weighted = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0]).sum(dim=1)[0].relu().detach().numpy()
    assert found.shape == (64, 64)
    assert (found.min(), found.max()) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.15))
    stride = 64 // weighted.shape[0]
    means = found.reshape(weighted.shape[0], stride, weighted.shape[1], stride).mean(axis=(1, 3))
    assert np.corrcoef(means.ravel(), weighted.ravel())[0, 1] > 0.95
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())


def test_grad_cam_reads_the_patch_tokens_of_a_transformer() -> None:
    class Patches(nn.Module):
        """A class token, then 2 × 3 patches; the class is decided by the fourth patch alone."""

        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Identity()
            self.scale = nn.Parameter(torch.ones(1), requires_grad=False)

        def forward(self, pixels: Tensor) -> Tensor:
            patches = pixels[:, :2].unfold(2, 8, 8).unfold(3, 8, 8).mean(dim=(4, 5)).flatten(2).transpose(1, 2)
            tokens = self.block(torch.cat([torch.zeros(len(pixels), 1, 2), patches], dim=1))
            return torch.stack([self.scale * tokens[:, 4].sum(dim=1), torch.zeros(len(pixels))], dim=1)

    pixels = torch.zeros(3, 16, 24)
    pixels[:, 8:, :8] = 1.0  # the fourth patch: second row, first column
    tap = Tap("block", "block", "tokens", prefix_tokens=1, stride=(8.0, 8.0))
    found = Classifier(Patches().eval(), CPU).grad_cam(pixels, tap, 0)
    assert np.unravel_index(int(found.argmax()), found.shape)[0] >= 8
    assert np.unravel_index(int(found.argmax()), found.shape)[1] < 8
