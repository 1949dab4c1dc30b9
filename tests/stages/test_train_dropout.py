"""Spatial and layer dropout: counted, against slow loops in float64, and against variances that are known exactly."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from devil_pipe.stages.extract.encode import encode, quantise
from devil_pipe.stages.train.dropout import draw, masked_mean, masked_mean_of_bytes, pool, whole_mean
from devil_pipe.store.layer import Stored
from devil_pipe.store.schema import BOUNDS, Encoding, LayerSpec


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


def slow_mean(maps: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """A loop over pictures in float64."""
    return torch.stack([one[kept].double().mean(dim=0) for one, kept in zip(maps, keep, strict=True)])


@st.composite
def masked(draw_from: st.DrawFn) -> tuple[int, int, int, float, int]:
    """Pictures, locations, channels, rate, and a seed."""
    size = draw_from(st.tuples(st.integers(1, 9), st.integers(1, 130), st.integers(1, 70)))
    return *size, draw_from(st.sampled_from([0.0, 0.1, 0.5, 0.9])), draw_from(st.integers(0, 1000))


@settings(deadline=None)
@given(masked(), st.integers(-6, 4))
def test_masked_mean_is_a_loop_over_pictures(case: tuple[int, int, int, float, int], power: int) -> None:
    """One rounding to float16: 2⁻¹¹ of the mean or 2⁻²⁴, and what adding up in float32 costs."""
    batch, locations, channels, rate, seed = case
    values = (torch.randn(batch, locations, channels, generator=generator(seed)) * 10.0**power).half()
    keep = draw(batch, locations, rate, generator(seed + 1))
    slow, found = slow_mean(values, keep), masked_mean(values, keep)
    assert found.dtype == torch.float32
    added = locations * 2.0**-24 * values.double().abs().amax(dim=1)
    assert bool(((found.double() - slow).abs() <= 1.001 * 2.0**-11 * slow.abs() + 2.0**-24 + added).all())


@pytest.mark.parametrize("value", [65504.0, -65504.0, 60_000.0])
@pytest.mark.parametrize("locations", [1, 3, 64, 784, 5000])
def test_masked_mean_of_the_largest_values_does_not_overflow(value: float, locations: int) -> None:
    """float16 ends at 65504; a sum in it would be infinite."""
    values = torch.full((3, locations, 8), value, dtype=torch.float16)
    keep = draw(3, locations, 0.5, generator())
    assert torch.allclose(masked_mean(values, keep), torch.tensor(value), rtol=2.0**-11)


def test_what_is_dropped_takes_no_part() -> None:
    values = maps(4, 10, 8)
    keep = draw(4, 10, 0.5, generator(2))
    changed = values.clone()
    changed[~keep] = float("nan")
    assert torch.equal(masked_mean(values, keep), masked_mean(changed, keep))
    quantised, _ = quantise(values)
    changed = torch.where(keep[..., None], quantised, 255 - quantised)
    assert torch.equal(masked_mean_of_bytes(quantised, keep), masked_mean_of_bytes(changed, keep))


def test_full_keep_is_the_plain_mean_beyond_float16() -> None:
    values = maps(5, 196, 16)
    found = masked_mean(values, torch.ones(5, 196, dtype=torch.bool))
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), values.double().mean(dim=1), rtol=0, atol=1e-6)


@settings(deadline=None)
@given(masked())
def test_the_mean_of_bytes_is_a_whole_sum_divided_once(case: tuple[int, int, int, float, int]) -> None:
    """Correctly rounded: what float64, which holds the sum as well, rounds to."""
    batch, locations, channels, rate, seed = case
    values = torch.randint(0, 256, (batch, locations, channels), generator=generator(seed), dtype=torch.uint8)
    keep = draw(batch, locations, rate, generator(seed + 1))
    assert torch.equal(masked_mean_of_bytes(values, keep), slow_mean(values, keep).float())


def test_the_mean_of_bytes_is_exact_on_a_large_grid() -> None:
    """256 × 256 locations of the largest byte, one of another."""
    values = torch.full((1, 65536, 2), 255, dtype=torch.uint8)
    values[0, 77, 1] = 0
    found = masked_mean_of_bytes(values, torch.ones(1, 65536, dtype=torch.bool))
    assert found.tolist() == [[255.0, float(np.float32((65535 * 255) / 65536))]]


GRIDS = ((7, 7), (14, 14), (5, 3), (1, 1))


def stored(maps_: torch.Tensor, layer: LayerSpec, encoding: str, first: int = 0) -> Stored:
    """Maps as stage one would write them and the reader read them."""
    parsed = Encoding.parse(encoding)
    arrays = encode(maps_, layer, parsed, range(first, first + len(maps_)))
    sizes = layer.group_sizes(parsed.size) if parsed.reduce == "partition" else None
    return Stored(arrays[layer.name], arrays.get(layer.name + BOUNDS), sizes)


@pytest.mark.parametrize(("height", "width"), GRIDS)
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_pooled_bytes_stand_for_the_decoded_maps(height: int, width: int, rate: float) -> None:
    """low + mean · (high − low) / 255 beside the rule for each value, in float64; a few units of float32 off."""
    layer = LayerSpec(name="some", channels=20, height=height, width=width)
    held = stored(maps(6, layer.locations, 20, scale=30.0), layer, "uint8")
    keep = draw(6, layer.locations, rate, generator(5))
    assert held.bounds is not None
    low, high = (torch.from_numpy(held.bounds[:, side, None].astype(np.float64)) for side in (0, 1))
    slow = slow_mean(low + torch.from_numpy(held.values) * (high - low) / 255, keep)
    found = pool(held, rate, generator(5)).double()
    assert bool(((found - slow).abs() <= 2.0**-21 * (low.abs() + high.abs())[:, 0]).all())


@pytest.mark.parametrize(("height", "width"), GRIDS)
@pytest.mark.parametrize("encoding", ["float16", "uint8", "partition:1", "partition:4", "partition:16", "partition:99"])
def test_rate_zero_is_the_whole_mean(height: int, width: int, encoding: str) -> None:
    """Of float16 maps in float32; bytes are half a step off; a partition's means were rounded to float16."""
    layer = LayerSpec(name="some", channels=11, height=height, width=width)
    values = maps(5, layer.locations, 11)
    tolerance = {"float16": 1e-6, "uint8": 0.5 * 8 / 255}.get(encoding, 4 * 2.0**-11)
    found = whole_mean(stored(values, layer, encoding))
    assert torch.allclose(found.double(), values.double().mean(dim=1), rtol=0, atol=tolerance)


def groups(batch: int, sizes: tuple[int, ...]) -> Stored:
    """A partition whose pooled vector shows the weight of each group: one channel for each."""
    return Stored(np.repeat(np.eye(len(sizes), dtype=np.float16)[None], batch, axis=0), None, sizes)


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.sampled_from([0.0, 0.25, 0.5, 0.9]))
def test_a_partition_keeps_exactly_its_share_of_groups_weighted_by_size(sizes: list[int], rate: float) -> None:
    weights = pool(groups(7, tuple(sizes)), rate, generator()).double()
    kept = weights > 0
    assert set(kept.sum(dim=1).tolist()) == {max(1, round(len(sizes) * (1 - rate)))}
    exact = kept * torch.tensor(sizes).double()
    assert torch.allclose(weights, exact / exact.sum(dim=1, keepdim=True), atol=1e-6)


def test_every_choice_of_groups_is_equally_likely() -> None:
    kept = pool(groups(21_000, (3, 2, 2, 1)), 0.5, generator()) > 0
    choices, counts = torch.unique(kept, dim=0, return_counts=True)
    assert len(choices) == 6
    assert bool(((counts - 3500).abs() < 5 * np.sqrt(21_000 / 6 * 5 / 6)).all())


def test_a_partitions_draws_have_the_exact_mean_and_variance_over_all_choices() -> None:
    """All 12,870 halves of 16 groups of unlike sizes, against as many draws: 5 standard errors."""
    sizes = (4, *(3,) * 15)
    means = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float16)
    every = []
    for chosen in combinations(range(16), 8):
        share = np.array(sizes, dtype=np.float64)[list(chosen)]
        every.append(share @ means[list(chosen)].astype(np.float64) / share.sum())
    exact = np.array(every)
    draws = pool(Stored(np.repeat(means[None], 40_000, axis=0), None, sizes), 0.5, generator()).double().numpy()
    assert np.all(np.abs(draws.mean(axis=0) - exact.mean(axis=0)) < 5 * exact.std(axis=0) / np.sqrt(len(draws)))
    # The standard error of a normal's variance, which is larger than that of these bounded sums.
    assert np.allclose(draws.var(axis=0), exact.var(axis=0), rtol=5 * np.sqrt(2 / len(draws)))


@pytest.mark.parametrize("encoding", ["float16", "uint8", "partition:16"])
@pytest.mark.parametrize("side", [7, 14])
def test_over_many_draws_the_mean_is_the_whole_mean_and_the_noise_that_of_the_full_grid(
    encoding: str, side: int
) -> None:
    """Pictures of one map, each with its own draw (and partition), beside what is known of L locations.

    A random half of L has the variance S² / L, with S² over the locations; Bernoulli's half, of n locations,
    S² (E[1/n] − 1/L). Their ratio is 0.99 for 14 × 14 and 0.95 for 7 × 7: a partition's noise is nearly the grid's.
    """
    layer = LayerSpec(name="some", channels=24, height=side, width=side)
    one, count, locations = maps(1, side * side, 24), 4000, side * side
    draws = pool(stored(one.expand(count, -1, -1), layer, encoding), 0.5, generator(3)).double()
    square = one[0].double().var(dim=0)
    kept = np.arange(1, locations + 1)
    log_chance = [0.0]
    for number in range(1, locations + 1):
        log_chance.append(log_chance[-1] + np.log((locations - number + 1) / number))
    chance = np.exp(np.array(log_chance[1:]) - locations * np.log(2))
    bernoulli = float((chance / kept).sum() / chance.sum() - 1 / locations)
    if encoding == "partition:16":
        sizes = torch.tensor(layer.group_sizes(16)).double()
        halves = [float(sizes[list(chosen)].sum()) for chosen in combinations(range(16), 8)]
        expected = float(np.mean([1 / half for half in halves])) - 1 / locations
        assert 0.94 < expected / bernoulli < 1
    else:
        expected = bernoulli
    noise = (expected * square).sqrt()
    assert bool(((draws.mean(dim=0) - one[0].double().mean(dim=0)).abs() < 5 * noise / np.sqrt(count) + 2e-3).all())
    # 24 unrelated channels of 4,000 draws: five standard errors of the mean ratio are 5 · √(2/4000) / √24 = 2.3 %.
    assert float((draws.var(dim=0) / (expected * square)).mean()) == pytest.approx(1, rel=0.023)


@pytest.mark.parametrize("encoding", ["float16", "uint8", "partition:8"])
def test_draws_follow_the_generator_alone_and_layers_draw_on(encoding: str) -> None:
    layer = LayerSpec(name="some", channels=6, height=5, width=5)
    held = stored(maps(4, 25, 6), layer, encoding)
    one, other = generator(9), generator(9)
    first, second = pool(held, 0.5, one), pool(held, 0.5, one)
    assert torch.equal(first, pool(held, 0.5, other))
    assert torch.equal(second, pool(held, 0.5, other))
    assert not torch.equal(first, second)


def test_layers_and_pictures_have_masks_of_their_own() -> None:
    """One channel for each location: the pooled vector shows which locations were kept."""
    places = 400
    shows = Stored(np.repeat(np.eye(places, dtype=np.float16)[None], 6, axis=0))
    source = generator()
    first, second = (pool(shows, 0.5, source) > 0 for _ in range(2))
    for one, other in ((first, second), (first[:3], first[3:]), (second[:3], second[3:])):
        both = (one & other).double().mean()
        assert abs(both - 0.25) < 5 * np.sqrt(0.25 * 0.75 / one.numel())


def test_a_unit_s_mean_is_left_as_it_is_at_any_rate() -> None:
    means = maps(5, 1, 7)
    held = Stored(means.numpy(), exemplars=np.full((5, 1, 1), 3, dtype=np.uint8))
    for rate in (0.0, 0.9):
        torch.testing.assert_close(pool(held, rate, generator()), means[:, 0].float())


def test_what_is_not_there_is_never_kept_and_the_rest_at_the_rate() -> None:
    count = 20_000
    there = torch.tensor([[True, False, True, True]]).expand(count, -1)
    keep = draw(count, 4, 0.5, generator(), there)
    assert not keep[:, 1].any()
    assert keep.any(dim=1).all()
    # of three layers, given that one at least is kept: 4/7 each
    expected = 4 / 7
    shares = keep[:, [0, 2, 3]].double().mean(dim=0)
    assert bool(((shares - expected).abs() < 5 * np.sqrt(expected * (1 - expected) / count)).all())
    alone = draw(3, 2, 0.99, generator(), torch.tensor([[False, True], [True, False], [False, True]]))
    assert alone.tolist() == [[False, True], [True, False], [False, True]]
    with pytest.raises(AssertionError, match="drawn for ever"):
        draw(1, 2, 0.5, generator(), torch.tensor([[False, False]]))
