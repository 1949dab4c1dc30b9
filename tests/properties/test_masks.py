"""Masks on any grid and pooling under them, against slow loops in float64; spatial and layer dropout on any shape."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from devil_pipe.stages.extract.encode import encode
from devil_pipe.stages.extract.units import mask_weights, unit_means
from devil_pipe.stages.train.dropout import draw, pool, whole_mean
from devil_pipe.store.layer import Stored
from devil_pipe.store.schema import BOUNDS, Encoding, LayerSpec

from .profiles import cases

SIDE, GRID, SEED = st.integers(1, 20), st.integers(1, 8), st.integers(0, 2**31)


def bilinear(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resized by hand: two triangles, one unit of the mask's pixels wide to each side, around each cell's middle."""

    def triangles(pixels: int, count: int) -> np.ndarray:
        middles = np.clip((np.arange(count) + 0.5) * pixels / count - 0.5, 0, pixels - 1)
        return np.maximum(0, 1 - np.abs(middles[:, None] - np.arange(pixels)[None, :]))

    resized: np.ndarray = triangles(mask.shape[0], height) @ mask.astype(np.float64) @ triangles(mask.shape[1], width).T
    return resized


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Masks of one size, any aspect: noise, nothing, everything, or one pixel."""
    count, rows, columns = draw(st.integers(1, 3)), draw(SIDE), draw(SIDE)
    found = draw(arrays.arrays(np.bool_, (count, rows, columns)))
    kind = draw(st.sampled_from(["noise", "empty", "full", "one"]))
    if kind != "noise":
        found[0] = kind == "full"
    if kind == "one":
        found[0, draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))] = True
    return found


@cases
@given(masks(), GRID, GRID)
def test_a_mask_of_any_aspect_is_resized_bilinearly(found: np.ndarray, height: int, width: int) -> None:
    """Weights lie in [0, 1]; what is full stays full, what is empty empty; a single location counts by any pixel."""
    weights = mask_weights(torch.from_numpy(found), height, width).numpy().reshape(len(found), height, width)
    for mask, weight in zip(found, weights, strict=True):
        if (height, width) == (1, 1):
            assert weight.item() == float(mask.any())
            continue
        np.testing.assert_allclose(weight, bilinear(mask, height, width), atol=2e-5)
        assert weight.min() >= 0
        assert weight.max() <= 1 + 1e-6
        if mask.all():
            np.testing.assert_allclose(weight, 1, atol=1e-6)
        if not mask.any():
            assert not weight.any()


@cases
@given(st.data(), st.integers(1, 6), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), SEED)
def test_a_unit_is_a_weighted_mean_of_what_its_masks_show(
    data: st.DataObject, pictures: int, locations: int, channels: int, count: int, seed: int
) -> None:
    """By a loop over units, exemplars and locations; exemplars without weight, and units without exemplars, too."""
    random = np.random.default_rng(seed)
    maps = random.normal(size=(pictures, locations, channels))
    weights = random.random((pictures, locations)) * (random.random((pictures, locations)) < 0.5)
    weights[data.draw(st.lists(st.integers(0, pictures - 1)), label="empty masks")] = 0
    units = data.draw(st.lists(st.integers(0, count - 1), min_size=pictures, max_size=pictures), label="units")
    maps, weights = maps.astype(np.float32), weights.astype(np.float32)
    found, valid = unit_means(torch.from_numpy(maps), torch.from_numpy(weights), torch.tensor(units), count)
    for unit in range(count):
        shown = []
        for picture in range(pictures):
            total = sum(float(weight) for weight in weights[picture])
            if units[picture] == unit and total > 0:
                parts = [float(w) * maps[picture, at].astype(np.float64) for at, w in enumerate(weights[picture])]
                shown.append(sum(parts) / total)
        assert int(valid[unit]) == len(shown)
        expected = np.mean(shown, axis=0) if shown else np.zeros(channels)
        np.testing.assert_allclose(found[unit].numpy(), expected, rtol=1e-4, atol=1e-5)


@cases
@given(st.data(), st.integers(1, 20), st.integers(1, 30), st.floats(0, 0.99), SEED)
def test_dropout_keeps_something_of_what_is_there(
    data: st.DataObject, batch: int, places: int, rate: float, seed: int
) -> None:
    there = data.draw(arrays.arrays(np.bool_, (batch, places)), label="there")
    there[np.arange(batch), data.draw(st.integers(0, places - 1))] = True
    keep = draw(batch, places, rate, torch.Generator().manual_seed(seed), torch.from_numpy(there)).numpy()
    assert keep.any(axis=1).all()
    assert not (keep & ~there).any()
    if rate == 0:
        assert (keep == there).all()
    assert (
        keep == draw(batch, places, rate, torch.Generator().manual_seed(seed), torch.from_numpy(there)).numpy()
    ).all()


@cases
@given(
    st.builds(LayerSpec, name=st.just("l"), channels=st.integers(1, 9), height=GRID, width=GRID),
    st.sampled_from(["float16", "uint8", "partition:5", "pool:3"]),
    st.integers(1, 5),
    st.floats(0, 0.95),
    SEED,
)
def test_a_pooled_feature_lies_among_the_features(
    layer: LayerSpec, encoding: str, batch: int, rate: float, seed: int
) -> None:
    """Whatever is dropped, a mean of kept ones lies between the least and the greatest; with all kept it is theirs."""
    exact = np.random.default_rng(seed).normal(size=(batch, layer.locations, layer.channels)).astype(np.float16)
    of = Encoding.parse(encoding)
    coded = encode(torch.from_numpy(exact), layer, of, range(batch))
    sizes = layer.group_sizes(of.size) if of.reduce == "partition" else None
    stored = Stored(coded["l"], coded.get("l" + BOUNDS), sizes)
    decoded = stored.maps().astype(np.float64)
    found = pool(stored, rate, torch.Generator().manual_seed(seed)).numpy()
    slack = 4e-3 * np.abs(decoded).max()  # two roundings to float16
    assert (found >= decoded.min(axis=1) - slack).all()
    assert (found <= decoded.max(axis=1) + slack).all()
    weights = np.ones(decoded.shape[1]) if sizes is None else np.array(sizes, dtype=float)
    expected = np.einsum("blc,l->bc", decoded, weights / weights.sum())
    np.testing.assert_allclose(whole_mean(stored).numpy(), expected, atol=slack)
    if of.reduce != "pool":  # whose cells may overlap
        np.testing.assert_allclose(expected, exact.astype(np.float64).mean(axis=1), atol=2 * slack)
