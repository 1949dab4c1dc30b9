"""What the store keeps of a feature map: against slow float64 loops and closed forms."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from devil_pipe.stages.extract.encode import encode, partition, quantise
from devil_pipe.stages.train.dropout import draw, pool, whole_mean
from devil_pipe.store.errors import InputError
from devil_pipe.store.layer import Stored
from devil_pipe.store.schema import BOUNDS, Encoding, Identity, LayerSpec
from devil_pipe.store.writer import StoreWriter

HALF = 2.0**-11  # relative error of rounding to float16
GRIDS = {"fine": (28, 28), "middle": (14, 14), "coarse": (7, 7), "one": (1, 1)}
SPREADS = {
    "relu": lambda noise: noise.clamp(min=0, max=6),
    "offset": lambda noise: 1000 + noise / 10,
    "below zero": lambda noise: -300 - noise.abs(),
    "large": lambda noise: noise.clamp(-3, 3) * 20_000,
    "tiny": lambda noise: noise * 1e-6,
    "subnormal": lambda noise: noise * 1e-7,
    "constant": lambda noise: torch.full_like(noise, 0.1),
}


def layer(name: str = "fine", channels: int = 3) -> LayerSpec:
    height, width = GRIDS[name]
    return LayerSpec(name=name, channels=channels, height=height, width=width)


def maps(of: LayerSpec, batch: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, of.locations, of.channels, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_float16_is_the_nearest_float16(kind: torch.dtype) -> None:
    values = maps(layer()).to(kind)
    found = encode(values, layer(), Encoding.parse("float16"), range(3))
    assert set(found) == {"fine"}
    assert np.array_equal(found["fine"], values.double().numpy().astype(np.float16))


@pytest.mark.parametrize("spread", SPREADS)
def test_a_quantised_value_is_at_most_half_a_step_off(spread: str) -> None:
    """Also where float16 cannot hold the bounds exactly: they are rounded outward."""
    exact = SPREADS[spread](maps(layer()))
    values, bounds = quantise(exact)
    low, high = bounds.double().unbind(dim=1)
    step = (high - low) / 255
    for picture in range(len(exact)):
        for place in range(exact.shape[1]):
            said = low[picture] + values[picture, place].double() * step[picture]
            off = (said - exact[picture, place].double()).abs()
            assert bool((off <= 0.5 * step[picture] * (1 + 1e-4)).all()), (picture, place)


@pytest.mark.parametrize("spread", SPREADS)
def test_bounds_enclose_the_values_and_no_more_than_they_must(spread: str) -> None:
    exact = SPREADS[spread](maps(layer()))
    low, high = quantise(exact)[1].double().unbind(dim=1)
    least, most = exact.double().amin(dim=1), exact.double().amax(dim=1)
    assert bool((low <= least).all())
    assert bool((high >= most).all())
    assert torch.allclose(low, least, rtol=4 * HALF, atol=2**-23)  # two steps of float16
    assert torch.allclose(high, most, rtol=4 * HALF, atol=2**-23)


def test_quantising_keeps_the_order() -> None:
    ascending = torch.linspace(-3, 5, 784)[None, :, None] * torch.tensor([1.0, 1e-3, 1e3])
    values = quantise(ascending)[0]
    assert all(bool((one <= other).all()) for one, other in pairwise(values[0].int()))
    assert values.amin() == 0
    assert values.amax() == 255


@pytest.mark.parametrize("constant", [0.0, 0.5, -2.0, 65504.0, 6e-8])
def test_a_constant_that_float16_holds_stays_what_it_is(constant: float) -> None:
    exact = torch.full((2, 49, 4), constant)
    values, bounds = quantise(exact)
    found = Stored(values.numpy(), bounds.numpy()).maps()
    assert np.array_equal(found, exact.numpy().astype(np.float16))


def test_the_zeros_of_a_relu_stay_zero() -> None:
    exact = maps(layer()).clamp(min=0)
    values, bounds = quantise(exact)
    found = Stored(values.numpy(), bounds.numpy()).maps()
    assert not found[exact.numpy() == 0].any()


@pytest.mark.parametrize("encoding", ["float16", "uint8", "partition:4", "pool:7", "uint8+zstd"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e6])
def test_what_float16_cannot_hold_is_refused_when_it_is_written(tmp_path: Path, encoding: str, value: float) -> None:
    of, chosen = layer("coarse"), Encoding.parse(encoding)
    spoiled = maps(of, batch=4)
    spoiled[2, 0, 1] = value
    identity = Identity(
        backbone="b",
        weights="random:0",
        layers=(of,),
        transform={},
        dtype=chosen.values,
        encoding=encoding,
        index="0" * 64,
        rows=4,
    )
    writer = StoreWriter(tmp_path, identity, 4)
    with pytest.raises(InputError, match="layer coarse, row 2"):
        writer.write_shard(0, encode(spoiled, of, chosen, range(4)), {})
    assert writer.missing_shards() == [0]


def test_just_above_the_largest_float16_rounds_down_as_float16_does() -> None:
    exact = torch.tensor([0.0, 65510.0]).reshape(1, 2, 1)
    values, bounds = quantise(exact)
    assert np.array_equal(Stored(values.numpy(), bounds.numpy()).maps().ravel(), [0, 65504])


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_pooled_quantised_map_is_within_half_a_step(name: str, rate: float) -> None:
    """The mean of errors is no larger than the largest of them; what is added is float32's rounding."""
    of = layer(name, channels=16)
    exact = maps(of, batch=8, seed=1).clamp(min=0) * 3
    found = encode(exact, of, Encoding.parse("uint8"), range(8))
    stored = Stored(found[name], found[name + BOUNDS])
    pooled = pool(stored, rate, torch.Generator().manual_seed(5)).double()
    keep = draw(8, of.locations, rate, torch.Generator().manual_seed(5))
    step = torch.from_numpy(stored.bounds[:, 1].astype(np.float64) - stored.bounds[:, 0]) / 255
    for picture in range(8):
        slow = exact[picture, keep[picture]].double().mean(dim=0)
        assert bool(((pooled[picture] - slow).abs() <= step[picture] / 2 + 2e-6).all())


def membership(of: LayerSpec, groups: int, rows: list[int]) -> np.ndarray:
    """bool [rows, groups, locations], seen from outside: a map whose channels are its locations."""
    wide = LayerSpec(name=of.name, channels=of.locations, height=of.height, width=of.width)
    ones = torch.eye(of.locations).expand(len(rows), -1, -1)
    means: np.ndarray = encode(ones, wide, Encoding.parse(f"partition:{groups}"), rows)[of.name]
    return means > 0


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("fine", [49] * 16), ("middle", [13] * 4 + [12] * 12), ("coarse", [4] + [3] * 15), ("one", [1])],
)
def test_sixteen_groups_as_even_as_can_be_hold_every_location_once(name: str, sizes: list[int]) -> None:
    found = membership(layer(name), 16, [0, 1, 70_000])
    assert (found.sum(axis=2) == sizes).all()
    assert (found.sum(axis=1) == 1).all()
    assert list(layer(name).group_sizes(16)) == sizes


def test_a_partition_follows_from_layer_and_row_whatever_the_batch() -> None:
    of = layer("middle")
    together = membership(of, 16, [5, 6, 7, 900])
    assert np.array_equal(together[3:], membership(of, 16, [900]))
    assert np.array_equal(together[[2, 0]], membership(of, 16, [7, 5]))
    values = maps(of, batch=4)
    encoding = Encoding.parse("partition:16")
    whole = encode(values, of, encoding, [5, 6, 7, 900])[of.name].astype(np.float64)
    alone = encode(values[3:], of, encoding, [900])[of.name].astype(np.float64)
    assert np.allclose(whole[3:], alone, rtol=2 * HALF, atol=1e-6)


def test_rows_and_layers_have_partitions_of_their_own() -> None:
    one, other = layer("fine"), LayerSpec(name="another", channels=3, height=28, width=28)
    drawn = [partition(one, 16, row).tobytes() for row in range(50)] + [partition(other, 16, 0).tobytes()]
    assert len(set(drawn)) == len(drawn)


def test_two_locations_meet_in_a_group_as_often_as_chance_has_it() -> None:
    """A pair of N locations is in one group with probability Σ s(s − 1) / N(N − 1)."""
    of, rows = layer("coarse"), 4000
    groups = np.stack([partition(of, 16, row) for row in range(rows)])
    sizes = np.array(of.group_sizes(16))
    expected = (sizes * (sizes - 1)).sum() / (49 * 48)
    sigma = np.sqrt(expected * (1 - expected) / rows)
    for first, second in [(0, 1), (0, 48), (3, 24), (7, 8)]:
        assert abs((groups[:, first] == groups[:, second]).mean() - expected) < 5 * sigma
    in_the_large_one = (groups == 0).mean(axis=0)
    assert np.abs(in_the_large_one - 4 / 49).max() < 5 * np.sqrt(4 / 49 * 45 / 49 / rows)


@pytest.mark.parametrize("name", GRIDS)
def test_group_means_are_a_slow_loop(name: str) -> None:
    of = layer(name)
    values = maps(of).clamp(min=0)
    found = encode(values, of, Encoding.parse("partition:16"), [4, 5, 6])[name]
    for picture, row in enumerate([4, 5, 6]):
        groups = partition(of, 16, row)
        for group in range(found.shape[1]):
            here = [place for place in range(of.locations) if groups[place] == group]
            members = [values[picture, place].double().numpy() for place in here]
            assert np.allclose(found[picture, group], sum(members) / len(members), rtol=2 * HALF, atol=2**-24)


@pytest.mark.parametrize("name", GRIDS)
def test_a_partition_keeps_the_mean_of_the_whole_map(name: str) -> None:
    of = layer(name)
    values = maps(of).clamp(min=0)
    found = encode(values, of, Encoding.parse("partition:16"), range(3))[name]
    mean = whole_mean(Stored(found, None, of.group_sizes(16))).double()
    assert torch.allclose(mean, values.double().mean(dim=1), rtol=2 * HALF, atol=1e-6)


@pytest.mark.parametrize(("name", "side"), [("fine", 14), ("fine", 7), ("middle", 5), ("coarse", 3)])
def test_pooling_is_a_slow_loop_over_windows(name: str, side: int) -> None:
    """Window i of n over H places: ⌊iH/n⌋ to ⌈(i + 1)H/n⌉."""
    of = layer(name)
    values = maps(of)
    found = encode(values, of, Encoding.parse(f"pool:{side}"), range(3))[name]
    square = values.double().numpy().reshape(3, of.height, of.width, -1)
    spans = [(place * of.height // side, -(-(place + 1) * of.height // side)) for place in range(side)]
    slow = [square[:, top:bottom, left:right].mean(axis=(1, 2)) for top, bottom in spans for left, right in spans]
    assert found.shape == (3, side * side, 3)
    assert np.allclose(found, np.stack(slow, axis=1), rtol=2 * HALF, atol=1e-6)


def test_pooling_that_divides_the_grid_keeps_the_mean_and_a_small_grid_is_left_alone() -> None:
    values = maps(layer("fine")).clamp(min=0)
    pooled = encode(values, layer("fine"), Encoding.parse("pool:7"), range(3))["fine"]
    assert np.allclose(pooled.astype(np.float64).mean(axis=1), values.double().mean(dim=1), rtol=2 * HALF)
    small = maps(layer("coarse"))
    assert np.array_equal(
        encode(small, layer("coarse"), Encoding.parse("pool:14"), range(3))["coarse"], small.half().numpy()
    )
