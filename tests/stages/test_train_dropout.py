"""Spatial and layer dropout: counted, and against a slow loop."""

import numpy as np
import pytest
import torch

from devil_pipe.stages.train.dropout import draw, masked_mean, pool


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(batch: int, locations: int, channels: int, scale: float = 1.0) -> torch.Tensor:
    values = torch.randn(batch, locations, channels, generator=generator(7)) * scale
    return values.to(torch.float16)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_kept_share_is_one_minus_the_rate(rate: float) -> None:
    keep = draw(100, 1000, rate, generator())
    count = keep.numel()
    five_sigma = 5 * np.sqrt(count * rate * (1 - rate))
    assert abs(int(keep.sum()) - count * (1 - rate)) < five_sigma


def test_a_row_that_lost_everything_is_drawn_again_until_it_has_something() -> None:
    """Among three places at rate 0.5 each is then kept with 0.5 / (1 - 0.5³)."""
    keep = draw(20_000, 3, 0.5, generator())
    assert bool(keep.any(dim=1).all())
    expected = 0.5 / (1 - 0.5**3)
    sigma = np.sqrt(expected * (1 - expected) / len(keep))
    assert np.allclose(keep.double().mean(dim=0), expected, atol=5 * sigma)


def test_only_the_row_that_lost_everything_is_drawn_again() -> None:
    rate = 0.8
    first = torch.rand(200, 4, generator=generator(3)) >= rate
    empty = ~first.any(dim=1)
    assert 0 < int(empty.sum()) < 200
    keep = draw(200, 4, rate, generator(3))
    assert torch.equal(keep[~empty], first[~empty])
    assert bool(keep[empty].any(dim=1).all())


def test_rate_zero_keeps_everything() -> None:
    assert bool(draw(50, 7, 0.0, generator()).all())


@pytest.mark.parametrize("locations", [1, 2, 49, 196])
def test_masked_mean_is_a_loop_over_pictures(locations: int) -> None:
    values = maps(9, locations, 32)
    keep = draw(9, locations, 0.5, generator(1))
    slow = torch.stack([values[row, keep[row]].double().mean(dim=0) for row in range(9)])
    assert torch.allclose(masked_mean(values, keep).double(), slow, atol=1e-3, rtol=1e-3)


def test_masked_mean_of_large_values_does_not_overflow() -> None:
    """float16 ends at 65504; a sum in it would be infinite."""
    values = torch.full((2, 64, 8), 60_000.0, dtype=torch.float16)
    keep = draw(2, 64, 0.5, generator())
    assert torch.allclose(masked_mean(values, keep), torch.tensor(60_000.0), rtol=1e-3)


def test_what_is_dropped_takes_no_part() -> None:
    values = maps(4, 10, 8)
    keep = draw(4, 10, 0.5, generator(2))
    changed = values.clone()
    changed[~keep] = float("nan")
    assert torch.equal(masked_mean(values, keep), masked_mean(changed, keep))


def test_full_keep_is_the_plain_mean_beyond_float16() -> None:
    values = maps(5, 196, 16)
    found = masked_mean(values, torch.ones(5, 196, dtype=torch.bool))
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), values.double().mean(dim=1), rtol=0, atol=1e-6)


def test_rate_zero_pools_to_the_plain_mean() -> None:
    (found,) = pool([maps(5, 16, 8)], 0.0, generator())
    assert torch.allclose(found.double(), maps(5, 16, 8).double().mean(dim=1), atol=1e-6)


def test_layers_and_pictures_have_masks_of_their_own() -> None:
    """One channel for each location: the pooled vector shows which locations were kept."""
    places = 400
    shows = torch.eye(places, dtype=torch.float16).expand(6, -1, -1)
    first, second = (item > 0 for item in pool([shows, shows], 0.5, generator()))
    for one, other in ((first, second), (first[:3], first[3:]), (second[:3], second[3:])):
        both = (one & other).double().mean()
        assert abs(both - 0.25) < 5 * np.sqrt(0.25 * 0.75 / one.numel())
